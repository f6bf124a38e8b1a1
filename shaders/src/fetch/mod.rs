//! From host memory into a tensor, at the speed of the bus. CubeCL 0.10 copies what it uploads into memory that is not pinned first, from
//! which an H200 was given 7 GB/s instead of 55, while all other work stood still. A kernel reads pinned memory where it lies; what lies
//! elsewhere, as a mapped file does, is brought there piece by piece, so that the host copies one while the device reads the last.

use std::collections::VecDeque;
use std::ops::Range;

use burn_backend::{AllocationProperty, Bytes, DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::future::{DynFut, block_on};
use cubecl::server::ServerError;

use crate::source::Sources;
use crate::{Language, Source, SourceRuntime};

/// Bytes that a thread copies at a time.
const UNIT: usize = 16;

/// Bytes that are brought to pinned memory at a time.
const PIECE: usize = 16 << 20;

/// Pieces that the device may still have to read while the next one is brought.
const UNDER_WAY: usize = 3;

/// Bytes from which that pays.
const LARGE: usize = 1 << 20;

const BLOCKS: u32 = 64;

static SOURCES: Sources<()> = Sources::new();

/// The kernel's source, in CUDA C++.
pub fn source() -> Source {
    SOURCES.get((), |()| Source::fill("fetch", Language::Cuda, 256, include_str!("kernel.cu"), &[]))
}

/// Host memory that the device reads. To drop it is to wait until the device has done so.
pub struct Fetching<R: SourceRuntime> {
    client: ComputeClient<R>,
    pieces: VecDeque<(DynFut<Result<(), ServerError>>, Bytes)>,
    refused: Option<ServerError>,
}

impl<R: SourceRuntime> Fetching<R> {
    fn new(client: ComputeClient<R>) -> Self {
        Self { client, pieces: VecDeque::new(), refused: None }
    }

    /// Has the device read `bytes` to where they belong in `tensor`.
    fn start(&mut self, bytes: Bytes, tensor: &CubeTensor<R>, first: usize) {
        let words = [bytes.as_ptr() as usize, bytes.len() / UNIT, first / UNIT]
            .map(|word| [word as u64 as u32, (word as u64 >> 32) as u32]);
        source().launch([BLOCKS, 1, 1], &[tensor], words.as_flattened());
        self.pieces.push_back((self.client.sync(), bytes));
    }

    /// Waits until no more than so many pieces are under way.
    fn wait_for_all_but(&mut self, under_way: usize) {
        while self.pieces.len() > under_way {
            let Some((done, _bytes)) = self.pieces.pop_front() else { return };
            if let Err(error) = block_on(done) {
                self.refused.get_or_insert(error);
                // Nothing was waited for: the device had refused something before.
                if let Err(error) = block_on(self.client.sync()) {
                    self.refused.get_or_insert(error);
                }
            }
        }
    }

    /// Waits until the device has read everything.
    ///
    /// # Errors
    /// What the device refused before, be it this or something else: it will not tell again.
    pub fn wait(&mut self) -> Result<(), ServerError> {
        self.wait_for_all_but(0);
        self.refused.take().map_or(Ok(()), Err)
    }
}

impl<R: SourceRuntime> Drop for Fetching<R> {
    fn drop(&mut self) {
        self.wait_for_all_but(0);
    }
}

/// A tensor of bytes that lie in pinned memory, where a device of this kind left them when they were read from it, or that are many
/// enough to be brought there. Others are handed back.
pub fn fetch<R: SourceRuntime>(
    bytes: Bytes,
    shape: Shape,
    dtype: DType,
    device: &R::Device,
) -> Result<(CubeTensor<R>, Fetching<R>), Bytes> {
    let length = shape.num_elements() * dtype.size();
    let fits = length > 0 && length == bytes.len() && length.is_multiple_of(UNIT);
    if R::LANGUAGE != Language::Cuda || !fits {
        return Err(bytes);
    }
    let pinned = bytes.property() == AllocationProperty::Pinned;
    if pinned && !bytes.as_ptr().addr().is_multiple_of(UNIT) || !pinned && length < LARGE {
        return Err(bytes);
    }
    let client = R::client(device);
    let tensor = empty_device_contiguous_dtype(client.clone(), device.clone(), shape, dtype);
    let mut fetching = Fetching::new(client);
    if pinned {
        fetching.start(bytes, &tensor, 0);
        return Ok((tensor, fetching));
    }
    let bytes = bytes::Bytes::from_owner(Owner(bytes));
    for first in (0..length).step_by(PIECE) {
        fetching.wait_for_all_but(UNDER_WAY);
        match staged(&fetching.client, &bytes, first..length.min(first + PIECE)) {
            Some(piece) => fetching.start(piece, &tensor, first),
            None => return Err(Bytes::from_shared(bytes, AllocationProperty::Other)),
        }
    }
    Ok((tensor, fetching))
}

/// A part of `bytes` in pinned memory; none where there is no more of that.
fn staged<R: SourceRuntime>(client: &ComputeClient<R>, bytes: &bytes::Bytes, part: Range<usize>) -> Option<Bytes> {
    let mut part = Bytes::from_shared(bytes.slice(part), AllocationProperty::Other);
    client.staging([&mut part].into_iter(), false);
    (part.property() == AllocationProperty::Pinned).then_some(part)
}

/// Bytes that several parts share.
struct Owner(Bytes);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
