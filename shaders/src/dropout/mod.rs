//! Dropout of elements that follow from a key and their places, as `halfbyte::ops::Dropped` says.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::results::{RESULTS, given, in_cuda};
use crate::source::{Sources, grid};
use crate::{Language, PTX, Source, SourceRuntime, view};

const THREADS: u32 = 256;

static SOURCES: Sources<(Language, DType)> = Sources::new();

/// The kernel's source for elements in f32, or on CUDA in bf16.
pub fn source(language: Language, dtype: DType) -> Source {
    SOURCES.get((language, dtype), |_| match language {
        Language::Wgsl => Source::fill("dropout", language, THREADS, include_str!("kernel.wgsl"), &[]),
        Language::Cuda => {
            let template = format!("{PTX}\n{RESULTS}\n{}", include_str!("kernel.cu"));
            Source::fill("dropout", language, THREADS, &template, &[("result", in_cuda(dtype).to_string())])
        }
    })
}

/// `x`, an element of which is zero where its 16 random bits lie below `threshold`, and else `kept` times what it was, in its type.
pub fn dropout<R: SourceRuntime>(x: CubeTensor<R>, key: [u32; 2], threshold: u32, kept: f32) -> CubeTensor<R> {
    let wanted = x.dtype;
    let dtype = given::<R>(wanted);
    let x = view::converted(x, dtype);
    let shape = x.meta.shape().clone();
    let count = shape.num_elements() as u64;
    let y = view::empty(&x, shape, dtype);
    if count > 0 {
        let info = [count as u32, key[0], key[1], threshold, kept.to_bits(), (count >> 32) as u32, 0, 0];
        let blocks = (count.div_ceil(64) * 8).div_ceil(u64::from(THREADS));
        source(R::LANGUAGE, dtype).launch(grid(blocks as u32), &[&x, &y], &info);
    }
    view::converted(y, wanted)
}
