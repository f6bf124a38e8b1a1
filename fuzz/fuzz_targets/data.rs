//! Data files of every format.
#![no_main]

use std::path::Path;

use halfbyte::data::parse_records;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (format, bytes) = input;
    let name = ["data.jsonl", "data.json", "data.csv", "data.parquet"][usize::from(format % 4)];
    let _ = parse_records(Path::new(name), &bytes, &mut |_, _, _| Ok(()));
});
