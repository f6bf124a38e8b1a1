//! Causal attention that never holds its scores: forward, and the gradients from the weights computed again.

mod cuda;
mod wgsl;

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::results::given;
use crate::trust::trusted;
use crate::warpgroup::{has_warpgroups, tiled};
use crate::{Language, Source, SourceRuntime, view};

/// Multiplications of one dispatch of WebGPU's at most: about 50 ms at 1 TFLOP/s, far from a browser's watchdog.
const DISPATCH: u64 = 1 << 34;

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

/// How the kernels for an attention are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// In WGSL: f32.
    Wgsl,
    /// In CUDA C++: f32, without tensor cores, on a GPU of any age.
    Simt,
    /// In CUDA C++: bf16 on the tensor cores of `sm_80` and up, for heads of at most 256.
    Mma,
    /// For Hopper's, which groups of four warps use together: heads of 64 or 128, and scores without a cap.
    Groups,
}

impl Kernels {
    /// Those for heads on a device, in the type of `x`.
    fn of<R: SourceRuntime>(x: &CubeTensor<R>, shape: &Heads) -> Self {
        let fits = matches!(shape.head_dim, 64 | 128) && shape.softcap.is_none();
        match R::LANGUAGE {
            Language::Wgsl => Self::Wgsl,
            Language::Cuda if x.dtype == DType::F32 => Self::Simt,
            Language::Cuda if fits && trusted::<R>() && has_warpgroups(&x.client) => Self::Groups,
            Language::Cuda => Self::Mma,
        }
    }

    /// The source of a kernel for heads of this width, and for scores with or without a cap, that gives f32 or, on tensor cores, bf16.
    pub fn source(self, pass: Pass, head_dim: usize, capped: bool, result: DType) -> Source {
        match self {
            Self::Wgsl => wgsl::source(pass, head_dim),
            Self::Simt => cuda::source_in_f32(pass, head_dim, capped),
            Self::Mma => cuda::source(pass, head_dim, capped, result),
            Self::Groups => cuda::source_of_groups(pass, head_dim, result),
        }
    }

    /// Rows that a workgroup takes, and columns at a time.
    fn tile(self, pass: Pass, shape: &Heads) -> [usize; 2] {
        match self {
            Self::Wgsl => wgsl::tile(pass),
            Self::Simt => cuda::F32_TILE,
            Self::Mma => cuda::tile(pass, shape.head_dim, shape.softcap.is_some()),
            Self::Groups => cuda::tile_of_groups(pass),
        }
    }

    /// Blocks that a launch should have for each of a CUDA GPU's processors, so that none waits long for the last one; in WGSL as many as
    /// there are.
    fn blocks(self) -> usize {
        match self {
            Self::Wgsl => 0,
            Self::Simt => 4,
            Self::Mma => 6,
            Self::Groups => 1,
        }
    }

    /// Workgroups that each write a part of a head.
    fn parts(self, pass: Pass, head_dim: usize) -> usize {
        match (self, pass) {
            (Self::Mma, Pass::Keys) => head_dim.div_ceil(cuda::WIDTH),
            _ => 1,
        }
    }
}

/// The type in which kernels with operands of the type `taken` give what is wanted in another.
fn given_of<R: SourceRuntime>(taken: DType, wanted: DType) -> DType {
    if taken == DType::BF16 { given::<R>(wanted) } else { DType::F32 }
}

/// Launches a kernel on `q`, `k`, `v` and where it wants that the result's gradient, and on what comes after these; in WGSL once for each
/// range of blocks, none of them long. `splits`: blocks that share a key head's queries out.
fn launch<R: SourceRuntime>(
    (pass, result): (Pass, DType),
    shape: &Heads,
    operands: &[&CubeTensor<R>],
    others: &[&CubeTensor<R>],
    splits: usize,
) {
    let [tokens, keys] = [0, 1].map(|i| operands[i].meta.shape()[0]);
    let kernels = Kernels::of(operands[0], shape);
    let [rows, columns] = kernels.tile(pass, shape);
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
        let across = splits * heads * kernels.parts(pass, shape.head_dim);
        let grid = [across as u32, at_once.min(blocks - first) as u32, 1];
        let source = kernels.source(pass, shape.head_dim, shape.softcap.is_some(), result);
        if kernels == Kernels::Groups {
            // Rows of queries and their gradients, or of keys and values, come a tile at a time; of the others a block has its own.
            let of_queries = |i| matches!(i, 0 | 3);
            let tile = |i| if of_queries(i) == (pass != Pass::Keys) { rows } else { columns };
            let maps = operands.iter().enumerate().map(|(i, x)| tiled(x, tile(i))).collect();
            source.launch_with(maps, grid, others, &info);
        } else {
            source.launch(grid, &[operands, others].concat(), &info);
        }
    }
}

/// Blocks among which the queries of a key head are shared out, so that a CUDA GPU's processors all have some; their results are added up.
/// A divisor of how many heads share one.
fn splits<R: SourceRuntime>(k: &CubeTensor<R>, shape: &Heads) -> usize {
    let shared_by = shape.heads / shape.kv_heads;
    let processors = k.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(0) as usize;
    let kernels = Kernels::of(k, shape);
    let [rows, _] = kernels.tile(Pass::Keys, shape);
    let blocks = k.meta.shape()[0].div_ceil(rows) * shape.kv_heads;
    let enough = |splits: &usize| shared_by.is_multiple_of(*splits) && blocks * splits >= kernels.blocks() * processors;
    (1..=shared_by).find(enough).unwrap_or(shared_by)
}

/// Attention of `q` `[tokens, heads * head_dim]` over `k` and `v` `[keys, kv_heads * head_dim]`: the result, shaped like `q` and of its
/// type, and the logarithm of each query's sum of exponentials, f32 `[tokens, heads]`. The operands are taken in the type `taken`: f32 or,
/// on CUDA, bf16.
///
/// `bounds` holds two `U32` per query: the first key that it sees and the last; neither falls from one query to the next, and the
/// last one rises.
pub fn attention<R: SourceRuntime>(
    qkv: [CubeTensor<R>; 3],
    bounds: CubeTensor<R>,
    taken: DType,
    shape: &Heads,
) -> [CubeTensor<R>; 2] {
    let wanted = qkv[0].dtype;
    let [q, k, v] = qkv.map(|x| view::converted(x, taken));
    let [tokens, width] = [q.meta.shape()[0], q.meta.shape()[1]];
    let result = given_of::<R>(taken, wanted);
    let [y, lse] =
        [(width, result), (shape.heads, DType::F32)].map(|(columns, dtype)| view::empty(&q, [tokens, columns], dtype));
    if tokens > 0 {
        launch((Pass::Forward, result), shape, &[&q, &k, &v], &[&bounds, &y, &lse], 1);
    }
    [view::converted(y, wanted), lse]
}

/// The gradients of `q`, `k` and `v` of [`attention`], each of its tensor's type, from that of its result. `sums` `[2, tokens * heads]`
/// holds the logarithms that it returned, then for each query and head the sum over its elements of the result times its gradient.
pub fn attention_backward<R: SourceRuntime>(
    qkv: [CubeTensor<R>; 3],
    bounds: CubeTensor<R>,
    grad: CubeTensor<R>,
    sums: CubeTensor<R>,
    taken: DType,
    shape: &Heads,
) -> [CubeTensor<R>; 3] {
    let wanted = qkv.each_ref().map(|x| x.dtype);
    let [q, k, v] = qkv.map(|x| view::converted(x, taken));
    let (grad, sums) = (view::converted(grad, taken), view::contiguous(sums));
    let splits = splits(&k, shape);
    // Parts are added up in f32.
    let of_keys = if splits == 1 && wanted[1] == wanted[2] { given_of::<R>(taken, wanted[1]) } else { DType::F32 };
    let of_queries = given_of::<R>(taken, wanted[0]);
    let [d_q, d_k, d_v] = [(&q, 1, of_queries), (&k, splits, of_keys), (&v, splits, of_keys)]
        .map(|(x, parts, dtype)| view::empty(x, [parts * x.meta.shape()[0], x.meta.shape()[1]], dtype));
    if q.meta.shape()[0] > 0 {
        let operands = [&q, &k, &v, &grad];
        launch((Pass::Queries, of_queries), shape, &operands, &[&sums, &bounds, &d_q], 1);
        launch((Pass::Keys, of_keys), shape, &operands, &[&sums, &bounds, &d_k, &d_v], splits);
    }
    let d_k = view::sum(d_k, splits, wanted[1]);
    [view::converted(d_q, wanted[0]), d_k, view::sum(d_v, splits, wanted[2])]
}
