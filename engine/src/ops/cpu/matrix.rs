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

    /// Rows and columns.
    pub(super) fn shape(self) -> [usize; 2] {
        self.shape
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

/// `y = keep * y + scale * lhs · rhs`, where row `i` of `y` begins at `i * stride`; `keep` is 0 or 1.
pub(super) fn matmul(lhs: View, rhs: View, (y, stride): (&mut [f32], usize), scale: f32, keep: bool, threads: Threads) {
    let ([m, k], [_, n]) = (lhs.shape, rhs.shape);
    if m == 0 || n == 0 {
        return;
    }
    assert!(k == rhs.shape[0] && n <= stride && (m - 1) * stride + n <= y.len());
    let parallelism = match threads {
        Threads::All if m * n * k >= PARALLEL => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: `View::new` and the assertion above keep every strided access inside the three slices, and `y` is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
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
