//! Causal attention that never holds its scores: forward, and the gradients from the weights computed again.

mod cuda;
mod wgsl;

use burn_backend::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::{Language, Source, SourceRuntime, view};

/// Multiplications of one dispatch of WebGPU's at most: about 50 ms at 1 TFLOP/s, far from a browser's watchdog.
const DISPATCH: u64 = 1 << 34;
/// Blocks that a launch should have for each of a CUDA GPU's processors, so that none waits long for the last one.
const BLOCKS: usize = 6;

/// The three kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The result, and the logarithm of each query's sum of exponentials.
    Forward,
    /// The gradient of the queries.
    Queries,
    /// The gradients of the keys and values.
    Keys,
}

impl Pass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Forward, Self::Queries, Self::Keys];

    /// Rows that a workgroup takes, and columns at a time.
    fn tile(self, language: Language, shape: &Heads) -> [usize; 2] {
        match language {
            Language::Wgsl => wgsl::tile(self),
            Language::Cuda => cuda::tile(self, shape.head_dim, shape.softcap.is_some()),
        }
    }

    /// Workgroups that each write a part of a head.
    fn parts(self, language: Language, head_dim: usize) -> usize {
        match (language, self) {
            (Language::Cuda, Self::Keys) => head_dim.div_ceil(cuda::WIDTH),
            _ => 1,
        }
    }

    /// Products of tiles for each tile of scores.
    fn products(self) -> usize {
        match self {
            Self::Forward => 2,
            Self::Queries => 3,
            Self::Keys => 4,
        }
    }
}

/// The geometry of an attention, without who sees whom.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Of the queries.
    pub heads: usize,
    /// Of the keys and values, a divisor of `heads`.
    pub kv_heads: usize,
    /// Width of one.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores are then bounded by `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Keys that a query sees at most: how long a workgroup runs.
    pub seen: usize,
}

/// The source of a kernel for heads of this width, and for scores with or without a cap. WGSL takes f32; CUDA C++ bf16, on tensor
/// cores, and heads of at most 256.
pub fn source(language: Language, pass: Pass, head_dim: usize, capped: bool) -> Source {
    match language {
        Language::Wgsl => wgsl::source(pass, head_dim),
        Language::Cuda => cuda::source(pass, head_dim, capped),
    }
}

/// Operands as the kernels take them.
fn operand<R: SourceRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    match R::LANGUAGE {
        Language::Wgsl => into_contiguous(x),
        Language::Cuda => view::converted(x, DType::BF16),
    }
}

/// Launches a kernel; in WGSL once for each range of blocks, none of them long. `splits`: blocks that share a key head's queries out.
fn launch<R: SourceRuntime>(pass: Pass, shape: &Heads, rows: [usize; 2], buffers: &[&CubeTensor<R>], splits: usize) {
    let [tokens, keys] = rows;
    let [rows, columns] = pass.tile(R::LANGUAGE, shape);
    // For keys: the queries that see one are about as many as the keys that a query sees.
    let (blocks, heads, shared_by) = match pass {
        Pass::Keys => (keys.div_ceil(rows), shape.kv_heads, shape.heads / shape.kv_heads),
        _ => (tokens.div_ceil(rows), shape.heads, 1),
    };
    // A browser's usize has 32 bits.
    let seen = shape.seen.next_multiple_of(columns);
    let of_block: u64 =
        [heads, shared_by, rows, seen, shape.head_dim, pass.products()].map(|n| n as u64).iter().product();
    let short = match R::LANGUAGE {
        Language::Wgsl => DISPATCH / of_block.max(1),
        Language::Cuda => u64::MAX,
    };
    let at_once = short.clamp(1, 65_535) as usize;
    for first in (0..blocks).step_by(at_once) {
        let words = [tokens, keys, shape.heads, shape.kv_heads].map(|count| count as u32);
        let floats = [shape.scale, shape.softcap.unwrap_or(0.0)].map(f32::to_bits);
        let info = [&words[..], &floats, &[first as u32, splits as u32]].concat();
        let across = splits * heads * pass.parts(R::LANGUAGE, shape.head_dim);
        let grid = [across as u32, at_once.min(blocks - first) as u32, 1];
        source(R::LANGUAGE, pass, shape.head_dim, shape.softcap.is_some()).launch(grid, buffers, &info);
    }
}

/// Blocks among which the queries of a key head are shared out, so that a CUDA GPU's processors all have some; their results are added up.
/// A divisor of how many heads share one.
fn splits<R: SourceRuntime>(k: &CubeTensor<R>, shape: &Heads) -> usize {
    let shared_by = shape.heads / shape.kv_heads;
    let processors = k.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(0) as usize;
    let [rows, _] = Pass::Keys.tile(R::LANGUAGE, shape);
    let blocks = k.meta.shape()[0].div_ceil(rows) * shape.kv_heads;
    let enough = |splits: &usize| shared_by.is_multiple_of(*splits) && blocks * splits >= BLOCKS * processors;
    match R::LANGUAGE {
        Language::Wgsl => 1,
        Language::Cuda => (1..=shared_by).find(enough).unwrap_or(shared_by),
    }
}

/// Attention of `q` `[tokens, heads * head_dim]` over `k` and `v` `[keys, kv_heads * head_dim]`, all f32: the result, shaped like `q`,
/// and the logarithm of each query's sum of exponentials, `[tokens, heads]`. On CUDA the operands are rounded to bf16.
///
/// `bounds` holds two `U32` per query: the first key that it sees and the last; neither falls from one query to the next, and the
/// last one rises.
pub fn attention<R: SourceRuntime>(
    qkv: [CubeTensor<R>; 3],
    bounds: CubeTensor<R>,
    shape: &Heads,
) -> [CubeTensor<R>; 2] {
    let [q, k, v] = qkv.map(operand);
    let [tokens, width] = [q.meta.shape()[0], q.meta.shape()[1]];
    let [y, lse] = [width, shape.heads].map(|columns| view::empty(&q, [tokens, columns], DType::F32));
    if tokens > 0 {
        launch(Pass::Forward, shape, [tokens, k.meta.shape()[0]], &[&q, &k, &v, &bounds, &y, &lse], 1);
    }
    [y, lse]
}

/// The gradients of `q`, `k` and `v` of [`attention`] from that of its result. `sums` `[2, tokens * heads]` holds the logarithms
/// that it returned, then for each query and head the sum over its elements of the result times its gradient.
pub fn attention_backward<R: SourceRuntime>(
    qkv: [CubeTensor<R>; 3],
    bounds: CubeTensor<R>,
    grad: CubeTensor<R>,
    sums: CubeTensor<R>,
    shape: &Heads,
) -> [CubeTensor<R>; 3] {
    let [q, k, v] = qkv.map(operand);
    let (grad, sums) = (operand(grad), into_contiguous(sums));
    let rows = [q.meta.shape()[0], k.meta.shape()[0]];
    let splits = splits(&k, shape);
    let [d_q, d_k, d_v] = [(&q, 1), (&k, splits), (&v, splits)]
        .map(|(x, parts)| view::empty(x, [parts * x.meta.shape()[0], x.meta.shape()[1]], DType::F32));
    if rows[0] > 0 {
        launch(Pass::Queries, shape, rows, &[&q, &k, &v, &grad, &sums, &bounds, &d_q], 1);
        launch(Pass::Keys, shape, rows, &[&q, &k, &v, &grad, &sums, &bounds, &d_k, &d_v], splits);
    }
    [d_q, view::sum(d_k, splits), view::sum(d_v, splits)]
}
