//! The kernels in CUDA C++, for a width of heads.

use super::Pass;
use crate::source::Sources;
use crate::{Language, PTX, Source};

/// Elements of a head that a block of [`Pass::Keys`] writes at most: more sums do not fit the registers.
pub(super) const WIDTH: usize = 128;

static SOURCES: Sources<(Pass, usize, bool)> = Sources::new();

/// Rows that a block takes, 16 a warp, and columns at a time: as many as fit the registers, and the 48 KiB of shared memory that
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

/// Bytes of shared memory of [`Pass::Keys`]: rows of keys and values, and twice columns of queries, of their gradients and of four words.
fn shared(head_dim: usize, rows: usize, columns: usize) -> usize {
    let chunks = head_dim.div_ceil(16) * 2;
    let line = 2 * 8 * if chunks.is_multiple_of(8) { chunks } else { chunks + 1 };
    2 * rows * line + 2 * (2 * columns * line + 4 * columns * 4)
}

/// The source of a kernel for heads of this width, and for scores with or without a cap.
pub(super) fn source(pass: Pass, head_dim: usize, capped: bool) -> Source {
    SOURCES.get((pass, head_dim, capped), |_| {
        let (name, kernel) = match pass {
            Pass::Forward => ("attention_forward", include_str!("forward.cu")),
            Pass::Queries => ("attention_d_queries", include_str!("d_queries.cu")),
            Pass::Keys => ("attention_d_keys", include_str!("d_keys.cu")),
        };
        let [rows, columns] = tile(pass, head_dim, capped);
        let threads = rows * 2;
        let shared = if pass == Pass::Keys { shared(head_dim, rows, columns) } else { 0 };
        let sizes = [("head_dim", head_dim), ("rows", rows), ("columns", columns), ("shared", shared)];
        let values = sizes.map(|(name, n)| (name, n.to_string()));
        let values = [&values[..], &[("capped", capped.to_string())]].concat();
        let template = format!("{PTX}\n{}\n{kernel}", include_str!("common.cu"));
        Source::fill(name, Language::Cuda, threads as u32, &template, &values).with_shared_memory(shared as u32)
    })
}
