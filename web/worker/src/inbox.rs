//! The way from the page: requests in their order, and beside them what steers a training run.

use async_channel::{Receiver, unbounded};
use halfbyte_protocol::{Part, Request};
use js_sys::{Array, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{Blob, MessageEvent};

use crate::error::{Error, Result, said};
use crate::port;

/// A request and what came beside it.
pub(crate) struct Message {
    pub(crate) request: Request,
    pub(crate) parts: Parts,
}

/// What came beside a request: `ArrayBuffer`s and `File`s.
#[derive(Clone, Default)]
pub(crate) struct Parts(Vec<JsValue>);

/// What steers a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    Pause,
    Resume,
    Stop,
}

/// What the page has posted.
pub(crate) struct Inbox {
    requests: Receiver<Message>,
    controls: Receiver<Control>,
}

impl Inbox {
    /// Listens from now on.
    pub(crate) fn listen() -> Self {
        let ((to_requests, requests), (to_controls, controls)) = (unbounded(), unbounded());
        let heard = Closure::<dyn FnMut(MessageEvent)>::new(move |event: MessageEvent| {
            // The receivers live as long as the worker does.
            let _ = match parse(&event.data()) {
                Ok(Message { request: Request::Pause, .. }) => to_controls.try_send(Control::Pause).is_ok(),
                Ok(Message { request: Request::Resume, .. }) => to_controls.try_send(Control::Resume).is_ok(),
                Ok(Message { request: Request::Stop, .. }) => to_controls.try_send(Control::Stop).is_ok(),
                Ok(message) => to_requests.try_send(message).is_ok(),
                Err(error) => {
                    port::fail(error);
                    false
                }
            };
        });
        port::scope().set_onmessage(Some(heard.as_ref().unchecked_ref()));
        heard.forget();
        Self { requests, controls }
    }

    /// The next request.
    pub(crate) async fn next(&self) -> Message {
        match self.requests.recv().await {
            Ok(message) => message,
            // The sender is never dropped.
            Err(_) => std::future::pending().await,
        }
    }

    /// What steers the run, if anything was said.
    pub(crate) fn control(&self) -> Option<Control> {
        self.controls.try_recv().ok()
    }

    /// Waits for what steers the run.
    pub(crate) async fn next_control(&self) -> Control {
        self.controls.recv().await.unwrap_or(Control::Stop)
    }

    /// Forgets what was said to an earlier run.
    pub(crate) fn forget_controls(&self) {
        while self.control().is_some() {}
    }
}

fn parse(data: &JsValue) -> Result<Message> {
    let get = |key: &str| Reflect::get(data, &key.into()).unwrap_or_default();
    let json = get("json").as_string().ok_or_else(|| Error::request("a message has no text `json`"))?;
    let request = serde_json::from_str(&json).map_err(|e| Error::request(format!("not a request: {e}")))?;
    let parts = get("parts");
    let parts = if Array::is_array(&parts) { Array::from(&parts).to_vec() } else { vec![] };
    Ok(Message { request, parts: Parts(parts) })
}

impl Parts {
    /// The file at a place, where it is one.
    pub(crate) fn blob(&self, part: Part) -> Option<Blob> {
        self.0.get(part.0)?.dyn_ref::<Blob>().cloned()
    }

    /// The bytes at a place.
    pub(crate) async fn bytes(&self, part: Part) -> Result<Vec<u8>> {
        let Some(value) = self.0.get(part.0) else {
            return Err(Error::request(format!("the message has no part {}", part.0)));
        };
        let Some(blob) = value.dyn_ref::<Blob>() else { return Ok(Uint8Array::new(value).to_vec()) };
        slice(blob, 0.0, blob.size()).await
    }
}

/// Bytes of a file.
pub(crate) async fn slice(blob: &Blob, from: f64, to: f64) -> Result<Vec<u8>> {
    let failed =
        |error: JsValue| Error::new(halfbyte_protocol::Kind::File, format!("a file cannot be read: {}", said(&error)));
    let part = blob.slice_with_f64_and_f64(from, to).map_err(failed)?;
    Ok(Uint8Array::new(&JsFuture::from(part.array_buffer()).await.map_err(failed)?).to_vec())
}
