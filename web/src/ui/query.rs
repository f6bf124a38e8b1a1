//! State in the query of the page's address, so that a link restores what its sender saw.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use leptos::prelude::*;
use leptos_router::NavigateOptions;
use leptos_router::hooks::{use_navigate, use_query_map};

/// A dragged slider changes faster than browsers let an address change.
const PAUSE: Duration = Duration::from_millis(150);

thread_local! {
    /// Keys whose values the address has yet to take, none where the key goes away.
    static PENDING: RefCell<BTreeMap<&'static str, Option<String>>> = const { RefCell::new(BTreeMap::new()) };
}

/// A signal that the query keeps under `key`. It starts with what the query says, or with `default` where that is missing or
/// cannot be read, and follows when a link changes the query; the key goes away while the value is the default.
pub fn query_state<T>(key: &'static str, default: T) -> RwSignal<T>
where
    T: Clone + PartialEq + FromStr + Display + Send + Sync + 'static,
{
    let query = use_query_map();
    let read = {
        let default = default.clone();
        move || query.with(|query| query.get_str(key).and_then(|text| text.parse().ok())).unwrap_or(default.clone())
    };
    let value = RwSignal::new(untrack(read.clone()));
    Effect::new(move |before: Option<()>| {
        let read = read();
        if before.is_some() && PENDING.with_borrow(|pending| pending.is_empty()) && value.get_untracked() != read {
            value.set(read);
        }
    });
    let navigate = use_navigate();
    Effect::new(move |before: Option<()>| {
        let now = value.get();
        if before.is_none() {
            return;
        }
        let text = (now != default).then(|| now.to_string());
        let first = PENDING.with_borrow_mut(|pending| {
            pending.insert(key, text);
            pending.len() == 1
        });
        if first {
            let (navigate, page) = (navigate.clone(), window().location().pathname());
            set_timeout(move || write(&page, &navigate), PAUSE);
        }
    });
    value
}

/// Puts all pending values into the address, unless another page has been gone to.
fn write(page: &Result<String, wasm_bindgen::JsValue>, navigate: &dyn Fn(&str, NavigateOptions)) {
    let pending = PENDING.take();
    let location = window().location();
    let (Ok(page), Ok(path), Ok(search)) = (page, location.pathname(), location.search()) else { return };
    let Ok(query) = web_sys::UrlSearchParams::new_with_str(&search) else { return };
    if *page != path {
        return;
    }
    for (key, value) in pending {
        match value {
            Some(value) => query.set(key, &value),
            None => query.delete(key),
        }
    }
    let text = String::from(query.to_string());
    let mark = if text.is_empty() { "" } else { "?" };
    let options = NavigateOptions { replace: true, scroll: false, resolve: false, ..Default::default() };
    navigate(&format!("{path}{mark}{text}{}", location.hash().unwrap_or_default()), options);
}
