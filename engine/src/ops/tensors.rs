//! The operations as model code calls them, on tensors.

use burn::tensor::{FloatDType, Int, Tensor};

use super::fused::{primitive, tensor};
use super::{
    Activation, Attended, AttentionShape, Branch, ComputeDtype, Dropped, Frozen, Masking, Nf4Weight, Ops, Product,
    Update, Variant,
};

/// `lhs · rhs` over the last two dimensions, `[.., m, k] x [.., k, n] -> [.., m, n]`; the leading ones are equal.
///
/// In place of Burn's own, of which some GPU variants are wrong: see `halfbyte_shaders::matmul`.
pub fn matmul<B: Ops, const D: usize>(lhs: Tensor<B, D>, rhs: Tensor<B, D>) -> Tensor<B, D> {
    tensor(B::matmul(primitive(lhs), primitive(rhs)))
}

/// `x · Wᵀ`, `[rows, in] -> [rows, out]`, or `dy · W`, `[rows, out] -> [rows, in]`, with `W` in 4 bits, in the type `into`.
pub fn nf4_matmul<B: Ops>(x: Tensor<B, 2>, weight: &Nf4Weight<B>, product: Product, into: FloatDType) -> Tensor<B, 2> {
    tensor(weight.product(primitive(x), product, None, into))
}

/// [`nf4_matmul`] by a variant of one's own choice, for tests and measurements.
pub fn nf4_matmul_by<B: Ops>(
    variant: Variant,
    x: Tensor<B, 2>,
    weight: &Nf4Weight<B>,
    product: Product,
    into: FloatDType,
) -> Tensor<B, 2> {
    tensor(weight.product(primitive(x), product, Some(variant), into))
}

/// `x · Wᵀ + scaling · low · Bᵀ`, a 4-bit product and what a branch adds to it, by a variant of one's own choice: `x` `[rows,
/// in]`, `low` `[rows, r]`, `b` `[out, r]`; or `dy · W + scaling · low · A`, `a` `[r, in]`.
pub fn nf4_lora_by<B: Ops>(
    variant: Variant,
    x: Tensor<B, 2>,
    weight: &Nf4Weight<B>,
    product: Product,
    ([low, b], scaling): ([Tensor<B, 2>; 2], f64),
    into: FloatDType,
) -> Tensor<B, 2> {
    let update = Update { low: primitive(low), b: primitive(b), scaling };
    tensor(weight.product_with(primitive(x), product, update, Some(variant), into))
}

/// Root-mean-square normalisation, `x / sqrt(mean(x²) + eps) * weight` (arXiv:1910.07467), in the type `into`: `x` `[tokens, hidden]`,
/// f32 `weight` `[1, hidden]`.
pub fn rms_norm<B: Ops>(x: Tensor<B, 2>, weight: Tensor<B, 2>, eps: f64, into: FloatDType) -> Tensor<B, 2> {
    tensor(B::rms_norm(primitive(x), primitive(weight), eps, into))
}

/// `activation(gate) * up`, elementwise (SwiGLU and GeGLU, arXiv:2002.05202): both `[tokens, intermediate]` and of one type, which the
/// result has too.
pub fn gated<B: Ops>(gate: Tensor<B, 2>, up: Tensor<B, 2>, activation: Activation) -> Tensor<B, 2> {
    tensor(B::gated(primitive(gate), primitive(up), activation))
}

/// Rotary position embedding (arXiv:2104.09864): turns the halves of every head of `x` `[tokens, heads * head_dim]`, whose type the result
/// has; f32 `cos` and signed `sin` are `[tokens, 1, 2, head_dim / 2]`.
pub fn rotate<B: Ops>(x: Tensor<B, 2>, [cos, sin]: &[Tensor<B, 4>; 2]) -> Tensor<B, 2> {
    tensor(B::rotate(primitive(x), primitive(cos.clone()), primitive(sin.clone()), false))
}

/// `x` `[tokens, in]` with a share of its elements zero and the others larger by as much.
pub fn dropout<B: Ops>(x: Tensor<B, 2>, dropped: Dropped) -> Tensor<B, 2> {
    tensor(B::dropout(primitive(x), dropped))
}

/// A frozen linear layer with a LoRA branch beside it, `x · Wᵀ + scaling · dropout(x) · Aᵀ · Bᵀ`, in the type `into`: `x` `[tokens, in]`.
pub fn lora_linear<B: Ops>(x: Tensor<B, 2>, weight: &Frozen<B>, branch: Branch<B>, into: FloatDType) -> Tensor<B, 2> {
    let [y, _] = B::lora_linear(primitive(x), weight, branch, into);
    tensor(y)
}

/// [`lora_linear`] in f32 for the gradients that go through it alone: with a graph, what its values are is not said.
pub fn lora_linear_unseen<B: Ops>(x: Tensor<B, 2>, weight: &Frozen<B>, branch: Branch<B>) -> Tensor<B, 2> {
    tensor(B::lora_linear_unseen(primitive(x), weight, branch))
}

/// `scaling · x · Fᵀ` with a matrix of a low-rank branch, `x` `[rows, in]` and `F` `[r, in]`, or the other product, `scaling · x · F`
/// with `x` `[rows, out]` and `F` `[out, r]`; and `x` as a 4-bit product that is computed in `compute` takes it. Either may be rounded.
pub fn low_rank<B: Ops>(
    x: Tensor<B, 2>,
    factor: Tensor<B, 2>,
    product: Product,
    scaling: f64,
    compute: ComputeDtype,
) -> [Tensor<B, 2>; 2] {
    B::low_rank(primitive(x), primitive(factor), product, scaling, compute).map(tensor)
}

/// The gradient of a matrix of a low-rank branch, `scaling · gradᵀ · x`: `grad` `[rows, out]` of its results, `x` `[rows, in]` its
/// inputs.
pub fn low_rank_gradient<B: Ops>(
    grad: Tensor<B, 2>,
    x: Tensor<B, 2>,
    scaling: f64,
    compute: ComputeDtype,
) -> Tensor<B, 2> {
    tensor(B::low_rank_gradient(primitive(grad), primitive(x), scaling, compute))
}

/// Causal attention with grouped heads: `q` `[tokens, heads * head_dim]`, `k` and `v` `[cached and new tokens, kv_heads *
/// head_dim]`; a query sees the keys of its own sequence up to its own, or the last `window` of them. The result is shaped like `q`, and of
/// its type.
pub fn causal_attention<B: Ops>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    masking: &Masking<B>,
    shape: &AttentionShape,
) -> Tensor<B, 2> {
    tensor(B::causal_attention([q, k, v].map(primitive), masking, shape).y)
}

/// [`causal_attention`], and the gradients of `q`, `k` and `v` from that of its result.
pub fn attention_with_gradients<B: Ops>(
    qkv: [Tensor<B, 2>; 3],
    grad: Tensor<B, 2>,
    masking: &Masking<B>,
    shape: &AttentionShape,
) -> (Tensor<B, 2>, [Tensor<B, 2>; 3]) {
    let qkv = qkv.map(primitive);
    let Attended { y, lse } = B::causal_attention(qkv.clone(), masking, shape);
    let attended = lse.map(|lse| [y.clone(), lse]);
    let gradients = B::causal_attention_backward(qkv, attended, masking, primitive(grad), shape);
    (tensor(y), gradients.map(tensor))
}

/// `x · Wᵀ` or `dy · W` of f32 rows with a weight `[out, in]` in 16 bits, or f32, which is not trained: on tensor cores where `compute` is the
/// weight's own type and the device has them for it; else in f32, the weight widened a part at a time and, for the gradient of `x`, once more.
/// The weight is one tensor, or several of consecutive output features, a multiple of 64 in each but the last.
///
/// # Panics
/// When there is no tensor, or the shapes do not fit.
pub fn half_matmul<B: Ops>(
    x: Tensor<B, 2>,
    weight: Vec<Tensor<B, 2>>,
    product: Product,
    compute: ComputeDtype,
) -> Tensor<B, 2> {
    tensor(B::half_matmul(primitive(x), weight.into_iter().map(primitive).collect(), product, compute))
}

/// The rows of `x` `[n, columns]` that `rows` `[m]` names, each from 0 to `n - 1`: `[m, columns]` (`torch.index_select`).
pub fn select_rows<B: Ops>(x: Tensor<B, 2>, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    tensor(B::select_rows(primitive(x), rows.into_primitive()))
}

/// The rows of a frozen `table` `[n, columns]` that `rows` `[m]` names, in f32: `[m, columns]` (`torch.nn.functional.embedding`).
pub fn half_embedding<B: Ops>(table: Tensor<B, 2>, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    tensor(B::half_embedding(primitive(table), rows.into_primitive()))
}

/// Cross entropy of `logits` `[n, vocab]` against the tokens `targets` `[n, 1]`: the sum of the losses `[1]`, and its
/// gradient for the logits, `softmax - onehot`. Not differentiable: the gradient is part of the result.
pub fn cross_entropy<B: Ops>(logits: Tensor<B, 2>, targets: Tensor<B, 2, Int>) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let (loss, gradient) = B::cross_entropy(primitive(logits), targets.into_primitive());
    (tensor(loss), tensor(gradient))
}
