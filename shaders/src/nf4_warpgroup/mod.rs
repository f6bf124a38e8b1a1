//! Products of many rows with an NF4 weight on Hopper's tensor cores, which multiply in groups of four warps while the threads
//! decode what comes next. What a low-rank branch beside the weight adds is worked into the same sums.

use cubecl::client::ComputeClient;
use cubecl::ir::features::Tma;

use crate::source::Sources;
use crate::weight::reader;
use crate::{Language, Source, SourceRuntime};

/// Rows of a tile.
const TILE_ROWS: [usize; 2] = [256, 128];

/// Columns of a tile.
pub(crate) const TILE_COLUMNS: usize = 128;

/// Bytes of shared memory for tiles of so many rows.
const fn shared(tile_rows: usize) -> usize {
    let (stages, depth, map) = (4, 64, 256 * 4);
    // Codes for a step with the space between their rows, of the direction that takes more of it.
    let codes = 128 * (depth / 2 + 16);
    stages * (tile_rows * depth * 2 + codes) + 2 * 256 * 4 + map
}

static SOURCES: Sources<(usize, bool, bool)> = Sources::new();

/// The kernel's source, in CUDA C++ for `sm_90a`: `x · Wᵀ`, or for the gradient of an input `x · W`, with or without a branch, by
/// tiles of 128 or 256 rows.
pub fn source(table: &[f32; 16], tile_rows: usize, gradient: bool, branch: bool) -> Source {
    SOURCES.get((tile_rows, gradient, branch), |_| {
        let kernel = format!("{}\n{}", include_str!("instructions.cu"), include_str!("kernel.cu"));
        let list = |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(", ");
        let sums = tile_rows / 2;
        let a = list(4, &|i| format!("%{}", sums + i));
        let values = [
            ("tile_rows", tile_rows.to_string()),
            ("sums", list(sums, &|i| format!("%{i}"))),
            ("sum_operands", list(sums, &|i| format!("\"+f\"(sum[{i}])"))),
            ("a_and_b", format!("{{{a}}}, %{}", sums + 4)),
            ("gradient", gradient.to_string()),
            ("branch", u32::from(branch).to_string()),
            ("shared", shared(tile_rows).to_string()),
            ("blocks", if tile_rows == 256 { "1" } else { "2" }.to_string()),
        ];
        let source = reader("nf4_warpgroup", Language::Cuda, 256, ["", &kernel], table, &values);
        source.with_shared_memory(shared(tile_rows) as u32)
    })
}

/// Whether a device and a weight are for this kernel.
pub(crate) fn can<R: SourceRuntime>(client: &ComputeClient<R>, [out, input]: [usize; 2], gradient: bool) -> bool {
    // Its instructions are Hopper's alone: those that came later have others.
    let tma = &client.properties().features.tma;
    let hopper = R::LANGUAGE == Language::Cuda && tma.contains(Tma::Base) && !tma.contains(Tma::Im2colWide);
    hopper && input.is_multiple_of(32) && (!gradient || out.is_multiple_of(8))
}

/// The rows of a tile for a result of this shape: as many as leave none of the device's processors without one.
pub(crate) fn tile_rows<R: SourceRuntime>(client: &ComputeClient<R>, [rows, columns]: [usize; 2]) -> usize {
    let processors = client.properties().hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
    let busy = |tile_rows: &usize| rows.div_ceil(*tile_rows) * columns.div_ceil(TILE_COLUMNS) >= processors;
    TILE_ROWS.into_iter().find(busy).unwrap_or(TILE_ROWS[1])
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use cubecl::CubeTask;
    use cubecl::cuda::CudaRuntime;
    use cubecl::prelude::*;

    use super::{TILE_ROWS, source};

    #[test]
    fn the_launch_asks_for_the_kernels_shared_memory() {
        for tile_rows in TILE_ROWS {
            let source = source(&[0.0; 16], tile_rows, false, true);
            let compiled = CubeTask::<<CudaRuntime as Runtime>::Compiler>::compile(
                &source,
                &mut Default::default(),
                &Default::default(),
                ExecutionMode::Checked,
                cubecl::ir::UIntKind::U32.into(),
            );
            let taken = compiled.expect("it stands for one").repr.expect("CUDA needs one").shared_memory_size();
            assert_eq!(taken, source.shared as usize);
            assert!(source.text.contains(&format!("<= {taken}, \"what the launch asks for\"")), "{}", source.text);
        }
    }
}
