//! `x · Wᵀ` for a few rows, as decoding asks for: the packed weight is read once, and nothing is decoded into memory. What a
//! low-rank branch beside the weight adds is worked into the same sums. In f32, or in bf16 on CUDA's tensor cores.

use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::ir::features::Plane;

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

/// In WGSL how the sums of a workgroup are added up, with subgroups or with workgroup memory alone: what goes before the kernel, its further
/// inputs, and the code.
pub(crate) fn reduction(subgroups: bool) -> [&'static str; 3] {
    match subgroups {
        true => [
            // Browsers ask for it; wgpu's own compiler does not know it yet and takes subgroups without.
            if cfg!(target_arch = "wasm32") { "enable subgroups;" } else { "" },
            "@builtin(subgroup_invocation_id) subgroup_lane: u32,\n    @builtin(subgroup_size) subgroup_size: u32,",
            include_str!("reduce_subgroups.wgsl"),
        ],
        false => ["", "", include_str!("reduce_memory.wgsl")],
    }
}

/// Whether a device has subgroups.
pub(crate) fn has_subgroups<R: SourceRuntime>(client: &ComputeClient<R>) -> bool {
    client.properties().features.plane.contains(Plane::Ops)
}

static SOURCES: Sources<(Language, u32, bool, bool)> = Sources::new();

/// The kernel's source for at most `rows` rows; in WGSL with subgroup reductions or with workgroup memory alone; with or
/// without a branch.
pub fn source(language: Language, table: &[f32; 16], rows: u32, subgroups: bool, branch: bool) -> Source {
    let kernels = [include_str!("kernel.wgsl"), include_str!("kernel.cu")];
    SOURCES.get((language, rows, subgroups, branch), |_| {
        let [enable, inputs, reduce] = reduction(subgroups);
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
            ("x_binding", "3"),
            ("y_binding", "4"),
            ("entry", "nf4_skinny"),
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

/// The block of the kernel on tensor cores, of which a multiprocessor has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkinnyBlock {
    /// Rows that there is room for, in eights.
    pub eights: u32,
    /// Threads.
    pub threads: u32,
    /// Spans of a warp that are in shared memory or on their way there.
    pub stages: u32,
    /// The lines of the 256 pairs of levels lie `256 >> closer` bytes apart: with 0 a byte of codes becomes an address by one instruction.
    pub closer: u32,
}

impl SkinnyBlock {
    /// For so many times eight rows, with as many bytes on their way as a GPU's memory needs to be busy; then for GPUs that have less
    /// shared memory, and for those whose memory is slower. More threads have not the registers for 16 rows.
    pub const fn all(eights: u32) -> [Self; 3] {
        let [threads, stages] = if eights == 1 { [512, 3] } else { [256, 5] };
        let block = Self { eights, threads, stages, closer: 0 };
        [block, Self { closer: 1, ..block }, Self { threads: 256, stages: 3, closer: 1, ..block }]
    }

    /// The one that a device has shared memory for.
    fn on<R: SourceRuntime>(client: &ComputeClient<R>, eights: u32) -> Option<Self> {
        let most = client.properties().hardware.max_shared_memory_size;
        Self::all(eights).into_iter().find(|block| block.shared() as usize <= most)
    }

    /// Bytes of shared memory: the pairs of levels, the scales' map, the warps' sums of two groups of features, and their spans with a word of scales
    /// for each feature.
    const fn shared(self) -> u32 {
        let (warps, features) = (self.threads / 32, FEATURES as u32);
        let (sums, stage) = (2 * 8 * self.eights * features * 4, features * (SPAN as u32 / 2 + 4));
        256 * (256 >> self.closer) + 256 * 4 + warps * (sums + self.stages * stage)
    }
}

// What a block may have on Hopper, on an A100, and on GPUs of the generations between (CUDA's programming guide, technical specifications).
const _: () = {
    let mut eights = 1;
    while eights <= 2 {
        let [hopper, a100, others] = SkinnyBlock::all(eights);
        assert!(hopper.shared() <= 227 << 10 && a100.shared() <= 163 << 10 && others.shared() <= 99 << 10);
        eights += 1;
    }
};

static MMA_SOURCES: Sources<(SkinnyBlock, bool)> = Sources::new();

/// The source of the kernel on tensor cores, in CUDA C++, with or without a branch.
pub fn mma_source(table: &[f32; 16], block: SkinnyBlock, branch: bool) -> Source {
    MMA_SOURCES.get((block, branch), |_| {
        let (SkinnyBlock { eights, threads, stages, closer }, shared) = (block, block.shared());
        let values = [
            ("eights", eights.to_string()),
            ("branch", u32::from(branch).to_string()),
            ("stages", stages.to_string()),
            ("closer", closer.to_string()),
            ("shared", shared.to_string()),
        ];
        let texts = ["", include_str!("tensor_cores.cu")];
        reader("nf4_skinny_mma", Language::Cuda, threads, texts, table, &values).with_shared_memory(shared)
    })
}

/// Whether a device and a weight are for the kernel on tensor cores.
pub(crate) fn can_mma<R: SourceRuntime>(client: &ComputeClient<R>, [_, input]: [usize; 2]) -> bool {
    input > 0 && input.is_multiple_of(SPAN) && SkinnyBlock::on(client, 2).is_some()
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
    let block = SkinnyBlock::on(&x.client, eights).expect("a device that can");
    let source = mma_source(weight.table, block, update.is_some());
    let mut buffers = weight.buffers(&[x, y]);
    let info = told(rows, weight.shape, update, &mut buffers);
    let at_once = x.client.properties().hardware.num_streaming_multiprocessors.unwrap_or(u32::MAX);
    let groups = weight.shape[0].div_ceil(FEATURES) as u32;
    source.launch([groups.min(at_once), 1, 1], &buffers, &info);
}
