//! The operations on the CPU: SIMD over rows, all cores, scratch that is reused.
//!
//! Burn's CPU backend runs elementwise operations on one thread and copies at every change of layout; these blocks are
//! where that costs most. Dense products are the `gemm` crate's.

mod adam;
mod attention;
mod encoded;
mod half;
mod lora;
mod matrix;
mod nf4;
mod rows;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, TensorData, TensorMetadata, bf16, f16};
use burn_flex::{Flex, FlexTensor};

use self::half::Halves;
use super::fused::{cast, dtype, primitive, tensor, wide};
use super::weight::data_of;
use super::{
    Activation, AdamUpdate, Attended, AttentionForm, AttentionShape, Branch, ComputeDtype, Dropped, Frozen,
    LoraGradients, Masking, Moments, Moving, Nf4Primitive, Ops, Product, Variant, parts,
};
use crate::nf4::quantize_blocks_into;

/// A contiguous tensor's elements.
fn elements<E: burn::tensor::Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    let start = tensor.layout().start_offset();
    &tensor.storage()[start..start + tensor.layout().num_elements()]
}

/// A contiguous tensor's floats.
fn floats(tensor: &FlexTensor) -> &[f32] {
    elements(tensor)
}

/// Calls `f` with the floats of every tensor, which may be of any float type.
fn read<const N: usize, T>(tensors: [FlexTensor; N], f: impl FnOnce([&[f32]; N]) -> T) -> T {
    let tensors = tensors.map(|tensor| wide::<Flex>(tensor).to_contiguous());
    f(tensors.each_ref().map(floats))
}

/// A tensor's elements, to be changed: without a copy where it is contiguous and nobody else holds it.
fn in_place<E: burn::tensor::Element + bytemuck::Pod>(tensor: &mut FlexTensor) -> &mut [E] {
    if !tensor.is_contiguous() {
        *tensor = tensor.to_contiguous();
    }
    let (start, count) = (tensor.layout().start_offset(), tensor.layout().num_elements());
    &mut tensor.storage_mut()[start..start + count]
}

/// The element of a tensor that has one.
fn number(tensor: FlexTensor) -> f32 {
    floats(&tensor)[0]
}

fn write(values: Vec<f32>, shape: impl Into<Vec<usize>>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

/// [`write`] in a type.
fn write_as(values: Vec<f32>, shape: impl Into<Vec<usize>>, dtype: FloatDType) -> FlexTensor {
    cast::<Flex>(write(values, shape), dtype)
}

/// Calls `f` with the operands of a LoRA branch on the host.
fn with_branch<T>(branch: Branch<Flex>, f: impl FnOnce(&lora::Branch) -> T) -> T {
    let Branch { a, b, dropped, scaling } = branch;
    let rank = a.shape()[0];
    read([a, b], |[a, b]| f(&lora::Branch { a, b, dropped, scaling: scaling as f32, rank }))
}

impl Ops for Flex {
    fn nf4_quantize(weights: FloatTensor<Self>, block_size: usize) -> [IntTensor<Self>; 2] {
        let weights = weights.to_contiguous();
        let count = weights.layout().num_elements();
        let (mut codes, mut scales) = (vec![0u32; count.div_ceil(8)], vec![0.0; count.div_ceil(block_size)]);
        let packed = &mut bytemuck::cast_slice_mut(&mut codes)[..count.div_ceil(2)];
        match weights.dtype() {
            DType::BF16 => quantize_blocks_into::<bf16>(elements(&weights), block_size, packed, &mut scales),
            DType::F16 => quantize_blocks_into::<f16>(elements(&weights), block_size, packed, &mut scales),
            _ => quantize_blocks_into::<f32>(elements(&weights), block_size, packed, &mut scales),
        }
        let scales = scales.into_iter().map(f32::to_bits).collect();
        [codes, scales].map(|words| FlexTensor::from_data(data_of(words)))
    }

    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        write(nf4::dequantize(weight), weight.shape)
    }

    fn nf4_matmul(
        x: FloatTensor<Self>,
        weight: &Nf4Primitive<Self>,
        product: Product,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<Self> {
        let shape = [x.shape()[0], product.widths(weight.shape).1];
        write_as(read([x], |[x]| nf4::matmul(x, weight, product, variant)), shape, into)
    }

    fn nf4_variants(_: &Self::Device, _: [usize; 2], _: usize, product: Product) -> Vec<Variant> {
        match product {
            Product::Forward => vec![Variant::Decoded, Variant::Skinny, Variant::Tiled],
            Product::InputGradient => vec![Variant::Decoded, Variant::Tiled],
        }
    }

    fn half_matmul(
        x: FloatTensor<Self>,
        weight: Vec<FloatTensor<Self>>,
        product: Product,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        parts::of_tensors::<Self>(x, weight, product, |x, weight| {
            let weight = weight.to_contiguous();
            let shape = [weight.shape()[0], weight.shape()[1]];
            let dims = [x.shape()[0], product.widths(shape).1];
            let y = |x: &[f32]| match weight.dtype() {
                DType::BF16 => {
                    encoded::matmul(x, &Halves { elements: elements::<bf16>(&weight), shape }, product, None)
                }
                DType::F16 => encoded::matmul(x, &Halves { elements: elements::<f16>(&weight), shape }, product, None),
                DType::F32 => encoded::matmul(x, &Halves { elements: floats(&weight), shape }, product, None),
                other => panic!("half_matmul: a weight in {other:?}"),
            };
            write(read([x], |[x]| y(x)), dims)
        })
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, into: FloatDType) -> FloatTensor<Self> {
        let shape = x.shape().to_vec();
        write_as(read([x, weight], |[x, weight]| rows::rms_norm(x, weight, eps)), shape, into)
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
        for_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (shape, weight_shape, of_x) = (x.shape().to_vec(), weight.shape().to_vec(), dtype::<Self>(&x));
        let (d_x, d_weight) =
            read([x, weight, grad], |[x, weight, grad]| rows::rms_norm_backward(x, weight, grad, eps, for_weight));
        (write_as(d_x, shape, of_x), d_weight.map(|d| write(d, weight_shape)))
    }

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let (shape, of_gate) = (gate.shape().to_vec(), dtype::<Self>(&gate));
        write_as(read([gate, up], |[gate, up]| rows::gated(gate, up, activation)), shape, of_gate)
    }

    fn gated_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (shape, types) = (gate.shape().to_vec(), [&gate, &up].map(dtype::<Self>));
        let (d_gate, d_up) =
            read([gate, up, grad], |[gate, up, grad]| rows::gated_backward(gate, up, grad, activation));
        (write_as(d_gate, shape.clone(), types[0]), write_as(d_up, shape, types[1]))
    }

    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        let (shape, of_x) = (x.shape().to_vec(), dtype::<Self>(&x));
        let width = shape[1];
        let head_dim = 2 * cos.shape().to_vec()[3];
        let y = read([x, cos, sin], |[x, cos, sin]| rows::rotate(x, cos, sin, width, head_dim, back));
        write_as(y, shape, of_x)
    }

    fn dropout(x: FloatTensor<Self>, dropped: Dropped) -> FloatTensor<Self> {
        let (shape, dtype) = (x.shape().to_vec(), dtype::<Self>(&x));
        write_as(read([x], |[x]| lora::dropout(x.to_vec(), dropped)), shape, dtype)
    }

    fn lora_linear(
        x: FloatTensor<Self>,
        weight: &Frozen<Self>,
        branch: Branch<Self>,
        into: FloatDType,
    ) -> [FloatTensor<Self>; 2] {
        let tokens = x.shape()[0];
        let (out, rank) = (branch.b.shape()[0], branch.b.shape()[1]);
        let [y, low] = read([x], |[x]| with_branch(branch, |branch| lora::forward(x, weight, branch)));
        [write_as(y, [tokens, out], into), write(low, [tokens, rank])]
    }

    fn lora_linear_backward(
        inputs: [FloatTensor<Self>; 2],
        weight: &Frozen<Self>,
        branch: Branch<Self>,
        grad: FloatTensor<Self>,
        for_x: bool,
    ) -> LoraGradients<Self> {
        let (of_x, type_of_x) = (inputs[0].shape().to_vec(), dtype::<Self>(&inputs[0]));
        let (of_a, of_b) = (branch.a.shape().to_vec(), branch.b.shape().to_vec());
        let [x, low] = inputs;
        let (d_x, d_a, d_b) = read([x, low, grad], |[x, low, grad]| {
            with_branch(branch, |branch| lora::backward([x, low], weight, branch, grad, for_x))
        });
        let d_x = d_x.map(|d_x| write_as(d_x, of_x, type_of_x));
        LoraGradients { x: d_x, a: write(d_a, of_a), b: write(d_b, of_b) }
    }

    const ATTENTION_FORMS: &'static [AttentionForm] = &[AttentionForm::Fused];
    const BOUNDED_ATTENTION: bool = false;

    fn causal_attention(qkv: [FloatTensor<Self>; 3], _: &Masking<Self>, shape: &AttentionShape) -> Attended<Self> {
        let (dims, of_q) = (qkv[0].shape().to_vec(), dtype::<Self>(&qkv[0]));
        Attended { y: write_as(read(qkv, |[q, k, v]| attention::forward(q, k, v, shape)), dims, of_q), lse: None }
    }

    fn causal_attention_backward(
        qkv: [FloatTensor<Self>; 3],
        _: Option<[FloatTensor<Self>; 2]>,
        _: &Masking<Self>,
        grad: FloatTensor<Self>,
        shape: &AttentionShape,
    ) -> [FloatTensor<Self>; 3] {
        let [of_q, of_k, of_v] = qkv.each_ref().map(|x| (x.shape().to_vec(), dtype::<Self>(x)));
        let [q, k, v] = qkv;
        let [d_q, d_k, d_v] = read([q, k, v, grad], |[q, k, v, grad]| attention::backward(q, k, v, grad, shape));
        [(d_q, of_q), (d_k, of_k), (d_v, of_v)].map(|(values, (dims, dtype))| write_as(values, dims, dtype))
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let shape = logits.shape().to_vec();
        let targets = targets.to_contiguous();
        let targets = &targets.storage::<i32>()[targets.layout().start_offset()..];
        let (loss, gradient) = read([logits], |[logits]| rows::cross_entropy(logits, targets, shape[1]));
        (write(vec![loss], [1]), write(gradient, shape))
    }

    fn adam_advance(parameters: Vec<Moving<Self>>, next: FloatTensor<Self>, betas: [f64; 2]) -> Vec<Moments<Self>> {
        if number(next) == 0.0 {
            return parameters.into_iter().map(|(moments, _)| moments).collect();
        }
        let advance = |(moments, gradient): (Moments<Self>, FloatTensor<Self>)| {
            let gradient = gradient.to_contiguous();
            match moments {
                Moments::Full([mut first, mut second]) => {
                    adam::advance([in_place(&mut first), in_place(&mut second)], floats(&gradient), betas);
                    Moments::Full([first, second])
                }
                Moments::EightBit { mut codes, mut absmax, tables } => {
                    let of_codes = codes.each_mut().map(|codes| bytemuck::cast_slice_mut(in_place::<i32>(codes)));
                    adam::advance_8bit(of_codes, absmax.each_mut().map(in_place), floats(&gradient), betas);
                    Moments::EightBit { codes, absmax, tables }
                }
            }
        };
        parameters.into_iter().map(advance).collect()
    }

    fn adam_apply(parameters: Vec<AdamUpdate<Self>>, factor: FloatTensor<Self>) -> Vec<[FloatTensor<Self>; 2]> {
        let factor = number(factor);
        let apply = |AdamUpdate { value, moments, gradient, spare: [spare, last], step }: AdamUpdate<Self>| {
            if factor == 0.0 {
                return [spare.unwrap_or(value), last.unwrap_or(gradient)];
            }
            let shape = value.shape().to_vec();
            let clipped = if factor == 1.0 { gradient } else { primitive(tensor::<Self, 2>(gradient) * factor) };
            let values = read([clipped.clone(), value], |[gradient, value]| match moments {
                Moments::Full(both) => read(both, |both| adam::apply(both, gradient, value, step)),
                Moments::EightBit { codes, absmax, .. } => read(absmax, |absmax| {
                    let codes = codes.map(|codes: IntTensor<Self>| codes.to_contiguous());
                    let codes = codes
                        .each_ref()
                        .map(|c| bytemuck::cast_slice(&c.storage::<i32>()[c.layout().start_offset()..]));
                    adam::apply_8bit(&adam::EightBit { codes, absmax }, gradient, value, step)
                }),
            });
            [write(values, shape), clipped]
        };
        parameters.into_iter().map(apply).collect()
    }
}
