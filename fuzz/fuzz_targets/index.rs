//! `model.safetensors.index.json`.
#![no_main]

use halfbyte::files::ShardIndex;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = ShardIndex::parse("model.safetensors.index.json", bytes) else { return };
    for shard in index.shards() {
        // Whatever was accepted stays inside the folder.
        assert_eq!(std::path::Path::new("folder").join(shard).parent(), Some(std::path::Path::new("folder")));
    }
    let _ = index.tensors().count();
});
