//! Products of strided matrices inside slices, and the scratch that they are made in.

use std::cell::RefCell;

/// Multiplications below which a product is not worth a second thread.
const PARALLEL: usize = 1 << 21;

thread_local! {
    /// Floats kept between calls, so that no product allocates.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` with this thread's scratch of at least `length` floats, whose contents are arbitrary.
pub(super) fn with_scratch<T>(length: usize, body: impl FnOnce(&mut [f32]) -> T) -> T {
    // Taken out rather than borrowed: a thread that waits inside a parallel product may start another one.
    let mut scratch = SCRATCH.take();
    if scratch.len() < length {
        scratch.resize(length, 0.0);
    }
    let result = body(&mut scratch[..length]);
    SCRATCH.set(scratch);
    result
}

/// A strided matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> View<'a> {
    /// `shape` elements of `data` from `offset` on, `strides` apart.
    pub(super) fn new(data: &'a [f32], offset: usize, shape: [usize; 2], strides: [usize; 2]) -> Self {
        let data = &data[offset..];
        assert!(shape.contains(&0) || (shape[0] - 1) * strides[0] + (shape[1] - 1) * strides[1] < data.len());
        Self { data, shape, strides }
    }

    /// The transpose.
    pub(super) fn t(self) -> Self {
        let ([rows, columns], [down, across]) = (self.shape, self.strides);
        Self { data: self.data, shape: [columns, rows], strides: [across, down] }
    }
}

/// Whether a product may use other threads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    One,
    All,
}

/// `scale * lhs · rhs`, row-major.
pub(super) fn product(lhs: View, rhs: View, scale: f32, threads: Threads) -> Vec<f32> {
    let (rows, columns) = (lhs.shape[0], rhs.shape[1]);
    let length = rows * columns;
    if lhs.shape[1] == 0 {
        return vec![0.0; length];
    }
    // Not zeroed first: the product writes every element, and the pages of a large result cost as much as reading it.
    let mut y = Vec::with_capacity(length);
    // SAFETY: the vector has room for `rows` rows of `columns`, all of which the call writes before they are exposed.
    unsafe {
        gemm(lhs, rhs, (y.as_mut_ptr(), columns), scale, false, threads);
        y.set_len(length);
    }
    y
}

/// `y = keep * y + scale * lhs · rhs`, where row `i` of `y` begins at `i * stride`; `keep` is 0 or 1.
pub(super) fn matmul(lhs: View, rhs: View, (y, stride): (&mut [f32], usize), scale: f32, keep: bool, threads: Threads) {
    let (m, n) = (lhs.shape[0], rhs.shape[1]);
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= stride && (m - 1) * stride + n <= y.len());
    // SAFETY: the assertion keeps every row of the result inside `y`, which is borrowed mutably.
    unsafe { gemm(lhs, rhs, (y.as_mut_ptr(), stride), scale, keep, threads) }
}

/// [`matmul`] into raw memory, which without `keep` may be uninitialized.
///
/// # Safety
/// `y` points to `lhs.shape[0]` writable rows of `rhs.shape[1]` floats, `stride` apart, that overlap neither operand.
unsafe fn gemm(lhs: View, rhs: View, (y, stride): (*mut f32, usize), scale: f32, keep: bool, threads: Threads) {
    let ([m, k], [inner, n]) = (lhs.shape, rhs.shape);
    assert_eq!(k, inner, "the inner dimensions of a product differ");
    let parallelism = match threads {
        Threads::All if m * n * k >= PARALLEL => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: `View::new` keeps every strided read inside its slice, and the caller answers for `y`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y,
            1,
            stride as isize,
            keep,
            lhs.data.as_ptr(),
            lhs.strides[1] as isize,
            lhs.strides[0] as isize,
            rhs.data.as_ptr(),
            rhs.strides[1] as isize,
            rhs.strides[0] as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
