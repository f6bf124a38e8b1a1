//! What a GPU's own thread says when it gives up on a task.
//!
//! CubeCL runs each device on a thread of its own. Where memory is not to be had the task ends there with a panic, and the
//! thread goes on with the next one. What comes back later is an error that knows neither the cause nor the size.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::Error;

/// How CubeCL names the threads of devices.
const THREAD: &str = "DSD-";

/// What wgpu and Chromium's Dawn say of a tensor that is larger than a binding or a buffer may be there.
const TOO_LARGE: [&str; 4] = [
    "buffer_binding_size` limit",
    "is greater than the maximum buffer size",
    "is larger than the maximum binding size",
    "exceeds the max buffer size limit",
];

static HEARD: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    /// Whether a panic of this thread is awaited.
    static AWAITED: Cell<bool> = const { Cell::new(false) };
}

fn heard() -> MutexGuard<'static, Option<String>> {
    HEARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the first such panic for the next [`Error::Device`] in place of printing it, and those that follow from it. Called
/// once, at a program's start; all other panics are reported as before.
pub fn listen() {
    let before = take_hook();
    set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        if AWAITED.get() {
            return;
        }
        let on_device = thread::current().name().is_some_and(|name| name.starts_with(THREAD));
        let mut heard = heard();
        match (&*heard, on_device) {
            (None, true) => *heard = Some(said(info.payload())),
            (Some(_), _) => {}
            (None, false) => {
                drop(heard);
                before(info);
            }
        }
    }));
}

/// Runs what may panic on what it is given, as a library does that was not written for damaged files; none where it did. [`listen`] prints
/// nothing of that.
// A browser's panics are not caught, and what needs this is not there.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn unless_it_panics<T>(work: impl FnOnce() -> T) -> Option<T> {
    AWAITED.set(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    AWAITED.set(false);
    result.ok()
}

/// Runs work on a device; a panic that a failure of the device led to becomes an error, any other goes on.
///
/// # Errors
/// [`Error::Device`], where [`listen`] has been called.
pub fn contain<T>(device: &str, work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        if heard().is_none() {
            resume_unwind(panic);
        }
        Error::Device { device: device.into(), reason: explained(said(&*panic)) }
    })
}

/// The reason that the device's thread gave, else this one; with the cure, where there is one.
pub(crate) fn explained(reason: String) -> String {
    let reason = heard().take().unwrap_or(reason);
    match TOO_LARGE.iter().any(|words| reason.contains(words)) {
        true => format!(
            "a tensor is larger than this device takes in one piece; shorter sequences (data.max_length) or fewer at a time \
             (training.batch_size) make smaller ones ({reason})"
        ),
        false => reason,
    }
}

/// A panic's message, without the call that it came from and the stack below.
fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("it failed without a word");
    in_a_line(text.split_once(" value: ").map_or(text, |(_, value)| value))
}

/// What an error says and what it was caused by, without the stack that it was made on.
pub(crate) fn in_a_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).take_while(|line| !line.contains("acktrace"));
    lines.filter(|line| !line.is_empty() && *line != "Caused by:").collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_thread_is_heard_and_what_follows_becomes_an_error() {
        listen();
        let device = thread::Builder::new().name("DSD-1-0".into());
        let task =
            device.spawn(|| panic!("called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: 12"));
        task.expect("a thread").join().expect_err("it panics");
        let error = contain("gpu", || panic!("no answer")).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("device `gpu`: can't allocate buffer of size: 12"));
        assert!(matches!(contain("gpu", || 3), Ok(3)));
        assert_eq!((unless_it_panics(|| 3), unless_it_panics::<()>(|| panic!("awaited"))), (Some(3), None));
        // As wgpu puts it, with the sizes further down.
        let text = "wgpu error: Validation Error\n\nCaused by:\n  In Device::create_bind_group\n    Binding 5 exceeds 4\n\nBacktrace:\n 0: x";
        assert_eq!(in_a_line(text), "wgpu error: Validation Error: In Device::create_bind_group: Binding 5 exceeds 4");
        let reason = "Buffer binding 0 range 163840000 exceeds `max_*_buffer_binding_size` limit 134217728";
        let explained = explained(reason.into());
        assert!(explained.contains("training.batch_size") && explained.contains(reason), "{explained}");
    }
}
