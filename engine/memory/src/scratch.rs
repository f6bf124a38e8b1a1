//! What the CPU's kernels keep from one product to the next.

use crate::run::product;
use crate::walk::{BLOCK, SKINNY_ROWS, TILE};
use crate::weights::F32;
use crate::{Device, Method, ModelShape, Run};

/// What the CPU's kernels keep per thread: `gemm`'s buffer, and floats for decoded weights and attention weights, which
/// at least double when they grow (`ops/cpu/matrix.rs`). The thread that runs the job decodes; all take part in attention.
pub(crate) fn scratch(model: &ModelShape, run: &Run) -> u64 {
    let Device::Cpu { threads, cache } = run.device else { return 0 };
    let grown = |have: u64, need: u64| if need > have { need.max(product([2, have])) } else { have };
    let longest = run.longest();
    let scores = product([BLOCK.min(longest), longest]);
    let mut main = 0;
    let skinny = run.tokens() <= SKINNY_ROWS;
    let decoded = |main: u64, l: &crate::LinearShape| {
        let rows = if skinny { 1 } else { (TILE / l.input.max(1)).clamp(1, l.out.max(1)) };
        grown(main, product([rows, l.input]))
    };
    let linears = model.linears();
    let quantized = run.method == Method::Qlora;
    for (i, linear) in linears.iter().enumerate() {
        if i == 3 {
            main = grown(main, scores);
        }
        if quantized {
            main = decoded(main, linear);
        }
    }
    if halves_head(run) {
        main = grown(main, product([head_tile(model), model.hidden_size]));
    }
    main = grown(main, product([2, scores]));
    if quantized && skinny {
        let whole = |l: &crate::LinearShape| product([(TILE / l.input.max(1)).clamp(1, l.out.max(1)), l.input]);
        main = linears.iter().rev().fold(main, |main, l| grown(main, whole(l)));
    }
    let tasks = product([run.rows(), model.kv()]);
    let others = threads.saturating_sub(1).min(tasks.saturating_sub(1));
    let shared = product([others, 2, scores]);
    product([F32, main.saturating_add(shared)]).saturating_add(product([threads, cache]))
}

/// Whether products are with a head in 16 bits; one that is trained is in f32.
pub(crate) fn halves_head(run: &Run) -> bool {
    run.weight_bytes < F32 && run.part.head && !run.saves_head()
}

/// Rows of a head in 16 bits that a CPU decodes at a time.
pub(crate) fn head_tile(model: &ModelShape) -> u64 {
    (TILE / model.hidden_size.max(1)).clamp(1, model.vocab_size.max(1))
}
