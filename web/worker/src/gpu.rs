//! What the browser says of its GPU: the parts of `navigator.gpu` that are asked for before a device is made.
//!
//! Declared here, because web-sys has them only behind a flag of the compiler that would hold for every crate.

use js_sys::{Array, Object, Promise, Reflect};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;

#[wasm_bindgen]
extern "C" {
    /// `GPU`.
    type Gpu;
    #[wasm_bindgen(method, catch, js_name = requestAdapter)]
    fn request_adapter(this: &Gpu, options: &JsValue) -> Result<Promise, JsValue>;

    /// `GPUAdapter`.
    type Adapter;
    #[wasm_bindgen(method, getter)]
    fn features(this: &Adapter) -> JsValue;
    #[wasm_bindgen(method, getter)]
    fn limits(this: &Adapter) -> JsValue;
    #[wasm_bindgen(method, getter)]
    fn info(this: &Adapter) -> JsValue;
}

/// What is known of an adapter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) vendor: String,
    pub(crate) architecture: String,
    pub(crate) device_id: String,
    pub(crate) description: String,
    pub(crate) fallback: bool,
    pub(crate) features: Vec<String>,
    pub(crate) limits: Vec<(String, f64)>,
}

impl Facts {
    /// A rasterizer rather than a GPU; some browsers hand one out without saying so.
    pub(crate) fn is_software(&self) -> bool {
        let names = [&self.vendor, &self.architecture, &self.device_id, &self.description].map(|n| n.to_lowercase());
        let known = ["swiftshader", "llvmpipe", "lavapipe", "basic render"];
        self.fallback || names.iter().any(|name| known.iter().any(|known| name.contains(known)))
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        let parts = [&self.description, &self.vendor, &self.architecture];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { "a GPU that does not say its name".into() } else { parts.join(", ") }
    }
}

fn get(object: &JsValue, key: &str) -> JsValue {
    Reflect::get(object, &key.into()).unwrap_or_default()
}

/// Looks for an adapter, in the order in which one can be missing.
///
/// # Errors
/// A sentence that says what is in the way.
pub(crate) async fn look() -> Result<Facts, String> {
    let global = js_sys::global();
    if !get(&global, "isSecureContext").is_truthy() {
        return Err("this page was not loaded by https or from localhost, and WebGPU needs that".into());
    }
    let gpu = get(&get(&global, "navigator"), "gpu");
    if !gpu.is_object() {
        return Err("this browser has no WebGPU in workers, or it is turned off".into());
    }
    let options = Object::new();
    let _ = Reflect::set(&options, &"powerPreference".into(), &"high-performance".into());
    let request = gpu.unchecked_into::<Gpu>().request_adapter(&options);
    let found = match request {
        Ok(promise) => JsFuture::from(promise).await,
        Err(error) => Err(error),
    };
    let adapter = found.map_err(|e| format!("the browser does not look for a GPU: {}", crate::error::said(&e)))?;
    if adapter.is_null() || adapter.is_undefined() {
        return Err(
            "the browser has WebGPU but offers no adapter: the GPU or its driver is on its list of those to leave \
                    alone, or graphics acceleration is off in its settings"
                .into(),
        );
    }
    let facts = facts(&adapter.unchecked_into());
    match facts.features.iter().any(|feature| feature == "timestamp-query") {
        true => Ok(facts),
        false => Err(format!("{} has no `timestamp-query`, which the GPU library needs in a browser", facts.name())),
    }
}

fn facts(adapter: &Adapter) -> Facts {
    let (info, limits) = (adapter.info(), adapter.limits());
    let text = |key: &str| get(&info, key).as_string().unwrap_or_default();
    let mut features: Vec<String> = Array::from(&adapter.features()).iter().filter_map(|f| f.as_string()).collect();
    features.sort();
    // The limits are getters of the prototype.
    let names = Object::get_prototype_of(&limits);
    let keys: Vec<String> = Object::keys(&names).iter().filter_map(|key| key.as_string()).collect();
    let limits = keys.into_iter().filter_map(|key| get(&limits, &key).as_f64().map(|value| (key, value)));
    Facts {
        vendor: text("vendor"),
        architecture: text("architecture"),
        device_id: text("device"),
        description: text("description"),
        fallback: get(&info, "isFallbackAdapter").is_truthy() || get(adapter, "isFallbackAdapter").is_truthy(),
        features,
        limits: limits.collect(),
    }
}
