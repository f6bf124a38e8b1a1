//! What goes wrong in the worker, as the page hears of it.

use halfbyte_protocol::{Failure, Kind};
use wasm_bindgen::JsValue;

/// A failure on its way to the page.
#[derive(Debug)]
pub(crate) struct Error(pub(crate) Failure);

/// The worker's result.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Failure { kind, message: message.into() })
    }

    /// A request that does not fit what the worker does or holds.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::new(Kind::Request, message)
    }

    /// What the browser's storage refused.
    pub(crate) fn storage(doing: &str, error: &JsValue) -> Self {
        let cure = "is there room left, and is this no private window?";
        Self::new(Kind::Storage, format!("the browser's storage: {doing}: {}; {cure}", said(error)))
    }

    /// The device is gone, so that nothing on it can go on.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.0.kind, Kind::Device | Kind::Bug)
    }
}

impl From<halfbyte::Error> for Error {
    fn from(error: halfbyte::Error) -> Self {
        use halfbyte::Error as E;
        let kind = match &error {
            E::File { .. } | E::Line { .. } => Kind::File,
            E::Key { .. } | E::Invalid(_) => Kind::Setting,
            // In a tab a run has one process.
            E::Hub { .. } | E::Rank { .. } => Kind::Network,
            E::Device { .. } => Kind::Device,
            E::NonFinite { .. } => Kind::NonFinite,
        };
        Self::new(kind, error.to_string())
    }
}

/// What an exception says.
pub(crate) fn said(error: &JsValue) -> String {
    let message = js_sys::Reflect::get(error, &"message".into()).ok().and_then(|message| message.as_string());
    message.or_else(|| error.as_string()).unwrap_or_else(|| format!("{error:?}"))
}
