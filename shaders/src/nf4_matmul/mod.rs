//! Products of activations with an NF4 weight: the ways to compute them, and which one is taken.

#[cfg(not(target_arch = "wasm32"))]
mod choose;
mod tiled;

use burn_backend::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::Plane;

pub use tiled::{bf16_source, source};

use crate::matmul::{matmul, matmul_into};
use crate::nf4_skinny::{MAX_ROWS, nf4_skinny};
use crate::{Language, Nf4, SourceRuntime, nf4_dequantize, view};

/// Bytes that are decoded at a time, where the device binds as many.
const SCRATCH: usize = 256 << 20;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The weight is decoded into a scratch tensor, part by part where it is large, which a dense product takes.
    Decoded,
    /// A few rows, each packed word read once; sums go through subgroups where the device has them.
    Skinny,
    /// The same with sums through workgroup memory, which every device has.
    SkinnyShared,
    /// Many rows, decoded on the way into tiles in workgroup memory.
    Tiled,
    /// The same on tensor cores, the activations rounded to bf16: only by its name.
    TiledBf16,
}

/// The variants by which the runtime can compute a product of `rows` rows; never none.
pub fn variants<R: SourceRuntime>([out, input]: [usize; 2], rows: usize, gradient: bool) -> Vec<Variant> {
    // CUDA's kernels take any shape.
    let cuda = R::LANGUAGE == Language::Cuda;
    let words = cuda || input.is_multiple_of(8);
    let skinny = words && !gradient && rows <= MAX_ROWS;
    let tiled = words && (cuda || !gradient || out.is_multiple_of(4));
    let all = [
        (Variant::Decoded, true),
        (Variant::Skinny, skinny),
        (Variant::SkinnyShared, skinny && !cuda),
        (Variant::Tiled, tiled),
        (Variant::TiledBf16, cuda),
    ];
    all.into_iter().filter_map(|(variant, can)| can.then_some(variant)).collect()
}

/// `x` `[rows, in]` times the transposed weight, `[rows, out]`; or for the gradient of an input `x` `[rows, out]` times the
/// weight, `[rows, in]`. By the given variant, or by the fastest one on this device.
///
/// # Panics
/// When the shapes do not fit, or the variant can't compute them: see [`variants`].
pub fn nf4_matmul<R: SourceRuntime>(
    x: CubeTensor<R>,
    weight: Nf4<R>,
    gradient: bool,
    variant: Option<Variant>,
) -> CubeTensor<R> {
    let [out, input] = weight.shape;
    let (width, columns) = if gradient { (out, input) } else { (input, out) };
    let rows = x.meta.shape()[0];
    assert_eq!(x.meta.shape()[1], width, "nf4_matmul: x has rows of another width than the weight takes");
    let shape = [rows, columns].into();
    if rows * columns == 0 || width == 0 {
        return zeros(x.device.clone(), shape, DType::F32);
    }
    let x = into_contiguous(x);
    let y = empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, DType::F32);
    let operands = Operands { x, weight, y: y.clone(), gradient };
    match (variant, R::PROVEN) {
        (Some(variant), _) => {
            assert!(operands.variants().contains(&variant), "nf4_matmul: {variant:?} can't compute this product");
            operands.run(variant);
        }
        (None, true) => operands.run_fastest(),
        (None, false) => operands.run(Variant::Decoded),
    }
    y
}

/// What a product takes and where it goes.
#[derive(Clone, Debug)]
struct Operands<R: SourceRuntime> {
    x: CubeTensor<R>,
    weight: Nf4<R>,
    y: CubeTensor<R>,
    gradient: bool,
}

impl<R: SourceRuntime> Operands<R> {
    fn rows(&self) -> usize {
        self.x.meta.shape()[0]
    }

    fn variants(&self) -> Vec<Variant> {
        variants::<R>(self.weight.shape, self.rows(), self.gradient)
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
        match variant {
            Variant::Decoded => self.run_decoded(),
            Variant::Skinny => {
                let subgroups = self.x.client.properties().features.plane.contains(Plane::Ops);
                nf4_skinny(&self.x, &self.weight, &self.y, subgroups);
            }
            Variant::SkinnyShared => nf4_skinny(&self.x, &self.weight, &self.y, false),
            Variant::Tiled => tiled::launch(&self.x, &self.weight, &self.y, self.gradient),
            Variant::TiledBf16 => tiled::launch_bf16(&self.x, &self.weight, &self.y, self.gradient),
        }
    }

    fn run_decoded(&self) {
        let [out, input] = self.weight.shape;
        let largest = self.x.client.properties().memory.max_page_size;
        let scratch = SCRATCH.min(largest.try_into().unwrap_or(usize::MAX));
        let at_once = (scratch / (4 * input) / view::ALIGNMENT * view::ALIGNMENT).max(view::ALIGNMENT);
        for first in (0..out).step_by(at_once) {
            let features = first..out.min(first + at_once);
            let mut dense = nf4_dequantize(&self.weight, features.clone(), DType::F32);
            if !self.gradient {
                dense.meta.swap(0, 1);
                matmul_into(&self.x, &dense, &view::columns(&self.y, features));
            } else if first == 0 {
                matmul_into(&view::columns(&self.x, features), &dense, &self.y);
            } else {
                view::add(&self.y, &matmul(view::columns(&self.x, features), dense));
            }
        }
    }
}
