//! The tensor operations that Burn lacks, as one trait over its backends.
//!
//! [`Ops`] is implemented for the CPU, for CubeCL's runtimes, for fusion and for autodiff; model code is generic over it
//! and never asks what it runs on.

mod adam;
mod attention;
mod autodiff;
#[cfg(all(test, feature = "cpu"))]
mod composed;
mod compute;
#[cfg(feature = "cpu")]
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "gpu")]
mod device;
mod dropout;
mod fused;
#[cfg(feature = "gpu")]
mod fusion;
mod graph;
mod lasting;
mod lora;
mod parts;
mod tensors;
mod weight;

use std::pin::Pin;

pub use burn::tensor::FloatDType;
use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Tensor, TensorData};

use adam::Moving;
pub use adam::{AdamStep, AdamUpdate, DynamicTables, MOMENT_BLOCK, Moments};
pub use attention::{Attended, AttentionForm, AttentionShape, Bounds, Composed, Masking, Sequences, Span};
pub use compute::ComputeDtype;
pub use dropout::Dropped;
pub(crate) use fused::{cast, primitive, tensor};
pub(crate) use graph::{apart, backward_from};
pub(crate) use lasting::lasting;
pub use lora::{Branch, Frozen, LoraGradients, Update};
pub use tensors::{
    attention_with_gradients, causal_attention, cross_entropy, dropout, gated, half_embedding, half_matmul,
    lora_linear, lora_linear_unseen, low_rank, low_rank_gradient, matmul, nf4_lora_by, nf4_matmul, nf4_matmul_by,
    rms_norm, rotate, select_rows,
};
pub use weight::Nf4Weight;

/// An NF4 weight of shape `[out, in]` as a backend holds it: bytes in bitsandbytes' layout, viewed as 32-bit words.
///
/// The three buffers are integer tensors of dtype `U32`, so that a backend and its autodiff decoration share them.
#[derive(Clone, Debug)]
pub struct Nf4Primitive<B: Backend> {
    /// `ceil(n / 8)` words: the packed codes, two per byte, the first in the high nibble.
    pub codes: IntTensor<B>,
    /// Plain: one word per block, an f32's bits. Double-quantized: `ceil(blocks / 4)` words of u8 codes.
    pub absmax: IntTensor<B>,
    /// `[n, log2(block_size), double_quant, offset bits]`; double-quantized: then the 256 levels of the dynamic map and
    /// one nested absmax per 256 blocks, all as f32 bits.
    pub header: IntTensor<B>,
    /// `[out, in]`.
    pub shape: [usize; 2],
}

/// Which product of an NF4 weight `W` of shape `[out, in]` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `x · Wᵀ`: `[rows, in] -> [rows, out]`, the linear layer's forward pass.
    Forward,
    /// `dy · W`: `[rows, out] -> [rows, in]`, the gradient of its input.
    InputGradient,
}

impl Product {
    /// The other product: the gradient of one with respect to its input is the other.
    pub fn flipped(self) -> Self {
        match self {
            Self::Forward => Self::InputGradient,
            Self::InputGradient => Self::Forward,
        }
    }

    /// The columns that it takes and those that it gives, for a weight of this shape.
    pub fn widths(self, [out, input]: [usize; 2]) -> (usize, usize) {
        match self {
            Self::Forward => (input, out),
            Self::InputGradient => (out, input),
        }
    }
}

/// How a product with a 4-bit weight is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// The weight is decoded into a scratch tensor, which the backend's dense product takes.
    Decoded,
    /// A few rows, bound by reading the weight: each code is read once and nothing is written back.
    Skinny,
    /// The same on a GPU without subgroups.
    SkinnyShared,
    /// A few rows on CUDA's tensor cores, activations and the 16 levels rounded to bf16: for [`ComputeDtype::Bf16`] alone.
    SkinnyBf16,
    /// Many rows, bound by arithmetic: decoded tile by tile on the way into the product.
    Tiled,
    /// The same on a GPU through wgpu, activations and weights rounded to f16: for [`ComputeDtype::F16`] alone.
    TiledF16,
    /// The same on CUDA's tensor cores, activations and weights rounded to bf16: for [`ComputeDtype::Bf16`] alone.
    TiledBf16,
    /// The same with the instructions that only Hopper has.
    WarpgroupBf16,
    /// The same with the weight decoded to bf16 beforehand, which pays for many rows.
    DecodedBf16,
}

/// The function on the gate of an MLP, `x · sigmoid(z)` with `z = a·x + b·x³`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)` (arXiv:1702.03118).
    Silu,
    /// The tanh form of GELU (arXiv:1606.08415), `x/2 · (1 + tanh(sqrt(2/π)·(x + 0.044715·x³)))`; half of one plus the
    /// tanh of a number is the sigmoid of twice that number.
    GeluTanh,
}

impl Activation {
    /// `a` and `b`.
    pub fn coefficients(self) -> (f32, f32) {
        match self {
            Self::Silu => (1.0, 0.0),
            Self::GeluTanh => (1.595_769_2, 0.071_354_814),
        }
    }
}

/// The values of a tensor that is on its way to host memory.
pub type Reading = Pin<Box<dyn Future<Output = Result<TensorData, ExecutionError>> + Send>>;

/// Host memory that a device may still read; to drop it is to wait.
pub type Held = Option<Box<dyn std::any::Any + Send>>;

/// The operations on 4-bit weights and the fused blocks of a decoder layer, for a backend.
///
/// The functions of the same names in this module take [`Tensor`]s and say shapes; a `*_backward`
/// gives the gradients of its namesake's tensors from that of its result, each in its tensor's type.
///
/// Activations may be of any float type that the device has; what is computed with them is f32 unless it says otherwise.
pub trait Ops: Backend {
    /// [`matmul`].
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(lhs, rhs)
    }

    /// A tensor in another type. An operation of its own to fusion, as those are that it stands between.
    fn cast(x: FloatTensor<Self>, dtype: FloatDType) -> FloatTensor<Self> {
        Self::float_cast(x, dtype)
    }

    /// The whole weight, decoded: f32 `[out, in]`.
    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self>;

    /// `weights` `[n]` in f32, bf16 or f16, in NF4, in blocks of `block_size`: `ceil(n / 8)` words of packed codes, and a word per block that holds
    /// the bits of its f32 scale: NaN or infinite where a weight of the block is.
    fn nf4_quantize(weights: FloatTensor<Self>, block_size: usize) -> [IntTensor<Self>; 2];

    /// The product of rows of activations `[rows, taken]` with a weight that stays in 4 bits, in the type `into`, by one of the
    /// [`nf4_variants`](Self::nf4_variants), or by the one that the backend takes for the fastest in f32.
    fn nf4_matmul(
        x: FloatTensor<Self>,
        weight: &Nf4Primitive<Self>,
        product: Product,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<Self>;

    /// [`nf4_matmul`](Self::nf4_matmul), and what a branch beside the weight adds to it.
    fn nf4_lora(
        x: FloatTensor<Self>,
        weight: &Nf4Primitive<Self>,
        product: Product,
        update: Update<Self>,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<Self> {
        cast::<Self>(update.added_to(Self::nf4_matmul(x, weight, product, variant, FloatDType::F32), product), into)
    }

    /// The variants by which a device can compute a product of `rows` rows with a weight of this shape; never none.
    fn nf4_variants(device: &Self::Device, shape: [usize; 2], rows: usize, product: Product) -> Vec<Variant>;

    /// Starts to read a tensor. What comes of it waits for the device; it may do other work meanwhile, but not free the tensor's memory.
    fn start_read(x: FloatTensor<Self>) -> Reading {
        Box::pin(Self::float_into_data(x))
    }

    /// Brings host values to a device, in their type. What is held back goes no sooner than they have arrived: to drop it is to wait for
    /// that. Bits of [`start_read`](Self::start_read) go back out of the memory that they were read into.
    fn start_write(data: TensorData, device: &Self::Device) -> (FloatTensor<Self>, Held) {
        (Self::float_from_data(data, device), None)
    }

    /// [`start_write`](Self::start_write) of 32-bit words.
    fn start_write_words(data: TensorData, device: &Self::Device) -> (IntTensor<Self>, Held) {
        (Self::int_from_data(data, device), None)
    }

    /// Whether everything since this was last asked was done: without memory for a tensor, or with a kernel that does not
    /// compile, a device goes on, with wrong results. Does not wait for the device.
    ///
    /// # Errors
    /// What it refused first.
    fn check(_device: &Self::Device) -> Result<(), String> {
        Ok(())
    }

    /// Waits until this device has done everything that it was asked for. What it refused is told by the next [`check`](Self::check). A
    /// browser's one thread must not wait, and does not.
    fn finish(_device: &Self::Device) {}

    /// Bytes that a tensor on this device can have at most.
    fn largest_tensor(_device: &Self::Device) -> u64 {
        u64::MAX
    }

    /// Bytes of tensors on this device, where its allocator says so.
    fn bytes_in_use(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// Bytes that its allocator had of this device at most, for tensors that were there or to come, since
    /// [`forget_most_reserved`](Self::forget_most_reserved).
    fn most_reserved(_device: &Self::Device) -> Option<u64> {
        None
    }

    /// What its allocator had at most counts from here on.
    fn forget_most_reserved(_device: &Self::Device) {}

    /// Whether what comes to exist from now on gets memory of exactly its size, which is kept for tensors of that size. Otherwise it gets
    /// a part of a page that tensors of similar sizes share, which suits sizes that never come back.
    fn exact_memory(_device: &Self::Device, _exact: bool) {}

    /// Gives this device back what is kept for tensors to come.
    fn release_memory(_device: &Self::Device) {}

    /// [`half_matmul`].
    fn half_matmul(
        x: FloatTensor<Self>,
        weight: Vec<FloatTensor<Self>>,
        product: Product,
        compute: ComputeDtype,
    ) -> FloatTensor<Self>;

    /// [`select_rows`].
    fn select_rows(x: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        Self::float_select(x, 0, rows)
    }

    /// [`half_embedding`].
    fn half_embedding(table: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        fused::wide::<Self>(Self::select_rows(table, rows))
    }

    /// [`rms_norm`].
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, into: FloatDType) -> FloatTensor<Self> {
        fused::rms_norm::<Self>(x, weight, eps, into)
    }

    /// For `x`, and for `weight` where asked for.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
        for_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        fused::rms_norm_backward::<Self>(x, weight, grad, eps, for_weight)
    }

    /// [`gated`].
    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        fused::gated::<Self>(gate, up, activation)
    }

    /// For `gate` and `up`.
    fn gated_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        fused::gated_backward::<Self>(gate, up, grad, activation)
    }

    /// [`rotate`]; turned `back`, it is its own gradient.
    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        fused::rotate::<Self>(x, cos, sin, back)
    }

    /// [`dropout`](fn@dropout).
    fn dropout(x: FloatTensor<Self>, dropped: Dropped) -> FloatTensor<Self>;

    /// [`lora_linear`], and the branch's inner activations `[tokens, r]`, which the backward pass takes.
    fn lora_linear(
        x: FloatTensor<Self>,
        weight: &Frozen<Self>,
        branch: Branch<Self>,
        into: FloatDType,
    ) -> [FloatTensor<Self>; 2] {
        lora::forward::<Self>(x, weight, branch, into)
    }

    /// [`lora_linear_unseen`].
    fn lora_linear_unseen(x: FloatTensor<Self>, weight: &Frozen<Self>, branch: Branch<Self>) -> FloatTensor<Self> {
        let [y, _] = Self::lora_linear(x, weight, branch, FloatDType::F32);
        y
    }

    /// [`low_rank`].
    fn low_rank(
        x: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        product: Product,
        scaling: f64,
        _compute: ComputeDtype,
    ) -> [FloatTensor<Self>; 2] {
        lora::low_rank::<Self>(x, factor, product, scaling)
    }

    /// [`low_rank_gradient`].
    fn low_rank_gradient(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        scaling: f64,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        lora::low_rank_gradient::<Self>(grad, x, scaling)
    }

    /// For `x`, where it is asked for, and the branch, from the operation's input and inner activations.
    fn lora_linear_backward(
        inputs: [FloatTensor<Self>; 2],
        weight: &Frozen<Self>,
        branch: Branch<Self>,
        grad: FloatTensor<Self>,
        for_x: bool,
    ) -> LoraGradients<Self> {
        lora::backward::<Self>(inputs, weight, branch, grad, for_x)
    }

    /// The forms in which the backend computes attention, the one to prefer first; never none.
    const ATTENTION_FORMS: &'static [AttentionForm];

    /// Whether its fused form reads [`Masking::Bounds`].
    const BOUNDED_ATTENTION: bool;

    /// [`causal_attention`], in the form that `masking` is for.
    fn causal_attention(qkv: [FloatTensor<Self>; 3], masking: &Masking<Self>, shape: &AttentionShape)
    -> Attended<Self>;

    /// For `q`, `k` and `v`; `attended` is what the forward pass gave, where it gave logarithms of sums.
    fn causal_attention_backward(
        qkv: [FloatTensor<Self>; 3],
        attended: Option<[FloatTensor<Self>; 2]>,
        masking: &Masking<Self>,
        grad: FloatTensor<Self>,
        shape: &AttentionShape,
    ) -> [FloatTensor<Self>; 3];

    /// [`cross_entropy`].
    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        fused::cross_entropy::<Self>(logits, Tensor::from_primitive(targets))
    }

    /// The sum of the squares of all elements of tensors, of which there is at least one: `[1]`.
    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        adam::sum_of_squares::<Self>(tensors)
    }

    /// Adam's moments of parameters after one more gradient of each, in their order; as they were where `next`, `[1]`, is 0.
    fn adam_advance(parameters: Vec<Moving<Self>>, next: FloatTensor<Self>, betas: [f64; 2]) -> Vec<Moments<Self>> {
        let advance = |(moments, gradient)| adam::advance::<Self>(moments, gradient, next.clone(), betas);
        parameters.into_iter().map(advance).collect()
    }

    /// The values of parameters after a step of AdamW with their gradients times a factor, `[1]`, and these products, in the parameters'
    /// order. Where it is 0, what [`AdamUpdate::spare`] holds, and anything without them.
    fn adam_apply(parameters: Vec<AdamUpdate<Self>>, factor: FloatTensor<Self>) -> Vec<[FloatTensor<Self>; 2]> {
        parameters.into_iter().map(|update| adam::apply::<Self>(update, factor.clone())).collect()
    }
}
