//! GGUF files (version 3, the specification in ggml's `docs/gguf.md`): keys, tensor descriptions, aligned data.
//!
//! Written by hand: the writers that exist in Rust come with a whole inference engine (candle) or are not kept, and what
//! an adapter needs of the format is these few lines.

/// Every tensor's data begins at a multiple of this.
const ALIGNMENT: usize = 32;
/// ggml's number for f32.
const F32: u32 = 0;

/// The value of a key.
pub(super) enum Field {
    /// UTF-8.
    Text(String),
    /// f32.
    Float(f32),
}

/// A tensor of two dimensions in f32, row-major `[rows, columns]`.
pub(super) struct Matrix {
    pub(super) name: String,
    pub(super) shape: [usize; 2],
    pub(super) values: Vec<f32>,
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
}

/// A whole file.
pub(super) fn encode(fields: &[(&str, Field)], tensors: &[Matrix]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((fields.len() as u64).to_le_bytes());
    for (key, field) in fields {
        text(&mut out, key);
        match field {
            Field::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
            Field::Float(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
        }
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend(2u32.to_le_bytes());
        // The dimension that is contiguous in memory comes first.
        for dimension in tensor.shape.iter().rev() {
            out.extend((*dimension as u64).to_le_bytes());
        }
        out.extend(F32.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += (4 * tensor.values.len()).next_multiple_of(ALIGNMENT);
    }
    pad(&mut out);
    for tensor in tensors {
        out.extend(tensor.values.iter().flat_map(|value| value.to_le_bytes()));
        pad(&mut out);
    }
    out
}
