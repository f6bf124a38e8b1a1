//! AdamW over named parameters (arXiv:1711.05101), its state in 32 or 8 bits, on the device or in pages.
//!
//! Written here rather than taken from Burn: the trainer owns gradients by name, the state is also held in 8 bits and in
//! pages, and the last step can be taken back.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Tensor, TensorPrimitive};

use super::adamw::{is_decayed, is_loraplus};
use super::clip::by_device;
use super::pages::{Pages, PagingReport};
use super::state::{HostMoments, Layout, StateTensor};
use super::{AdamWConfig, Gradients, OptimizerConfig};
use crate::model::EMBEDDING;
use crate::ops::{AdamStep, AdamUpdate, Ops};
use crate::{Error, Result};

/// Parameters with fewer elements keep their moments in f32 (bitsandbytes, `min_8bit_size`).
pub const MIN_8BIT_SIZE: usize = 4096;

/// Parameters that one operation takes. To fusion an operation is work of its own, but it also compares each tensor of one with every
/// other.
pub(super) const AT_ONCE: usize = 32;

/// The optimizer and its state.
///
/// The moments in the pages are those before the last step; that step's gradients are kept until the next one. So a step
/// can be taken back when the loss after it shows that it was a bad one, for 4 bytes for each trained parameter where a
/// second copy of f32 moments would take 8, and every page exists once.
pub struct Optimizer<B: Ops> {
    config: OptimizerConfig,
    steps: usize,
    /// Those of each device's parameters.
    pages: Vec<Pages<B>>,
    last: Gradients<B>,
}

impl<B: Ops> Optimizer<B> {
    /// An optimizer for parameters of these shapes on one device that has seen no gradient.
    pub fn new(config: OptimizerConfig, parameters: BTreeMap<String, [usize; 2]>, device: &B::Device) -> Self {
        Self::spread(config, parameters.into_iter().map(|(path, shape)| (path, (shape, device.clone()))).collect())
    }

    /// [`new`](Self::new) for parameters on several devices, each of which keeps the state of its own, within the budget of each.
    pub fn spread(config: OptimizerConfig, parameters: BTreeMap<String, ([usize; 2], B::Device)>) -> Self {
        // Embeddings keep f32 moments, as transformers' trainer has bitsandbytes do: their gradients are sparse.
        let eight_bit = |path: &str, [rows, columns]: [usize; 2]| {
            config.optim.is_8bit() && rows.saturating_mul(columns) >= MIN_8BIT_SIZE && path != EMBEDDING
        };
        let layouts = parameters.into_iter().map(|(path, (shape, device))| {
            let eight_bit = eight_bit(&path, shape);
            (device, (path, Layout { shape, eight_bit }))
        });
        let budget = config.device_budget.0.filter(|_| config.optim.is_paged());
        let of = |(device, layouts): (_, Vec<_>)| Pages::new(layouts.into_iter().collect(), budget, device);
        let pages = by_device(layouts).into_iter().map(of).collect();
        Self { config, steps: 0, pages, last: Gradients::new() }
    }

    /// Steps that the state is the result of.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// New values of the parameters, from their values, their gradients and the learning rate.
    ///
    /// # Errors
    /// On a gradient whose value is not given or that the optimizer was not made for, or when a page cannot be read from
    /// the device. Nothing was applied then, and the state is that of before.
    pub async fn step(
        &mut self,
        values: BTreeMap<String, Tensor<B, 2>>,
        gradients: Gradients<B>,
        rate: f64,
    ) -> Result<BTreeMap<String, Tensor<B, 2>>> {
        self.step_into(BTreeMap::new(), values, gradients, rate).await
    }

    /// [`step`](Self::step) with tensors of the parameters' shapes that no one needs any more, as are their values of a step before: the
    /// new ones may take their memory.
    ///
    /// # Errors
    /// Those of [`step`](Self::step).
    pub async fn step_into(
        &mut self,
        mut spare: BTreeMap<String, Tensor<B, 2>>,
        mut values: BTreeMap<String, Tensor<B, 2>>,
        gradients: Gradients<B>,
        rate: f64,
    ) -> Result<BTreeMap<String, Tensor<B, 2>>> {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config.adamw;
        let betas = [beta1, beta2];
        let step = self.steps + 1;
        let paths: BTreeSet<String> = self.last.keys().chain(gradients.keys()).cloned().collect();
        let mut paths: Vec<String> = paths.into_iter().collect();
        if halfbyte_memory::visits_backwards(step) {
            paths.reverse();
        }
        if let Some(path) = paths.iter().find(|path| !self.pages.iter().any(|pages| pages.contains(path))) {
            return Err(Error::Invalid(format!("the optimizer was not made for the parameter `{path}`")));
        }
        let loraplus = self.config.loraplus_lr_ratio;
        let mut after = BTreeMap::new();
        for pages in &mut self.pages {
            let here: Vec<&String> = paths.iter().filter(|path| pages.contains(path)).collect();
            // What is paged comes and goes one by one.
            let at_once = if self.config.optim.is_paged() { 1 } else { AT_ONCE };
            for some in here.chunks(at_once) {
                for path in some {
                    pages.bring(path).await?;
                }
                let before = some.iter().filter_map(|path| Some((path.as_str(), primitive(self.last.remove(*path)?))));
                pages.advance(before.collect(), betas);
                let (mut moved, mut updates) = (Vec::new(), Vec::new());
                for path in some {
                    let Some(gradient) = gradients.get(*path) else { continue };
                    let missing = || Error::Invalid(format!("the parameter `{path}` has a gradient and no value"));
                    moved.push(path.to_string());
                    updates.push(AdamUpdate {
                        value: primitive(values.remove(*path).ok_or_else(missing)?),
                        moments: pages.get(path).ok_or_else(missing)?.clone(),
                        gradient: primitive(gradient.clone()),
                        spare: spare.remove(*path).map(primitive),
                        step: AdamStep {
                            betas,
                            eps,
                            step: i32::try_from(step).unwrap_or(i32::MAX),
                            rate: if is_loraplus(path) { rate * loraplus } else { rate },
                            decay: if is_decayed(path) { weight_decay } else { 0.0 },
                        },
                    });
                }
                let values = B::adam_apply(updates).into_iter().map(TensorPrimitive::Float).map(Tensor::from_primitive);
                after.extend(moved.into_iter().zip(values));
                pages.settle().await?;
            }
        }
        self.last = gradients;
        self.steps = step;
        Ok(after)
    }

    /// Takes the last step back: the state is that of before it. Once after a step, and not after [`restore`](Self::restore).
    pub fn undo(&mut self) {
        self.last.clear();
        self.steps = self.steps.saturating_sub(1);
    }

    /// What was paged so far; `None` where the optimizer is not a paged one.
    pub fn paging(&self) -> Option<PagingReport> {
        self.config.optim.is_paged().then(|| self.pages.iter().map(Pages::report).sum())
    }

    /// Bytes of state on the devices at this moment, counted from the buffers.
    pub fn device_bytes(&self) -> u64 {
        self.pages.iter().map(Pages::device_bytes).sum()
    }

    /// The state on the host, as it is to be saved beside the parameters' values: for each parameter `PATH`, f32
    /// `PATH.exp_avg` and `PATH.exp_avg_sq` of its shape; where it is held in 8 bits, u8 codes of its shape under these
    /// names and one f32 per block of 256 elements in `PATH.exp_avg.absmax` and `PATH.exp_avg_sq.absmax`.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub async fn state(&self) -> Result<BTreeMap<String, StateTensor>> {
        let betas = [self.config.adamw.beta1, self.config.adamw.beta2];
        let mut state = BTreeMap::new();
        for pages in &self.pages {
            for (path, layout) in pages.layouts() {
                let Some(mut moments) = pages.copy(path) else { continue };
                if let Some(gradient) = self.last.get(path) {
                    moments = B::adam_advance(vec![(moments, primitive(gradient.clone()))], betas).remove(0);
                }
                state.extend(layout.save(path, HostMoments::read(moments, pages.device()).await?));
            }
        }
        Ok(state)
    }

    /// Continues from a saved state, that of the parameters' values after `step` steps.
    ///
    /// # Errors
    /// When a tensor is missing, is not of this run, has another shape or kind, or holds what no moment can be;
    /// nothing was changed then.
    pub fn restore(&mut self, step: usize, mut state: BTreeMap<String, StateTensor>) -> Result<()> {
        if i32::try_from(step).is_err() {
            return Err(Error::Invalid(format!(
                "optimizer state: step {step} is out of range; is the checkpoint whole?"
            )));
        }
        let mut load = |pages: &Pages<B>| -> Result<BTreeMap<String, HostMoments>> {
            pages.layouts().map(|(path, layout)| Ok((path.clone(), layout.load(path, &mut state)?))).collect()
        };
        let moments = self.pages.iter().map(&mut load).collect::<Result<Vec<_>>>()?;
        if let Some(name) = state.keys().next() {
            let cure = "resume with the model and `lora` that the checkpoint was saved with";
            return Err(Error::Invalid(format!(
                "optimizer state `{name}` belongs to nothing that this run trains; {cure}"
            )));
        }
        self.pages.iter_mut().zip(moments).for_each(|(pages, moments)| pages.replace(moments));
        self.last.clear();
        self.steps = step;
        Ok(())
    }
}

pub(super) fn primitive<B: Ops>(tensor: Tensor<B, 2>) -> B::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}
