//! Writing a model's dense weights, as pretraining makes them, to one safetensors file.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::FloatDType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{Parameter, Transformer, in_type};
use crate::files::{encode_bf16, read, write_atomic};
use crate::ops::Ops;
use crate::{Error, Result};

/// The shape of a parameter in a file: norms and biases are vectors there.
pub(crate) fn stored_shape(path: &str, [rows, columns]: [usize; 2]) -> Vec<usize> {
    let vector = path.contains("norm") || path.ends_with("bias");
    if vector { vec![columns] } else { vec![rows, columns] }
}

/// Writes every parameter in bf16 under its Hugging Face name, all or nothing; a tied head is left out, as transformers
/// does.
///
/// # Errors
/// When the device cannot be read or the file cannot be written.
pub async fn save_dense<B: Ops>(model: &Transformer<B>, path: &Path) -> Result<()> {
    let mut parameters: Vec<(String, Parameter<B>)> = Vec::new();
    model.visit(|name, parameter| parameters.push((name.to_string(), parameter.clone())));
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, parameter) in parameters {
        let shape = stored_shape(&name, parameter.value.dims());
        let bytes = encode_bf16(&read(in_type(parameter.value, FloatDType::F32)).await?);
        match tensors.last_mut().filter(|(before, ..)| *before == name) {
            // The next part of a table.
            Some((_, all, rows)) => {
                all[0] += shape[0];
                rows.extend(bytes);
            }
            None => tensors.push((name, shape, bytes)),
        }
    }
    let failed = |e: safetensors::SafeTensorError| Error::file(path, e);
    let views: Result<Vec<_>> = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).map_err(failed)?))
        })
        .collect();
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views?, Some(metadata)).map_err(failed)?;
    write_atomic(path, &bytes)
}
