//! A safetensors file.
#![no_main]

use halfbyte::files::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Checkpoint::from_bytes("model.safetensors", bytes.to_vec()) else { return };
    for name in file.names() {
        let Ok(tensor) = file.tensor(name) else { continue };
        let _ = tensor.to_f32();
    }
});
