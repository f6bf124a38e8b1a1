//! The way to the page: events, panics and what the GPU's library logs.

use std::sync::atomic::{AtomicBool, Ordering};

use halfbyte_protocol::{Event, Failure, Kind};
use js_sys::{Array, Object, Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use web_sys::DedicatedWorkerGlobalScope;

use crate::error::Error;

pub(crate) fn scope() -> DedicatedWorkerGlobalScope {
    js_sys::global().unchecked_into()
}

/// Tells the page.
pub(crate) fn post(event: &Event) {
    post_with(event, &[]);
}

/// Tells the page, and gives it bytes.
pub(crate) fn post_with(event: &Event, parts: &[Vec<u8>]) {
    let json = serde_json::to_string(event).unwrap_or_else(|error| {
        format!(r#"{{"is":"failed","kind":"bug","message":"an event cannot be encoded: {error}"}}"#)
    });
    let parts: Array = parts.iter().map(|bytes| Uint8Array::from(&bytes[..]).buffer()).collect();
    let message = Object::new();
    // Setting a key of a fresh object does not fail; posting strings and buffers does not either.
    let _ = Reflect::set(&message, &"json".into(), &json.into());
    let _ = Reflect::set(&message, &"parts".into(), &parts);
    let _ = scope().post_message_with_transfer(&message, &parts);
}

/// Tells the page of a failure: of the last, where nothing can go on.
pub(crate) fn fail(error: Error) {
    post(&if error.is_final() { Event::Lost(error.0) } else { Event::Failed(error.0) });
}

/// What the GPU's library panics with when it reads from a device that is gone, before the browser has told of its loss.
const GONE: &str = "BufferAsyncError";

/// A panic is a bug, but for that of a lost device, and the end of the worker: the page hears it before WebAssembly stops.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map_or(String::new(), |place| format!(" ({}:{})", place.file(), place.line()));
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("a panic without words");
        let message = format!("{text}{place}");
        web_sys::console::error_1(&JsValue::from_str(&message));
        post(&Event::Lost(match text.contains(GONE) {
            true => {
                let message = format!("the GPU is gone: {text}; what was saved can be continued");
                Failure { kind: Kind::Device, message }
            }
            false => Failure { kind: Kind::Bug, message },
        }));
    }));
}

/// Something was logged as an error since it was last asked for: a kernel that does not compile is told in no other way here.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// Whether the device refused a kernel since this was last asked.
pub(crate) fn refused() -> bool {
    REFUSED.swap(false, Ordering::Relaxed)
}

struct Console;

impl log::Log for Console {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = JsValue::from_str(&format!("{}: {}", record.target(), record.args()));
        match record.level() {
            log::Level::Error => {
                REFUSED.store(true, Ordering::Relaxed);
                web_sys::console::error_1(&text);
            }
            _ => web_sys::console::warn_1(&text),
        }
    }

    fn flush(&self) {}
}

/// Hands what libraries log to the browser's console.
pub(crate) fn report_logs() {
    if log::set_logger(&Console).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}
