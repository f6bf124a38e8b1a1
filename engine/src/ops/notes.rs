//! What allocators and streams had, which their runtimes do not remember.

use std::sync::{Mutex, PoisonError};

use burn_cubecl::CubeRuntime;
use cubecl::device::{Device, DeviceId};
use cubecl::stream_id::StreamId;

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

fn with<R: CubeRuntime, T>(device: &R::Device, change: impl FnOnce(&mut Notes) -> T) -> T {
    let key = (R::name(&R::client(device)), device.to_id(), StreamId::current());
    let mut known = NOTES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = known.iter().position(|(of, _)| *of == key).unwrap_or_else(|| {
        known.push((key, Notes::default()));
        known.len() - 1
    });
    change(&mut known[place].1)
}

/// Bytes that a device's allocator has had at most, since this was last [`forgotten`](forget_most).
pub(super) fn most<R: CubeRuntime>(device: &R::Device) -> Option<u64> {
    let now = R::client(device).memory_usage().ok()?.bytes_reserved;
    Some(with::<R, _>(device, |notes| {
        notes.most = now.max(notes.most);
        notes.most
    }))
}

/// The most is what there is now.
pub(super) fn forget_most<R: CubeRuntime>(device: &R::Device) {
    with::<R, _>(device, |notes| notes.most = 0);
}

/// Keeps what a device refused for whoever asks next; the first reason says more than what follows of it.
pub(super) fn keep_refusal<R: CubeRuntime>(device: &R::Device, reason: String) {
    with::<R, _>(device, |notes| {
        notes.refused.get_or_insert(reason);
    });
}

/// What was kept.
pub(super) fn take_refusal<R: CubeRuntime>(device: &R::Device) -> Option<String> {
    with::<R, _>(device, |notes| notes.refused.take())
}
