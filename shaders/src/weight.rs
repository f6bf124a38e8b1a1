//! A weight in NF4 on a GPU.

use burn_cubecl::tensor::CubeTensor;

use crate::{Language, Source, SourceRuntime};

/// The buffers of a weight, laid out as `halfbyte::ops::Nf4Primitive` says.
#[derive(Clone, Debug)]
pub struct Nf4<R: SourceRuntime> {
    /// Eight codes to a word.
    pub codes: CubeTensor<R>,
    /// A scale per block.
    pub absmax: CubeTensor<R>,
    /// Length, block size, and how scales are decoded.
    pub header: CubeTensor<R>,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// The 16 levels of NF4.
    pub table: &'static [f32; 16],
}

/// What a low-rank branch beside a weight adds to the weight's product: `scaling · low · bᵀ` (LoRA, arXiv:2106.09685), or to the
/// gradient of its input `scaling · low · b`.
#[derive(Clone, Debug)]
pub struct Update<R: SourceRuntime> {
    /// `[rows, rank]`: the activations through the branch's first matrix, or the gradients through its second one.
    pub low: CubeTensor<R>,
    /// `[out, rank]`: the branch's second matrix; for a gradient its first one, `[rank, in]`.
    pub b: CubeTensor<R>,
    /// Multiplies the branch.
    pub scaling: f32,
}

/// The words that a kernel is told of a product of so many rows with a weight `[out, in]`, and of a branch beside it, whose buffers come after
/// the others. `nf4_skinny` without a branch takes the first four: told of all, it spills registers on `sm_89`.
pub(crate) fn told<'a, R: SourceRuntime>(
    rows: usize,
    [out, input]: [usize; 2],
    update: Option<&'a Update<R>>,
    buffers: &mut Vec<&'a CubeTensor<R>>,
) -> [u32; 6] {
    let mut info = [rows as u32, out as u32, input as u32, 0, 0, 0];
    if let Some(Update { low, b, scaling }) = update {
        info[4..].copy_from_slice(&[low.meta.shape()[1] as u32, scaling.to_bits()]);
        buffers.extend([low, b]);
    }
    info
}

impl<R: SourceRuntime> Nf4<R> {
    /// Its buffers and then others, in the order in which kernels take them.
    pub(crate) fn buffers<'a>(&'a self, others: &[&'a CubeTensor<R>]) -> Vec<&'a CubeTensor<R>> {
        [&[&self.codes, &self.absmax, &self.header], others].concat()
    }
}

/// Instructions that are put before every CUDA kernel that reads a weight; the host emulation has twins of them.
pub const PTX: &str = include_str!("ptx.cu");

/// What kernels on tensor cores have in common.
pub(crate) const TILES: &str = concat!(include_str!("results.cu"), "\n", include_str!("tiles.cu"));

/// A kernel that reads a weight: what such kernels have in common is put before it.
pub(crate) fn reader(
    name: &'static str,
    language: Language,
    threads: u32,
    [wgsl, cuda]: [&str; 2],
    table: &[f32; 16],
    values: &[(&'static str, String)],
) -> Source {
    let levels: Vec<String> = table.iter().map(|level| format!("{level:?}")).collect();
    let values = [&[("nf4_table", levels.join(", "))], values].concat();
    match language {
        Language::Wgsl => {
            // Extensions are enabled before anything else.
            let enable = values.iter().find(|(name, _)| *name == "enable").map_or("", |(_, value)| value);
            let template = format!("{enable}\n{}\n{wgsl}", include_str!("weight.wgsl"));
            Source::fill(name, language, threads, &template, &values)
        }
        Language::Cuda => {
            Source::fill(name, language, threads, &format!("{PTX}\n{}\n{cuda}", include_str!("weight.cu")), &values)
        }
    }
}
