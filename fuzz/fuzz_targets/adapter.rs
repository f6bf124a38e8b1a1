//! `adapter_config.json`, and the tensors of an adapter with a configuration that may not be theirs.
#![no_main]

use halfbyte::files::{AdapterConfig, AdapterFile, Checkpoint};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (config, weights) = input;
    let Ok(config) = AdapterConfig::parse("adapter_config.json", &config) else { return };
    let Ok(file) = Checkpoint::from_bytes("adapter_model.safetensors", weights) else { return };
    let Ok(file) = AdapterFile::new(config, file) else { return };
    for layer in file.layers() {
        let _ = file.matrices(&layer, None);
    }
});
