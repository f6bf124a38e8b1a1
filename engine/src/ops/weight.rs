//! An NF4 weight on a device, as model code sees it, and its product with a tensor.

use burn::tensor::backend::{Backend, BackendTypes};
use burn::tensor::ops::IntTensor;
use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};

use super::fused::primitive;
use super::{Nf4Primitive, Ops};
use crate::files::read_words;
use crate::nf4::{self, Absmax, Nf4Data, dynamic_map};
use crate::{Error, Result};

/// A frozen weight `[out, in]` in 4-bit NormalFloat on a device of backend `B`.
///
/// ```no_run
/// use burn::tensor::Tensor;
/// use halfbyte::backends::Cpu;
/// use halfbyte::nf4;
/// use halfbyte::ops::{Frozen, Nf4Weight};
///
/// # fn main() -> halfbyte::Result<()> {
/// let device = Default::default();
/// let data = nf4::quantize(&vec![0.5; 256 * 128], [256, 128], 64, true)?;
/// let weight = Nf4Weight::<Cpu>::upload(&data, &device)?;
/// let x = Tensor::ones([3, 128], &device);
/// let y = Frozen::nf4(&weight).forward(x);
/// assert_eq!(y.dims(), [3, 256]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Nf4Weight<B: Backend>(pub(super) Nf4Primitive<B>);

impl<B: Backend> Nf4Weight<B> {
    /// Uploads `data` as it is: the bytes that a bitsandbytes checkpoint holds are the bytes on the device.
    ///
    /// # Errors
    /// When the parts of `data` do not fit its shape.
    pub fn upload(data: &Nf4Data, device: &B::Device) -> Result<Self> {
        data.validate()?;
        let absmax = match &data.absmax {
            Absmax::Plain(values) => values.iter().map(|v| v.to_bits()).collect(),
            Absmax::Double { codes, .. } => words(codes),
        };
        Ok(Self(Nf4Primitive {
            codes: upload::<B>(words(&data.packed), device),
            absmax: upload::<B>(absmax, device),
            header: upload::<B>(header(data.shape, data.block_size, &data.absmax), device),
            shape: data.shape,
        }))
    }

    /// Quantizes a row-major weight of `shape` `[out, in]` on the device, to the bits of [`nf4::quantize`]. The scales of the
    /// blocks are quantized again on the host, a 64th of the work, in the order in which torch would add them up.
    ///
    /// # Errors
    /// As [`nf4::quantize`], and when the device fails.
    pub async fn quantize(
        weights: Vec<f32>,
        shape: [usize; 2],
        block_size: usize,
        double_quant: bool,
        device: &B::Device,
    ) -> Result<Self>
    where
        B: Ops,
    {
        nf4::check_block_size(block_size)?;
        let count = weights.len();
        if count != nf4::checked_count(shape)? {
            return Err(Error::Invalid(format!("{count} weights do not fill the shape {shape:?}")));
        }
        let weights = Tensor::<B, 1>::from_data(TensorData::new(weights, [count]), device);
        let [codes, absmax] = B::nf4_quantize(primitive(weights), block_size);
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
        let header = upload::<B>(header(shape, block_size, &scales), device);
        let absmax = match &scales {
            Absmax::Plain(_) => absmax,
            Absmax::Double { codes, .. } => upload::<B>(words(codes), device),
        };
        Ok(Self(Nf4Primitive { codes, absmax, header, shape }))
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.0.shape
    }

    /// The same weight seen by a backend that shares this one's integer tensors, such as its autodiff decoration.
    pub fn cast<C: Backend<IntTensorPrimitive = <B as BackendTypes>::IntTensorPrimitive>>(&self) -> Nf4Weight<C> {
        let Nf4Primitive { codes, absmax, header, shape } = self.0.clone();
        Nf4Weight(Nf4Primitive { codes, absmax, header, shape })
    }

    /// The weight decoded to f32 `[out, in]`.
    pub fn dequantize(&self) -> Tensor<B, 2>
    where
        B: Ops,
    {
        Tensor::from_primitive(TensorPrimitive::Float(B::nf4_dequantize(&self.0)))
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

fn upload<B: Backend>(words: Vec<u32>, device: &B::Device) -> IntTensor<B> {
    let length = words.len();
    let bytes = bytemuck::cast_slice(&words).to_vec();
    let data = TensorData::from_bytes_vec(bytes, [length], DType::U32);
    Tensor::<B, 1, Int>::from_data(data, (device, DType::U32)).into_primitive()
}

/// Four bytes to a word, in memory order, the last word padded with zeros.
pub(super) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(word)
        })
        .collect()
}
