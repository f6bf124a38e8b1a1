//! `x · Wᵀ` for a few rows, as decoding asks for: the packed weight is read once, and nothing is decoded into memory. What a
//! low-rank branch beside the weight adds is worked into the same sums. In f32, or in bf16 on CUDA's tensor cores.

use burn_cubecl::tensor::CubeTensor;

use crate::source::{Sources, grid};
use crate::weight::{reader, told};
use crate::{Language, Nf4, Source, SourceRuntime, Update};

/// Rows that the kernel can hold.
pub(crate) const MAX_ROWS: usize = 16;

/// Threads of a workgroup and the output features that it makes, for a kernel with room for `rows` rows.
fn geometry(language: Language, rows: u32) -> (u32, usize) {
    match (language, rows) {
        (Language::Wgsl, _) => (64, 4),
        (Language::Cuda, 1 | 2) => (256, 8),
        (Language::Cuda, 4) => (256, 16),
        (Language::Cuda, _) => (256, 32),
    }
}

static SOURCES: Sources<(Language, u32, bool, bool)> = Sources::new();

/// The kernel's source for at most `rows` rows; in WGSL with subgroup reductions or with workgroup memory alone; with or
/// without a branch.
pub fn source(language: Language, table: &[f32; 16], rows: u32, subgroups: bool, branch: bool) -> Source {
    let kernels = [include_str!("kernel.wgsl"), include_str!("kernel.cu")];
    SOURCES.get((language, rows, subgroups, branch), |_| {
        let (enable, inputs, reduce) = match subgroups {
            true => (
                // Browsers ask for it; wgpu's own compiler does not know it yet and takes subgroups without.
                if cfg!(target_arch = "wasm32") { "enable subgroups;" } else { "" },
                "@builtin(subgroup_invocation_id) subgroup_lane: u32,\n    @builtin(subgroup_size) subgroup_size: u32,",
                include_str!("reduce_subgroups.wgsl"),
            ),
            false => ("", "", include_str!("reduce_memory.wgsl")),
        };
        let (buffers, add, info_binding) = match (language, branch) {
            (Language::Wgsl, true) => (include_str!("branch_buffers.wgsl"), include_str!("branch.wgsl"), "7"),
            (Language::Wgsl, false) => ("", "", "5"),
            (Language::Cuda, branch) => ("", if branch { "1" } else { "0" }, ""),
        };
        let texts = [
            ("enable", enable),
            ("subgroup_inputs", inputs),
            ("reduce", reduce),
            ("branch_buffers", buffers),
            ("branch", add),
            ("info_binding", info_binding),
        ];
        let mut values: Vec<(&'static str, String)> = texts.map(|(name, text)| (name, text.to_string())).to_vec();
        values.push(("rows", rows.to_string()));
        reader("nf4_skinny", language, geometry(language, rows).0, kernels, table, &values)
    })
}

/// `x` `[rows, in]` times the transposed weight, and what a branch adds, into `y` `[rows, out]`, all contiguous; at most 16
/// rows, in WGSL `in` a multiple of eight. Where the device has no subgroups, `subgroups` must be false.
pub fn nf4_skinny<R: SourceRuntime>(
    x: &CubeTensor<R>,
    weight: &Nf4<R>,
    update: Option<&Update<R>>,
    y: &CubeTensor<R>,
    subgroups: bool,
) {
    let rows = x.meta.shape()[0];
    let [out, _] = weight.shape;
    let capacity = rows.next_power_of_two() as u32;
    let (_, features) = geometry(R::LANGUAGE, capacity);
    let source = source(R::LANGUAGE, weight.table, capacity, subgroups, update.is_some());
    let mut buffers = weight.buffers(&[x, y]);
    let info = told(rows, weight.shape, update, &mut buffers);
    source.launch(grid(out.div_ceil(features) as u32), &buffers, &info);
}

/// Inner elements that a warp of the kernel on tensor cores takes at a time.
const SPAN: usize = 256;

/// Output features of its block.
const FEATURES: usize = 16;

/// Its blocks on a multiprocessor at a time, as many as there are registers for what they hold.
const fn blocks(eights: u32) -> u32 {
    if eights == 1 { 2 } else { 1 }
}

static MMA_SOURCES: Sources<(u32, bool)> = Sources::new();

/// The source of the kernel on tensor cores, in CUDA C++, for at most so many times eight rows; with or without a branch.
pub fn mma_source(table: &[f32; 16], eights: u32, branch: bool) -> Source {
    MMA_SOURCES.get((eights, branch), |_| {
        let values = [
            ("eights", eights.to_string()),
            ("branch", u32::from(branch).to_string()),
            ("blocks", blocks(eights).to_string()),
        ];
        reader("nf4_skinny_mma", Language::Cuda, 256, ["", include_str!("tensor_cores.cu")], table, &values)
    })
}

/// Whether a weight is for the kernel on tensor cores.
pub(crate) fn can_mma([_, input]: [usize; 2]) -> bool {
    input > 0 && input.is_multiple_of(SPAN)
}

/// [`nf4_skinny`] on CUDA's tensor cores: `x` is bf16, and so are the levels.
pub(crate) fn nf4_skinny_mma<R: SourceRuntime>(
    x: &CubeTensor<R>,
    weight: &Nf4<R>,
    update: Option<&Update<R>>,
    y: &CubeTensor<R>,
) {
    let rows = x.meta.shape()[0];
    let eights = rows.div_ceil(8) as u32;
    let source = mma_source(weight.table, eights, update.is_some());
    let mut buffers = weight.buffers(&[x, y]);
    let info = told(rows, weight.shape, update, &mut buffers);
    let at_once = x.client.properties().hardware.num_streaming_multiprocessors.map_or(u32::MAX, |n| n * blocks(eights));
    let groups = weight.shape[0].div_ceil(FEATURES) as u32;
    source.launch([groups.min(at_once), 1, 1], &buffers, &info);
}
