//! How the base was held while an adapter was trained: a file beside the adapter, so that whoever loads it later gets the
//! weights that it was trained on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::json::read_json;
use crate::model::BaseWeights;
use crate::nf4;
use crate::{Error, Result};

/// The name of the file in an adapter's folder.
pub(super) const HELD: &str = "quantization_config.json";

/// The keys of transformers' `BitsAndBytesConfig`, and bitsandbytes' `blocksize`, which has no key there.
#[derive(Serialize, Deserialize)]
struct Held {
    load_in_4bit: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    bnb_4bit_quant_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bnb_4bit_use_double_quant: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocksize: Option<usize>,
}

/// The file's content.
///
/// # Errors
/// None: the values are plain.
pub(super) fn encode(base: BaseWeights) -> Result<Vec<u8>> {
    let held = match base {
        BaseWeights::Full => {
            Held { load_in_4bit: false, bnb_4bit_quant_type: None, bnb_4bit_use_double_quant: None, blocksize: None }
        }
        BaseWeights::Nf4 { block_size, double_quant } => Held {
            load_in_4bit: true,
            bnb_4bit_quant_type: Some("nf4".into()),
            bnb_4bit_use_double_quant: Some(double_quant),
            blocksize: Some(block_size),
        },
    };
    serde_json::to_vec_pretty(&held).map_err(|e| Error::Invalid(format!("cannot encode {HELD}: {e}")))
}

/// How the base was held while the adapter in `folder` was trained; none where the folder does not say it, as one that
/// PEFT wrote.
///
/// # Errors
/// When the file is broken or asks for what is not supported.
pub fn adapter_base(folder: impl AsRef<Path>) -> Result<Option<BaseWeights>> {
    let path = folder.as_ref().join(HELD);
    if !path.exists() {
        return Ok(None);
    }
    let held: Held = serde_json::from_slice(&read_json(&path)?).map_err(|e| Error::file(&path, e))?;
    if !held.load_in_4bit {
        return Ok(Some(BaseWeights::Full));
    }
    if let Some(kind) = held.bnb_4bit_quant_type.filter(|kind| kind != "nf4") {
        return Err(Error::key(&path, "bnb_4bit_quant_type", format!("`{kind}` is not supported; nf4 is")));
    }
    let block_size = held.blocksize.unwrap_or(nf4::BLOCK_SIZE);
    nf4::check_block_size(block_size).map_err(|e| Error::key(&path, "blocksize", e.to_string()))?;
    Ok(Some(BaseWeights::Nf4 { block_size, double_quant: held.bnb_4bit_use_double_quant.unwrap_or(false) }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_and_what_is_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(adapter_base(folder.path()).unwrap(), None);
        let path = folder.path().join(HELD);
        for base in [BaseWeights::Full, BaseWeights::Nf4 { block_size: 128, double_quant: false }] {
            std::fs::write(&path, encode(base).unwrap()).unwrap();
            assert_eq!(adapter_base(folder.path()).unwrap(), Some(base));
        }
        for (text, key) in [
            (r#"{"load_in_4bit": true, "blocksize": 0}"#, "`blocksize`"),
            (r#"{"load_in_4bit": true, "bnb_4bit_quant_type": "fp4"}"#, "`bnb_4bit_quant_type`"),
            ("{}", "load_in_4bit"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = adapter_base(folder.path()).unwrap_err().to_string();
            assert!(error.contains(HELD) && error.contains(key), "{error}");
        }
    }
}
