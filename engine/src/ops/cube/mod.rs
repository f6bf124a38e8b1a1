//! The operations on CubeCL's GPU runtimes, by the kernels of `halfbyte-shaders`.

mod adam_of_many;

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use burn::tensor::backend::{Backend, ExecutionError};
use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor, IntTensorOps};
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous_aligned;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, FloatElement, IntElement};
use halfbyte_shaders::{Heads, Language, Nf4, SourceRuntime, is_bits};

use super::attention::Bounds;
use super::fused::{self, primitive, tensor};
use super::{
    Activation, AdamUpdate, Attended, AttentionForm, AttentionShape, ComputeDtype, Dropped, Held, Masking, Moments,
    Moving, Nf4Primitive, Ops, Product, Reading, Update, Variant, adam, attention, device, lora, parts,
};
use crate::nf4::NF4_TABLE;

fn nf4<R, F, I, BT>(weight: &Nf4Primitive<CubeBackend<R, F, I, BT>>) -> Nf4<R>
where
    R: SourceRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let Nf4Primitive { codes, absmax, header, shape } = weight.clone();
    Nf4 { codes, absmax, header, shape, table: &NF4_TABLE }
}

/// A product as the kernels know it, with what a branch beside the weight adds to it.
fn beside<R: SourceRuntime>(
    product: Product,
    update: Option<halfbyte_shaders::Update<R>>,
) -> halfbyte_shaders::Product<R> {
    let update = update.map(Box::new);
    match product {
        Product::Forward => halfbyte_shaders::Product::Forward(update),
        Product::InputGradient => halfbyte_shaders::Product::InputGradient(update),
    }
}

fn heads(shape: &AttentionShape) -> Heads {
    let AttentionShape { heads, kv_heads, head_dim, scale, softcap, .. } = *shape;
    let longest = shape.sequences.cached + shape.sequences.longest();
    let seen = shape.window.map_or(longest, |window| window.min(longest));
    Heads { heads, kv_heads, head_dim, scale, softcap, seen }
}

/// Whether kernels for f32 alone take these; other types are left to Burn's operations.
fn taken<R: SourceRuntime, const N: usize>(tensors: [&CubeTensor<R>; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype == DType::F32)
}

fn coefficients(activation: Activation) -> [f32; 2] {
    activation.coefficients().into()
}

/// Is ready when it is polled once more.
fn once_more() -> impl Future<Output = ()> + Send {
    let mut polled = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

impl From<Variant> for halfbyte_shaders::Variant {
    fn from(variant: Variant) -> Self {
        match variant {
            Variant::Decoded => Self::Decoded,
            Variant::Skinny => Self::Skinny,
            Variant::SkinnyShared => Self::SkinnyShared,
            Variant::SkinnyBf16 => Self::SkinnyBf16,
            Variant::Tiled => Self::Tiled,
            Variant::TiledF16 => Self::TiledF16,
            Variant::TiledBf16 => Self::TiledBf16,
            Variant::WarpgroupBf16 => Self::WarpgroupBf16,
            Variant::DecodedBf16 => Self::DecodedBf16,
        }
    }
}

impl From<halfbyte_shaders::Variant> for Variant {
    fn from(variant: halfbyte_shaders::Variant) -> Self {
        match variant {
            halfbyte_shaders::Variant::Decoded => Self::Decoded,
            halfbyte_shaders::Variant::Skinny => Self::Skinny,
            halfbyte_shaders::Variant::SkinnyShared => Self::SkinnyShared,
            halfbyte_shaders::Variant::SkinnyBf16 => Self::SkinnyBf16,
            halfbyte_shaders::Variant::Tiled => Self::Tiled,
            halfbyte_shaders::Variant::TiledF16 => Self::TiledF16,
            halfbyte_shaders::Variant::TiledBf16 => Self::TiledBf16,
            halfbyte_shaders::Variant::WarpgroupBf16 => Self::WarpgroupBf16,
            halfbyte_shaders::Variant::DecodedBf16 => Self::DecodedBf16,
        }
    }
}

impl<R: SourceRuntime, F: FloatElement, I: IntElement, BT: BoolElement> Ops for CubeBackend<R, F, I, BT> {
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        halfbyte_shaders::matmul(lhs, rhs)
    }

    fn half_matmul(
        x: FloatTensor<Self>,
        weight: Vec<FloatTensor<Self>>,
        product: Product,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let gradient = product == Product::InputGradient;
        let in_bf16 = weight.iter().all(|part| part.dtype == DType::BF16);
        match (R::LANGUAGE, compute, in_bf16) {
            (Language::Cuda, ComputeDtype::Bf16, true) => parts::of_tensors::<Self>(x, weight, product, |x, part| {
                halfbyte_shaders::half_matmul(x, part, gradient)
            }),
            _ => halfbyte_shaders::half_product(x, weight, gradient),
        }
    }

    fn half_embedding(table: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        match is_bits(&table) {
            true => halfbyte_shaders::half_embedding(&table, rows),
            false => fused::wide::<Self>(Self::select_rows(table, rows)),
        }
    }

    fn select_rows(x: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        halfbyte_shaders::select_rows(x, rows)
    }

    fn cast(x: FloatTensor<Self>, dtype: FloatDType) -> FloatTensor<Self> {
        match is_bits(&x) && !Self::supports_dtype(&x.device, x.dtype) && dtype == FloatDType::F32 {
            true => halfbyte_shaders::half_rows(&x),
            false => halfbyte_shaders::cast(x, dtype.into()),
        }
    }

    fn nf4_quantize(weights: FloatTensor<Self>, block_size: usize) -> [IntTensor<Self>; 2] {
        halfbyte_shaders::nf4_quantize(weights, block_size, &NF4_TABLE)
    }

    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        halfbyte_shaders::nf4_dequantize(&nf4(weight), 0..weight.shape[0], DType::F32)
    }

    fn nf4_matmul(
        x: FloatTensor<Self>,
        weight: &Nf4Primitive<Self>,
        product: Product,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<Self> {
        halfbyte_shaders::nf4_matmul(x, nf4(weight), beside(product, None), variant.map(Into::into), into.into())
    }

    fn nf4_lora(
        x: FloatTensor<Self>,
        weight: &Nf4Primitive<Self>,
        product: Product,
        Update { low, b, scaling }: Update<Self>,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<Self> {
        let update = halfbyte_shaders::Update { low, b, scaling: scaling as f32 };
        let product = beside(product, Some(update));
        halfbyte_shaders::nf4_matmul(x, nf4(weight), product, variant.map(Into::into), into.into())
    }

    fn low_rank(
        x: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        product: Product,
        scaling: f64,
        compute: ComputeDtype,
    ) -> [FloatTensor<Self>; 2] {
        match (R::LANGUAGE, compute) {
            (Language::Cuda, ComputeDtype::Bf16) => {
                halfbyte_shaders::low_rank(x, factor, product == Product::InputGradient, scaling as f32)
            }
            _ => lora::low_rank::<Self>(x, factor, product, scaling),
        }
    }

    fn low_rank_gradient(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        scaling: f64,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        match (R::LANGUAGE, compute) {
            (Language::Cuda, ComputeDtype::Bf16) => halfbyte_shaders::low_rank_gradient(grad, x, scaling as f32),
            _ => lora::low_rank_gradient::<Self>(grad, x, scaling),
        }
    }

    fn nf4_variants(device: &Self::Device, shape: [usize; 2], rows: usize, product: Product) -> Vec<Variant> {
        let gradient = product == Product::InputGradient;
        let variants = halfbyte_shaders::variants(&R::client(device), shape, rows, gradient);
        variants.into_iter().map(Into::into).collect()
    }

    fn dropout(x: FloatTensor<Self>, Dropped { key, threshold, kept }: Dropped) -> FloatTensor<Self> {
        halfbyte_shaders::dropout(x, key, threshold, kept)
    }

    const ATTENTION_FORMS: &'static [AttentionForm] = match R::LANGUAGE {
        Language::Wgsl => &[AttentionForm::Fused, AttentionForm::Composed],
        Language::Cuda => &[AttentionForm::Fused, AttentionForm::Composed, AttentionForm::FusedBf16],
    };
    const BOUNDED_ATTENTION: bool = true;

    fn causal_attention(
        qkv: [FloatTensor<Self>; 3],
        masking: &Masking<Self>,
        shape: &AttentionShape,
    ) -> Attended<Self> {
        match masking {
            Masking::Composed(composed) => attention::forward::<Self>(qkv, composed, shape),
            masking => {
                let Bounds { seen, operands } = attention::bounds(masking);
                let [y, lse] = halfbyte_shaders::attention(qkv, seen.into_primitive(), operands.into(), &heads(shape));
                Attended { y, lse: Some(lse) }
            }
        }
    }

    fn causal_attention_backward(
        qkv: [FloatTensor<Self>; 3],
        attended: Option<[FloatTensor<Self>; 2]>,
        masking: &Masking<Self>,
        grad: FloatTensor<Self>,
        shape: &AttentionShape,
    ) -> [FloatTensor<Self>; 3] {
        match (masking, attended) {
            (Masking::Composed(composed), _) => attention::backward::<Self>(qkv, composed, grad, shape),
            (masking, attended) => {
                let [y, lse] = attended.expect("the kernel's forward pass gave logarithms");
                let queries = shape.sequences.tokens() * shape.heads;
                let delta = halfbyte_shaders::dots_of_rows(grad.clone(), y, shape.head_dim);
                let sums = Tensor::cat(vec![tensor::<Self, 2>(lse).reshape([1, queries]), tensor(delta)], 0);
                let Bounds { seen, operands } = attention::bounds(masking);
                halfbyte_shaders::attention_backward(
                    qkv,
                    seen.into_primitive(),
                    grad,
                    primitive(sums),
                    operands.into(),
                    &heads(shape),
                )
            }
        }
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, into: FloatDType) -> FloatTensor<Self> {
        halfbyte_shaders::rms_norm(x, weight, eps as f32, into.into())
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
        for_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        // The weight of a norm is seldom trained.
        if !for_weight {
            (halfbyte_shaders::rms_norm_backward(x, weight, grad, eps as f32), None)
        } else {
            fused::rms_norm_backward::<Self>(x, weight, grad, eps, for_weight)
        }
    }

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        halfbyte_shaders::gated(gate, up, coefficients(activation))
    }

    fn gated_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        halfbyte_shaders::gated_backward(gate, up, grad, coefficients(activation)).into()
    }

    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        halfbyte_shaders::rotate(x, cos, sin, back)
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        if taken([&logits]) {
            halfbyte_shaders::cross_entropy(logits, targets).into()
        } else {
            fused::cross_entropy::<Self>(logits, Tensor::from_primitive(targets))
        }
    }

    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        match tensors.iter().all(|x| taken([x])) {
            true => halfbyte_shaders::sum_of_squares(tensors),
            false => adam::sum_of_squares::<Self>(tensors),
        }
    }

    fn adam_advance(parameters: Vec<Moving<Self>>, next: FloatTensor<Self>, betas: [f64; 2]) -> Vec<Moments<Self>> {
        adam_of_many::advance(parameters, &next, betas)
    }

    fn adam_apply(parameters: Vec<AdamUpdate<Self>>, factor: FloatTensor<Self>) -> Vec<[FloatTensor<Self>; 2]> {
        adam_of_many::apply(parameters, &factor)
    }

    fn start_read(x: FloatTensor<Self>) -> Reading {
        let x = into_contiguous_aligned(x);
        let mut reading: Reading = Box::pin(async move {
            // The copy is in the device's queue from here on; what is awaited is that it was made, which may hold the thread up.
            let leaving = device::Leaving::start(&x);
            once_more().await;
            let bytes = leaving.arrive().await.map_err(|reason| ExecutionError::WithContext { reason })?;
            Ok(TensorData::from_bytes(bytes, x.meta.shape().clone(), x.dtype))
        });
        let started = reading.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        debug_assert!(started.is_pending());
        reading
    }

    fn start_write(data: TensorData, device: &Self::Device) -> (FloatTensor<Self>, Held) {
        device::start_write::<R>(data, device).unwrap_or_else(|data| (Self::float_from_data(data, device), None))
    }

    fn start_write_words(data: TensorData, device: &Self::Device) -> (IntTensor<Self>, Held) {
        device::start_write::<R>(data, device).unwrap_or_else(|data| (Self::int_from_data(data, device), None))
    }

    fn check(device: &Self::Device) -> Result<(), String> {
        device::check::<R>(device)
    }

    fn finish(device: &Self::Device) {
        device::finish::<R>(device);
    }

    fn largest_tensor(device: &Self::Device) -> u64 {
        R::client(device).properties().memory.max_page_size
    }

    fn bytes_in_use(device: &Self::Device) -> Option<u64> {
        R::client(device).memory_usage().ok().map(|usage| usage.bytes_in_use)
    }

    fn most_reserved(device: &Self::Device) -> Option<u64> {
        device::most_reserved::<R>(device)
    }

    fn forget_most_reserved(device: &Self::Device) {
        device::forget_most_reserved::<R>(device);
    }

    fn exact_memory(device: &Self::Device, exact: bool) {
        device::exact_memory::<R>(device, exact);
    }

    fn release_memory(device: &Self::Device) {
        device::release_memory::<R>(device);
    }
}
