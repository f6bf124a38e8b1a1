//! Which optimizer is used and where its state may be.

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::AdamWConfig;

/// The optimizers, under the names of transformers' `optim`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Optim {
    /// AdamW with its two moments in f32: 8 bytes for each trained parameter.
    #[default]
    #[serde(rename = "adamw", alias = "adamw_torch")]
    AdamW,
    /// AdamW with its moments in 8 bits, as bitsandbytes holds them: 2.03 bytes for each trained parameter.
    #[serde(rename = "adamw_8bit", alias = "adamw_bnb_8bit")]
    AdamW8bit,
    /// [`AdamW`](Self::AdamW), the state in pages.
    #[serde(rename = "paged_adamw_32bit", alias = "paged_adamw")]
    PagedAdamW32bit,
    /// [`AdamW8bit`](Self::AdamW8bit), the state in pages.
    #[serde(rename = "paged_adamw_8bit")]
    PagedAdamW8bit,
}

impl Optim {
    /// Whether moments are held in 8 bits.
    pub fn is_8bit(self) -> bool {
        matches!(self, Self::AdamW8bit | Self::PagedAdamW8bit)
    }

    /// Whether state may be moved to host memory.
    pub fn is_paged(self) -> bool {
        matches!(self, Self::PagedAdamW32bit | Self::PagedAdamW8bit)
    }
}

/// How much optimizer state a paged optimizer keeps on the device: `"unlimited"`, or a size such as `"512MiB"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceBudget(pub Option<u64>);

impl Serialize for DeviceBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            // In bytes: a rounded size would not be the same budget when the recipe is read again.
            Some(bytes) => serializer.serialize_str(&format!("{bytes}B")),
            None => serializer.serialize_str("unlimited"),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size such as \"512MiB\", or \"unlimited\"")]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(Some(bytes))),
            Written::Text(text) if text == "unlimited" => Ok(Self(None)),
            Written::Text(text) => {
                let size: Result<ByteSize, _> = text.parse();
                let refused =
                    |_| serde::de::Error::custom(format!("`{text}`: write a size such as 512MiB, or unlimited"));
                Ok(Self(Some(size.map_err(refused)?.as_u64())))
            }
        }
    }
}

/// Everything that an [`Optimizer`](super::Optimizer) depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Which one.
    pub optim: Optim,
    /// Its constants.
    pub adamw: AdamWConfig,
    /// What the learning rate of LoRA's B matrices is multiplied by.
    pub loraplus_lr_ratio: f64,
    /// How much state a paged optimizer keeps on the device.
    pub device_budget: DeviceBudget,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            optim: Optim::default(),
            adamw: AdamWConfig::default(),
            loraplus_lr_ratio: 1.0,
            device_budget: DeviceBudget::default(),
        }
    }
}
