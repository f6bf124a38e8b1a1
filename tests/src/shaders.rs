//! Kernels that the engine does not reach on every device, called as the shaders' crate offers them.

use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend};
use halfbyte::nf4::{Absmax, NF4_TABLE, Nf4Data, dynamic_map, quantize};
use halfbyte_shaders::{Nf4, SourceRuntime, Update, dequantized_types, nf4_dequantize, nf4_quantize, nf4_skinny};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::assert_close;
use crate::reference::values;

/// A backend without fusion, whose tensors are those of CubeCL.
type Plain<R, BT> = CubeBackend<R, f32, i32, BT>;

fn upload<R: SourceRuntime, BT: BoolElement, const D: usize>(
    values: &[f32],
    shape: [usize; D],
    device: &R::Device,
) -> CubeTensor<R> {
    let data = TensorData::new(values.to_vec(), shape);
    Tensor::<Plain<R, BT>, D>::from_data(data, device).into_primitive().tensor()
}

fn words<R: SourceRuntime, BT: BoolElement>(words: &[u32], device: &R::Device) -> CubeTensor<R> {
    let data = TensorData::new(words.to_vec(), [words.len()]);
    Tensor::<Plain<R, BT>, 1, Int>::from_data(data, (device, DType::U32)).into_primitive()
}

/// Weights of all sizes: usual ones, huge ones, some below the smallest normal number, and long runs of zeros.
fn weights(count: usize, random: &mut ChaCha8Rng) -> Vec<f32> {
    let mut scale = 1.0;
    let value = |i: usize| {
        if i.is_multiple_of(64) {
            scale = [1.0, 0.02, 3e38, 1e38, 1e-20, 1.5e-38, 1e-38, 1e-41, 0.0][random.random_range(0..9)];
        }
        random.random_range(-1.0f32..1.0) * scale
    };
    (0..count).map(value).collect()
}

/// Codes and scales of weights of every length and kind, bit by bit.
pub fn quantizing_is_exact<R: SourceRuntime, BT: BoolElement>(device: &R::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    for count in [1, 2, 7, 8, 31, 63, 64, 65, 127, 4096, 5003, 70_001] {
        for block_size in [32, 64, 128, 4096] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let scale = if dtype == DType::F16 { 60_000.0 / 3e38 } else { 1.0 };
                let weights: Vec<f32> = weights(count, &mut random).iter().map(|w| w * scale).collect();
                let weights = TensorData::new(weights, [count]).convert_dtype(dtype);
                let wide = weights.clone().convert::<f32>().to_vec::<f32>().expect("floats");
                let expected = quantize(&wide, [1, count], block_size, false).expect("finite weights");
                let Absmax::Plain(scales) = expected.absmax else { panic!("plain scales were asked for") };
                let weights = Tensor::<Plain<R, BT>, 1>::from_data(weights, (device, dtype)).into_primitive().tensor();
                let [codes, absmax] = nf4_quantize(weights, block_size, &NF4_TABLE);
                let codes = Tensor::<Plain<R, BT>, 1, Int>::from_primitive(codes).into_data();
                let bits = |scales: &[f32]| scales.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let what = format!("{count} weights in {dtype:?} in blocks of {block_size}");
                let absmax = Tensor::<Plain<R, BT>, 1, Int>::from_primitive(absmax).into_data();
                assert_eq!(absmax.to_vec::<u32>().expect("words"), bits(&scales), "scales of {what}");
                assert_eq!(codes.as_bytes()[..count.div_ceil(2)], expected.packed, "codes of {what}");
            }
        }
    }
}

/// A weight's buffers.
fn nf4<R: SourceRuntime, BT: BoolElement>(data: &Nf4Data, device: &R::Device) -> Nf4<R> {
    let packed = |bytes: &[u8]| {
        let word = |b: &[u8]| u32::from_le_bytes(std::array::from_fn(|i| b.get(i).copied().unwrap_or(0)));
        words::<R, BT>(&bytes.chunks(4).map(word).collect::<Vec<_>>(), device)
    };
    let mut header = vec![(data.shape[0] * data.shape[1]) as u32, data.block_size.trailing_zeros(), 0, 0];
    let absmax = match &data.absmax {
        Absmax::Plain(scales) => words::<R, BT>(&scales.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), device),
        Absmax::Double { codes, nested, offset } => {
            header[2..].copy_from_slice(&[1, offset.to_bits()]);
            header.extend(dynamic_map().iter().chain(nested).map(|v| v.to_bits()));
            packed(codes)
        }
    };
    Nf4 {
        codes: packed(&data.packed),
        absmax,
        header: words::<R, BT>(&header, device),
        shape: data.shape,
        table: &NF4_TABLE,
    }
}

/// A range of features decoded into each type that the device has, bit by bit.
pub fn parts_decode_into_every_type<R: SourceRuntime, BT: BoolElement>(device: &R::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(10);
    for (i, [out, input]) in [[1, 1], [7, 5], [300, 37], [130, 520], [64, 1024]].into_iter().enumerate() {
        let weights: Vec<f32> = (0..out * input).map(|_| random.random_range(-1.0f32..1.0)).collect();
        let data = quantize(&weights, [out, input], 64, i % 2 == 0).expect("finite weights");
        let (weight, dense) = (nf4::<R, BT>(&data, device), data.dequantize());
        let types = dequantized_types(&R::client(device));
        assert!(types.contains(&DType::F32), "{types:?}");
        for features in [0..out, 0..0, out / 2..out, out - 1..out, out / 3..out / 2] {
            for dtype in types.clone() {
                let found = Tensor::<Plain<R, BT>, 2>::from_primitive(TensorPrimitive::Float(nf4_dequantize(
                    &weight,
                    features.clone(),
                    dtype,
                )));
                let expected = dense[features.start * input..features.end * input].iter();
                let expected: Vec<u8> = match dtype {
                    DType::F16 => expected.flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
                    DType::BF16 => expected.flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
                    _ => expected.flat_map(|v| v.to_le_bytes()).collect(),
                };
                let found = found.into_data();
                assert_eq!(found.as_bytes(), expected, "{dtype:?}, features {features:?} of [{out}, {input}]");
            }
        }
    }
}

/// Products of a few rows with sums through subgroups, which a software device has but does not speak of.
pub fn subgroups_sum_right<R: SourceRuntime, BT: BoolElement>(device: &R::Device) {
    let mut random = ChaCha8Rng::seed_from_u64(9);
    for ([out, input], rows) in [([4, 8], 1), ([9, 136], 3), ([130, 1032], 16), ([33, 512], 2)] {
        let mut random = |count: usize| (0..count).map(|_| random.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
        let (data, x) =
            (quantize(&random(out * input), [out, input], 64, false).expect("finite"), random(rows * input));
        let weight = nf4::<R, BT>(&data, device);
        let (rank, scaling) = (5, 0.7);
        let (low, b) = (random(rows * rank), random(out * rank));
        let update = Update {
            low: upload::<R, BT, 2>(&low, [rows, rank], device),
            b: upload::<R, BT, 2>(&b, [out, rank], device),
            scaling,
        };
        let dense = data.dequantize();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        for (update, scaling) in [(None, 0.0), (Some(&update), f64::from(scaling))] {
            let y = upload::<R, BT, 2>(&vec![f32::NAN; rows * out], [rows, out], device);
            nf4_skinny(&upload::<R, BT, 2>(&x, [rows, input], device), &weight, update, &y, true);
            let element = |row: usize, feature: usize| {
                let product = dot(&x[row * input..][..input], &dense[feature * input..][..input]);
                (product + scaling * dot(&low[row * rank..][..rank], &b[feature * rank..][..rank])) as f32
            };
            let expected: Vec<f32> = (0..rows * out).map(|i| element(i / out, i % out)).collect();
            let found = values(Tensor::<Plain<R, BT>, 2>::from_primitive(TensorPrimitive::Float(y)));
            let what =
                format!("{rows} rows with [{out}, {input}], {}", if update.is_some() { "a branch" } else { "alone" });
            assert_close(&what, &found, &expected, 1e-5);
        }
    }
}
