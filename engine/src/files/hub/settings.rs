//! Where the hub is, where its cache is, and who asks: the environment that the hub's own tools read.

use std::path::PathBuf;

use crate::{Error, Result};

/// How the hub is reached.
#[derive(Clone)]
pub struct HubSettings {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// What proves who asks.
    pub token: Option<String>,
    /// Nothing is asked of the network; only what is in the cache is used.
    pub offline: bool,
}

impl HubSettings {
    /// Reads `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE`, with the defaults of
    /// `huggingface_hub` (constants.py): the cache is `~/.cache/huggingface/hub`, the token in `~/.cache/huggingface/token`.
    ///
    /// # Errors
    /// When a variable holds what cannot be used.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    /// The same from any source of variables.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_lookup(variable: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Result<Self> {
        let variable = |name: &str| variable(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let folder = |name: &str| {
            let text = variable(name)?;
            // A Dockerfile's ENV leaves `~` to whoever reads it.
            Some(match (text.strip_prefix("~/"), &home) {
                (Some(rest), Some(home)) => home.join(rest),
                _ => PathBuf::from(text),
            })
        };
        let default_home = || {
            let base = folder("XDG_CACHE_HOME").or_else(|| Some(home.clone()?.join(".cache")));
            base.map(|base| base.join("huggingface"))
        };
        let hub_home = folder("HF_HOME").or_else(default_home);
        let cache = folder("HF_HUB_CACHE").or_else(|| Some(hub_home.clone()?.join("hub"))).ok_or_else(|| {
            Error::Invalid("no home folder was found for the hub's cache; set HF_HOME to a folder".into())
        })?;
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            return Err(Error::Invalid(format!("HF_ENDPOINT is `{endpoint}`; it must begin with https:// or http://")));
        }
        let file = folder("HF_TOKEN_PATH").or_else(|| Some(hub_home?.join("token")));
        let stored = || std::fs::read_to_string(file?).ok().map(|text| text.trim().to_string());
        let token = variable("HF_TOKEN").or_else(stored).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            // The token itself is not repeated: logs are read by others.
            return Err(Error::Invalid(
                "the hub's token (HF_TOKEN or its file) is no single word of plain ASCII".into(),
            ));
        }
        let offline = variable("HF_HUB_OFFLINE").is_some_and(|v| {
            let v = v.to_ascii_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&v.as_str())
        });
        Ok(Self { endpoint, cache, token, offline })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<HubSettings> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_string());
        HubSettings::from_lookup(find, Some(PathBuf::from("/home/me")))
    }

    #[test]
    fn the_hubs_variables_are_read() {
        let plain = read(&[]).unwrap();
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, PathBuf::from("/home/me/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        assert_eq!(read(&[("XDG_CACHE_HOME", "/c")]).unwrap().cache, PathBuf::from("/c/huggingface/hub"));
        assert_eq!(read(&[("HF_HOME", "/big")]).unwrap().cache, PathBuf::from("/big/hub"));
        assert_eq!(read(&[("HF_HOME", "~/big")]).unwrap().cache, PathBuf::from("/home/me/big/hub"));
        assert_eq!(read(&[("HF_HOME", "/big"), ("HF_HUB_CACHE", "/h")]).unwrap().cache, PathBuf::from("/h"));
        let mirror = read(&[("HF_ENDPOINT", "http://mirror:8080/"), ("HF_HUB_OFFLINE", "true")]).unwrap();
        assert_eq!((mirror.endpoint.as_str(), mirror.offline), ("http://mirror:8080", true));
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        assert!(read(&[("HF_ENDPOINT", "mirror")]).is_err());
    }

    #[test]
    fn the_token_is_found_and_never_shown() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().to_str().unwrap();
        std::fs::write(root.path().join("token"), "hf_stored\n").unwrap();
        std::fs::write(root.path().join("other"), "hf_other").unwrap();
        assert_eq!(read(&[("HF_HOME", home)]).unwrap().token.unwrap(), "hf_stored");
        let other = format!("{home}/other");
        assert_eq!(read(&[("HF_HOME", home), ("HF_TOKEN_PATH", &other)]).unwrap().token.unwrap(), "hf_other");
        assert_eq!(read(&[("HF_HOME", home), ("HF_TOKEN", " hf_env ")]).unwrap().token.unwrap(), "hf_env");
        let Err(error) = read(&[("HF_TOKEN", "hf_a b")]) else { panic!("accepted") };
        assert!(!error.to_string().contains("hf_a"), "{error}");
    }
}
