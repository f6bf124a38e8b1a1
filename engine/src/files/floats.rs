//! Floats of tensors: as they lie in a file, widened, quantized, and written.

use std::borrow::Cow;

use burn::tensor::{AllocationProperty, Bytes, DType, FloatDType, TensorData};
use bytemuck::{Pod, try_cast_slice};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

use super::{Checkpoint, TensorBytes};
use crate::nf4::{self, Nf4Data};
use crate::{Error, Result};

impl Checkpoint {
    /// A tensor of exactly this shape, widened to f32.
    ///
    /// # Errors
    /// When it is missing, of another shape, or of an element type that is no float.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.shaped(name, shape)?;
        tensor.to_f32().ok_or_else(|| self.no_float(name, tensor.dtype))
    }

    /// [`floats`](Self::floats) as a backend takes them, in the type that they have in the file. Of a mapped file they are no copy.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub(crate) fn data(&self, name: &str, shape: &[usize]) -> Result<TensorData> {
        let tensor = self.shaped(name, shape)?;
        let dtype = match tensor.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            other => return Err(self.no_float(name, other)),
        };
        let bytes = self.shared(name, tensor)?;
        let bytes = match bytes.as_ptr().addr().is_multiple_of(dtype.size()) {
            // CubeCL 0.10 would stage what it is told to be a file's in pinned memory, and copy it out of there again.
            true => Bytes::from_shared(bytes, AllocationProperty::Other),
            false => Bytes::from_bytes_vec(bytes.to_vec()),
        };
        Ok(TensorData::from_bytes(bytes, shape, dtype))
    }

    /// [`data`](Self::data) to stay, in a type: in memory of its own.
    ///
    /// # Errors
    /// As [`floats`](Self::floats).
    pub(crate) fn floats_as(&self, name: &str, shape: &[usize], dtype: FloatDType) -> Result<TensorData> {
        let tensor = self.shaped(name, shape)?;
        match (tensor.dtype, dtype) {
            (Dtype::BF16, FloatDType::BF16) => Ok(TensorData::new(aligned::<bf16>(&tensor.bytes).into_owned(), shape)),
            (Dtype::F16, FloatDType::F16) => Ok(TensorData::new(aligned::<f16>(&tensor.bytes).into_owned(), shape)),
            (found, _) => {
                let values = tensor.to_f32().ok_or_else(|| self.no_float(name, found))?;
                Ok(TensorData::new(values, shape).convert_dtype(dtype.into()))
            }
        }
    }

    /// A tensor of exactly this shape.
    fn shaped(&self, name: &str, shape: &[usize]) -> Result<TensorBytes<'_>> {
        let tensor = self.tensor(name)?;
        if tensor.shape != shape {
            let found = tensor.shape;
            return Err(Error::file(&self.path, format!("tensor `{name}` has shape {found:?}; expected {shape:?}")));
        }
        Ok(tensor)
    }

    fn no_float(&self, name: &str, dtype: Dtype) -> Error {
        Error::file(&self.path, format!("tensor `{name}` is {dtype:?}; F32, F16 and BF16 are read"))
    }
}

impl TensorBytes<'_> {
    /// The elements widened to f32, exactly; none for a type that is no float of 16 or 32 bits.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        Some(match self.dtype {
            Dtype::F32 => self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => self.bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::F16 => aligned::<f16>(&self.bytes).to_f32_vec(),
            _ => return None,
        })
    }
}

/// Bytes as what they hold; a copy only where they lie at an odd place.
fn aligned<T: Pod>(bytes: &[u8]) -> Cow<'_, [T]> {
    try_cast_slice(bytes).map_or_else(|_| Cow::Owned(bytemuck::pod_collect_to_vec(bytes)), Cow::Borrowed)
}

/// A weight in NF4, quantized on the host from whatever floats it comes in.
///
/// # Errors
/// As [`nf4::quantize`], and when it is of no float of 16 or 32 bits.
pub(crate) fn quantized(
    weights: &TensorData,
    shape: [usize; 2],
    block_size: usize,
    double_quant: bool,
) -> Result<Nf4Data> {
    let bytes: &[u8] = &weights.bytes;
    Ok(match weights.dtype {
        DType::F32 => nf4::quantize::<f32>(&aligned(bytes), shape, block_size, double_quant),
        DType::BF16 => nf4::quantize::<bf16>(&aligned(bytes), shape, block_size, double_quant),
        DType::F16 => nf4::quantize::<f16>(&aligned(bytes), shape, block_size, double_quant),
        other => {
            return Err(Error::Invalid(format!(
                "weights in {other:?} are not quantized; in F32, F16 and BF16 they are"
            )));
        }
    }?)
}

/// f32 values as little-endian bytes.
pub fn encode_f32(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// f32 values rounded to bf16, as little-endian bytes.
pub fn encode_bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
}
