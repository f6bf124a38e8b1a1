//! Products of many rows with an NF4 weight on Hopper's tensor cores, which multiply in groups of four warps while the threads
//! decode what comes next. What a low-rank branch beside the weight adds is worked into the same sums.

use burn_backend::DType;
use cubecl::client::ComputeClient;

use crate::source::Sources;
use crate::warpgroup::{THREADS, WARPGROUP, has_warpgroups, stages, values};
use crate::weight::reader;
use crate::{Language, Source, SourceRuntime};

/// Bytes of shared memory for tiles of so many rows.
const fn shared(tile_rows: usize) -> usize {
    // Codes of a step with the space between their rows, of the direction that takes more of it; scales of two times four steps; their
    // map.
    stages(tile_rows, 128 * (64 / 2 + 16)) + 2 * 1024 * 4 + 256 * 4
}

static SOURCES: Sources<(usize, bool, bool, DType)> = Sources::new();

/// The kernel's source, in CUDA C++ for `sm_90a`: `x · Wᵀ`, or for the gradient of an input `x · W`, with or without a branch, by
/// tiles of 128 or 256 rows, the result in f32 or bf16.
pub fn source(table: &[f32; 16], tile_rows: usize, gradient: bool, branch: bool, result: DType) -> Source {
    SOURCES.get((tile_rows, gradient, branch, result), |_| {
        let kernel = format!("{WARPGROUP}\n{}", include_str!("kernel.cu"));
        let mut values = values(tile_rows, gradient, result, shared(tile_rows));
        values.push(("branch", u32::from(branch).to_string()));
        values.push(("blocks", if tile_rows == 256 { "1" } else { "2" }.to_string()));
        let source = reader("nf4_warpgroup", Language::Cuda, THREADS, ["", &kernel], table, &values);
        source.with_shared_memory(shared(tile_rows) as u32)
    })
}

/// Whether a device and a weight are for this kernel.
pub(crate) fn can<R: SourceRuntime>(client: &ComputeClient<R>, [out, input]: [usize; 2], gradient: bool) -> bool {
    has_warpgroups(client) && input.is_multiple_of(32) && (!gradient || out.is_multiple_of(8))
}
