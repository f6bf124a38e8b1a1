//! Products in f32 with a weight that is not trained, whatever it is held in and in however many tensors its rows are.

use burn_backend::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::half_rows::half_rows_into;
use crate::half_skinny::half_skinny;
use crate::matmul::{matmul_of_features, matmul_through, scratch};
use crate::{SourceRuntime, view};

/// `x · Wᵀ` of f32 rows `[rows, in]`, or for the gradient of an input `x · W` of rows `[rows, out]`, in f32. The weight `[out, in]` in f32,
/// bf16 or f16 is one tensor, or several of consecutive output features, a multiple of 64 in each but the last. A few rows read 16 bits as
/// they are; for more, a part of them is widened at a time, and what it makes is written where it belongs.
///
/// # Panics
/// When there is no tensor, or the shapes do not fit.
pub fn half_product<R: SourceRuntime>(x: CubeTensor<R>, weight: Vec<CubeTensor<R>>, gradient: bool) -> CubeTensor<R> {
    let out = weight.iter().map(|part| part.meta.shape()[0]).sum();
    let input = weight.first().expect("a weight of at least one tensor").meta.shape()[1];
    let [rows, width] = [0, 1].map(|i| x.meta.shape()[i]);
    let (taken, given) = if gradient { (out, input) } else { (input, out) };
    assert_eq!(width, taken, "half_product: x has rows of another width than the weight takes");
    if rows * out * input == 0 {
        return view::zeros(&x, [rows, given].into(), DType::F32);
    }
    let x = into_contiguous(x);
    let y = view::empty(&x, [rows, given], DType::F32);
    let whole = weight.len() == 1;
    let (mut room, mut before) = (None, 0);
    for part in weight {
        let part = into_contiguous(part);
        let features = before..before + part.meta.shape()[0];
        // Of several rows what a part makes does not lie in one piece.
        let few = !gradient && (whole || rows == 1);
        let after = features.end;
        if part.dtype == DType::F32 {
            matmul_of_features(&x, part, features, &y, gradient);
        } else if !(few && half_skinny(&x, &part, &view::columns(&y, features.clone()))) {
            let room = room.get_or_insert_with(|| scratch(&x, [out, input]));
            matmul_through(room, &x, features, &y, gradient, |some, dense| {
                half_rows_into(&part, some.start - before, dense);
            });
        }
        before = after;
    }
    y
}
