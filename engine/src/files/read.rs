//! Values from a device.

use burn::tensor::{Int, Tensor, TensorData, Transaction};

use crate::ops::Ops;
use crate::{Error, Result, failure};

/// A tensor's values on the host.
///
/// # Errors
/// [`Error::Device`] when the device refused something since it was last read from: the values would be wrong.
pub async fn read<B: Ops, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>> {
    let device = tensor.device();
    let data = tensor.into_data_async().await.map_err(|e| e.to_string());
    values::<B>(&device, checked::<B, _>(&device, data)?)
}

fn values<B: Ops>(device: &B::Device, data: TensorData) -> Result<Vec<f32>> {
    // Where there is nothing, it lies at an address that is none of an f32.
    if data.num_elements() == 0 {
        return Ok(vec![]);
    }
    data.into_vec().map_err(|e| failed::<B>(device, format!("a tensor is not f32: {e:?}")))
}

/// [`read`] of many tensors, with one wait for all that follow each other on one device.
///
/// # Errors
/// As [`read`].
pub(crate) async fn read_all<B: Ops, const D: usize>(tensors: Vec<Tensor<B, D>>) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::with_capacity(tensors.len());
    for on_device in tensors.chunk_by(|a, b| a.device() == b.device()) {
        let Some(device) = on_device.first().map(Tensor::device) else { continue };
        let transaction = on_device.iter().cloned().fold(Transaction::<B>::default(), Transaction::register);
        let read = checked::<B, _>(&device, transaction.execute_async().await.map_err(|e| e.to_string()))?;
        all.extend(read.into_iter().map(|data| values::<B>(&device, data)).collect::<Result<Vec<_>>>()?);
    }
    Ok(all)
}

/// [`read`] of 32-bit words.
///
/// # Errors
/// As [`read`].
pub async fn read_words<B: Ops>(tensor: Tensor<B, 1, Int>) -> Result<Vec<u32>> {
    let device = tensor.device();
    let data = tensor.into_data_async().await.map_err(|e| e.to_string());
    checked::<B, _>(&device, data)?.into_vec().map_err(|e| failed::<B>(&device, format!("a tensor is not u32: {e:?}")))
}

/// # Errors
/// [`Error::Device`] when the device refused something since it was last asked.
pub(crate) fn check_device<B: Ops>(device: &B::Device) -> Result<()> {
    B::check(device).map_err(|reason| failed::<B>(device, failure::explained(reason)))
}

fn checked<B: Ops, T>(device: &B::Device, data: Result<T, String>) -> Result<T> {
    // The device's first refusal says more than a read that failed because of it.
    check_device::<B>(device)?;
    data.map_err(|e| failed::<B>(device, failure::explained(format!("reading a tensor failed: {e}"))))
}

fn failed<B: Ops>(device: &B::Device, reason: String) -> Error {
    Error::Device { device: format!("{device:?}"), reason }
}
