//! Products of many rows with an NF4 weight on Hopper's tensor cores, which multiply in groups of four warps while the threads
//! decode what comes next. What a low-rank branch beside the weight adds is worked into the same sums.

use burn_backend::DType;
use burn_cubecl::kernel::cast;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::ir::features::Tma;

use crate::source::Sources;
use crate::weight::reader;
use crate::{Language, Nf4, Source, SourceRuntime, Update};

/// Rows of a tile, where there are enough of them to keep the device busy, and where not.
const TILE_ROWS: [u32; 2] = [256, 128];

/// Columns of a tile.
const TILE_COLUMNS: usize = 128;

/// Bytes of shared memory for tiles of so many rows.
const fn shared(tile_rows: u32) -> u32 {
    let (stages, depth, map) = (4, 64, 256 * 4);
    // Codes for a step with the space between their rows, of the direction that takes more of it.
    let codes = 128 * (depth / 2 + 16);
    stages * (tile_rows * depth * 2 + codes) + 2 * 256 * 4 + map
}

static SOURCES: Sources<(u32, bool, bool)> = Sources::new();

/// The kernel's source, in CUDA C++ for `sm_90a`: `x · Wᵀ`, or for the gradient of an input `x · W`, with or without a branch, by
/// tiles of 128 or 256 rows.
pub fn source(table: &[f32; 16], tile_rows: u32, gradient: bool, branch: bool) -> Source {
    SOURCES.get((tile_rows, gradient, branch), |_| {
        let kernel = format!("{}\n{}", include_str!("instructions.cu"), include_str!("kernel.cu"));
        let list = |count: u32, item: &dyn Fn(u32) -> String| (0..count).map(item).collect::<Vec<_>>().join(", ");
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
        source.with_shared_memory(shared(tile_rows))
    })
}

/// Whether a device and a shape are for this kernel.
pub(crate) fn can<R: SourceRuntime>(client: &ComputeClient<R>, [out, input]: [usize; 2], gradient: bool) -> bool {
    // Its instructions are Hopper's alone: those that came later have others.
    let tma = &client.properties().features.tma;
    let hopper = R::LANGUAGE == Language::Cuda && tma.contains(Tma::Base) && !tma.contains(Tma::Im2colWide);
    hopper && fits([out, input], gradient)
}

/// Whether the kernel takes a weight of this shape.
fn fits([out, input]: [usize; 2], gradient: bool) -> bool {
    input.is_multiple_of(32) && (!gradient || out.is_multiple_of(8))
}

/// Whether the kernel has room for a branch.
pub(crate) fn can_add<R: SourceRuntime>(update: &Update<R>) -> bool {
    update.low.meta.shape()[1].is_multiple_of(8)
}

/// The product of `x`, rounded to bf16, and of a branch, into `y`, all contiguous.
pub(crate) fn launch<R: SourceRuntime>(
    x: &CubeTensor<R>,
    weight: &Nf4<R>,
    update: Option<&Update<R>>,
    y: &CubeTensor<R>,
    gradient: bool,
) {
    let ([rows, columns], [out, input]) = ([y.meta.shape()[0], y.meta.shape()[1]], weight.shape);
    let grid = |tile_rows: u32| [columns.div_ceil(TILE_COLUMNS) as u32, rows.div_ceil(tile_rows as usize) as u32, 1];
    let processors = x.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(1);
    let busy = |tile_rows: &u32| grid(*tile_rows).iter().product::<u32>() >= processors;
    let tile_rows = TILE_ROWS.into_iter().find(busy).unwrap_or(TILE_ROWS[1]);
    let x = if x.dtype == DType::BF16 { x.clone() } else { cast(x.clone(), DType::BF16) };
    let mut info = [rows as u32, out as u32, input as u32, 0, 0, 0];
    let mut buffers = weight.buffers(&[&x, y]);
    let low = update.map(|update| cast(update.low.clone(), DType::BF16));
    if let (Some(update), Some(low)) = (update, &low) {
        info[4..].copy_from_slice(&[low.meta.shape()[1] as u32, update.scaling.to_bits()]);
        buffers.extend([low, &update.b]);
    }
    source(weight.table, tile_rows, gradient, update.is_some()).launch(grid(tile_rows), &buffers, &info);
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
