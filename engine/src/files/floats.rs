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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A file whose tensors begin at an even or an odd place, since the header's length is whatever its writer chose.
    fn write(path: &std::path::Path, tensors: &[(&str, Vec<u8>)], spaces: usize) {
        let (mut entries, mut all) = (Vec::new(), Vec::new());
        for (dtype, bytes) in tensors {
            let (from, to) = (all.len(), all.len() + bytes.len());
            entries.push(format!(r#""{dtype}":{{"dtype":"{dtype}","shape":[3],"data_offsets":[{from},{to}]}}"#));
            all.extend(bytes);
        }
        let header = format!("{{{}}}{}", entries.join(","), " ".repeat(spaces));
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(path, [&length[..], header.as_bytes(), &all].concat()).unwrap();
    }

    #[test]
    fn floats_are_read_where_they_lie_and_copied_where_they_lie_at_an_odd_place() {
        let folder = tempfile::tempdir().unwrap();
        let values = [0.5, -1.25, 3.0];
        let halves = |bits: fn(f32) -> u16| values.iter().flat_map(|v| bits(*v).to_le_bytes()).collect::<Vec<u8>>();
        let tensors = [
            ("F32", encode_f32(&values)),
            ("BF16", halves(|v| bf16::from_f32(v).to_bits())),
            ("F16", halves(|v| f16::from_f32(v).to_bits())),
            ("I8", vec![1, 2, 3]),
        ];
        for spaces in 0..4 {
            let path = folder.path().join(format!("{spaces}.safetensors"));
            write(&path, &tensors, spaces);
            let file = Checkpoint::open_file(&path).unwrap();
            for (name, dtype) in [("F32", FloatDType::F32), ("BF16", FloatDType::BF16), ("F16", FloatDType::F16)] {
                let data = file.data(name, &[3]).unwrap();
                assert_eq!(data.dtype, DType::from(dtype));
                assert!(data.bytes.as_ptr().addr().is_multiple_of(data.dtype.size()), "{name} after {spaces} spaces");
                assert_eq!(data.convert::<f32>().to_vec::<f32>().unwrap(), values, "{name} after {spaces} spaces");
                assert_eq!(file.floats(name, &[3]).unwrap(), values);
                assert_eq!(file.floats_as(name, &[3], dtype).unwrap(), file.data(name, &[3]).unwrap());
                let whole = quantized(&file.data(name, &[3]).unwrap(), [1, 3], 64, false).unwrap();
                assert_eq!(whole, nf4::quantize(&values, [1, 3], 64, false).unwrap());
            }
            let error = file.data("I8", &[3]).unwrap_err().to_string();
            assert!(error.contains("tensor `I8` is I8; F32, F16 and BF16 are read"), "{error}");
        }
    }
}
