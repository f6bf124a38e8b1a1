//! `x · Wᵀ` for a few rows and a weight in bf16 or f16, as decoding asks of the head: the weight is read once, and nothing is widened into
//! memory.

use burn_backend::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::nf4_skinny::{MAX_ROWS, has_subgroups, reduction};
use crate::source::{Sources, grid};
use crate::trust::trusted;
use crate::weight::told;
use crate::{Language, Source, SourceRuntime};

/// Threads of a workgroup and the output features that it makes.
fn geometry(language: Language) -> (u32, usize) {
    match language {
        Language::Wgsl => (64, 4),
        Language::Cuda => (256, 32),
    }
}

static SOURCES: Sources<(Language, u32, bool, DType)> = Sources::new();

/// The kernel's source for at most `rows` rows and a weight in bf16 or f16; in WGSL with subgroup reductions or with workgroup memory
/// alone.
pub fn source(language: Language, rows: u32, subgroups: bool, dtype: DType) -> Source {
    SOURCES.get((language, rows, subgroups, dtype), |_| {
        let [enable, inputs, reduce] = reduction(subgroups);
        let rows = rows.to_string();
        let values = [
            ("subgroup_inputs", inputs),
            ("reduce", reduce),
            ("branch_buffers", ""),
            ("branch", ""),
            ("x_binding", "1"),
            ("y_binding", "2"),
            ("info_binding", "3"),
            ("entry", "half_skinny"),
            ("rows", rows.as_str()),
            ("dtype", dtype.name()),
        ];
        let template = match language {
            Language::Wgsl => {
                let texts = [include_str!("../halves.wgsl"), include_str!("weight.wgsl")].join("\n");
                format!("{enable}\n{texts}\n{}", include_str!("../nf4_skinny/kernel.wgsl"))
            }
            Language::Cuda => {
                concat!(include_str!("../ptx.cu"), "\n", include_str!("../halves.cu"), "\n", include_str!("kernel.cu"))
                    .to_string()
            }
        };
        let values = values.map(|(name, value)| (name, value.to_string()));
        Source::fill("half_skinny", language, geometry(language).0, &template, &values)
    })
}

/// `x` `[rows, in]`, f32, times the transposed `weight` `[out, in]` in bf16 or f16, into `y` `[rows, out]` in f32, all contiguous. False, and
/// nothing done, for what the kernel is not for: more than 16 rows, rows of `in` elements that are not whole pieces of 16 bytes, nothing at all.
pub(crate) fn half_skinny<R: SourceRuntime>(x: &CubeTensor<R>, weight: &CubeTensor<R>, y: &CubeTensor<R>) -> bool {
    let [rows, input] = [0, 1].map(|i| x.meta.shape()[i]);
    let out = weight.meta.shape()[0];
    let aligned = |tensor: &CubeTensor<R>| tensor.handle.offset_start.unwrap_or(0).is_multiple_of(16);
    let fits = (1..=MAX_ROWS).contains(&rows) && input > 0 && input.is_multiple_of(8) && out > 0;
    let taken = matches!(weight.dtype, DType::BF16 | DType::F16) && aligned(weight) && aligned(x);
    if !fits || !taken || !trusted::<R>() {
        return false;
    }
    let subgroups = R::LANGUAGE == Language::Wgsl && has_subgroups(&x.client);
    let source = source(R::LANGUAGE, rows.next_power_of_two() as u32, subgroups, weight.dtype);
    let (_, features) = geometry(R::LANGUAGE);
    let mut buffers = vec![weight, x, y];
    let info = told(rows, [out, input], None, &mut buffers);
    source.launch(grid(out.div_ceil(features) as u32), &buffers, &info);
    true
}
