//! Rows of a matrix by their numbers. Burn 0.21's `select` reads a number for every column, too, before it finds that columns are not what
//! is selected by: for wide rows far beyond the numbers' memory.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{contiguous, elements, elementwise, empty};
use crate::SourceRuntime;
use crate::view::in_fours;

#[cube(launch)]
fn pick<X: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    rows: &Array<u32>,
    y: &mut Array<Vector<X, N>>,
    apart: u32,
    #[define(X)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < y.len() {
        let width = y.len() / rows.len();
        y[ABSOLUTE_POS] = x[rows[ABSOLUTE_POS / width] as usize * apart as usize + ABSOLUTE_POS % width];
    }
}

/// Those rows of a matrix `[n, columns]` that `rows` names, 32-bit integers from 0 to `n - 1`, in its order (`torch.index_select`):
/// `[rows, columns]`, in the matrix's type.
///
/// # Panics
/// When rows are asked of a matrix that has none.
pub fn select_rows<R: SourceRuntime>(x: CubeTensor<R>, rows: CubeTensor<R>) -> CubeTensor<R> {
    let [length, columns] = [0, 1].map(|i| x.meta.shape()[i]);
    // Rows that begin further apart than they are long, as CUDA's may, are taken where they are: a table is not to be copied.
    let x = if x.meta.strides()[1] == 1 { x } else { contiguous(x) };
    let lanes = if in_fours(&x) { 4 } else { 1 };
    let (rows, apart) = (contiguous(rows), x.meta.strides()[0]);
    let y = empty(&x, [rows.meta.shape().num_elements(), columns], x.dtype);
    let count = y.meta.shape().num_elements();
    if count > 0 {
        assert!(length > 0, "select_rows: of no rows");
        let (cubes, dim) = elementwise(&y, count / lanes);
        // SAFETY: the last of its rows ends so many elements after the first one begins.
        let table = unsafe { ArrayArg::from_raw_parts(x.handle.clone(), (length - 1) * apart + columns) };
        let [of_rows, of_y] = [&rows, &y].map(elements);
        pick::launch::<R>(&y.client, cubes, dim, lanes, table, of_rows, of_y, (apart / lanes) as u32, x.dtype.into());
    }
    y
}
