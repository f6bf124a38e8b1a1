//! A training step from its beginning to its end: what exists while it goes through each layer.

use alloc::vec::Vec;

use crate::ledger::{COMPONENTS, Component, Parts};
use crate::{ModelShape, Run, stages};

/// What a training step is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// A layer's forward pass, the layer counted from 0.
    Forward(u64),
    /// The loss and its gradient.
    Loss,
    /// A layer's backward pass, with its second forward pass where layers are computed again.
    Backward(u64),
    /// The optimizer's new values.
    Update,
}

/// A stretch of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// Which.
    pub stretch: Stretch,
    /// What exists when most does, by component.
    pub(crate) most: Parts,
    /// What is still there when it ends, by component.
    pub(crate) left: Parts,
}

fn sum(parts: &Parts) -> u64 {
    parts.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

fn listed(parts: &Parts) -> impl Iterator<Item = (Component, u64)> {
    COMPONENTS.into_iter().map(|component| (component, parts[component as usize])).filter(|(_, bytes)| *bytes > 0)
}

impl Moment {
    /// The most that exists.
    pub fn peak(&self) -> u64 {
        sum(&self.most)
    }

    /// Its parts.
    pub fn peak_parts(&self) -> impl Iterator<Item = (Component, u64)> {
        listed(&self.most)
    }

    /// What is there when it ends.
    pub fn after(&self) -> u64 {
        sum(&self.left)
    }

    /// Its parts.
    pub fn parts_after(&self) -> impl Iterator<Item = (Component, u64)> {
        listed(&self.left)
    }
}

/// The stretches of a training step in their order. The largest [`Moment::peak`] is [`Plan::peak`](crate::Plan::peak).
pub fn timeline(model: &ModelShape, run: &Run) -> Vec<Moment> {
    stages::step(model, run)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{Method, plan, preset};

    #[test]
    fn its_peak_is_the_plans() {
        let model = preset("llama-3.2-1b").unwrap();
        for recompute in [true, false] {
            for (method, accumulation) in [(Method::Qlora, 1), (Method::Lora, 4), (Method::Full, 1)] {
                let run = Run { method, recompute, accumulation, ..Run::default() };
                let moments = timeline(&model, &run);
                let layers: Vec<u64> = (0..model.layers).collect();
                let forward = layers.iter().map(|layer| Stretch::Forward(*layer));
                let backward = layers.iter().rev().map(|layer| Stretch::Backward(*layer));
                let order = forward.chain([Stretch::Loss]).chain(backward).chain([Stretch::Update]);
                assert_eq!(moments.iter().map(|m| m.stretch).collect::<Vec<_>>(), order.collect::<Vec<_>>());
                assert_eq!(moments.iter().map(Moment::peak).max(), Some(plan(&model, &run).peak()), "{run:?}");
            }
        }
    }

    #[test]
    fn inputs_heap_up_and_go_one_by_one() {
        let model = preset("llama-3.2-1b").unwrap();
        let run = Run::default();
        let moments = timeline(&model, &run);
        let inputs = |moment: &Moment| {
            moment.parts_after().find(|(component, _)| *component == Component::Inputs).map_or(0, |(_, bytes)| bytes)
        };
        let one = run.tokens() * model.hidden_size * 4;
        let expected = |moment: &Moment| match moment.stretch {
            Stretch::Forward(layer) => (layer + 2) * one,
            Stretch::Loss => model.layers * one,
            Stretch::Backward(layer) => layer * one,
            Stretch::Update => 0,
        };
        for moment in &moments {
            assert_eq!(inputs(moment), expected(moment), "{:?}", moment.stretch);
        }
    }
}
