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
    let decoded = |main: u64, l: &crate::LinearShape| grown(main, if skinny { l.input } else { tile(l.out, l.input) });
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
        main = grown(main, tile(model.vocab_size, model.hidden_size));
    }
    main = grown(main, product([2, scores]));
    if quantized && skinny {
        main = linears.iter().rev().fold(main, |main, l| grown(main, tile(l.out, l.input)));
    }
    let tasks = product([run.rows(), model.kv()]);
    let others = threads.saturating_sub(1).min(tasks.saturating_sub(1));
    let shared = product([others, 2, scores]);
    product([F32, main.saturating_add(shared)]).saturating_add(product([threads, cache]))
}

/// Rows of a weight `[out, input]` that are decoded at a time.
pub(crate) fn tile_rows(out: u64, input: u64) -> u64 {
    out.min(TILE / input.max(1)).max(1)
}

/// Their elements.
fn tile(out: u64, input: u64) -> u64 {
    product([tile_rows(out, input), input])
}

/// Whether products are with a head in 16 bits; one that is trained is in f32.
pub(crate) fn halves_head(run: &Run) -> bool {
    run.weight_bytes < F32 && !run.saves_head()
}
