//! Which of a machine's devices hold a model.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The devices of the chosen kind that a run uses: `"first"`, `"all"`, or a list of their numbers, such as `[0, 1]`. Several share the
/// model's layers out among them (transformers, `device_map="auto"`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Devices {
    /// One.
    #[default]
    First,
    /// As many as there are.
    All,
    /// These, counted from 0, the lowest layers on the first that is named. One that is named twice has two stages.
    Numbers(Vec<usize>),
}

impl Devices {
    /// The numbers of the devices, of `count` that there are.
    pub fn numbers(&self, count: usize) -> Vec<usize> {
        match self {
            Self::First => vec![0],
            Self::All => (0..count).collect(),
            Self::Numbers(numbers) => numbers.clone(),
        }
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = || text.split(',').map(|number| number.trim().parse().ok()).collect::<Option<Vec<usize>>>();
        match text {
            "first" => Ok(Self::First),
            "all" => Ok(Self::All),
            _ => numbers().map(Self::Numbers).ok_or(format!("`{text}`: write all, or numbers such as 0,1")),
        }
    }
}

impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::First => serializer.serialize_str("first"),
            Self::All => serializer.serialize_str("all"),
            Self::Numbers(numbers) => numbers.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "\"first\", \"all\", or numbers of devices such as [0, 1]")]
        enum Written {
            Numbers(Vec<usize>),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Numbers(numbers) if numbers.is_empty() => Err(serde::de::Error::custom("no device is named")),
            Written::Numbers(numbers) => Ok(Self::Numbers(numbers)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for (text, devices) in
            [("\"first\"", Devices::First), ("\"all\"", Devices::All), ("[1,0]", Devices::Numbers(vec![1, 0]))]
        {
            assert_eq!(serde_json::from_str::<Devices>(text).ok(), Some(devices.clone()));
            assert_eq!(serde_json::to_string(&devices).ok().as_deref(), Some(text));
        }
        assert_eq!("0, 2".parse(), Ok(Devices::Numbers(vec![0, 2])));
        for wrong in ["\"both\"", "[]", "[-1]", "2", "\"\""] {
            assert!(serde_json::from_str::<Devices>(wrong).is_err(), "{wrong}");
        }
    }
}
