//! Operations and steps on the CPU: against plain formulas, and against themselves computed another way.

use halfbyte::backends::Cpu;
use halfbyte_tests::{activations, attention, consistency, operations, stages};

#[test]
fn kernels_conform() {
    operations::kernels_conform::<Cpu>(&Default::default());
}

#[test]
fn products_match() {
    operations::products_match::<Cpu>(&Default::default());
}

#[test]
fn nf4_products_match() {
    operations::nf4_products_match::<Cpu>(&Default::default());
}

#[test]
fn elementwise_blocks_match() {
    operations::elementwise_blocks_match::<Cpu>(&Default::default());
}

#[test]
fn lora_linear_matches() {
    operations::lora_linear_matches::<Cpu>(&Default::default());
}

#[test]
fn attention_matches() {
    attention::attention_matches::<Cpu>(&Default::default());
}

#[test]
fn dropout_matches() {
    operations::dropout_matches::<Cpu>(&Default::default());
}

#[test]
fn cross_entropy_matches() {
    operations::cross_entropy_matches::<Cpu>(&Default::default());
}

#[test]
fn ragged_batches_are_their_sequences() {
    consistency::ragged_batches_are_their_sequences::<Cpu>(&Default::default());
}

#[test]
fn recomputation_drops_the_same_elements() {
    consistency::recomputation_drops_the_same_elements::<Cpu>(&Default::default());
}

#[test]
fn an_adapter_may_sit_on_the_upper_layer_alone() {
    consistency::an_adapter_may_sit_on_the_upper_layer_alone::<Cpu>(&Default::default());
}

#[test]
fn products_in_16_bits_are_refused() {
    consistency::products_in_16_bits_are_nearly_the_same::<Cpu>(&Default::default());
}

#[test]
fn activations_in_16_bits_are_nearly_the_same() {
    activations::of_16_bits_are_nearly_the_same::<Cpu>(&Default::default());
}

#[test]
fn activations_in_16_bits_go_on_in_a_cache() {
    activations::of_16_bits_go_on_in_a_cache::<Cpu>(&Default::default());
}

#[test]
fn tables_in_parts_are_the_whole() {
    consistency::tables_in_parts_are_the_whole::<Cpu>(&Default::default());
}

#[test]
fn tables_in_16_bits_are_their_values() {
    consistency::tables_in_16_bits_are_their_values::<Cpu>(&Default::default());
}

#[test]
fn stages_change_no_bit() {
    stages::stages_change_no_bit::<Cpu>(&Default::default());
}
