//! A matrix taken through the device, quantized, decoded and multiplied, beside the same by the plain code: for the lessons.

use halfbyte::files::read;
use halfbyte::lab::judged_error;
use halfbyte::nf4::{self, Nf4Data, check_block_size, checked_count, quantize_blocks};
use halfbyte::ops::{Branch, FloatDType, Frozen, Nf4Weight, Ops, lora_linear};
use halfbyte_protocol::{Comparison, Event, Kind, LowRank, Matrix, Part};

use crate::error::{Error, Result};
use crate::inbox::Parts;

/// Rows of activations: few enough for a lesson, more than one vector.
const ROWS: usize = 16;
/// Elements of the largest matrix: the plain product takes a second of them.
const MOST: usize = 1 << 24;

/// Compares on the device of `B`.
///
/// # Errors
/// When the request does not fit itself, and when the device fails; a wrong result is no error, it is in the comparison.
pub(crate) async fn on<B: Ops>(device: &B::Device, matrix: &Matrix, parts: &Parts) -> Result<Event> {
    let Matrix { shape, block_size, double_quant, .. } = *matrix;
    check_block_size(block_size).map_err(halfbyte::Error::from)?;
    let count = checked_count(shape).map_err(halfbyte::Error::from)?;
    if count == 0 || count > MOST {
        return Err(Error::request(format!("a matrix of {count} elements; 1 to {MOST} can be compared")));
    }
    let weights = floats(parts, matrix.values, count).await?;
    let expected = nf4::quantize(&weights, shape, block_size, double_quant).map_err(halfbyte::Error::from)?;

    let [codes, scales] = B::nf4_quantize(B::float_from_data(weights.as_slice().into(), device), block_size);
    let unread = |error: String| Error::new(Kind::Device, format!("what the device quantized cannot be read: {error}"));
    let codes = B::int_into_data(codes).await.map_err(|e| unread(e.to_string()))?;
    let codes = codes.to_vec::<u32>().map_err(|e| unread(format!("{e:?}")))?;
    let scales = B::int_into_data(scales).await.map_err(|e| unread(e.to_string()))?;
    let scales = scales.to_vec::<u32>().map_err(|e| unread(format!("{e:?}")))?;
    let (plain_codes, plain_scales) = quantize_blocks(&weights, block_size);

    let weight = Nf4Weight::<B>::upload(&expected, device)?;
    let decoded = read(weight.dequantize()).await?;
    let dense = expected.dequantize();

    // The activations come out of a 4-bit weight as well, which is how the engine makes a matrix of plain numbers.
    let input = shape[1];
    let x = nf4::quantize(&even(ROWS * input), [ROWS, input], 64, false).map_err(halfbyte::Error::from)?;
    let on_device = Nf4Weight::<B>::upload(&x, device)?.dequantize();
    let mut y = times(&x.dequantize(), &dense, input);
    let frozen = Frozen::nf4(&weight);
    let found = read(frozen.forward(on_device.clone(), FloatDType::F32)).await?;
    let product_error = distance(&found, &y);

    let adapter_error = match &matrix.adapter {
        None => None,
        Some(LowRank { a, b, rank, scaling }) => {
            if *rank == 0 || *rank > input.max(shape[0]) {
                return Err(Error::request(format!("an adapter of rank {rank} beside a matrix of {shape:?}")));
            }
            let (a, b) = (floats(parts, *a, rank * input).await?, floats(parts, *b, rank * shape[0]).await?);
            let tensor = |values: &[f32], rows: usize, columns: usize| {
                B::float_reshape(B::float_from_data(values.into(), device), [rows, columns].into())
            };
            let branch = Branch {
                a: tensor(&a, *rank, input),
                b: tensor(&b, shape[0], *rank),
                dropped: None,
                scaling: *scaling,
            };
            let found = read(lora_linear(on_device, &frozen, branch, FloatDType::F32)).await?;
            let low: Vec<f32> = times(&x.dequantize(), &a, input).into_iter().map(|v| v as f32).collect();
            for (y, added) in y.iter_mut().zip(times(&low, &b, *rank)) {
                *y += scaling * added;
            }
            distance(&found, &y)
        }
    };
    let scale_error = scales_decoded::<B>(&expected, device).await?;
    B::check(device).map_err(unread)?;
    Ok(Event::Compared(Comparison {
        codes: (count, differing_codes(&codes, &plain_codes, count)),
        scales: (plain_scales.len(), differing(scales.into_iter(), plain_scales.iter().map(|scale| scale.to_bits()))),
        scale_error,
        weight_error: largest(&decoded, &dense),
        rows: ROWS,
        product_error,
        adapter_error,
    }))
}

/// The numbers at a place of the message, which must be `count`.
async fn floats(parts: &Parts, part: Part, count: usize) -> Result<Vec<f32>> {
    let bytes = parts.bytes(part).await?;
    let (whole, rest) = bytes.as_chunks::<4>();
    match whole.len() == count && rest.is_empty() {
        true => Ok(whole.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        false => Err(Error::request(format!(
            "part {} has {} bytes; {count} numbers take {}",
            part.0,
            bytes.len(),
            4 * count
        ))),
    }
}

/// Numbers from -1 to 1 that repeat nothing and favour nothing: multiples of the golden ratio, without their whole parts.
fn even(count: usize) -> Vec<f32> {
    (0..count).map(|i| (2.0 * (i as f64 * 0.618_033_988_749_895).fract() - 1.0) as f32).collect()
}

/// `x · wᵀ` in f64, both row by row with `columns` columns.
fn times(x: &[f32], w: &[f32], columns: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
    x.chunks(columns).flat_map(|x| w.chunks(columns).map(move |w| dot(x, w))).collect()
}

/// The device's decode of the scales: with the code of 1 everywhere, each block decodes to its scale.
async fn scales_decoded<B: Ops>(data: &Nf4Data, device: &B::Device) -> Result<Option<f64>> {
    let expected = data.decoded_absmax();
    let ones = Nf4Data { packed: vec![0xff; data.packed.len()].into(), absmax: data.absmax.clone(), ..*data };
    let decoded = read(Nf4Weight::<B>::upload(&ones, device)?.dequantize()).await?;
    let found: Vec<f32> = decoded.into_iter().step_by(data.block_size).collect();
    let most = expected.iter().fold(0.0f64, |most, scale| most.max(f64::from(scale.abs())));
    Ok(largest(&found, &expected).map(|error| error / most.max(f64::MIN_POSITIVE)))
}

fn differing<T: PartialEq>(
    found: impl ExactSizeIterator<Item = T>,
    expected: impl ExactSizeIterator<Item = T>,
) -> usize {
    found.len().abs_diff(expected.len()) + found.zip(expected).filter(|(found, expected)| found != expected).count()
}

/// 4-bit codes of the first `count` elements that are not those of the plain code; words hold eight, bytes two.
fn differing_codes(words: &[u32], packed: &[u8], count: usize) -> usize {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let code =
        |packed: &[u8], i: usize| packed.get(i / 2).map(|byte| if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 });
    (0..count).filter(|i| code(&bytes, *i) != code(packed, *i)).count()
}

/// The largest difference; none where one is not a number, or some are missing.
fn largest(found: &[f32], expected: &[f32]) -> Option<f64> {
    let differences = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    let all_numbers = found.len() == expected.len() && found.iter().all(|value| value.is_finite());
    all_numbers.then(|| differences.fold(0.0, f64::max))
}

/// The norm of the difference over the norm of what was expected; none where that is no number.
fn distance(found: &[f32], expected: &[f64]) -> Option<f64> {
    Some(judged_error(found, expected)).filter(|error| error.is_finite())
}
