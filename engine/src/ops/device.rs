//! What a device is asked for beside operations, waits and memory, and what its runtime does not remember of them.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Bytes, TensorData};
use burn_cubecl::tensor::CubeTensor;
use cubecl::MemoryAllocationMode;
use cubecl::device::{Device, DeviceId};
use cubecl::future::block_on;
use cubecl::server::{CopyDescriptor, IoError, LaunchError, ServerError};
use cubecl::stream_id::StreamId;
use halfbyte_shaders::{Fetching, Language, SourceRuntime, fetch};

use super::Held;
use crate::failure::in_a_line;

/// A runtime's device and a stream of it, which has an allocator of its own.
type Key = (&'static str, DeviceId, StreamId);

#[derive(Default)]
struct Notes {
    /// Bytes that the allocator had at most when it gave something back.
    most: u64,
    /// What the device refused first, of what a wait that nobody read from was told.
    refused: Option<String>,
}

static NOTES: Mutex<Vec<(Key, Notes)>> = Mutex::new(Vec::new());

fn key<R: SourceRuntime>(device: &R::Device) -> Key {
    (R::name(&R::client(device)), device.to_id(), StreamId::current())
}

fn with<T>(key: Key, change: impl FnOnce(&mut Notes) -> T) -> T {
    let mut known = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = known.iter().position(|(of, _)| *of == key).unwrap_or_else(|| {
        known.push((key, Notes::default()));
        known.len() - 1
    });
    change(&mut known[place].1)
}

/// What an error says, without the stack that it was made on.
pub(super) fn words(error: &ServerError) -> String {
    match error {
        // What follows the first one is mostly its consequence.
        ServerError::ServerUnhealthy { errors, .. } if !errors.is_empty() => words(&errors[0]),
        ServerError::Io(IoError::BufferTooBig { size, .. })
        | ServerError::Launch(LaunchError::IoError(IoError::BufferTooBig { size, .. })) => {
            format!("{size} bytes are more than it gives in one piece")
        }
        other => in_a_line(&other.to_string()),
    }
}

pub(super) fn check<R: SourceRuntime>(device: &R::Device) -> Result<(), String> {
    let now = R::client(device).flush().map_err(|error| words(&error));
    with(key::<R>(device), |notes| notes.refused.take()).map_or(now, Err)
}

pub(super) fn finish<R: SourceRuntime>(device: &R::Device) {
    if cfg!(target_arch = "wasm32") {
        return;
    }
    note(key::<R>(device), block_on(R::client(device).sync()));
}

/// Remembers what a wait was told. A wait takes what was refused with it, and whoever reads afterwards would take wrong values for
/// results. The first reason says more than what follows of it.
fn note(key: Key, told: Result<(), ServerError>) {
    if let Err(error) = told {
        with(key, |notes| {
            notes.refused.get_or_insert_with(|| words(&error));
        });
    }
}

/// Host memory that a device reads, until it has.
struct Arriving<R: SourceRuntime> {
    /// Of the stream that reads it, whichever thread waits.
    key: Key,
    fetching: Fetching<R>,
}

impl<R: SourceRuntime> Drop for Arriving<R> {
    fn drop(&mut self) {
        note(self.key, self.fetching.wait());
    }
}

/// What comes to the host in the end.
type Arrival<'a> = Pin<Box<dyn Future<Output = Result<Bytes, ServerError>> + Send + 'a>>;

/// Values on their way to the host. The device writes them to pinned memory that is given to others once this is dropped. The copy is one of the
/// stream that made them: another stream of CubeCL 0.10's waits for a tensor's memory, not for who wrote there in place since.
pub(super) struct Leaving<'a> {
    key: Key,
    /// None once somebody waits for it.
    reading: Option<Arrival<'a>>,
}

impl<'a> Leaving<'a> {
    pub(super) fn start<R: SourceRuntime>(x: &'a CubeTensor<R>) -> Self {
        let (shape, strides) = (x.meta.shape().clone(), x.meta.strides().clone());
        let place = CopyDescriptor::new(x.handle.clone().binding(), shape, strides, x.dtype.size());
        Self { key: key::<R>(&x.device), reading: Some(Box::pin(x.client.read_one_tensor_async(place))) }
    }

    pub(super) async fn arrive(mut self) -> Result<Bytes, String> {
        let reading = self.reading.take().ok_or("it was read before")?;
        reading.await.map_err(|error| words(&error))
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        // A browser's thread cannot wait, and has no such memory.
        if let Some(reading) = self.reading.take().filter(|_| cfg!(not(target_arch = "wasm32"))) {
            note(self.key, block_on(reading).map(drop));
        }
    }
}

/// The tensor that host values become by way of pinned memory; the values themselves where that is not their way.
pub(super) fn start_write<R: SourceRuntime>(
    data: TensorData,
    device: &R::Device,
) -> Result<(CubeTensor<R>, Held), TensorData> {
    let TensorData { bytes, shape, dtype } = data;
    match fetch::<R>(bytes, shape.clone(), dtype, device) {
        Ok((tensor, fetching)) => Ok((tensor, Some(Box::new(Arriving { key: key::<R>(device), fetching })))),
        Err(bytes) => Err(TensorData::from_bytes(bytes, shape, dtype)),
    }
}

pub(super) fn most_reserved<R: SourceRuntime>(device: &R::Device) -> Option<u64> {
    let now = R::client(device).memory_usage().ok()?.bytes_reserved;
    Some(with(key::<R>(device), |notes| {
        notes.most = now.max(notes.most);
        notes.most
    }))
}

pub(super) fn forget_most_reserved<R: SourceRuntime>(device: &R::Device) {
    with(key::<R>(device), |notes| notes.most = 0);
}

pub(super) fn exact_memory<R: SourceRuntime>(device: &R::Device, exact: bool) {
    // A browser's device takes buffers one by one as it is.
    if cfg!(target_arch = "wasm32") {
        return;
    }
    let mode = if exact { MemoryAllocationMode::Persistent } else { MemoryAllocationMode::Auto };
    // SAFETY: where a tensor's memory comes from changes nothing about who may use it, or when.
    unsafe { R::client(device).allocation_mode(mode) };
}

pub(super) fn release_memory<R: SourceRuntime>(device: &R::Device) {
    if cfg!(target_arch = "wasm32") {
        return;
    }
    most_reserved::<R>(device);
    // CUDA frees in the order of the stream; a buffer of wgpu's stays until the device is done with it, whatever is counted.
    if R::LANGUAGE == Language::Wgsl {
        finish::<R>(device);
    }
    R::client(device).memory_cleanup();
}
