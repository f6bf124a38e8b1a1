//! A tensor of the model that may be trained, and the rule by which a model is rebuilt with other tensors.

use burn::tensor::backend::{AutodiffBackend, Backend, BackendTypes};
use burn::tensor::{Tensor, TensorData};

use super::moved;
use crate::ops::{Ops, lasting};

/// A tensor of the model. Vectors (norms, biases) are held as `[1, n]`, so that every parameter has two dimensions.
#[derive(Clone, Debug)]
pub struct Parameter<B: Backend> {
    /// The values, f32; of embedding and head, where they are not trained, perhaps in 16 bits.
    pub value: Tensor<B, 2>,
    /// Whether training changes it.
    pub trainable: bool,
}

impl<B: Backend> Parameter<B> {
    /// A frozen parameter from host values.
    pub fn frozen(values: Vec<f32>, shape: [usize; 2], device: &B::Device) -> Self
    where
        B: Ops,
    {
        Self { value: lasting(TensorData::new(values, shape), device), trainable: false }
    }

    /// The same parameter on a device.
    pub(crate) fn on(&self, device: &B::Device) -> Self
    where
        B: Ops,
    {
        Self { value: moved(self.value.clone(), device), trainable: self.trainable }
    }

    /// The same values on the autodiff decoration of `B`; trainable ones collect a gradient there.
    pub fn lift<A: AutodiffBackend<InnerBackend = B>>(&self) -> Parameter<A> {
        let value = Tensor::from_inner(self.value.clone());
        Parameter { value: if self.trainable { value.require_grad() } else { value }, trainable: self.trainable }
    }
}

/// A backend that holds 4-bit weights in the same tensors as `B` does: `B` itself, or its autodiff decoration.
///
/// [`map`](crate::model::Transformer::map) rebuilds a model over such a backend, one parameter at a time; it is how
/// a layer gets its graph, how gradients are collected, and how the optimizer writes new values.
pub trait Shares<B: Backend>:
    Ops + BackendTypes<IntTensorPrimitive = B::IntTensorPrimitive, Device = B::Device>
{
}

impl<B: Backend, C> Shares<B> for C where
    C: Ops + BackendTypes<IntTensorPrimitive = B::IntTensorPrimitive, Device = B::Device>
{
}

/// Joins a path of the model, as Hugging Face names it.
pub(crate) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}
