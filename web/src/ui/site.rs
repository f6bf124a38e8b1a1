//! Where the site lies, links within it, and small dealings with the document.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use leptos::prelude::*;
use wasm_bindgen::JsCast;

/// The path of the site's root without a slash at its end: empty at the root of a host, `/halfbyte` in a folder. `boot.js`
/// finds it from its own address.
pub fn base() -> &'static str {
    static BASE: OnceLock<String> = OnceLock::new();
    BASE.get_or_init(|| {
        let root = document().document_element();
        root.and_then(|root| root.get_attribute("data-base")).unwrap_or_default()
    })
}

/// The address of a page or file of the site, `path` being relative to its root. Pages are folders, so theirs ends in a slash.
pub fn address(path: &str) -> String {
    let (path, query) = path.split_at(path.find(['?', '#']).unwrap_or(path.len()));
    let is_file = path.rsplit('/').next().is_some_and(|name| name.contains('.'));
    let slash = if path.is_empty() || path.ends_with('/') || is_file { "" } else { "/" };
    format!("{}/{path}{slash}{query}", base())
}

/// A link to a page of the site.
#[component]
pub fn Link(
    /// The path below the root, such as `calculator` or `calculator?model=qwen3-8b`.
    #[prop(into)]
    to: String,
    children: Children,
) -> impl IntoView {
    view! { <a href=address(&to)>{children()}</a> }
}

/// An id that no other element of the document has.
pub fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Moves the keyboard to an element.
pub fn focus(element: &web_sys::Element) {
    if let Some(element) = element.dyn_ref::<web_sys::HtmlElement>() {
        // Only an element that was removed meanwhile refuses, and then there is nothing to go to.
        let _ = element.focus();
    }
}
