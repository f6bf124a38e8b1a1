//! Products with the matrices of a low-rank branch on CUDA's tensor cores, each of which reads its wide operand once. (On other
//! devices they are products like any others.)

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::results::in_cuda;
use crate::source::Sources;
use crate::{Language, PTX, Source, SourceRuntime, view};

/// Rows that a block of the one kernel sums up, the fewer the more blocks, and columns of the other.
const TILES: [usize; 2] = [32, 16];
/// Blocks that leave no processor of a large GPU without work.
const MANY: usize = 256;

/// A kernel of this folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowRank {
    /// `x · Fᵀ`, `F` `[rank, wide]`, or transposed, `x · F`, `F` `[wide, rank]`, rounded to bf16; and `x`, where it is not bf16.
    Narrow,
    /// `nᵀ · z`, `[rank, wide]`, or transposed.
    Outer,
}

static SOURCES: Sources<(LowRank, u32, u32, bool, DType)> = Sources::new();

/// The kernel's source, in CUDA C++, with room for `8 * tiles` columns of the rank in a block of `tile` rows, 16 or 32, or 32 columns, for
/// a wide operand in f32 or bf16.
pub fn source(kernel: LowRank, tile: u32, tiles: u32, transposed: bool, wide: DType) -> Source {
    SOURCES.get((kernel, tile, tiles, transposed, wide), |_| {
        let (name, text) = match kernel {
            LowRank::Narrow => ("low_rank_narrow", include_str!("narrow.cu")),
            LowRank::Outer => ("low_rank_outer", include_str!("outer.cu")),
        };
        let template = format!("{PTX}\n{}\n{text}", include_str!("common.cu"));
        let values = [
            ("tile", tile.to_string()),
            ("tiles", tiles.to_string()),
            ("transposed", transposed.to_string()),
            ("input", in_cuda(wide).to_string()),
            ("rounds", u32::from(wide == DType::F32).to_string()),
        ];
        // Where there are registers for it, more threads keep more loads under way.
        let threads = if kernel == LowRank::Narrow && tiles <= 2 { 512 } else { 256 };
        Source::fill(name, Language::Cuda, threads, &template, &values)
    })
}

/// Launches a kernel by blocks of a part of `along`.
fn launch<R: SourceRuntime>(
    (kernel, transposed, dtype): (LowRank, bool, DType),
    buffers: &[&CubeTensor<R>],
    [rows, wide, rank]: [usize; 3],
    along: usize,
    scaling: f32,
) {
    let tiles = rank.div_ceil(8).next_power_of_two().min(8);
    let few = kernel == LowRank::Narrow && along < MANY * TILES[0];
    let tile = TILES[usize::from(few)];
    let grid = [along.div_ceil(tile) as u32, rank.div_ceil(8 * tiles) as u32, 1];
    let info = [rows as u32, wide as u32, rank as u32, scaling.to_bits()];
    source(kernel, tile as u32, tiles as u32, transposed, dtype).launch(grid, buffers, &info);
}

fn dims<R: SourceRuntime>(tensor: &CubeTensor<R>) -> [usize; 2] {
    [tensor.meta.shape()[0], tensor.meta.shape()[1]]
}

/// `scaling · x · Fᵀ` of rows `[rows, wide]`, f32 or bf16, with an f32 factor `[rank, wide]`, or `transposed` `scaling · x · F` with
/// `[wide, rank]`: `[rows, rank]`, and `x`, both in bf16. A CUDA device's alone.
///
/// # Panics
/// When the shapes do not fit.
pub fn low_rank<R: SourceRuntime>(
    x: CubeTensor<R>,
    factor: CubeTensor<R>,
    transposed: bool,
    scaling: f32,
) -> [CubeTensor<R>; 2] {
    let (x, factor) = (view::contiguous(x), view::contiguous(factor));
    let ([rows, wide], [first, second]) = (dims(&x), dims(&factor));
    let (rank, taken) = if transposed { (second, first) } else { (first, second) };
    assert!(R::LANGUAGE == Language::Cuda && taken == wide, "low_rank: x {:?} x {:?}", x.meta, factor.meta);
    if rows * wide * rank == 0 {
        return [rank, wide].map(|columns| view::zeros(&x, [rows, columns].into(), DType::BF16));
    }
    let low = view::empty(&x, [rows, rank], DType::BF16);
    let kernel = (LowRank::Narrow, transposed, x.dtype);
    if x.dtype == DType::BF16 {
        launch(kernel, &[&x, &factor, &low], [rows, wide, rank], rows, scaling);
        return [low, x];
    }
    let rounded = view::empty(&x, [rows, wide], DType::BF16);
    launch(kernel, &[&x, &factor, &low, &rounded], [rows, wide, rank], rows, scaling);
    [low, rounded]
}

/// The gradient of a low-rank matrix: `scaling · dyᵀ · x` of `[rows, out]` and `[rows, in]`, one of which is narrow, each f32 or bf16:
/// f32 `[out, in]`, its operands rounded to bf16. A CUDA device's alone.
///
/// # Panics
/// When they have not as many rows.
pub fn low_rank_gradient<R: SourceRuntime>(dy: CubeTensor<R>, x: CubeTensor<R>, scaling: f32) -> CubeTensor<R> {
    let (dy, x) = (view::contiguous(dy), view::contiguous(x));
    let ([rows, out], [others, input]) = (dims(&dy), dims(&x));
    assert!(R::LANGUAGE == Language::Cuda && rows == others, "low_rank_gradient: {:?} x {:?}", dy.meta, x.meta);
    if rows * out * input == 0 {
        return view::zeros(&x, [out, input].into(), DType::F32);
    }
    let y = view::empty(&x, [out, input], DType::F32);
    // What is narrow comes first, and the result is transposed where that is the right operand.
    let transposed = out > input;
    let (narrow, across, wide, rank) = if transposed { (x, dy, out, input) } else { (dy, x, input, out) };
    let narrow = view::converted(narrow, DType::BF16);
    let kernel = (LowRank::Outer, transposed, across.dtype);
    launch(kernel, &[&narrow, &across, &y], [rows, wide, rank], wide, scaling);
    y
}
