//! Letting the event loop turn, so that messages are heard between two pieces of work.

use js_sys::Promise;
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::JsFuture;
use web_sys::MessageChannel;

/// Waits for the next task of the event loop. A promise alone would be answered before any message, and a timer after
/// milliseconds.
pub(crate) async fn rest() {
    let Ok(channel) = MessageChannel::new() else { return };
    let turned = Promise::new(&mut |resolve, _| channel.port1().set_onmessage(Some(&resolve)));
    if channel.port2().post_message(&JsValue::NULL).is_ok() {
        let _ = JsFuture::from(turned).await;
    }
    channel.port1().close();
}
