//! Products of activations with an NF4 weight: the ways to compute them, and which one is taken.

#[cfg(not(target_arch = "wasm32"))]
mod choose;
mod tiled;

use burn_backend::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;

pub use tiled::source;

use crate::half_matmul::by_warpgroups;
use crate::matmul::{matmul, matmul_through, scratch};
use crate::nf4_dequantize::nf4_dequantize_into;
use crate::nf4_skinny::{MAX_ROWS, can_mma, has_subgroups, nf4_skinny, nf4_skinny_mma};
use crate::source::tile_grid;
use crate::trust::trusted;
use crate::weight::told;
use crate::{
    Language, Nf4, SourceRuntime, Update, nf4_dequantize, nf4_mma, nf4_mma_source, nf4_warpgroup, nf4_warpgroup_source,
    view, warpgroup,
};

/// Rows from which on it pays to decode a weight once, and not in each block of rows: measured on an H200.
const DECODED_ROWS: usize = 512;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The weight is decoded into a scratch tensor, part by part where it is large, which a dense product takes.
    Decoded,
    /// A few rows, each packed word read once; sums go through subgroups where the device has them.
    Skinny,
    /// The same with sums through workgroup memory, which every device has.
    SkinnyShared,
    /// A few rows on CUDA's tensor cores, activations and levels rounded to bf16: only by its name.
    SkinnyBf16,
    /// Many rows, decoded on the way into tiles in workgroup memory.
    Tiled,
    /// The same in WGSL with both operands rounded to f16, the sums in f32: only by its name.
    TiledF16,
    /// The same on CUDA's tensor cores, both operands rounded to bf16, the sums in f32: only by its name.
    TiledBf16,
    /// The same on Hopper's tensor cores, by groups of four warps: only by its name.
    WarpgroupBf16,
    /// The weight is decoded to bf16 into a scratch tensor, which a dense product on Hopper's tensor cores takes: only by its name.
    DecodedBf16,
}

impl Variant {
    /// Whether it rounds both operands.
    fn rounds(self) -> bool {
        match self {
            Self::Decoded | Self::Skinny | Self::SkinnyShared | Self::Tiled => false,
            Self::SkinnyBf16 | Self::TiledF16 | Self::TiledBf16 | Self::WarpgroupBf16 | Self::DecodedBf16 => true,
        }
    }

    /// Whether many rows go through CUDA's tensor cores, by kernels that take a branch's inner activations in bf16 and can give bf16.
    fn on_tensor_cores(self) -> bool {
        matches!(self, Self::TiledBf16 | Self::WarpgroupBf16 | Self::DecodedBf16)
    }
}

/// Whether a device multiplies in bf16 and copies to shared memory meanwhile, which CUDA GPUs do from Ampere on.
fn has_mma<R: SourceRuntime>(client: &ComputeClient<R>) -> bool {
    R::LANGUAGE == Language::Cuda && client.properties().features.copy_async
}

/// The variants by which a device can compute a product of `rows` rows; never none. Of those that round alike, the one to prefer
/// comes first.
pub fn variants<R: SourceRuntime>(
    client: &ComputeClient<R>,
    [out, input]: [usize; 2],
    rows: usize,
    gradient: bool,
) -> Vec<Variant> {
    // CUDA's kernels take any shape.
    let cuda = R::LANGUAGE == Language::Cuda;
    let words = cuda || input.is_multiple_of(8);
    let skinny = words && !gradient && rows <= MAX_ROWS;
    let tiled = words && (cuda || !gradient || out.is_multiple_of(4));
    let trusted = trusted::<R>();
    let warpgroup = nf4_warpgroup::can(client, [out, input], gradient);
    let many = rows >= DECODED_ROWS;
    let mma = has_mma(client);
    let skinny_bf16 = skinny && mma && can_mma(client, [out, input]);
    // One or two rows are no faster by it: measured on an H200.
    let several = rows > 2;
    let all = [
        (Variant::Decoded, true),
        (Variant::SkinnyBf16, skinny_bf16 && trusted && several),
        (Variant::Skinny, skinny),
        (Variant::SkinnyShared, skinny && !cuda),
        (Variant::Tiled, tiled),
        (Variant::TiledF16, tiled && !cuda && client.properties().supports_type(DType::F16)),
        (Variant::DecodedBf16, warpgroup && trusted && many),
        (Variant::WarpgroupBf16, warpgroup && trusted),
        (Variant::TiledBf16, mma),
        (Variant::SkinnyBf16, skinny_bf16 && !(trusted && several)),
        (Variant::WarpgroupBf16, warpgroup && !trusted),
        (Variant::DecodedBf16, warpgroup && !(trusted && many)),
    ];
    all.into_iter().filter_map(|(variant, can)| can.then_some(variant)).collect()
}

/// What is multiplied with a weight.
#[derive(Clone, Debug)]
pub enum Product<R: SourceRuntime> {
    /// `x` `[rows, in]` times the transposed weight, `[rows, out]`, and what a branch beside the weight adds to it.
    Forward(Option<Box<Update<R>>>),
    /// For the gradient of an input: `x` `[rows, out]` times the weight, `[rows, in]`, and the branch's part of it.
    InputGradient(Option<Box<Update<R>>>),
}

impl<R: SourceRuntime> Product<R> {
    fn update(&self) -> Option<&Update<R>> {
        let (Self::Forward(update) | Self::InputGradient(update)) = self;
        update.as_deref()
    }

    /// With a branch's inner activations in a type.
    fn contiguous(self, inner: DType) -> Self {
        let update = |update: Option<Box<Update<R>>>| {
            update.map(|update| {
                let Update { low, b, scaling } = *update;
                Box::new(Update { low: view::converted(low, inner), b: into_contiguous(b), scaling })
            })
        };
        match self {
            Self::Forward(of) => Self::Forward(update(of)),
            Self::InputGradient(of) => Self::InputGradient(update(of)),
        }
    }
}

/// Whether a variant on tensor cores takes a branch into its sums: groups of warps take the inner activations in whole pieces of 16 bytes.
fn inside<R: SourceRuntime>(update: &Update<R>, variant: Variant) -> bool {
    variant == Variant::TiledBf16 || update.low.meta.shape()[1].is_multiple_of(8)
}

/// The product of `x` with a weight in the type `into`, f32 or another float type, by the given variant, or by the fastest f32 one on this
/// device. `x` and a branch's inner activations may be of another type than the variant takes: they are converted.
///
/// # Panics
/// When the shapes do not fit, or the variant can't compute them: see [`variants`].
pub fn nf4_matmul<R: SourceRuntime>(
    x: CubeTensor<R>,
    weight: Nf4<R>,
    product: Product<R>,
    variant: Option<Variant>,
    into: DType,
) -> CubeTensor<R> {
    let [out, input] = weight.shape;
    let (width, columns) = match product {
        Product::Forward(_) => (input, out),
        Product::InputGradient(_) => (out, input),
    };
    let rows = x.meta.shape()[0];
    assert_eq!(x.meta.shape()[1], width, "nf4_matmul: x has rows of another width than the weight takes");
    let shape = [rows, columns].into();
    if rows * columns == 0 || width == 0 {
        return view::zeros(&x, shape, into);
    }
    let x = if variant.is_some_and(Variant::rounds) { into_contiguous(x) } else { view::converted(x, DType::F32) };
    let on_tensor_cores = variant.filter(|variant| variant.on_tensor_cores());
    let inner = if on_tensor_cores.is_some() { DType::BF16 } else { DType::F32 };
    // What is not in the sums yet is added to them in f32.
    let whole = |variant| product.update().is_none_or(|update| inside(update, variant));
    let given = if into == DType::BF16 && on_tensor_cores.is_some_and(whole) { into } else { DType::F32 };
    let y = view::empty(&x, shape, given);
    let operands = Operands { x, weight, y: y.clone(), product: product.contiguous(inner) };
    match (variant, trusted::<R>()) {
        (Some(variant), _) => {
            assert!(operands.variants().contains(&variant), "nf4_matmul: {variant:?} can't compute this product");
            operands.run(variant);
        }
        (None, true) => operands.run_fastest(),
        (None, false) => operands.run(Variant::Decoded),
    }
    view::converted(y, into)
}

/// What a product takes and where it goes.
#[derive(Clone, Debug)]
struct Operands<R: SourceRuntime> {
    x: CubeTensor<R>,
    weight: Nf4<R>,
    y: CubeTensor<R>,
    product: Product<R>,
}

impl<R: SourceRuntime> Operands<R> {
    fn rows(&self) -> usize {
        self.x.meta.shape()[0]
    }

    fn gradient(&self) -> bool {
        matches!(self.product, Product::InputGradient(_))
    }

    fn variants(&self) -> Vec<Variant> {
        variants(&self.x.client, self.weight.shape, self.rows(), self.gradient())
    }

    /// By the variant that was the fastest here at the first product of its kind.
    #[cfg(not(target_arch = "wasm32"))]
    fn run_fastest(self) {
        choose::run(self);
    }

    /// A browser's thread cannot wait for timings: by what was the fastest on the devices that were measured.
    #[cfg(target_arch = "wasm32")]
    fn run_fastest(self) {
        let skinny = self.variants().contains(&Variant::Skinny);
        self.run(if skinny { Variant::Skinny } else { Variant::Decoded });
    }

    /// Computes the product into `y`.
    fn run(&self, variant: Variant) {
        let subgroups = has_subgroups(&self.x.client);
        let with_branch = match variant {
            Variant::Decoded => self.run_decoded(),
            Variant::Skinny => self.run_skinny(subgroups),
            Variant::SkinnyShared => self.run_skinny(false),
            Variant::SkinnyBf16 => self.run_skinny_bf16(),
            Variant::Tiled => self.run_tiled(DType::F32),
            Variant::TiledF16 => self.run_tiled(DType::F16),
            Variant::TiledBf16 | Variant::WarpgroupBf16 | Variant::DecodedBf16 => self.run_on_tensor_cores(variant),
        };
        if let Some(Update { low, b, scaling }) = self.product.update().filter(|_| !with_branch) {
            let (low, mut b) = (view::converted(low.clone(), DType::F32), b.clone());
            if !self.gradient() {
                b.meta.swap(0, 1);
            }
            view::add(&self.y, &matmul(low, b), *scaling);
        }
    }

    // Each of these says whether what a branch adds is in the result.

    fn run_skinny(&self, subgroups: bool) -> bool {
        nf4_skinny(&self.x, &self.weight, self.product.update(), &self.y, subgroups);
        true
    }

    fn run_skinny_bf16(&self) -> bool {
        let x = view::converted(self.x.clone(), DType::BF16);
        nf4_skinny_mma(&x, &self.weight, self.product.update(), &self.y);
        true
    }

    fn run_tiled(&self, dtype: DType) -> bool {
        tiled::launch(&self.x, &self.weight, &self.y, dtype, self.gradient());
        false
    }

    /// By CUDA's tensor cores, in bf16.
    fn run_on_tensor_cores(&self, variant: Variant) -> bool {
        let [rows, columns] = [0, 1].map(|i| self.y.meta.shape()[i]);
        let update = self.product.update().filter(|update| inside(update, variant));
        let x = view::converted(self.x.clone(), DType::BF16);
        if variant == Variant::DecodedBf16 {
            let dense = nf4_dequantize(&self.weight, 0..self.weight.shape[0], DType::BF16);
            by_warpgroups(&x, &dense, update, &self.y, self.gradient());
            return update.is_some();
        }
        let warpgroups = variant == Variant::WarpgroupBf16;
        // Groups of warps copy tiles of x by what describes it.
        let mut buffers = self.weight.buffers(&[&x, &self.y][usize::from(warpgroups)..]);
        let info = told(rows, self.weight.shape, update, &mut buffers);
        let (table, gradient, branch, result) = (self.weight.table, self.gradient(), update.is_some(), self.y.dtype);
        if warpgroups {
            let tile = warpgroup::tile(&x.client, [rows, columns]);
            let source = nf4_warpgroup_source(table, tile[0], gradient, branch, result);
            let maps = vec![warpgroup::tiled(&x, tile[0])];
            source.launch_with(maps, tile_grid(tile, [rows, columns]), &buffers, &info);
        } else {
            let grid = tile_grid([nf4_mma::TILE; 2], [rows, columns]);
            nf4_mma_source(table, gradient, branch, result).launch(grid, &buffers, &info);
        }
        branch
    }

    fn run_decoded(&self) -> bool {
        let (scratch, features) = (scratch(&self.x, self.weight.shape), 0..self.weight.shape[0]);
        matmul_through(&scratch, &self.x, features, &self.y, self.gradient(), |features, dense| {
            nf4_dequantize_into(&self.weight, features, dense);
        });
        false
    }
}
