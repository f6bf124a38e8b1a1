//! How fast a backend's kernels are on the shapes of a model, beside the ceilings of the device.

use std::time::Duration;

use burn::tensor::{DType, Distribution, FloatDType, Tensor, TensorData};
use half::bf16;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::Serialize;
use web_time::Instant;

use crate::Result;
use crate::files::read;
use crate::model::{in_type, random_nf4};
use crate::nf4::Nf4Data;
use crate::ops::{
    AttentionForm, AttentionShape, ComputeDtype, Masking, Nf4Weight, Ops, Product, Sequences, Variant,
    attention_with_gradients, causal_attention, half_matmul, matmul, nf4_lora_by, nf4_matmul_by,
};

/// How long one measurement runs at least, after one run that is not counted.
const LEAST: Duration = Duration::from_millis(300);
/// Bytes that the copy reads, and writes, at most: more than caches hold. WebGPU lets not every device bind as many.
const COPIED: u64 = 512 << 20;
/// Bytes of weights that products of a few rows take turns with, so that none of them is still in a cache.
const TURNS: usize = 256 << 20;
/// Rows of those at most.
const FEW: usize = 16;
const BLOCK_SIZE: usize = 64;
/// Of the branch beside a weight.
const RANK: usize = 16;

/// What a device can do at best.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Bytes read and written by a copy, in GB/s.
    pub copy: f64,
    /// A dense product, in GFLOP/s: the backend's own in f32, tuned by itself, or with tensor cores the one in bf16 that the head takes.
    pub dense: f64,
}

/// One kernel on one shape.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The operation, and which variant of it.
    pub kernel: String,
    /// `[out, in]` of the weight.
    pub shape: [usize; 2],
    /// Rows of activations.
    pub rows: usize,
    /// Of one run.
    pub seconds: f64,
    /// Bytes of the weight (4-bit, or f32 for a dense product), the activations and the result per second, in GB/s.
    pub bandwidth: f64,
    /// In GFLOP/s, a multiplication and an addition being two.
    pub arithmetic: f64,
}

/// Waits until the device has done what it was given, by a value that it has to compute last.
async fn wait<B: Ops>(device: &B::Device) -> Result<()> {
    read(Tensor::<B, 1>::zeros([1], device)).await.map(|_| ())
}

/// Runs `run` for a while; seconds of one run.
async fn time<B: Ops, T>(device: &B::Device, mut run: impl FnMut() -> T) -> Result<f64> {
    // The first compiles, the second shows how many it takes.
    run();
    wait::<B>(device).await?;
    let start = Instant::now();
    run();
    wait::<B>(device).await?;
    let once = start.elapsed().max(Duration::from_nanos(100));
    let count = (LEAST.as_secs_f64() / once.as_secs_f64()).ceil().clamp(1.0, 10_000.0) as u32;
    let start = Instant::now();
    for _ in 0..count {
        run();
    }
    wait::<B>(device).await?;
    Ok(start.elapsed().as_secs_f64() / f64::from(count))
}

/// Measures the device itself; the dense product is of `rows` rows with a weight of this shape, in bf16 or else f32.
///
/// # Errors
/// When a kernel fails on the device.
pub async fn ceilings<B: Ops>(
    device: &B::Device,
    [out, input]: [usize; 2],
    rows: usize,
    compute: ComputeDtype,
) -> Result<Ceilings> {
    let copied = (B::largest_tensor(device) / 2).min(COPIED) as usize;
    // Not an elementwise operation: fusion would drop one whose result nobody reads.
    let half = || Tensor::<B, 1>::ones([copied / 8], device);
    let halves = vec![half(), half()];
    let copy = time::<B, _>(device, || Tensor::cat(halves.clone(), 0)).await?;
    drop(halves);
    let x = Tensor::<B, 2>::random([rows, input], Distribution::Default, device);
    let w = Tensor::<B, 2>::random([input, out], Distribution::Default, device);
    let dense = if compute == ComputeDtype::Bf16 {
        let w = w.transpose().cast(DType::BF16);
        time::<B, _>(device, || half_matmul(x.clone(), vec![w.clone()], Product::Forward, compute)).await?
    } else {
        time::<B, _>(device, || x.clone().matmul(w.clone())).await?
    };
    Ok(Ceilings { copy: 2.0 * copied as f64 / copy / 1e9, dense: 2.0 * (rows * out * input) as f64 / dense / 1e9 })
}

/// Measures quantizing and decoding a weight of this shape, as far as the device can hold it in f32.
///
/// # Errors
/// When a kernel fails on the device.
pub async fn measure_storage<B: Ops>(device: &B::Device, shape: [usize; 2]) -> Result<Vec<Measurement>> {
    let count = shape[0] * shape[1];
    if 4 * count as u64 > B::largest_tensor(device) {
        return Ok(vec![]);
    }
    let data = random_weight(shape)?;
    let weight = Nf4Weight::<B>::upload(&data, device)?;
    let dequantize = time::<B, _>(device, || weight.dequantize()).await?;
    let weights = Tensor::<B, 1>::random([count], Distribution::Default, device).into_primitive().tensor();
    let quantize = time::<B, _>(device, || B::nf4_quantize(weights.clone(), BLOCK_SIZE)).await?;
    let measurement = |kernel: &str, bytes: usize, seconds: f64| Measurement {
        kernel: kernel.into(),
        shape,
        rows: 0,
        seconds,
        bandwidth: (4 * count + bytes) as f64 / seconds / 1e9,
        arithmetic: 0.0,
    };
    let plain = count / 2 + 4 * count.div_ceil(BLOCK_SIZE);
    Ok(vec![measurement("nf4_quantize", plain, quantize), measurement("nf4_dequantize", data.byte_size(), dequantize)])
}

/// A weight in bf16, which not every device could make itself of one in f32.
fn in_bf16<B: Ops>(shape: [usize; 2], device: &B::Device) -> Tensor<B, 2> {
    let value = |i: usize| bf16::from_f32((i * 37 % 101) as f32 / 64.0 - 0.8);
    let values: Vec<bf16> = (0..shape[0] * shape[1]).map(value).collect();
    Tensor::from_data(TensorData::new(values, shape), (device, DType::BF16))
}

/// Measures the products of `rows` rows with a weight of this shape: every variant in both directions, and beside them the products with
/// the weight in bf16 and in f32, where the device can hold a weight of this size so.
///
/// # Errors
/// When a kernel fails on the device.
pub async fn measure_products<B: Ops>(device: &B::Device, shape: [usize; 2], rows: usize) -> Result<Vec<Measurement>> {
    let [out, input] = shape;
    let data = random_weight(shape)?;
    let turns = if rows <= FEW { (TURNS / data.byte_size()).clamp(1, 64) } else { 1 };
    let weights = (0..turns).map(|_| Nf4Weight::<B>::upload(&data, device)).collect::<Result<Vec<_>>>()?;
    let mut turn = weights.iter().cycle();
    let mut weight = || turn.next().expect("it goes on and on");
    let fits = |dtype: FloatDType| (DType::from(dtype).size() * out * input) as u64 <= B::largest_tensor(device);
    let half = fits(FloatDType::BF16).then(|| in_bf16::<B>(shape, device));
    let mut measurements = Vec::new();
    let mut add = |kernel: String, weight_bytes: usize, held: FloatDType, seconds: f64| {
        let bytes = weight_bytes + DType::from(held).size() * rows * (out + input);
        let (bandwidth, arithmetic) = (bytes as f64 / seconds / 1e9, 2.0 * (rows * out * input) as f64 / seconds / 1e9);
        measurements.push(Measurement { kernel, shape, rows, seconds, bandwidth, arithmetic });
    };
    for product in [Product::Forward, Product::InputGradient] {
        let (taken, _) = product.widths(shape);
        let x = Tensor::<B, 2>::random([rows, taken], Distribution::Default, device);
        for variant in B::nf4_variants(device, shape, rows, product) {
            // Activations are of the type that training holds them in.
            let held = ComputeDtype::of(Some(variant)).activations();
            let x = in_type(x.clone(), held);
            let product_alone = || nf4_matmul_by(variant, x.clone(), weight(), product, held);
            let seconds = time::<B, _>(device, product_alone).await?;
            let bytes = match variant {
                // Read packed, written and read again as f32.
                Variant::Decoded => data.byte_size() + 8 * out * input,
                _ => data.byte_size(),
            };
            add(format!("nf4_matmul {product:?} {variant:?}"), bytes, held, seconds);
            // What a branch beside the weight costs where a kernel has room for it.
            if matches!(
                variant,
                Variant::Skinny
                    | Variant::SkinnyShared
                    | Variant::SkinnyBf16
                    | Variant::WarpgroupBf16
                    | Variant::DecodedBf16
            ) {
                let second = if product == Product::Forward { [out, RANK] } else { [RANK, input] };
                let [low, b] =
                    [[rows, RANK], second].map(|of| Tensor::<B, 2>::random(of, Distribution::Default, device));
                let branch = [in_type(low, held), b];
                let both = || nf4_lora_by(variant, x.clone(), weight(), product, (branch.clone(), 0.5), held);
                let seconds = time::<B, _>(device, both).await?;
                add(format!("nf4_lora {product:?} {variant:?}, rank {RANK}"), bytes, held, seconds);
            }
        }
        if let Some(half) = &half {
            let once = || half_matmul(x.clone(), vec![half.clone()], product, ComputeDtype::F32);
            let seconds = time::<B, _>(device, once).await?;
            add(format!("half_matmul {product:?} BF16 in f32"), 2 * out * input, FloatDType::F32, seconds);
        }
        if !fits(FloatDType::F32) {
            continue;
        }
        let dense = Tensor::<B, 2>::random(shape, Distribution::Default, device);
        let seconds = time::<B, _>(device, || match product {
            Product::Forward => matmul(x.clone(), dense.clone().transpose()),
            Product::InputGradient => matmul(x.clone(), dense.clone()),
        })
        .await?;
        add(format!("matmul {product:?}, f32"), 4 * out * input, FloatDType::F32, seconds);
    }
    Ok(measurements)
}

/// Measures causal attention over one sequence of `tokens`, alone and with its gradients, in every form of the backend that the
/// device can hold. `heads` are those of the queries, those of the keys, and how wide they are. A key that a query does not see is no
/// arithmetic.
///
/// # Errors
/// When a kernel fails on the device.
pub async fn measure_attention<B: Ops>(
    device: &B::Device,
    heads: [usize; 3],
    tokens: usize,
) -> Result<Vec<Measurement>> {
    let [heads, kv_heads, head_dim] = heads;
    let (sequences, scale) = (Sequences::new(&[tokens]), (head_dim as f32).powf(-0.5));
    let shape = AttentionShape { sequences, window: None, heads, kv_heads, head_dim, scale, softcap: None };
    let random = |heads: usize| Tensor::<B, 2>::random([tokens, heads * head_dim], Distribution::Default, device);
    let (qkv, grad) = ([heads, kv_heads, kv_heads].map(random), random(heads));
    let [q, k, v] = &qkv;
    let product = (tokens * (tokens + 1) * heads * head_dim) as f64;
    let mut measurements = Vec::new();
    for form in AttentionForm::on::<B>(device) {
        if form == AttentionForm::Composed && 4 * (heads * tokens * tokens) as u64 > B::largest_tensor(device) {
            continue;
        }
        let masking = Masking::of(form, &shape.sequences, None, device);
        let forward =
            time::<B, _>(device, || causal_attention(q.clone(), k.clone(), v.clone(), &masking, &shape)).await?;
        let both =
            time::<B, _>(device, || attention_with_gradients(qkv.clone(), grad.clone(), &masking, &shape)).await?;
        // Two products forward; five backward, of which the fused forms make seven.
        for (what, seconds, products) in [("forward", forward, 2.0), ("forward and backward", both, 7.0)] {
            measurements.push(Measurement {
                kernel: format!("attention {form:?} {what}"),
                shape: [heads * head_dim, kv_heads * head_dim],
                rows: tokens,
                seconds,
                bandwidth: (8 * tokens * (heads + kv_heads) * head_dim) as f64 / seconds / 1e9,
                arithmetic: products * product / seconds / 1e9,
            });
        }
    }
    Ok(measurements)
}

/// The same random weight each time.
fn random_weight(shape: [usize; 2]) -> Result<Nf4Data> {
    random_nf4(shape, BLOCK_SIZE, true, &mut SmallRng::seed_from_u64(1))
}
