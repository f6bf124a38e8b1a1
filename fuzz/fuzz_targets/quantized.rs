//! The 4-bit weights of a safetensors file.
#![no_main]

use halfbyte::files::{Checkpoint, stored_weight};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Checkpoint::from_bytes("model.safetensors", bytes.to_vec()) else { return };
    for name in file.names() {
        if let Ok(Some(data)) = stored_weight(&file, name) {
            let _ = data.dequantize();
        }
    }
});
