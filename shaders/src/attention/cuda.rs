//! The kernels in CUDA C++, for a width of heads.

use burn_backend::DType;

use super::Pass;
use crate::results::{RESULTS, in_cuda};
use crate::source::Sources;
use crate::warpgroup::{Operands, THREADS, WGMMA, operands};
use crate::{Language, PTX, Source};

/// Elements of a head that a block of [`Pass::Keys`] writes at most by mma: more sums do not fit the registers.
pub(super) const WIDTH: usize = 128;
/// Tiles of columns of theirs that are in shared memory.
const STAGES: usize = 2;

/// Rows of scores that a block of the kernels in f32 takes, and columns at a time, and its threads, 4 x 4 scores each.
pub(super) const F32_TILE: [usize; 2] = [64, 64];
const F32_THREADS: usize = 256;

static SOURCES: Sources<(Pass, usize, bool, DType)> = Sources::new();
static GROUPS_SOURCES: Sources<(Pass, usize, DType)> = Sources::new();
static F32_SOURCES: Sources<(Pass, usize, bool)> = Sources::new();

/// Rows that a block takes by mma, 16 a warp, and columns at a time: as many as fit the registers, and the 48 KiB of shared memory that
/// need not be asked for, which [`Pass::Keys`] does.
pub(super) fn tile(pass: Pass, head_dim: usize, capped: bool) -> [usize; 2] {
    match (pass, head_dim <= 128) {
        (Pass::Forward, true) => [64, 64],
        (Pass::Forward, false) => [32, 32],
        (Pass::Keys, true) if capped => [64, 16],
        (_, true) => [64, 32],
        (_, false) => [32, 16],
    }
}

/// [`tile`] of the kernels by groups of four warps.
pub(super) fn tile_of_groups(pass: Pass) -> [usize; 2] {
    match pass {
        Pass::Forward => [THREADS as usize / 2, 128],
        Pass::Queries | Pass::Keys => [THREADS as usize / 2, 64],
    }
}

/// Bytes of shared memory of [`Pass::Keys`]: rows of keys and values, and twice columns of queries, of their gradients and of four words.
fn shared(head_dim: usize, rows: usize, columns: usize) -> usize {
    let chunks = head_dim.div_ceil(16) * 2;
    let line = 2 * 8 * if chunks.is_multiple_of(8) { chunks } else { chunks + 1 };
    2 * rows * line + 2 * (2 * columns * line + 4 * columns * 4)
}

/// That of a kernel by mma for heads of this width, and for scores with or without a cap, that gives f32 or bf16.
pub(super) fn source(pass: Pass, head_dim: usize, capped: bool, result: DType) -> Source {
    SOURCES.get((pass, head_dim, capped, result), |_| {
        let (name, kernel) = match pass {
            Pass::Forward => ("attention_forward", include_str!("forward.cu")),
            Pass::Queries => ("attention_d_queries", include_str!("d_queries.cu")),
            Pass::Keys => ("attention_d_keys", include_str!("d_keys.cu")),
        };
        let tile = tile(pass, head_dim, capped);
        let shared = if pass == Pass::Keys { shared(head_dim, tile[0], tile[1]) } else { 0 };
        let kernel = format!("{}\n{}\n{kernel}", include_str!("tensor_cores.cu"), include_str!("mma.cu"));
        let values = [("capped", capped.to_string()), ("result", in_cuda(result).to_string())];
        fill(name, &kernel, head_dim, tile, 2 * tile[0], shared, &values)
    })
}

/// That of a kernel in f32.
pub(super) fn source_in_f32(pass: Pass, head_dim: usize, capped: bool) -> Source {
    F32_SOURCES.get((pass, head_dim, capped), |_| {
        let (name, kernel) = match pass {
            Pass::Forward => ("attention_forward", include_str!("simt/forward.cu")),
            Pass::Queries => ("attention_d_queries", include_str!("simt/d_queries.cu")),
            Pass::Keys => ("attention_d_keys", include_str!("simt/d_keys.cu")),
        };
        let kernel = format!("{}\n{kernel}", include_str!("simt/common.cu"));
        let values = [("capped", capped.to_string()), ("result", in_cuda(DType::F32).to_string())];
        fill(name, &kernel, head_dim, F32_TILE, F32_THREADS, 0, &values)
    })
}

/// That by groups of four warps, for `sm_90a`, heads of 64 or 128 and scores without a cap.
pub(super) fn source_of_groups(pass: Pass, head_dim: usize, result: DType) -> Source {
    GROUPS_SOURCES.get((pass, head_dim, result), |_| {
        // What a block holds of its rows and of each stage's columns, each two tensors but where there are queries alone.
        let (name, kernel, of_rows, words) = match pass {
            Pass::Forward => ("attention_forward_groups", include_str!("warpgroup/forward.cu"), 1, 0),
            Pass::Queries => ("attention_d_queries_groups", include_str!("warpgroup/d_queries.cu"), 2, 0),
            Pass::Keys => ("attention_d_keys_groups", include_str!("warpgroup/d_keys.cu"), 2, 4),
        };
        let [rows, columns] = tile_of_groups(pass);
        let line = head_dim * 2;
        let shared = of_rows * rows * line + STAGES * (2 * columns * line + words * columns * 4) + (1 + STAGES) * 8;
        let common = [WGMMA, include_str!("tensor_cores.cu"), include_str!("warpgroup/common.cu")].join("\n");
        let kernel = format!("{common}\n{kernel}");
        let [scores, sums] = [columns, 64].map(operands);
        let Operands { both_described, next, .. } = scores;
        let values = [
            ("capped", "false".into()),
            ("result", in_cuda(result).into()),
            ("scores", scores.sums),
            ("score_operands", scores.sum_operands),
            ("both_described", both_described),
            ("add", next),
            ("sums", sums.sums),
            ("sum_operands", sums.sum_operands),
            ("a_and_b", sums.a_and_b),
        ];
        fill(name, &kernel, head_dim, [rows, columns], 2 * rows, shared, &values)
    })
}

fn fill(
    name: &'static str,
    kernel: &str,
    head_dim: usize,
    [rows, columns]: [usize; 2],
    threads: usize,
    shared: usize,
    values: &[(&'static str, String)],
) -> Source {
    let sizes = [("head_dim", head_dim), ("rows", rows), ("columns", columns), ("shared", shared)];
    let sizes = sizes.map(|(name, n)| (name, n.to_string()));
    let template = format!("{PTX}\n{RESULTS}\n{}\n{kernel}", include_str!("common.cu"));
    Source::fill(name, Language::Cuda, threads as u32, &template, &[&sizes, values].concat())
        .with_shared_memory(shared as u32)
}
