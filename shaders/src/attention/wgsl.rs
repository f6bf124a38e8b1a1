//! The kernels in WGSL, put together for a width of heads: a tile of a product is the same text for any two operands.

use super::Pass;
use crate::source::Sources;
use crate::{Language, Source};

/// Threads of a workgroup.
const THREADS: u32 = 128;

/// Rows that a workgroup takes, and columns at a time.
pub(super) fn tile(pass: Pass) -> [usize; 2] {
    match pass {
        Pass::Forward | Pass::Queries => [64, 32],
        Pass::Keys => [32, 64],
    }
}

static SOURCES: Sources<(Pass, usize)> = Sources::new();

/// A buffer's binding, name, and what it has rows and heads for.
struct Operand(u32, &'static str, Of);

/// Whose rows and heads a buffer has.
#[derive(Clone, Copy)]
enum Of {
    Queries,
    Keys,
}

impl Operand {
    fn text(&self, template: &str, head_dim: usize) -> String {
        let Self(binding, name, of) = self;
        let [rows, heads, head] = match of {
            Of::Queries => ["info.tokens", "info.heads", "head"],
            Of::Keys => ["info.keys", "info.kv_heads", "kv_head"],
        };
        // A head that is a multiple of four wide begins at one.
        let (element, read) = match head_dim.is_multiple_of(4) {
            true => ("vec4<f32>", format!("return {name}[at / 4u];")),
            false => {
                let element = |i: u32| format!("select(0.0, {name}[at + {i}u], column + {i}u < HEAD_DIM)");
                ("f32", format!("return vec4<f32>({});", [0, 1, 2, 3].map(element).join(", ")))
            }
        };
        let values = [
            ("binding", binding.to_string()),
            ("name", (*name).to_string()),
            ("rows", rows.to_string()),
            ("heads", heads.to_string()),
            ("head", head.to_string()),
            ("element", element.to_string()),
            ("read", read),
        ];
        fill(template, &values)
    }
}

fn fill(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_string(), |text, (name, value)| text.replace(&format!("{{{{ {name} }}}}"), value))
}

/// The source of a kernel for heads of this width.
pub(super) fn source(pass: Pass, head_dim: usize) -> Source {
    SOURCES.get((pass, head_dim), |_| {
        let [q, k, v] = [Operand(0, "q", Of::Queries), Operand(1, "k", Of::Keys), Operand(2, "v", Of::Keys)];
        let grad = Operand(3, "grad", Of::Queries);
        let (name, kernel, bounds, info) = match pass {
            Pass::Forward => ("attention_forward", include_str!("forward.wgsl"), 3, 6),
            Pass::Queries => ("attention_d_queries", include_str!("d_queries.wgsl"), 5, 7),
            Pass::Keys => ("attention_d_keys", include_str!("d_keys.wgsl"), 5, 8),
        };
        // What is read, which products of two operands are asked for, what a tile is multiplied with, and what is written.
        let (read, products, multiplied, written) = match pass {
            Pass::Forward => (vec![q, k, v], vec![["q", "k"]], vec!["v"], vec![Operand(4, "y", Of::Queries)]),
            Pass::Queries => {
                let products = vec![["q", "k"], ["grad", "v"]];
                (vec![q, k, v, grad], products, vec!["k"], vec![Operand(6, "d_q", Of::Queries)])
            }
            Pass::Keys => {
                let written = vec![Operand(6, "d_k", Of::Keys), Operand(7, "d_v", Of::Keys)];
                (vec![q, k, v, grad], vec![["k", "q"], ["v", "grad"]], vec!["grad", "q"], written)
            }
        };
        let [rows, columns] = tile(pass);
        let mut text = include_str!("common.wgsl").to_string();
        text.extend(read.iter().map(|operand| operand.text(include_str!("fetch.wgsl"), head_dim)));
        text.extend(written.iter().map(|operand| operand.text(include_str!("store.wgsl"), head_dim)));
        text.extend(
            products
                .iter()
                .map(|[a, b]| fill(include_str!("product.wgsl"), &[("a", a.to_string()), ("b", b.to_string())])),
        );
        text.extend(multiplied.iter().map(|name| fill(include_str!("accumulate.wgsl"), &[("name", name.to_string())])));
        text.push_str(kernel);
        let values = [
            ("bounds", bounds.to_string()),
            ("info", info.to_string()),
            ("head_dim", head_dim.to_string()),
            ("row_groups", (rows / 4).to_string()),
            ("column_groups", (columns / 4).to_string()),
            ("registers", (4 * head_dim.div_ceil(columns)).to_string()),
        ];
        Source::fill(name, Language::Wgsl, THREADS, &text, &values)
    })
}
