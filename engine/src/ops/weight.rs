//! An NF4 weight on a device, as model code sees it: in one piece, or where the device holds none that large in several, whose
//! products are put together.

use std::ops::Range;

use burn::tensor::backend::{Backend, BackendTypes};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, TensorMetadata};

use super::fused::{cast, primitive, tensor};
use super::lasting::{lasting_results, lasting_words};
use super::parts::{joined, of_parts};
use super::{ComputeDtype, Nf4Primitive, Ops, Product, Update, Variant};
use crate::files::read_words;
use crate::nf4::{self, Absmax, Nf4Data, dynamic_map};
use crate::{Error, Result};

/// A frozen weight `[out, in]` in 4-bit NormalFloat on a device of backend `B`.
///
/// ```no_run
/// use burn::tensor::{FloatDType, Tensor};
/// use halfbyte::backends::Cpu;
/// use halfbyte::nf4;
/// use halfbyte::ops::{Frozen, Nf4Weight};
///
/// # fn main() -> halfbyte::Result<()> {
/// let device = Default::default();
/// let data = nf4::quantize(&vec![0.5; 256 * 128], [256, 128], 64, true)?;
/// let weight = Nf4Weight::<Cpu>::upload(&data, &device)?;
/// let x = Tensor::ones([3, 128], &device);
/// let y = Frozen::nf4(&weight).forward(x, FloatDType::F32);
/// assert_eq!(y.dims(), [3, 256]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Nf4Weight<B: Backend> {
    /// `[out, in]`.
    shape: [usize; 2],
    /// Of consecutive output features; nearly always one.
    parts: Vec<Nf4Primitive<B>>,
    /// What operands are rounded to where many rows are multiplied.
    compute: ComputeDtype,
}

impl<B: Ops> Nf4Weight<B> {
    /// Uploads `data` as it is: the bytes that a bitsandbytes checkpoint holds are the bytes on the device.
    ///
    /// # Errors
    /// When the parts of `data` do not fit its shape.
    pub fn upload(data: &Nf4Data, device: &B::Device) -> Result<Self> {
        Self::upload_within(data, B::largest_tensor(device), device)
    }

    /// [`upload`](Self::upload) in pieces of at most `most` bytes, as far as the blocks of the scales allow it.
    ///
    /// # Errors
    /// When the parts of `data` do not fit its shape.
    pub fn upload_within(data: &Nf4Data, most: u64, device: &B::Device) -> Result<Self> {
        data.validate()?;
        let ([out, _], at_once) = (data.shape, data.features_within(most));
        let parts = match at_once >= out {
            true => vec![upload_part(data, device)],
            false => {
                let part = |first: usize| upload_part(&data.features(first..out.min(first + at_once)), device);
                (0..out).step_by(at_once).map(part).collect()
            }
        };
        Ok(Self { shape: data.shape, parts, compute: ComputeDtype::F32 })
    }

    /// Quantizes a row-major weight of `shape` `[out, in]` in f32, bf16 or f16 on the device, to the bits of [`nf4::quantize`]. The scales
    /// of the blocks are quantized again on the host, a 64th of the work, in the order in which torch would add them up.
    ///
    /// # Errors
    /// As [`nf4::quantize`], when the weight is in another type, and when the device fails.
    pub async fn quantize(
        weights: TensorData,
        shape: [usize; 2],
        block_size: usize,
        double_quant: bool,
        device: &B::Device,
    ) -> Result<Self> {
        nf4::check_block_size(block_size)?;
        let TensorData { bytes, dtype, shape: given } = weights;
        let count = given.num_elements();
        if count != nf4::checked_count(shape)? {
            return Err(Error::Invalid(format!("{count} weights do not fill the shape {shape:?}")));
        }
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(Error::Invalid(format!("a weight in {dtype:?} is not quantized; in F32, BF16 and F16 it is")));
        }
        let weights = TensorData::from_bytes(bytes, [count], dtype);
        // Every device holds 16 bits, whether or not it computes in them.
        let (weights, arriving) = B::start_write(weights, device);
        let [codes, absmax] =
            lasting_results::<B, _, _>(device, weights, |weights| B::nf4_quantize(weights, block_size));
        drop(arriving);
        let scales: Vec<f32> = read_words(Tensor::<B, 1, Int>::from_primitive(absmax.clone()))
            .await?
            .into_iter()
            .map(f32::from_bits)
            .collect();
        if let Some(block) = scales.iter().position(|scale| !scale.is_finite()) {
            let [first, last] = [block * block_size, ((block + 1) * block_size).min(count) - 1];
            let place = |i: usize| [i / shape[1], i % shape[1]];
            let reason = "is NaN or infinite: only finite weights can be quantized";
            return Err(Error::Invalid(format!("a weight from {:?} to {:?} {reason}", place(first), place(last))));
        }
        let scales = if double_quant { Absmax::double(&scales) } else { Absmax::Plain(scales) };
        let header = lasting_words::<B>(data_of(header(shape, block_size, &scales)), device);
        let absmax = match &scales {
            Absmax::Plain(_) => absmax,
            Absmax::Double { codes, .. } => lasting_words::<B>(words(codes), device),
        };
        let parts = vec![Nf4Primitive { codes, absmax, header, shape }];
        Ok(Self { shape, parts, compute: ComputeDtype::F32 })
    }

    /// The same weight, its products computed in a type that its device has.
    pub fn computing(self, compute: ComputeDtype) -> Self {
        Self { compute, ..self }
    }

    /// The weight decoded to f32 `[out, in]`.
    pub fn dequantize(&self) -> Tensor<B, 2> {
        tensor(joined::<B>(self.parts.iter().map(B::nf4_dequantize).collect(), 0))
    }

    /// Either product of rows of activations with the weight in the type `into`, by the given variant or by the fastest.
    pub(super) fn product(
        &self,
        x: FloatTensor<B>,
        product: Product,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<B> {
        // What is added up is f32.
        let adds = product == Product::InputGradient && self.parts.len() > 1;
        let each = if adds { FloatDType::F32 } else { into };
        let y = of_parts::<B, _>(x, self.parts().collect(), product, |x, part, _| {
            let variant = variant.or_else(|| self.variant(&x, part, product));
            B::nf4_matmul(x, part, product, variant, each)
        });
        cast::<B>(y, into)
    }

    /// Either product, and what a branch beside the weight adds to it.
    pub(super) fn product_with(
        &self,
        x: FloatTensor<B>,
        product: Product,
        update: Update<B>,
        variant: Option<Variant>,
        into: FloatDType,
    ) -> FloatTensor<B> {
        let of_part = |x, part: &_, update| {
            let variant = variant.or_else(|| self.variant(&x, part, product));
            B::nf4_lora(x, part, product, update, variant, into)
        };
        match (product, self.parts.as_slice()) {
            (_, [whole]) => of_part(x, whole, update),
            (Product::Forward, _) => of_parts::<B, _>(x, self.parts().collect(), product, |x, part, features| {
                let Update { low, b, scaling } = update.clone();
                let b = primitive(tensor::<B, 2>(b).narrow(0, features.start, features.len()));
                of_part(x, part, Update { low, b, scaling })
            }),
            // The parts' products are summed up, and the branch's is one of them.
            (Product::InputGradient, _) => {
                cast::<B>(update.added_to(self.product(x, product, variant, FloatDType::F32), product), into)
            }
        }
    }

    /// What a product of these rows with the weight rounds them to.
    pub(super) fn rounding(&self, x: &FloatTensor<B>, product: Product) -> ComputeDtype {
        let variant = self.parts.first().and_then(|part| self.variant(x, part, product));
        ComputeDtype::of(variant)
    }

    /// How a part is multiplied with `x`, where that is not to be found out.
    fn variant(&self, x: &FloatTensor<B>, part: &Nf4Primitive<B>, product: Product) -> Option<Variant> {
        self.compute.variant::<B>(&B::float_device(x), part.shape, x.shape()[0], product)
    }
}

impl<B: Backend> Nf4Weight<B> {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Where it is.
    pub fn device(&self) -> B::Device {
        self.parts.first().map(|part| B::int_device(&part.codes)).unwrap_or_default()
    }

    /// The parts, each with its output features.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&Nf4Primitive<B>, Range<usize>)> {
        self.parts.iter().scan(0, |end, part| {
            let first = *end;
            *end += part.shape[0];
            Some((part, first..*end))
        })
    }

    /// The same weight seen by a backend that shares this one's integer tensors, such as its autodiff decoration.
    pub fn cast<C: Backend<IntTensorPrimitive = <B as BackendTypes>::IntTensorPrimitive>>(&self) -> Nf4Weight<C> {
        let cast = |part: &Nf4Primitive<B>| {
            let Nf4Primitive { codes, absmax, header, shape } = part.clone();
            Nf4Primitive { codes, absmax, header, shape }
        };
        Nf4Weight { shape: self.shape, parts: self.parts.iter().map(cast).collect(), compute: self.compute }
    }
}

fn upload_part<B: Ops>(data: &Nf4Data, device: &B::Device) -> Nf4Primitive<B> {
    let absmax = match &data.absmax {
        Absmax::Plain(values) => data_of(values.iter().map(|v| v.to_bits()).collect()),
        Absmax::Double { codes, .. } => words(codes),
    };
    Nf4Primitive {
        codes: lasting_words::<B>(words(&data.packed), device),
        absmax: lasting_words::<B>(absmax, device),
        header: lasting_words::<B>(data_of(header(data.shape, data.block_size, &data.absmax)), device),
        shape: data.shape,
    }
}

/// What [`Nf4Primitive::header`] holds.
fn header(shape: [usize; 2], block_size: usize, absmax: &Absmax) -> Vec<u32> {
    let mut header = vec![(shape[0] * shape[1]) as u32, block_size.trailing_zeros(), 0, 0];
    if let Absmax::Double { nested, offset, .. } = absmax {
        header[2..].copy_from_slice(&[1, offset.to_bits()]);
        header.extend(dynamic_map().iter().chain(nested).map(|v| v.to_bits()));
    }
    header
}

pub(super) fn data_of(words: Vec<u32>) -> TensorData {
    let length = words.len();
    TensorData::new(words, [length])
}

/// Four bytes to a word, in memory order, the last word padded with zeros.
fn words(bytes: &[u8]) -> TensorData {
    let mut words = vec![0u32; bytes.len().div_ceil(4)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    data_of(words)
}
