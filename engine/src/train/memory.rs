//! Memory of exactly what a batch's tensors take, given back before a batch of other sizes.

use crate::model::Transformer;
use crate::ops::Ops;

/// While it exists, the devices of a model give tensors memory of their size: a step asks for few sizes, again and again, of which pages
/// that they shared would each be partly empty.
pub(super) struct Exact<B: Ops>(Vec<B::Device>);

impl<B: Ops> Exact<B> {
    pub(super) fn of(model: &Transformer<B>) -> Self {
        let devices: Vec<B::Device> = model.stages.iter().map(|stage| stage.device.clone()).collect();
        devices.iter().for_each(|device| B::exact_memory(device, true));
        Self(devices)
    }

    /// Sequences of these lengths are next; `before` are those of the batch before.
    pub(super) fn next(&self, lengths: Vec<usize>, before: &mut Vec<usize>) {
        if *before != lengths {
            self.0.iter().for_each(B::release_memory);
            *before = lengths;
        }
    }
}

impl<B: Ops> Drop for Exact<B> {
    fn drop(&mut self) {
        self.0.iter().for_each(|device| B::exact_memory(device, false));
    }
}
