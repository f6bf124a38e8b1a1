//! Dense products by one kernel that is right for every shape: CubeCL's single-staged register tiles.
//!
//! Burn 0.21 would choose for itself, by timing. Some of its candidates are wrong, silently: one-row products fused with
//! what surrounds them (seen on Vulkan; tracel-ai/burn#5122 is their kin), and double-buffered ones that read a stage past
//! the end where the inner dimension is an odd number of stages (tracel-ai/cubek#434, tracel-ai/burn#5626). Others round
//! f32 operands to tf32.

use std::ops::Range;

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

use crate::{SourceRuntime, view};

/// `lhs · rhs` over the last two dimensions, `[.., m, k] x [.., k, n] -> [.., m, n]`; the leading ones are equal.
///
/// # Panics
/// When the inner dimensions differ, or the device refuses both the tiled and the plain kernel.
pub fn matmul<R: SourceRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    let rank = lhs.meta.shape().num_dims();
    let (inner, columns) = (rhs.meta.shape()[rank - 2], rhs.meta.shape()[rank - 1]);
    assert_eq!(lhs.meta.shape()[rank - 1], inner, "the inner dimensions of a product differ");
    let mut shape = lhs.meta.shape().clone();
    shape[rank - 1] = columns;
    if inner == 0 {
        return view::zeros(&lhs, shape, lhs.dtype);
    }
    let out = view::empty(&lhs, shape, lhs.dtype);
    if out.meta.shape().num_elements() > 0 {
        matmul_into(&lhs, &rhs, &out);
    }
    out
}

/// [`matmul`] into a tensor of the result's shape, or a part of one. Nothing of it is empty.
fn matmul_into<R: SourceRuntime>(lhs: &CubeTensor<R>, rhs: &CubeTensor<R>, out: &CubeTensor<R>) {
    let element = lhs.dtype.into();
    let launch = |strategy: &Strategy| {
        let operand = |tensor: &CubeTensor<R>| InputBinding::new(tensor.clone().binding(), element);
        let mut elements = MatmulElems::from_globals(&MatmulGlobalElems { lhs: element, rhs: element, out: element });
        launch_ref(strategy, &lhs.client, operand(lhs), operand(rhs), out.clone().binding(), &mut elements)
    };
    launch(&Strategy::SimpleUnit(Default::default()))
        .or_else(|_| launch(&Strategy::Naive))
        .unwrap_or_else(|refusal| panic!("no kernel takes {:?} x {:?}: {refusal:?}", lhs.meta, rhs.meta));
}

/// Bytes of a weight that are f32 at a time, where the device binds as many.
const SCRATCH: usize = 256 << 20;

/// Room for as many output features of a weight `[out, in]` as are f32 at a time, on the device of another tensor: `[features, in]`.
pub(crate) fn scratch<R: SourceRuntime>(like: &CubeTensor<R>, [out, input]: [usize; 2]) -> CubeTensor<R> {
    let largest = like.client.properties().memory.max_page_size;
    let bytes = SCRATCH.min(largest.try_into().unwrap_or(usize::MAX));
    let at_once = (bytes / (4 * input.max(1)) / view::ALIGNMENT * view::ALIGNMENT).max(view::ALIGNMENT);
    view::empty(like, [at_once.min(out), input], DType::F32)
}

/// [`matmul_of_features`] of some that are not dense: as many at a time as there is room for, where `widen` puts them. All go through the
/// same memory, since an allocator that gives tensors memory of exactly their size would keep that of the last, which are fewer, beside it.
pub(crate) fn matmul_through<R: SourceRuntime>(
    scratch: &CubeTensor<R>,
    x: &CubeTensor<R>,
    features: Range<usize>,
    y: &CubeTensor<R>,
    gradient: bool,
    widen: impl Fn(Range<usize>, &CubeTensor<R>),
) {
    let at_once = scratch.meta.shape()[0];
    for first in features.clone().step_by(at_once) {
        let some = first..features.end.min(first + at_once);
        let dense = view::rows(scratch, 0..some.len());
        widen(some.clone(), &dense);
        matmul_of_features(x, dense, some, y, gradient);
    }
}

/// What some output features of a weight, `dense` `[features, in]`, do in a product: `x · denseᵀ` into their columns of `y`, or for the
/// gradient of an input what their columns of `x` make with them, which is added to what those before made.
pub(crate) fn matmul_of_features<R: SourceRuntime>(
    x: &CubeTensor<R>,
    mut dense: CubeTensor<R>,
    features: Range<usize>,
    y: &CubeTensor<R>,
    gradient: bool,
) {
    if !gradient {
        dense.meta.swap(0, 1);
        matmul_into(x, &dense, &view::columns(y, features));
    } else if features.start == 0 {
        matmul_into(&view::columns(x, features), &dense, y);
    } else {
        view::add(y, &matmul(view::columns(x, features), dense), 1.0);
    }
}
