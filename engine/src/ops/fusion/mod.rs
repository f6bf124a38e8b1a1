//! Fusion passes everything that is one operation here through as a custom operation; what is elementwise around it is fused as usual.

mod adam_of_many;
mod waiting;

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, FloatDType, Tensor, TensorData, TensorMetadata};
use burn_fusion::{Fusion, FusionBackend, get_client};
use burn_ir::TensorIr;

use waiting::{Handles, alike, alike_any, arrived, enqueue, register, register_as};

use super::attention::{self, Bounds, bounds};
use super::{
    Activation, AdamUpdate, Attended, AttentionForm, AttentionShape, ComputeDtype, Dropped, Held, Masking, Moments,
    Moving, Nf4Primitive, Ops, Product, Reading, Update, Variant, fused, lora,
};

/// A weight whose buffers an operation takes.
fn weight<B: FusionBackend>(handles: &mut Handles<B>, buffers: [&TensorIr; 3], shape: [usize; 2]) -> Nf4Primitive<B> {
    let [codes, absmax, header] = buffers.map(|buffer| handles.get_int_tensor::<B>(buffer));
    Nf4Primitive { codes, absmax, header, shape }
}

impl<B: FusionBackend + Ops> Ops for Fusion<B> {
    fn matmul(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        let (mut shape, rank) = (lhs.shape(), lhs.shape().num_dims());
        shape[rank - 1] = rhs.shape()[rank - 1];
        register::<B, 2>("matmul", [lhs, rhs], shape, |handles, [lhs, rhs]| {
            let lhs = handles.get_float_tensor::<B>(lhs);
            B::matmul(lhs, handles.get_float_tensor::<B>(rhs))
        })
    }

    fn cast(x: FloatTensor<Self>, dtype: FloatDType) -> FloatTensor<Self> {
        let result = (x.shape(), dtype.into());
        register_as::<B, 1>("cast", [x], result, move |handles, [x]| B::cast(handles.get_float_tensor::<B>(x), dtype))
    }

    fn half_matmul(
        x: FloatTensor<Self>,
        weight: Vec<FloatTensor<Self>>,
        product: Product,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let out = weight.iter().map(|part| part.shape()[0]).sum();
        let input = weight.first().map_or(0, |part| part.shape()[1]);
        let result = ([x.shape()[0], product.widths([out, input]).1].into(), DType::F32);
        let inputs = [x].into_iter().chain(weight).collect();
        let run = move |mut tensors: Vec<FloatTensor<B>>| {
            let weight = tensors.split_off(1);
            vec![B::half_matmul(tensors.remove(0), weight, product, compute)]
        };
        alike_any::<B>("half_matmul", inputs, vec![result], run).remove(0)
    }

    fn select_rows(x: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        let result = ([rows.shape()[0], x.shape()[1]].into(), x.dtype);
        register_as::<B, 2>("select_rows", [x, rows], result, |handles, [x, rows]| {
            let x = handles.get_float_tensor::<B>(x);
            B::select_rows(x, handles.get_int_tensor::<B>(rows))
        })
    }

    fn half_embedding(table: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        let shape = [rows.shape()[0], table.shape()[1]].into();
        let result = (shape, DType::F32);
        register_as::<B, 2>("half_embedding", [table, rows], result, |handles, [table, rows]| {
            let table = handles.get_float_tensor::<B>(table);
            B::half_embedding(table, handles.get_int_tensor::<B>(rows))
        })
    }

    fn nf4_quantize(weights: FloatTensor<Self>, block_size: usize) -> [IntTensor<Self>; 2] {
        let count = weights.shape().num_elements();
        let results = [count.div_ceil(8), count.div_ceil(block_size)].map(|length| ([length].into(), DType::U32));
        enqueue::<B, 1, 2>("nf4_quantize", [weights], results, move |handles, [weights], outputs| {
            let results = B::nf4_quantize(handles.get_float_tensor::<B>(weights), block_size);
            for (out, result) in outputs.iter().zip(results) {
                handles.register_int_tensor::<B>(&out.id, result);
            }
        })
    }

    fn nf4_dequantize(weight: &Nf4Primitive<Self>) -> FloatTensor<Self> {
        let Nf4Primitive { codes, absmax, header, shape } = weight.clone();
        register::<B, 3>("nf4_dequantize", [codes, absmax, header], shape.into(), move |handles, buffers| {
            B::nf4_dequantize(&self::weight::<B>(handles, buffers.each_ref(), shape))
        })
    }

    fn nf4_matmul(
        x: FloatTensor<Self>,
        weight: &Nf4Primitive<Self>,
        product: Product,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<Self> {
        let Nf4Primitive { codes, absmax, header, shape } = weight.clone();
        let result = ([x.shape()[0], product.widths(shape).1].into(), into.into());
        register_as::<B, 4>("nf4_matmul", [x, codes, absmax, header], result, move |handles, [x, buffers @ ..]| {
            let x = handles.get_float_tensor::<B>(x);
            B::nf4_matmul(x, &self::weight::<B>(handles, buffers.each_ref(), shape), product, variant, into)
        })
    }

    fn nf4_lora(
        x: FloatTensor<Self>,
        weight: &Nf4Primitive<Self>,
        product: Product,
        update: Update<Self>,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<Self> {
        let Nf4Primitive { codes, absmax, header, shape } = weight.clone();
        let (rows, device) = (x.shape()[0], Self::float_device(&x));
        // One kernel for few rows; what is added to many is fused with what follows.
        if variant.is_none() && !Self::nf4_variants(&device, shape, rows, product).contains(&Variant::Skinny) {
            let y = Self::nf4_matmul(x, weight, product, None, FloatDType::F32);
            return fused::cast::<Self>(update.added_to(y, product), into);
        }
        let Update { low, b, scaling } = update;
        let inputs = [x, low, b, codes, absmax, header];
        let result = ([rows, product.widths(shape).1].into(), into.into());
        register_as::<B, 6>("nf4_lora", inputs, result, move |handles, inputs| {
            let [x, low, b, buffers @ ..] = inputs;
            let [x, low, b] = [x, low, b].map(|input| handles.get_float_tensor::<B>(input));
            let weight = self::weight::<B>(handles, buffers.each_ref(), shape);
            B::nf4_lora(x, &weight, product, Update { low, b, scaling }, variant, into)
        })
    }

    fn low_rank(
        x: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        product: Product,
        scaling: f64,
        compute: ComputeDtype,
    ) -> [FloatTensor<Self>; 2] {
        if compute != ComputeDtype::Bf16 {
            return lora::low_rank::<Self>(x, factor, product, scaling);
        }
        let ([rows, wide], [first, second]) = (x.shape().dims(), factor.shape().dims());
        let rank = if product == Product::Forward { first } else { second };
        let run = move |handles: &mut Handles<B>, [x, factor]: &[TensorIr; 2]| {
            let [x, factor] = [x, factor].map(|input| handles.get_float_tensor::<B>(input));
            B::low_rank(x, factor, product, scaling, compute)
        };
        let low = ([rows, rank].into(), DType::BF16);
        if x.dtype == DType::BF16 {
            let low = register_as::<B, 2>("low_rank", [x.clone(), factor], low, move |handles, inputs| {
                let [low, _] = run(handles, inputs);
                low
            });
            return [low, x];
        }
        let results = [low, ([rows, wide].into(), DType::BF16)];
        enqueue::<B, 2, 2>("low_rank", [x, factor], results, move |handles, inputs, outputs| {
            for (out, result) in outputs.iter().zip(run(handles, inputs)) {
                handles.register_float_tensor::<B>(&out.id, result);
            }
        })
    }

    fn low_rank_gradient(
        grad: FloatTensor<Self>,
        x: FloatTensor<Self>,
        scaling: f64,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        if compute != ComputeDtype::Bf16 {
            return lora::low_rank_gradient::<Self>(grad, x, scaling);
        }
        let shape = [grad.shape()[1], x.shape()[1]].into();
        register::<B, 2>("low_rank_gradient", [grad, x], shape, move |handles, [grad, x]| {
            let [grad, x] = [grad, x].map(|input| handles.get_float_tensor::<B>(input));
            B::low_rank_gradient(grad, x, scaling, compute)
        })
    }

    fn nf4_variants(device: &Self::Device, shape: [usize; 2], rows: usize, product: Product) -> Vec<Variant> {
        B::nf4_variants(device, shape, rows, product)
    }

    fn start_read(x: FloatTensor<Self>) -> Reading {
        let client = x.client.clone();
        B::start_read(client.resolve_tensor_float::<B>(x))
    }

    fn start_write(data: TensorData, device: &Self::Device) -> (FloatTensor<Self>, Held) {
        let (shape, dtype) = (data.shape.clone(), data.dtype);
        let (tensor, held) = B::start_write(data, device);
        (arrived::<B>(B::float_tensor_handle(tensor), (shape, dtype), device), held)
    }

    fn start_write_words(data: TensorData, device: &Self::Device) -> (IntTensor<Self>, Held) {
        let (shape, dtype) = (data.shape.clone(), data.dtype);
        let (tensor, held) = B::start_write_words(data, device);
        (arrived::<B>(B::int_tensor_handle(tensor), (shape, dtype), device), held)
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64, into: FloatDType) -> FloatTensor<Self> {
        let result = (x.shape(), into.into());
        register_as::<B, 2>("rms_norm", [x, weight], result, move |handles, inputs| {
            let [x, weight] = inputs.each_ref().map(|input| handles.get_float_tensor::<B>(input));
            B::rms_norm(x, weight, eps, into)
        })
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
        for_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        if for_weight {
            return fused::rms_norm_backward::<Self>(x, weight, grad, eps, true);
        }
        let [d_x] = alike::<B, 3, 1>("rms_norm_backward", [x, weight, grad], move |[x, weight, grad]| {
            [B::rms_norm_backward(x, weight, grad, eps, false).0]
        });
        (d_x, None)
    }

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let [y] = alike::<B, 2, 1>("gated", [gate, up], move |[gate, up]| [B::gated(gate, up, activation)]);
        y
    }

    fn gated_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        alike::<B, 3, 2>("gated_backward", [gate, up, grad], move |[gate, up, grad]| {
            B::gated_backward(gate, up, grad, activation).into()
        })
        .into()
    }

    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>, back: bool) -> FloatTensor<Self> {
        let [y] = alike::<B, 3, 1>("rotate", [x, cos, sin], move |[x, cos, sin]| [B::rotate(x, cos, sin, back)]);
        y
    }

    fn dropout(x: FloatTensor<Self>, dropped: Dropped) -> FloatTensor<Self> {
        let result = (x.shape(), x.dtype);
        register_as::<B, 1>("dropout", [x], result, move |handles, [x]| {
            B::dropout(handles.get_float_tensor::<B>(x), dropped)
        })
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: IntTensor<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let results = [[1].into(), logits.shape()].map(|shape| (shape, logits.dtype));
        let run = |handles: &mut Handles<B>, [logits, targets]: &[TensorIr; 2], outputs: &[TensorIr; 2]| {
            let logits = handles.get_float_tensor::<B>(logits);
            let (loss, gradient) = B::cross_entropy(logits, handles.get_int_tensor::<B>(targets));
            for (out, result) in outputs.iter().zip([loss, gradient]) {
                handles.register_float_tensor::<B>(&out.id, result);
            }
        };
        enqueue::<B, 2, 2>("cross_entropy", [logits, targets], results, run).into()
    }

    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        let results = [([1].into(), DType::F32)];
        let mut sums =
            alike_any::<B>("sum_of_squares", tensors, results.into(), |tensors| vec![B::sum_of_squares(tensors)]);
        sums.remove(0)
    }

    fn adam_advance(parameters: Vec<Moving<Self>>, next: FloatTensor<Self>, betas: [f64; 2]) -> Vec<Moments<Self>> {
        adam_of_many::advance(parameters, next, betas)
    }

    fn adam_apply(parameters: Vec<AdamUpdate<Self>>, factor: FloatTensor<Self>) -> Vec<[FloatTensor<Self>; 2]> {
        adam_of_many::apply(parameters, factor)
    }

    const ATTENTION_FORMS: &'static [AttentionForm] = B::ATTENTION_FORMS;
    const BOUNDED_ATTENTION: bool = B::BOUNDED_ATTENTION;

    fn causal_attention(
        qkv: [FloatTensor<Self>; 3],
        masking: &Masking<Self>,
        shape: &AttentionShape,
    ) -> Attended<Self> {
        let Bounds { seen, operands } = match masking {
            Masking::Composed(composed) => return attention::forward::<Self>(qkv, composed, shape),
            masking => bounds(masking),
        };
        let of_queries = [shape.sequences.tokens(), shape.heads].into();
        let results = [(qkv[0].shape(), qkv[0].dtype), (of_queries, DType::F32)];
        let ([q, k, v], shape) = (qkv, shape.clone());
        let run = move |handles: &mut Handles<B>, inputs: &[TensorIr; 4], outputs: &[TensorIr; 2]| {
            let [qkv @ .., seen] = inputs;
            let seen = Tensor::from_primitive(handles.get_int_tensor::<B>(seen));
            let masking = Masking::Bounds(Bounds { seen, operands });
            let qkv = qkv.each_ref().map(|x| handles.get_float_tensor::<B>(x));
            let Attended { y, lse } = B::causal_attention(qkv, &masking, &shape);
            let lse = lse.expect("a kernel gives logarithms of sums");
            for (out, result) in outputs.iter().zip([y, lse]) {
                handles.register_float_tensor::<B>(&out.id, result);
            }
        };
        let [y, lse] = enqueue::<B, 4, 2>("attention", [q, k, v, seen.into_primitive()], results, run);
        Attended { y, lse: Some(lse) }
    }

    fn causal_attention_backward(
        qkv: [FloatTensor<Self>; 3],
        attended: Option<[FloatTensor<Self>; 2]>,
        masking: &Masking<Self>,
        grad: FloatTensor<Self>,
        shape: &AttentionShape,
    ) -> [FloatTensor<Self>; 3] {
        let Bounds { seen, operands } = match masking {
            Masking::Composed(composed) => return attention::backward::<Self>(qkv, composed, grad, shape),
            masking => bounds(masking),
        };
        let [y, lse] = attended.expect("a kernel gave logarithms of sums");
        let results = qkv.each_ref().map(|x| (x.shape(), x.dtype));
        let ([q, k, v], shape) = (qkv, shape.clone());
        let run = move |handles: &mut Handles<B>, inputs: &[TensorIr; 7], outputs: &[TensorIr; 3]| {
            let [tensors @ .., seen] = inputs;
            let seen = Tensor::from_primitive(handles.get_int_tensor::<B>(seen));
            let masking = Masking::Bounds(Bounds { seen, operands });
            let [q, k, v, y, lse, grad] = tensors.each_ref().map(|x| handles.get_float_tensor::<B>(x));
            let results = B::causal_attention_backward([q, k, v], Some([y, lse]), &masking, grad, &shape);
            for (out, result) in outputs.iter().zip(results) {
                handles.register_float_tensor::<B>(&out.id, result);
            }
        };
        enqueue::<B, 7, 3>("attention_backward", [q, k, v, y, lse, grad, seen.into_primitive()], results, run)
    }

    // What waits in the stream has not been asked for yet.
    fn check(device: &Self::Device) -> Result<(), String> {
        let of_stream = device.clone();
        get_client::<B>(device).sync(move || B::check(&of_stream))
    }

    // Both: what waits in the stream has not been asked for yet, and holds what it takes and is to drop.
    fn finish(device: &Self::Device) {
        let of_stream = device.clone();
        get_client::<B>(device).sync(move || B::finish(&of_stream));
    }

    fn largest_tensor(device: &Self::Device) -> u64 {
        B::largest_tensor(device)
    }

    fn bytes_in_use(device: &Self::Device) -> Option<u64> {
        B::bytes_in_use(device)
    }

    fn most_reserved(device: &Self::Device) -> Option<u64> {
        B::most_reserved(device)
    }

    fn forget_most_reserved(device: &Self::Device) {
        B::forget_most_reserved(device);
    }

    fn exact_memory(device: &Self::Device, exact: bool) {
        B::exact_memory(device, exact);
    }

    fn release_memory(device: &Self::Device) {
        let of_stream = device.clone();
        get_client::<B>(device).sync(move || B::release_memory(&of_stream));
    }
}
