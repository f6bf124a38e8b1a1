//! AdamW over named parameters (arXiv:1711.05101), its state in 32 or 8 bits, on the device or in pages.
//!
//! Written here rather than taken from Burn: the trainer owns gradients by name, the state is also held in 8 bits and in
//! pages, the last step can be taken back, and whether a step is applied is decided on the device.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::Tensor;

use super::adamw::{is_decayed, is_loraplus};
use super::clip::by_device;
use super::pages::{Pages, PagingReport};
use super::state::{HostMoments, Layout, StateTensor};
use super::{AdamWConfig, Gradients, OptimizerConfig};
use crate::model::{EMBEDDING, moved};
use crate::ops::{AdamStep, AdamUpdate, Ops, primitive, tensor};
use crate::{Error, Result};

/// Parameters with fewer elements keep their moments in f32 (bitsandbytes, `min_8bit_size`).
pub const MIN_8BIT_SIZE: usize = 4096;

/// Parameters that one operation takes. To fusion an operation is work of its own, but it also compares each tensor of one with every
/// other.
const AT_ONCE: usize = 32;

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
    /// Of the last step, clipped.
    last: Gradients<B>,
    under_way: Option<UnderWay<B>>,
}

/// A step of which it is not known yet whether it was applied.
struct UnderWay<B: Ops> {
    /// Steps before it.
    steps: usize,
    /// Its clipped gradients, in the memory of those of the step before: where it was not applied, they are those.
    clipped: Gradients<B>,
    /// Its clipped gradients of parameters that had none in the step before.
    new: Gradients<B>,
    /// Those of the step before of parameters that have none in this.
    waiting: Gradients<B>,
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
        Self { config, steps: 0, pages, last: Gradients::new(), under_way: None }
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
        let device = self.pages.first().map(|pages| pages.device().clone()).unwrap_or_default();
        let after = self.step_into(BTreeMap::new(), values, gradients, Tensor::ones([1], &device), rate).await;
        self.conclude(true);
        after
    }

    /// [`step`](Self::step) with gradients that are multiplied by a factor, `[1]`, which the host need not know yet; where it is 0, the step
    /// is not applied. [`conclude`](Self::conclude) is to be called once that is known.
    ///
    /// `spare` are tensors of the parameters' shapes that no one needs once the step is applied, as are their values of a step before: the
    /// new ones may take their memory. Where it is not applied, the result is what they hold, and anything for a parameter without one.
    ///
    /// # Errors
    /// Those of [`step`](Self::step).
    pub async fn step_into(
        &mut self,
        mut spare: BTreeMap<String, Tensor<B, 2>>,
        mut values: BTreeMap<String, Tensor<B, 2>>,
        mut gradients: Gradients<B>,
        factor: Tensor<B, 1>,
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
        let under_way = self.under_way.insert(UnderWay {
            steps: self.steps,
            clipped: Gradients::new(),
            new: Gradients::new(),
            waiting: Gradients::new(),
        });
        for pages in &mut self.pages {
            let factor = primitive(moved(factor.clone(), pages.device()));
            let here: Vec<&String> = paths.iter().filter(|path| pages.contains(path)).collect();
            // What is paged comes and goes one by one.
            let at_once = if self.config.optim.is_paged() { 1 } else { AT_ONCE };
            for some in here.chunks(at_once) {
                for path in some {
                    pages.bring(path).await?;
                }
                let last =
                    some.iter().filter_map(|path| Some((path.as_str(), primitive(self.last.get(*path)?.clone()))));
                pages.advance(last.collect(), factor.clone(), betas);
                let (mut moving, mut updates) = (Vec::new(), Vec::new());
                for path in some {
                    let last = self.last.remove(*path);
                    let Some(gradient) = gradients.remove(*path) else {
                        under_way.waiting.extend(last.map(|last| (path.to_string(), last)));
                        continue;
                    };
                    let missing = || Error::Invalid(format!("the parameter `{path}` has a gradient and no value"));
                    moving.push((path.to_string(), last.is_some()));
                    updates.push(AdamUpdate {
                        value: primitive(values.remove(*path).ok_or_else(missing)?),
                        moments: pages.get(path).ok_or_else(missing)?.clone(),
                        gradient: primitive(gradient),
                        spare: [spare.remove(*path), last].map(|spare| spare.map(primitive)),
                        step: AdamStep {
                            betas,
                            eps,
                            step: i32::try_from(step).unwrap_or(i32::MAX),
                            rate: if is_loraplus(path) { rate * loraplus } else { rate },
                            decay: if is_decayed(path) { weight_decay } else { 0.0 },
                        },
                    });
                }
                for ((path, had_one), results) in moving.into_iter().zip(B::adam_apply(updates, factor.clone())) {
                    let [value, clipped] = results.map(tensor);
                    let gradients = if had_one { &mut under_way.clipped } else { &mut under_way.new };
                    gradients.insert(path.clone(), clipped);
                    after.insert(path, value);
                }
                pages.settle().await?;
            }
        }
        self.steps = step;
        Ok(after)
    }

    /// Ends a step whose factor is known now to be 0, so that it was not `applied`, or to be another number. Where it was not, the state is
    /// that of before it.
    pub fn conclude(&mut self, applied: bool) {
        let Some(UnderWay { steps, clipped, new, waiting }) = self.under_way.take() else { return };
        let failed = self.steps == steps;
        // Of one that was to be applied and failed half-way, what it came to has moments that belong to the parameters as they are.
        if applied && failed {
            return;
        }
        self.last.extend(clipped);
        self.last.extend(if applied { new } else { waiting });
        if !applied {
            self.steps = steps;
        }
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
                    let last = vec![(moments, primitive(gradient.clone()))];
                    let next = primitive(Tensor::<B, 1>::ones([1], pages.device()));
                    moments = B::adam_advance(last, next, betas).remove(0);
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
