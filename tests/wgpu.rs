//! The same models on a GPU through wgpu, under fusion.

use burn::tensor::TensorData;
use burn_wgpu::WgpuRuntime;
use halfbyte::backends::{Wgpu, WgpuDevice};
use halfbyte::nf4::quantize;
use halfbyte::ops::{ComputeDtype, Nf4Weight, Ops};
use halfbyte_tests::{
    activations, attention, consistency, memory, operations, optimizers, ranks, reference, shaders, stages, uploads,
};

/// The software rasterizer, which every machine that runs the tests has; it is asked for by kind, so that a machine with
/// a GPU tests the same adapter.
const RASTERIZER: WgpuDevice = WgpuDevice::Cpu;

#[test]
fn uploads_arrive() {
    uploads::uploads_arrive::<Wgpu>(&RASTERIZER);
}

#[test]
fn logits_match() {
    reference::logits_match::<Wgpu>(&RASTERIZER);
}

#[test]
fn gradients_match() {
    reference::gradients_match::<Wgpu>(&RASTERIZER);
}

#[test]
fn ranks_make_the_steps_of_one() {
    ranks::ranks_make_the_steps_of_one::<Wgpu>(&[2], &RASTERIZER);
}

#[test]
fn kernels_conform() {
    operations::kernels_conform::<Wgpu>(&RASTERIZER);
}

#[test]
fn quantizing_is_exact() {
    shaders::quantizing_is_exact::<WgpuRuntime, u32>(&RASTERIZER);
}

#[test]
fn parts_decode_into_every_type() {
    shaders::parts_decode_into_every_type::<WgpuRuntime, u32>(&RASTERIZER);
}

#[test]
fn subgroups_sum_right() {
    shaders::subgroups_sum_right::<WgpuRuntime, u32>(&RASTERIZER);
}

#[test]
fn products_match() {
    operations::products_match::<Wgpu>(&RASTERIZER);
}

#[test]
fn large_tables_match() {
    operations::large_tables_match::<Wgpu>(&RASTERIZER);
}

#[test]
fn large_products_match() {
    operations::large_products_match::<Wgpu>(&RASTERIZER);
}

#[test]
fn nf4_products_match() {
    operations::nf4_products_match::<Wgpu>(&RASTERIZER);
}

#[test]
fn elementwise_blocks_match() {
    operations::elementwise_blocks_match::<Wgpu>(&RASTERIZER);
}

#[test]
fn lora_linear_matches() {
    operations::lora_linear_matches::<Wgpu>(&RASTERIZER);
}

#[test]
fn attention_matches() {
    attention::attention_matches::<Wgpu>(&RASTERIZER);
}

#[test]
fn dropout_matches() {
    operations::dropout_matches::<Wgpu>(&RASTERIZER);
}

#[test]
fn cross_entropy_matches() {
    operations::cross_entropy_matches::<Wgpu>(&RASTERIZER);
}

#[test]
fn ragged_batches_are_their_sequences() {
    consistency::ragged_batches_are_their_sequences::<Wgpu>(&RASTERIZER);
}

#[test]
fn recomputation_drops_the_same_elements() {
    consistency::recomputation_drops_the_same_elements::<Wgpu>(&RASTERIZER);
}

#[test]
fn an_adapter_may_sit_on_the_upper_layer_alone() {
    consistency::an_adapter_may_sit_on_the_upper_layer_alone::<Wgpu>(&RASTERIZER);
}

#[test]
fn products_in_16_bits_are_nearly_the_same() {
    consistency::products_in_16_bits_are_nearly_the_same::<Wgpu>(&RASTERIZER);
}

#[test]
fn activations_in_16_bits_are_nearly_the_same() {
    activations::of_16_bits_are_nearly_the_same::<Wgpu>(&RASTERIZER);
}

#[test]
fn activations_in_16_bits_go_on_in_a_cache() {
    activations::of_16_bits_go_on_in_a_cache::<Wgpu>(&RASTERIZER);
}

#[test]
fn tables_in_parts_are_the_whole() {
    consistency::tables_in_parts_are_the_whole::<Wgpu>(&RASTERIZER);
}

#[test]
fn tables_in_16_bits_are_their_values() {
    consistency::tables_in_16_bits_are_their_values::<Wgpu>(&RASTERIZER);
}

#[test]
fn adamw_is_torchs() {
    optimizers::adamw_is_torchs::<Wgpu>(&RASTERIZER);
}

#[test]
fn the_8_bit_state_is_nearly_that_of_bitsandbytes() {
    optimizers::eight_bit_is_bitsandbytes::<Wgpu>(false, &RASTERIZER);
}

#[test]
fn paging_changes_no_bit() {
    optimizers::paging_changes_no_bit::<Wgpu>(&RASTERIZER);
}

#[test]
fn withheld_steps_change_no_bit() {
    optimizers::withheld_steps_change_no_bit::<Wgpu>(&RASTERIZER);
}

#[test]
fn many_at_once_are_each_alone() {
    optimizers::many_at_once_are_each_alone::<Wgpu>(&RASTERIZER, 0);
}

#[test]
fn factors_are_zero_for_no_numbers() {
    optimizers::factors_are_zero_for_no_numbers::<Wgpu>(&RASTERIZER);
}

/// What a model's weights and tables take of a GPU is what they are, not the pages that others would share.
#[test]
fn what_stays_takes_its_own_bytes() {
    let device = WgpuDevice::DefaultDevice;
    let reserved = || <Wgpu>::most_reserved(&device).expect("the allocator counts");
    let shape = [2048, 4096];
    let codes = (shape[0] * shape[1] / 2) as u64;
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i % 251) as f32 / 250.0).collect();
    let quantized = || {
        let weight = Nf4Weight::<Wgpu>::quantize(TensorData::new(values.clone(), shape), shape, 64, true, &device);
        pollster::block_on(weight).expect("a weight")
    };
    let data = quantize(&values, shape, 64, true).expect("a weight");
    let uploaded = || Nf4Weight::<Wgpu>::upload(&data, &device).expect("a weight");
    // The first of each makes room for what is gone when it is there.
    let mut held = vec![quantized(), uploaded()];
    for make in [&quantized as &dyn Fn() -> Nf4Weight<Wgpu>, &uploaded] {
        let before = reserved();
        held.extend((0..5).map(|_| make()));
        let each = (reserved() - before) / 5;
        assert!((codes..codes + codes / 4).contains(&each), "{each} bytes for a weight of {codes}");
    }
}

#[test]
fn steps_take_what_the_plan_says() {
    memory::steps_take_what_the_plan_says::<Wgpu>(&RASTERIZER, ComputeDtype::F32);
}

#[test]
fn sizes_that_never_come_back_do_not_pile_up() {
    memory::sizes_that_never_come_back_do_not_pile_up::<Wgpu>(&RASTERIZER);
}

#[test]
fn stages_change_next_to_nothing() {
    // Where there is no other adapter, a second device of the rasterizer's own.
    stages::stages_change_next_to_nothing::<Wgpu>(&[RASTERIZER, WgpuDevice::DefaultDevice]);
}
