//! From pinned host memory into a tensor, at the speed of the bus. CubeCL 0.10 copies what it uploads into memory that is not pinned first,
//! from which an H200 was given 7 GB/s instead of 55, while all other work stood still.

use burn_backend::{AllocationProperty, Bytes, DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::future::{DynFut, block_on};
use cubecl::server::ServerError;

use crate::source::Sources;
use crate::{Language, Source, SourceRuntime};

/// Bytes that a thread copies at a time.
const PIECE: usize = 16;

const BLOCKS: u32 = 64;

static SOURCES: Sources<()> = Sources::new();

/// The kernel's source, in CUDA C++.
pub fn source() -> Source {
    SOURCES.get((), |()| Source::fill("fetch", Language::Cuda, 256, include_str!("kernel.cu"), &[]))
}

/// Host memory that the device reads. To drop it is to wait until the device has done so.
pub struct Fetching {
    done: Option<DynFut<Result<(), ServerError>>>,
    _bytes: Bytes,
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            // What a device refuses is found by who asks it for errors, or reads what it computed.
            let _ = block_on(done);
        }
    }
}

/// A tensor of bytes that a device of this kind left in pinned memory when they were read from it; of other bytes none, which are handed
/// back.
pub fn fetch<R: SourceRuntime>(
    bytes: Bytes,
    shape: Shape,
    dtype: DType,
    device: &R::Device,
) -> Result<(CubeTensor<R>, Fetching), Bytes> {
    let (from, length) = (bytes.as_ptr() as usize, shape.num_elements() * dtype.size());
    let fits = length > 0 && length == bytes.len() && length.is_multiple_of(PIECE) && from.is_multiple_of(PIECE);
    if R::LANGUAGE != Language::Cuda || bytes.property() != AllocationProperty::Pinned || !fits {
        return Err(bytes);
    }
    let client = R::client(device);
    let tensor = empty_device_contiguous_dtype(client.clone(), device.clone(), shape, dtype);
    let words = [from as u64, (length / PIECE) as u64].map(|word| [word as u32, (word >> 32) as u32]);
    source().launch([BLOCKS, 1, 1], &[&tensor], words.as_flattened());
    Ok((tensor, Fetching { done: Some(client.sync()), _bytes: bytes }))
}
