//! What kernels have in common that multiply by groups of four warps, which is what Hopper's tensor cores want.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::ir::features::Tma;
use cubecl::prelude::*;
use cubecl::server::TensorMapBinding;

use crate::results::in_cuda;
use crate::{Language, SourceRuntime};

/// The instructions that they have in common.
pub(crate) const WGMMA: &str = include_str!("wgmma.cu");
/// These, and text that is put before each of those that multiply matrices.
pub(crate) const WARPGROUP: &str =
    concat!(include_str!("results.cu"), "\n", include_str!("wgmma.cu"), "\n", include_str!("warpgroup.cu"));

/// Threads of a block: two groups.
pub(crate) const THREADS: u32 = 256;
/// Columns of the result that a block computes.
pub(crate) const TILE_COLUMNS: usize = 128;

/// Rows of the result that a block may compute.
const TILE_ROWS: [usize; 2] = [256, 128];

/// Elements of the inner dimension that a step takes.
const DEPTH: usize = 64;

/// Bytes of shared memory for four steps' tiles of so many rows of activations, each with a barrier and so many bytes of the weight.
pub(crate) const fn stages(tile_rows: usize, weight: usize) -> usize {
    4 * (tile_rows * DEPTH * 2 + 8 + weight)
}

/// What has a kernel copy tiles of so many rows of a bf16 matrix, 64 columns wide, 16-byte chunks permuted as the tensor cores want them.
pub(crate) fn tiled<R: SourceRuntime>(x: &CubeTensor<R>, tile_rows: usize) -> TensorMapBinding {
    let tile = TiledArgs { tile_size: [tile_rows, DEPTH].into() };
    let argument = TensorMapArg::<R, Tiled>::new(tile, x.clone().into_tensor_arg(), DType::BF16);
    let map = argument.with_swizzle(TensorMapSwizzle::B128).metadata;
    TensorMapBinding { binding: x.handle.clone().binding(), map }
}

/// The values of the text's placeholders.
pub(crate) fn values(tile_rows: usize, gradient: bool, result: DType, shared: usize) -> Vec<(&'static str, String)> {
    let Operands { sums, sum_operands, a_and_b, both_described, .. } = operands(tile_rows);
    vec![
        ("tile_rows", tile_rows.to_string()),
        ("sums", sums),
        ("sum_operands", sum_operands),
        ("a_and_b", a_and_b),
        ("gradient", gradient.to_string()),
        ("result", in_cuda(result).to_string()),
        ("transposed", u32::from(gradient).to_string()),
        ("both_described", both_described),
        ("shared", shared.to_string()),
    ]
}

/// What an instruction for 64 by so many sums names: it names each of its registers.
pub(crate) struct Operands {
    /// The sums.
    pub(crate) sums: String,
    /// What they are in C++.
    pub(crate) sum_operands: String,
    /// After the sums, four registers of the left operand, and what describes the right one.
    pub(crate) a_and_b: String,
    /// After the sums, what describes both.
    pub(crate) both_described: String,
    /// What comes after that.
    pub(crate) next: String,
}

pub(crate) fn operands(columns: usize) -> Operands {
    let list = |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(", ");
    let sums = columns / 2;
    Operands {
        sums: list(sums, &|i| format!("%{i}")),
        sum_operands: list(sums, &|i| format!("\"+f\"(sum[{i}])")),
        a_and_b: format!("{{{}}}, %{}", list(4, &|i| format!("%{}", sums + i)), sums + 4),
        both_described: format!("%{}, %{}", sums, sums + 1),
        next: format!("%{}", sums + 2),
    }
}

/// Whether a device has these instructions. They are Hopper's alone: those that came later have others.
pub(crate) fn has_warpgroups<R: SourceRuntime>(client: &ComputeClient<R>) -> bool {
    let tma = &client.properties().features.tma;
    R::LANGUAGE == Language::Cuda && tma.contains(Tma::Base) && !tma.contains(Tma::Im2colWide)
}

/// Rows and columns of a tile for a result of this shape: as many as leave none of the device's processors without one.
pub(crate) fn tile<R: SourceRuntime>(client: &ComputeClient<R>, [rows, columns]: [usize; 2]) -> [usize; 2] {
    let processors = client.properties().hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
    let busy = |tile_rows: &usize| rows.div_ceil(*tile_rows) * columns.div_ceil(TILE_COLUMNS) >= processors;
    [TILE_ROWS.into_iter().find(busy).unwrap_or(TILE_ROWS[1]), TILE_COLUMNS]
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use burn_backend::DType;
    use cubecl::CubeTask;
    use cubecl::cuda::CudaRuntime;
    use cubecl::prelude::*;

    use super::TILE_ROWS;
    use crate::{half_warpgroup_source, nf4_warpgroup_source};

    #[test]
    fn launches_ask_for_the_kernels_shared_memory() {
        let sources = TILE_ROWS.into_iter().flat_map(|rows| {
            let result = DType::F32;
            [
                nf4_warpgroup_source(&[0.0; 16], rows, false, true, result),
                half_warpgroup_source(rows, false, true, result),
            ]
        });
        for source in sources {
            let compiled = CubeTask::<<CudaRuntime as Runtime>::Compiler>::compile(
                &source,
                &mut Default::default(),
                &Default::default(),
                ExecutionMode::Checked,
                cubecl::ir::UIntKind::U32.into(),
            );
            let taken = compiled.expect("it stands for one").repr.expect("CUDA needs one").shared_memory_size();
            assert_eq!(taken, source.shared as usize);
            assert!(source.text.contains(&format!("BARRIERS_AT = {taken} - STAGES * 8")), "{}", source.text);
        }
    }
}
