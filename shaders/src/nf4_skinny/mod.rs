//! `x · Wᵀ` for a few rows, as decoding asks for: the packed weight is read once, and nothing is decoded into memory. What a
//! low-rank branch beside the weight adds is worked into the same sums.

use burn_cubecl::tensor::CubeTensor;

use crate::source::{Sources, grid};
use crate::weight::reader;
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
    let [out, input] = weight.shape;
    let capacity = rows.next_power_of_two() as u32;
    let (_, features) = geometry(R::LANGUAGE, capacity);
    let source = source(R::LANGUAGE, weight.table, capacity, subgroups, update.is_some());
    // CUDA's kernel without a branch takes the first four.
    let mut info = [rows as u32, out as u32, input as u32, 0, 0, 0];
    let mut buffers = weight.buffers(&[x, y]);
    if let Some(Update { low, b, scaling }) = update {
        info[4..].copy_from_slice(&[low.meta.shape()[1] as u32, scaling.to_bits()]);
        buffers.extend([low, b]);
    }
    source.launch(grid(out.div_ceil(features) as u32), &buffers, &info);
}
