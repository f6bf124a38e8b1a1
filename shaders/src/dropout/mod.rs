//! Dropout of elements that follow from a key and their places, as `halfbyte::ops::Dropped` says.

use burn_backend::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::source::{Sources, grid};
use crate::{Language, Source, SourceRuntime, view};

const THREADS: u32 = 256;

static SOURCES: Sources<Language> = Sources::new();

/// The kernel's source.
pub fn source(language: Language) -> Source {
    let template = match language {
        Language::Wgsl => include_str!("kernel.wgsl"),
        Language::Cuda => include_str!("kernel.cu"),
    };
    SOURCES.get(language, |_| Source::fill("dropout", language, THREADS, template, &[]))
}

/// f32 `x`, an element of which is zero where its 16 random bits lie below `threshold`, and else `kept` times what it was.
pub fn dropout<R: SourceRuntime>(x: CubeTensor<R>, key: [u32; 2], threshold: u32, kept: f32) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let shape = x.meta.shape().clone();
    let count = shape.num_elements() as u32;
    let y = view::empty(&x, shape, DType::F32);
    if count > 0 {
        let info = [count, key[0], key[1], threshold, kept.to_bits(), 0, 0, 0];
        source(R::LANGUAGE).launch(grid((count.div_ceil(64) * 8).div_ceil(THREADS)), &[&x, &y], &info);
    }
    y
}
