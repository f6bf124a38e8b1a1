//! What stays for the whole run: weights as they are stored, adapters, the optimizer's state.

use alloc::vec::Vec;

use crate::run::product;
use crate::{Method, ModelShape, Optimizer, Run};

/// Bytes of an f32.
pub(crate) const F32: u64 = 4;

/// A 4-bit weight's three buffers: codes, scales, and what decodes the scales. Two codes to a byte; an f32 per block of
/// weights, or a byte per block and an f32 per 256 blocks (QLoRA, arXiv:2305.14314, section 3); each in whole words. The
/// header has four words, and with double quantization the 256 levels of the scales' map.
pub(crate) fn nf4_buffers(elements: u64, run: &Run) -> [u64; 3] {
    let blocks = elements.div_ceil(run.block_size.max(1));
    let codes = product([F32, elements.div_ceil(8)]);
    match run.double_quant {
        true => [codes, product([F32, blocks.div_ceil(4)]), product([F32, 4 + 256 + blocks.div_ceil(256)])],
        false => [codes, product([F32, blocks]), 4 * F32],
    }
}

/// The sum of [`nf4_buffers`].
pub(crate) fn nf4_bytes(elements: u64, run: &Run) -> u64 {
    nf4_buffers(elements, run).into_iter().fold(0, u64::saturating_add)
}

/// Bytes of a linear layer's weight.
pub(crate) fn linear_bytes(elements: u64, run: &Run) -> u64 {
    match run.method {
        Method::Qlora => nf4_bytes(elements, run),
        Method::Lora | Method::Full => product([elements, run.weight_bytes]),
    }
}

/// Bits that a weight of this many elements takes per element.
pub fn bits_per_weight(elements: u64, run: &Run) -> f64 {
    8.0 * linear_bytes(elements, run) as f64 / elements as f64
}

/// The optimizer's state for one trained tensor.
fn state_of(elements: u64, optimizer: Optimizer) -> u64 {
    match optimizer {
        Optimizer::AdamW => product([2, elements, F32]),
        Optimizer::AdamW8bit => product([2, elements.saturating_add(product([F32, elements.div_ceil(256)]))]),
    }
}

/// Bytes of the optimizer's state by page: one page for each trained tensor of the adapters, layer by layer, and of the tables.
pub fn optimizer_pages(model: &ModelShape, run: &Run) -> Vec<u64> {
    let state = |elements| state_of(elements, run.optimizer);
    let layer: Vec<u64> = run.adapted(model).flatten().filter(|elements| *elements > 0).map(state).collect();
    (0..model.layers).flat_map(|_| layer.iter().copied()).chain(run.saved(model).map(state)).collect()
}

/// The optimizer's whole state, and that of its largest tensor.
pub(crate) fn optimizer_state(model: &ModelShape, run: &Run) -> (u64, u64) {
    if run.method == Method::Full {
        let all = state_of(model.parameters(), run.optimizer);
        let largest = product([model.vocab_size, model.hidden_size]);
        return (all, state_of(largest, run.optimizer));
    }
    let state = |n| state_of(n, run.optimizer);
    let sum = |(sum, largest): (u64, u64), n: u64| (sum.saturating_add(n), largest.max(n));
    let (layer, largest) = run.adapted(model).flatten().map(state).fold((0, 0), sum);
    run.saved(model).map(state).fold((product([model.layers, layer]), largest), sum)
}

/// Elements beside the linear weights that stay as they are: all but the tables that are trained. A tied table that is
/// trained as one of head and embedding stays as the other.
pub(crate) fn frozen_elements(model: &ModelShape, run: &Run) -> u64 {
    let saved = run.saved(model).count() as u64;
    let tables = match (run.part.embedding, run.part.head) {
        (true, true) if model.tied => u64::from(saved < 2),
        (embedding, head) => u64::from(embedding) + u64::from(head) - saved,
    };
    let squares = if run.dora { run.adapted(model).map(|[_, _, lengths]| lengths).sum() } else { 0 };
    let tables = product([tables, model.vocab_size, model.hidden_size]);
    tables.saturating_add(model.small_elements()).saturating_add(product([model.layers, squares]))
}

/// The optimizer's state on the device and in host memory. What a step writes is on the device while it is written.
pub(crate) fn optimizer_places(model: &ModelShape, run: &Run) -> (u64, u64) {
    let (all, largest) = optimizer_state(model, run);
    let device = run.optimizer_budget.map_or(all, |budget| all.min(budget.max(largest)));
    (device, all - device)
}
