//! Files from addresses: whole, or from a byte on, piece by piece.

use halfbyte_protocol::{Event, Kind, Progress};
use js_sys::{Reflect, Uint8Array};
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{ReadableStreamDefaultReader, Request, RequestInit, Response};

use crate::error::{Error, Result, said};
use crate::port;

/// An answer whose bytes come piece by piece.
pub(crate) struct Body {
    url: String,
    reader: ReadableStreamDefaultReader,
    /// The bytes begin where it was asked.
    pub(crate) partial: bool,
    /// Bytes that come, where the server says so and nothing is compressed on the way.
    pub(crate) length: Option<u64>,
}

fn failed(url: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(Kind::Network, format!("{url}: {reason}; is the address right, and are you online?"))
}

async fn send(url: &str, method: &str, from: u64) -> Result<Response> {
    let options = RequestInit::new();
    options.set_method(method);
    let request = Request::new_with_str_and_init(url, &options).map_err(|e| failed(url, said(&e)))?;
    if from > 0 {
        request.headers().set("Range", &format!("bytes={from}-")).map_err(|e| failed(url, said(&e)))?;
    }
    let response =
        JsFuture::from(port::scope().fetch_with_request(&request)).await.map_err(|e| failed(url, said(&e)))?;
    Ok(response.unchecked_into())
}

fn header(response: &Response, name: &str) -> Option<String> {
    response.headers().get(name).ok().flatten()
}

fn length(response: &Response) -> Option<u64> {
    let whole = header(response, "content-encoding").is_none_or(|coding| coding == "identity");
    header(response, "content-length").filter(|_| whole)?.parse().ok()
}

/// How long a file is, where the server says so.
pub(crate) async fn size(url: &str) -> Option<u64> {
    let response = send(url, "HEAD", 0).await.ok()?;
    length(&response).filter(|_| response.ok())
}

/// A file from a byte on.
pub(crate) async fn open(url: &str, from: u64) -> Result<Body> {
    let response = send(url, "GET", from).await?;
    if !response.ok() {
        return Err(failed(url, format!("the server answers {} {}", response.status(), response.status_text())));
    }
    let length = length(&response);
    let body = response.body().ok_or_else(|| failed(url, "the answer is empty"))?;
    // A server of another origin may keep the header to itself.
    let from_there =
        header(&response, "content-range").is_none_or(|range| range.starts_with(&format!("bytes {from}-")));
    let partial = response.status() == 206 && from_there;
    Ok(Body { url: url.into(), reader: body.get_reader().unchecked_into(), partial, length })
}

impl Body {
    /// The next piece.
    pub(crate) async fn piece(&self) -> Result<Option<Vec<u8>>> {
        let next = JsFuture::from(self.reader.read()).await.map_err(|e| failed(&self.url, said(&e)))?;
        let get = |key: &str| Reflect::get(&next, &key.into()).unwrap_or(JsValue::UNDEFINED);
        Ok((!get("done").is_truthy()).then(|| Uint8Array::new(&get("value")).to_vec()))
    }
}

/// A whole file; `what` names it while it comes.
pub(crate) async fn bytes(url: &str, what: &str) -> Result<Vec<u8>> {
    let body = open(url, 0).await?;
    let total = body.length.unwrap_or(0);
    let mut meter = Meter::new(what, total);
    let mut bytes = Vec::with_capacity(total.min(1 << 30) as usize);
    while let Some(piece) = body.piece().await? {
        bytes.extend_from_slice(&piece);
        meter.at(bytes.len() as u64);
    }
    Ok(bytes)
}

/// Tells the page how far something is, not more often than it can show.
pub(crate) struct Meter {
    progress: Progress,
    told: u64,
}

impl Meter {
    /// Of `total` bytes, or of an unknown count for 0.
    pub(crate) fn new(what: &str, total: u64) -> Self {
        let progress = Progress { what: what.into(), done: 0, total };
        port::post(&Event::Progress(progress.clone()));
        Self { progress, told: 0 }
    }

    /// So much is done.
    pub(crate) fn at(&mut self, done: u64) {
        self.progress.done = done;
        if done == self.progress.total || done.saturating_sub(self.told) > (self.progress.total / 100).max(1 << 18) {
            self.told = done;
            port::post(&Event::Progress(self.progress.clone()));
        }
    }
}

/// A file that may be missing: a server of pages answers an unknown address with a page.
pub(crate) async fn optional(url: &str) -> Result<Option<Vec<u8>>> {
    let response = send(url, "GET", 0).await?;
    let page = header(&response, "content-type").is_some_and(|kind| kind.starts_with("text/html"));
    if !response.ok() || page {
        return Ok(None);
    }
    let buffer = response.array_buffer().map_err(|e| failed(url, said(&e)))?;
    let buffer = JsFuture::from(buffer).await.map_err(|e| failed(url, said(&e)))?;
    Ok(Some(Uint8Array::new(&buffer).to_vec()))
}
