//! The same models on a GPU through wgpu, under fusion.

use halfbyte::backends::{Wgpu, WgpuDevice};
use halfbyte_tests::reference::{gradients_match, logits_match};

/// The software rasterizer, which every machine that runs the tests has; it is asked for by kind, so that a machine with
/// a GPU tests the same adapter.
const RASTERIZER: WgpuDevice = WgpuDevice::Cpu;

#[test]
fn logits_and_gradients_match_on_wgpu() {
    logits_match::<Wgpu>(&RASTERIZER);
    gradients_match::<Wgpu>(&RASTERIZER);
}
