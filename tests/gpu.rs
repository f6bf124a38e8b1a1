//! The same models on a CUDA GPU, under fusion: in f32, and in bf16 where products are computed in it.
//!
//! `cargo test --release --workspace --test gpu -- --ignored` on a machine that has one.

use cubecl::cuda::CudaRuntime;
use halfbyte::backends::{Cuda, CudaDevice, trust_cuda_kernels};
use halfbyte::ops::ComputeDtype;
use halfbyte_tests::{activations, attention, consistency, memory, operations, optimizers, ranks, reference, uploads};

/// Runs a comparison on the first GPU, with every kernel chosen that the self-test decides on.
fn on_gpu(compare: impl Fn(&CudaDevice)) {
    trust_cuda_kernels();
    compare(&CudaDevice::default());
}

/// Each comparison as a test of its own.
macro_rules! tests {
    ($($name:ident: $compare:expr;)*) => {
        $(
            #[test]
            #[ignore = "needs a CUDA GPU"]
            fn $name() {
                on_gpu($compare);
            }
        )*
    };
}

tests! {
    uploads_arrive: uploads::uploads_arrive::<Cuda>;
    uploads_hide_no_refusal: uploads::uploads_hide_no_refusal::<CudaRuntime>;
    logits_match: reference::logits_match::<Cuda>;
    gradients_match: reference::gradients_match::<Cuda>;
    kernels_conform: operations::kernels_conform::<Cuda>;
    products_match: operations::products_match::<Cuda>;
    large_tables_match: operations::large_tables_match::<Cuda>;
    large_products_match: operations::large_products_match::<Cuda>;
    nf4_products_match: operations::nf4_products_match::<Cuda>;
    elementwise_blocks_match: operations::elementwise_blocks_match::<Cuda>;
    lora_linear_matches: operations::lora_linear_matches::<Cuda>;
    attention_matches: attention::attention_matches::<Cuda>;
    dropout_matches: operations::dropout_matches::<Cuda>;
    cross_entropy_matches: operations::cross_entropy_matches::<Cuda>;
    ragged_batches_are_their_sequences: consistency::ragged_batches_are_their_sequences::<Cuda>;
    recomputation_drops_the_same_elements: consistency::recomputation_drops_the_same_elements::<Cuda>;
    an_adapter_may_sit_on_the_upper_layer_alone: consistency::an_adapter_may_sit_on_the_upper_layer_alone::<Cuda>;
    products_in_16_bits_are_nearly_the_same: consistency::products_in_16_bits_are_nearly_the_same::<Cuda>;
    activations_in_16_bits_are_nearly_the_same: activations::of_16_bits_are_nearly_the_same::<Cuda>;
    activations_in_16_bits_go_on_in_a_cache: activations::of_16_bits_go_on_in_a_cache::<Cuda>;
    tables_in_parts_are_the_whole: consistency::tables_in_parts_are_the_whole::<Cuda>;
    tables_in_16_bits_are_their_values: consistency::tables_in_16_bits_are_their_values::<Cuda>;
    adamw_is_torchs: optimizers::adamw_is_torchs::<Cuda>;
    the_8_bit_state_is_nearly_that_of_bitsandbytes: |device| optimizers::eight_bit_is_bitsandbytes::<Cuda>(false, device);
    paging_changes_no_bit: optimizers::paging_changes_no_bit::<Cuda>;
    withheld_steps_change_no_bit: optimizers::withheld_steps_change_no_bit::<Cuda>;
    // For a tensor of nothing Burn launches grids of nothing, which CUDA refuses (CubeCL 0.10; mended after it).
    many_at_once_are_each_alone: |device| optimizers::many_at_once_are_each_alone::<Cuda>(device, 1);
    factors_are_zero_for_no_numbers: optimizers::factors_are_zero_for_no_numbers::<Cuda>;
    ranks_make_the_steps_of_one: |device| ranks::ranks_make_the_steps_of_one::<Cuda>(&[2], device);
    steps_take_what_the_plan_says: |device| memory::steps_take_what_the_plan_says::<Cuda>(device, ComputeDtype::F32);
    steps_in_16_bits_take_what_the_plan_says: |device| {
        memory::steps_take_what_the_plan_says::<Cuda>(device, ComputeDtype::Bf16);
    };
    sizes_that_never_come_back_do_not_pile_up: memory::sizes_that_never_come_back_do_not_pile_up::<Cuda>;
}
