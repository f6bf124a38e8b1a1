//! An optimizer's state on the host: what a checkpoint stores of it, and how it comes back.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use safetensors::Dtype;

use crate::{Error, Result};

/// One tensor of an optimizer's state, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Row-major, little-endian elements.
    pub bytes: Vec<u8>,
}

impl StateTensor {
    /// Reads an f32 tensor from its device.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub(super) async fn read<B: Backend>(tensor: Tensor<B, 2>) -> Result<Self> {
        let (device, shape) = (format!("{:?}", tensor.device()), tensor.dims().to_vec());
        let failed = |reason: String| Error::Device { device: device.clone(), reason };
        let data = tensor.into_data_async().await.map_err(|e| failed(format!("reading a tensor failed: {e:?}")))?;
        let values = data.to_vec::<f32>().map_err(|e| failed(format!("a tensor is not f32: {e:?}")))?;
        Ok(Self { dtype: Dtype::F32, shape, bytes: crate::files::encode_f32(&values) })
    }

    /// The f32 tensor on a device; `name` is for messages.
    ///
    /// # Errors
    /// When it is no f32 tensor of two dimensions, or not as long as its shape says.
    pub(super) fn tensor<B: Backend>(&self, name: &str, device: &B::Device) -> Result<Tensor<B, 2>> {
        let wrong = |reason: String| Error::Invalid(format!("optimizer state `{name}`: {reason}"));
        let (Dtype::F32, &[rows, columns]) = (self.dtype, &self.shape[..]) else {
            return Err(wrong(format!("is {:?} of shape {:?}; AdamW's is F32 of two", self.dtype, self.shape)));
        };
        if rows.checked_mul(columns).and_then(|count| count.checked_mul(4)) != Some(self.bytes.len()) {
            return Err(wrong(format!("has {} bytes, which is not a shape of {:?}", self.bytes.len(), self.shape)));
        }
        let values = self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), [rows, columns]), device))
    }
}
