//! A model's `config.json` from the Hugging Face hub, asked for only when the reader says so.

use leptos::prelude::window;
use wasm_bindgen::JsCast;
use wasm_bindgen_futures::JsFuture;

/// The most that a configuration may be long; the longest known is some tens of kilobytes.
const LONGEST: usize = 1 << 20;

/// Where the file of `org/name[@revision]` is.
///
/// # Errors
/// A sentence about what a name is like.
fn address(name: &str) -> Result<String, String> {
    let (model, revision) = name.trim().split_once('@').unwrap_or((name.trim(), "main"));
    let plain = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
    };
    let is_name = model.split_once('/').is_some_and(|(org, name)| plain(org) && plain(name));
    if !is_name || !revision.split('/').all(plain) {
        return Err(format!(
            "`{name}` is not a name of the hub: write org/name, such as Qwen/Qwen3-8B, or org/name@revision"
        ));
    }
    Ok(format!("https://huggingface.co/{model}/resolve/{revision}/config.json"))
}

/// The text of the file.
///
/// # Errors
/// A sentence about what went wrong and what helps.
pub(crate) async fn configuration(name: &str) -> Result<String, String> {
    let address = address(name)?;
    let answer = JsFuture::from(window().fetch_with_str(&address)).await;
    let offline = |_| format!("{address} cannot be reached from this browser");
    let answer: web_sys::Response = answer.and_then(JsCast::dyn_into).map_err(offline)?;
    match answer.status() {
        200 => {}
        401 | 403 => {
            return Err(format!(
                "the hub shows `{name}` only to accounts that its owner admits, or has no such model. Paste its config.json instead"
            ));
        }
        404 => return Err(format!("the hub has no config.json at {address}")),
        status => return Err(format!("the hub answered {status} for {address}")),
    }
    let text = match answer.text() {
        Ok(text) => JsFuture::from(text).await,
        Err(error) => Err(error),
    };
    let text = text.ok().and_then(|text| text.as_string()).ok_or_else(|| format!("{address} broke off"))?;
    if text.len() > LONGEST {
        return Err(format!("{address} has {} bytes, which is no configuration", text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn only_names_of_the_hub_make_an_address() {
        assert_eq!(
            address(" Qwen/Qwen3-8B ").as_deref(),
            Ok("https://huggingface.co/Qwen/Qwen3-8B/resolve/main/config.json")
        );
        assert!(address("a/b@refs/pr/1").is_ok_and(|address| address.ends_with("/a/b/resolve/refs/pr/1/config.json")));
        for name in ["", "a", "a/b/c", "a/../b", "../b", "a/b@../..", "a/b?x", "a/b@", "https://x/y"] {
            assert!(address(name).is_err(), "{name}");
        }
    }
}
