//! What is allocated while a run is walked through, by component, and the most of it in each phase.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The base model's linear layers.
    Base,
    /// Embedding, head, norms and biases.
    Other,
    /// The adapters as they are, and as they were a step before.
    Adapters,
    /// The optimizer's state on the device.
    Optimizer,
    /// Buffers that the kernels keep from call to call.
    Scratch,
    /// Gradients of what is trained.
    Gradients,
    /// The input of every layer, kept for its second forward pass.
    Inputs,
    /// What graphs keep for the backward pass.
    Graph,
    /// Gradients of activations on their way down.
    Backward,
    /// Results inside an operation that are gone when it ends.
    Work,
    /// Attention weights where attention is composed of dense operations.
    Scores,
    /// Logits of a chunk of tokens, and their gradient.
    Logits,
    /// A weight decoded for one product.
    Decoded,
    /// Tokens, targets, and the angles of their positions.
    Batch,
    /// Bytes on their way into a file, or out of one.
    File,
    /// What a GPU's allocator keeps for tensors of the sizes that were there and are gone.
    Kept,
}

/// Every component, in the order in which plans list them.
pub(crate) const COMPONENTS: [Component; 16] = [
    Component::Base,
    Component::Other,
    Component::Adapters,
    Component::Optimizer,
    Component::Scratch,
    Component::Gradients,
    Component::Inputs,
    Component::Graph,
    Component::Backward,
    Component::Work,
    Component::Scores,
    Component::Logits,
    Component::Decoded,
    Component::Batch,
    Component::File,
    Component::Kept,
];

/// When memory is at its most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// From loading to the end.
    Always,
    /// While the model is loaded: everything that exists then, the weights so far among it.
    Load,
    /// While a step goes through the layers and back.
    Layers,
    /// While the loss is taken; the layers' inputs exist too, but no layer's graph does.
    Loss,
    /// While the optimizer writes new adapters.
    Update,
    /// While a held-out loss is computed.
    Evaluate,
    /// While the adapter is saved.
    Save,
    /// While an adapter is merged into its base, a process of its own: everything that exists then.
    Merge,
}

/// Bytes by component.
pub(crate) type Parts = [u64; COMPONENTS.len()];

/// Tensors of one size, and memory for them.
#[derive(Clone, Debug)]
struct Size {
    bytes: u64,
    /// How many exist.
    live: u64,
    /// For how many there is memory.
    places: u64,
}

/// Bytes that exist now and the most that existed in the phase that is walked through.
///
/// A GPU's allocator keeps a tensor's memory for the next tensor of its size, until it is told to [`release`](Self::release) it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    keeps: bool,
    sizes: Vec<Size>,
    live: Parts,
    total: u64,
    most: u64,
    at_most: Parts,
    taken: u64,
    most_taken: u64,
}

impl Ledger {
    /// A ledger without anything; whether memory is kept for tensors to come.
    pub(crate) fn new(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// Begins a phase: the most is what exists now.
    pub(crate) fn begin(&mut self) {
        (self.most, self.at_most, self.most_taken) = (self.total, self.live, self.taken);
    }

    fn size(&mut self, bytes: u64) -> &mut Size {
        let place = self.sizes.iter().position(|size| size.bytes == bytes).unwrap_or_else(|| {
            self.sizes.push(Size { bytes, live: 0, places: 0 });
            self.sizes.len() - 1
        });
        &mut self.sizes[place]
    }

    fn add(&mut self, component: Component, bytes: u64) {
        let place = &mut self.live[component as usize];
        *place = place.saturating_add(bytes);
        self.total = self.total.saturating_add(bytes);
        if self.total > self.most {
            (self.most, self.at_most) = (self.total, self.live);
        }
    }

    fn subtract(&mut self, component: Component, bytes: u64) {
        let place = &mut self.live[component as usize];
        *place = place.saturating_sub(bytes);
        self.total = self.total.saturating_sub(bytes);
    }

    fn grow(&mut self, bytes: u64) {
        self.taken = self.taken.saturating_add(bytes);
        self.most_taken = self.most_taken.max(self.taken);
    }

    /// What is no single tensor comes to exist, in memory of its own.
    pub(crate) fn bring(&mut self, component: Component, bytes: u64) {
        self.grow(bytes);
        self.add(component, bytes);
    }

    /// What is no single tensor is gone, and its memory.
    pub(crate) fn take(&mut self, component: Component, bytes: u64) {
        self.taken = self.taken.saturating_sub(bytes);
        self.subtract(component, bytes);
    }

    /// A tensor comes to exist.
    pub(crate) fn hold(&mut self, component: Component, bytes: u64) {
        if !self.keeps {
            return self.bring(component, bytes);
        }
        let size = self.size(bytes);
        size.live += 1;
        if size.live > size.places {
            size.places = size.live;
            self.grow(bytes);
        }
        self.add(component, bytes);
    }

    /// A tensor is gone.
    pub(crate) fn free(&mut self, component: Component, bytes: u64) {
        if !self.keeps {
            return self.take(component, bytes);
        }
        let size = self.size(bytes);
        debug_assert!(size.live > 0 || bytes == 0, "no tensor of {bytes} bytes is there to be freed as {component:?}");
        size.live = size.live.saturating_sub(1);
        self.subtract(component, bytes);
    }

    /// What is kept for tensors to come is given back.
    pub(crate) fn release(&mut self) {
        self.sizes.iter_mut().for_each(|size| size.places = size.live);
        self.taken = self.total;
    }

    /// The largest sum of the phase, by component, and what is taken beyond it when most is.
    pub(crate) fn most(&self) -> Parts {
        let mut most = self.at_most;
        most[Component::Kept as usize] = self.most_taken.saturating_sub(self.most);
        most
    }

    /// What exists now, by component.
    pub(crate) fn live(&self) -> Parts {
        self.live
    }
}

#[cfg(test)]
mod tests {
    use super::{Component, Ledger};

    #[test]
    fn the_most_is_remembered_with_its_parts() {
        let mut ledger = Ledger::default();
        ledger.hold(Component::Base, 10);
        ledger.begin();
        ledger.hold(Component::Graph, 5);
        ledger.hold(Component::Work, 7);
        ledger.free(Component::Work, 7);
        ledger.free(Component::Graph, 5);
        ledger.hold(Component::Logits, 9);
        let most = ledger.most();
        let of = |component| most[component as usize];
        assert_eq!(
            [of(Component::Base), of(Component::Graph), of(Component::Work), of(Component::Logits)],
            [10, 5, 7, 0]
        );
        assert_eq!(ledger.live().iter().sum::<u64>(), 19);
    }

    #[test]
    fn memory_is_kept_for_tensors_of_its_size() {
        let mut ledger = Ledger::new(true);
        let taken = |ledger: &Ledger| ledger.most().iter().sum::<u64>();
        ledger.bring(Component::Base, 100);
        (0..3).for_each(|_| ledger.hold(Component::Work, 10));
        (0..3).for_each(|_| ledger.free(Component::Work, 10));
        ledger.begin();
        assert_eq!(taken(&ledger), 130);
        ledger.hold(Component::Graph, 10);
        assert_eq!(taken(&ledger), 130);
        ledger.hold(Component::Graph, 7);
        assert_eq!((taken(&ledger), ledger.most()[Component::Kept as usize]), (137, 20));
        ledger.release();
        ledger.begin();
        assert_eq!(taken(&ledger), 117);
        ledger.free(Component::Graph, 7);
        ledger.hold(Component::Work, 7);
        assert_eq!(taken(&ledger), 117);
    }
}
