//! What the cross-crate tests share: the golden fixtures, and comparison by relative error.

pub mod activations;
pub mod attention;
pub mod consistency;
pub mod hub_server;
pub mod memory;
pub mod operations;
pub mod optimizers;
pub mod ranks;
pub mod reference;
#[cfg(feature = "gpu")]
pub mod shaders;
pub mod stages;
pub mod uploads;

use std::path::{Path, PathBuf};

use halfbyte::files::{Checkpoint, TensorBytes};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of a golden fixture.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/golden").join(name)
}

/// The tensors that the reference computed.
pub struct Expected(Checkpoint);

impl Expected {
    /// Opens a file of golden tensors.
    pub fn open(path: &Path) -> Self {
        Self(Checkpoint::open_file(path).unwrap_or_else(|e| panic!("{e}; run `cargo xtask golden`")))
    }

    /// Every name.
    pub fn names(&self) -> Vec<&str> {
        self.0.names()
    }

    fn tensor(&self, name: &str) -> TensorBytes<'_> {
        self.0.tensor(name).unwrap_or_else(|e| panic!("{e}"))
    }

    /// A tensor's dimensions.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensor(name).shape.to_vec()
    }

    /// f32 values.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.tensor(name).to_f32().unwrap_or_else(|| panic!("{name} is no float"))
    }

    /// u8 values.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        self.tensor(name).bytes.to_vec()
    }

    /// i64 values.
    pub fn integers(&self, name: &str) -> Vec<i64> {
        let eight = |b: &[u8]| i64::from_le_bytes(std::array::from_fn(|i| b[i]));
        self.tensor(name).bytes.chunks_exact(8).map(eight).collect()
    }
}

/// `||found - expected|| / ||expected||`, in f64.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    difference.sqrt() / norm.sqrt().max(1e-30)
}

/// Asserts that [`relative_error`] is at most `tolerance`.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let error = relative_error(found, expected);
    assert!(error <= tolerance, "{what}: relative error {error:.2e} is above {tolerance:.0e}");
}
