//! An NF4 weight on a device, as model code sees it, and its product with a tensor.

use burn::tensor::backend::{Backend, BackendTypes};
use burn::tensor::{DType, Int, Tensor, TensorData, TensorPrimitive};

use super::{Nf4Primitive, Ops};
use crate::Result;
use crate::nf4::{Absmax, Nf4Data, dynamic_map};

/// A frozen weight `[out, in]` in 4-bit NormalFloat on a device of backend `B`.
#[derive(Clone, Debug)]
pub struct Nf4Weight<B: Backend>(pub(super) Nf4Primitive<B>);

impl<B: Backend> Nf4Weight<B> {
    /// Uploads `data` as it is: the bytes that a bitsandbytes checkpoint holds are the bytes on the device.
    ///
    /// # Errors
    /// When the parts of `data` do not fit its shape.
    pub fn upload(data: &Nf4Data, device: &B::Device) -> Result<Self> {
        data.validate()?;
        let count = data.shape[0] * data.shape[1];
        let mut header = vec![count as u32, data.block_size.trailing_zeros(), 0, 0];
        let absmax = match &data.absmax {
            Absmax::Plain(values) => values.iter().map(|v| v.to_bits()).collect(),
            Absmax::Double { codes, nested, offset } => {
                header[2] = 1;
                header[3] = offset.to_bits();
                header.extend(dynamic_map().iter().chain(nested).map(|v| v.to_bits()));
                words(codes)
            }
        };
        let upload = |words: Vec<u32>| {
            let length = words.len();
            let bytes = bytemuck::cast_slice(&words).to_vec();
            let data = TensorData::from_bytes_vec(bytes, [length], DType::U32);
            Tensor::<B, 1, Int>::from_data(data, (device, DType::U32)).into_primitive()
        };
        Ok(Self(Nf4Primitive {
            codes: upload(words(&data.packed)),
            absmax: upload(absmax),
            header: upload(header),
            shape: data.shape,
        }))
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

/// Four bytes to a word, in memory order, the last word padded with zeros.
fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(word)
        })
        .collect()
}
