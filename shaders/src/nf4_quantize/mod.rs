//! f32, bf16 or f16 to NF4 on the device, with one f32 scale per block, bit for bit as the plain code does it. Quantizing the scales again
//! is left to the host: it is a 64th of the work, and its mean depends on the order of torch's additions.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::source::{Sources, grid};
use crate::{Language, Source, SourceRuntime, view};

/// The smallest scale that is divided by.
const TINY: f32 = 1e-38;

/// Threads of a workgroup.
fn threads(language: Language) -> u32 {
    match language {
        Language::Wgsl => 64,
        Language::Cuda => 256,
    }
}

static SOURCES: Sources<(Language, DType)> = Sources::new();

/// The kernel's source, for weights in `dtype`: f32, bf16 or f16; `table` holds the 16 levels of NF4.
pub fn source(language: Language, table: &[f32; 16], dtype: DType) -> Source {
    SOURCES.get((language, dtype), |_| {
        let list =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", ");
        let bits_at = match dtype {
            DType::F32 => "return weights[at];".to_string(),
            _ => format!("return bits_of_{}((weights[at / 2u] >> (16u * (at % 2u))) & 0xffffu);", dtype.name()),
        };
        let values = [
            ("nf4_table", list(&mut table.iter().copied())),
            ("bounds", list(&mut table.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0))),
            ("tiny", TINY.to_bits().to_string()),
            ("dtype", dtype.name().to_string()),
            ("bits_at", bits_at),
            ("bits", if dtype == DType::F32 { "u32" } else { "unsigned short" }.to_string()),
        ];
        let template = match language {
            Language::Wgsl => concat!(include_str!("../halves.wgsl"), "\n", include_str!("kernel.wgsl")),
            Language::Cuda => {
                concat!(include_str!("../ptx.cu"), "\n", include_str!("../halves.cu"), "\n", include_str!("kernel.cu"))
            }
        };
        Source::fill("nf4_quantize", language, threads(language), template, &values)
    })
}

/// Quantizes the elements of `weights`, in f32, bf16 or f16, in blocks of `block_size`, a power of two from 32 to 4096: the codes, eight to a
/// `U32` word, and the bits of the scales. The scale of a block with a weight that is NaN or infinite is NaN or infinite, and its
/// codes are arbitrary.
pub fn nf4_quantize<R: SourceRuntime>(
    weights: CubeTensor<R>,
    block_size: usize,
    table: &[f32; 16],
) -> [CubeTensor<R>; 2] {
    let weights = view::contiguous(weights);
    let count = weights.meta.shape().num_elements();
    let blocks = count.div_ceil(block_size);
    let empty = |length: usize, dtype| view::empty(&weights, [length], dtype);
    let (codes, absmax) = (empty(count.div_ceil(8), DType::U32), empty(blocks, DType::U32));
    if count > 0 {
        let at_once = match R::LANGUAGE {
            Language::Wgsl => threads(R::LANGUAGE) as usize,
            // A warp, or a part of one, takes a block.
            Language::Cuda => threads(R::LANGUAGE) as usize / (block_size / 8).min(32),
        };
        let info = [count as u32, block_size as u32, 0, 0];
        let grid = grid(blocks.div_ceil(at_once) as u32);
        source(R::LANGUAGE, table, weights.dtype).launch(grid, &[&weights, &codes, &absmax], &info);
    }
    [codes, absmax]
}
