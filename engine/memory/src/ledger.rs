//! What is allocated while a run is walked through, by component, and the most of it in each phase.

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
}

/// Every component, in the order in which plans list them.
pub(crate) const COMPONENTS: [Component; 15] = [
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

/// Bytes that exist now and the most that existed in the phase that is walked through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    live: Parts,
    total: u64,
    most: u64,
    at_most: Parts,
}

impl Ledger {
    /// Begins a phase: the most is what exists now.
    pub(crate) fn begin(&mut self) {
        (self.most, self.at_most) = (self.total, self.live);
    }

    /// Bytes come to exist.
    pub(crate) fn hold(&mut self, component: Component, bytes: u64) {
        let place = &mut self.live[component as usize];
        *place = place.saturating_add(bytes);
        self.total = self.total.saturating_add(bytes);
        if self.total > self.most {
            (self.most, self.at_most) = (self.total, self.live);
        }
    }

    /// Bytes are gone.
    pub(crate) fn free(&mut self, component: Component, bytes: u64) {
        let place = &mut self.live[component as usize];
        *place = place.saturating_sub(bytes);
        self.total = self.total.saturating_sub(bytes);
    }

    /// Bytes exist for a moment.
    pub(crate) fn touch(&mut self, component: Component, bytes: u64) {
        self.hold(component, bytes);
        self.free(component, bytes);
    }

    /// The largest sum of the phase, by component.
    pub(crate) fn most(&self) -> Parts {
        self.at_most
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
        ledger.touch(Component::Work, 7);
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
}
