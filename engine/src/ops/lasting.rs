//! Uploading what stays for a whole run.

use burn::tensor::backend::Backend;
use burn::tensor::{BasicOps, Tensor, TensorData};

use super::Ops;

/// Bytes from which memory is asked for on its own.
const LARGE: usize = 1 << 15;

/// A tensor that stays for the whole run, on a device.
///
/// CubeCL's allocator takes memory in pages, of up to a quarter of the device's, and gives slices of them, of which a page that many
/// weights or a large table share keeps what is left over: on a 48 GiB card several GiB. A large tensor gets memory of exactly its size
/// (its persistent pool), and so does from then on whatever is of that size: an adapter's next values, its gradients and moments, which
/// come and go between activations and would leave pages half empty (Llama 8B, rank 16: 2.7 GiB of pages for 1.2 GiB).
pub(crate) fn lasting<B: Backend, const D: usize, K: BasicOps<B>>(
    data: TensorData,
    device: &B::Device,
) -> Tensor<B, D, K> {
    let options = (device, data.dtype);
    // A browser's device takes buffers one by one as it is.
    if cfg!(target_arch = "wasm32") || data.bytes.len() < LARGE {
        return Tensor::from_data(data, options);
    }
    B::memory_persistent_allocations(device, data, |data| Tensor::from_data(data, options))
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
