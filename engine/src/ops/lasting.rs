//! Uploading what stays for a whole run.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Tensor, TensorData, TensorPrimitive};

use super::{Held, Ops};

/// Bytes from which memory is asked for on its own.
const LARGE: usize = 1 << 15;

/// A tensor of floats that stays for the whole run, on a device, in the type of its values.
///
/// CubeCL's allocator takes memory in pages, of up to a quarter of the device's, and gives slices of them, of which a page that many
/// weights or a large table share keeps what is left over: on a 48 GiB card several GiB. A large tensor gets memory of exactly its size
/// (its persistent pool), and so does from then on whatever is of that size: an adapter's next values, its gradients and moments, which
/// come and go between activations and would leave pages half empty (Llama 8B, rank 16: 2.7 GiB of pages for 1.2 GiB).
pub(crate) fn lasting<B: Ops, const D: usize>(data: TensorData, device: &B::Device) -> Tensor<B, D> {
    let tensor = uploaded::<B, FloatTensor<B>>(data, device, B::start_write);
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// [`lasting`] of 32-bit words.
pub(super) fn lasting_words<B: Ops>(data: TensorData, device: &B::Device) -> IntTensor<B> {
    uploaded::<B, _>(data, device, B::start_write_words)
}

fn uploaded<B: Ops, T: Send>(
    data: TensorData,
    device: &B::Device,
    start: fn(TensorData, &B::Device) -> (T, Held),
) -> T {
    let upload = |data| {
        let (tensor, held) = start(data, device);
        drop(held);
        tensor
    };
    // A browser's device takes buffers one by one as it is.
    if cfg!(target_arch = "wasm32") || data.bytes.len() < LARGE {
        return upload(data);
    }
    B::memory_persistent_allocations(device, data, upload)
}

/// What `compute` makes of `input`, which stays for the whole run, in such memory.
pub(super) fn lasting_results<B: Ops, I: Send, O: Send>(
    device: &B::Device,
    input: I,
    compute: impl Fn(I) -> O + Send + Sync,
) -> O {
    if cfg!(target_arch = "wasm32") {
        return compute(input);
    }
    B::memory_persistent_allocations(device, input, |input| {
        let output = compute(input);
        // Under fusion an operation runs, and its results get memory, when something waits for it.
        B::finish(device);
        output
    })
}
