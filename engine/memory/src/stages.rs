//! The stages of a run, each walked through from beginning to end.

use alloc::vec;
use alloc::vec::Vec;

use crate::layer::Forward;
use crate::ledger::{Component, Parts, Phase};
use crate::run::product;
use crate::scratch::{halves_head, scratch, tile_rows};
use crate::timeline::{Moment, Stretch};
use crate::walk::{SCRATCH, SKINNY_ROWS, Walk};
use crate::weights::{F32, frozen_elements, linear_bytes, nf4_buffers, optimizer_places};
use crate::{Device, Method, ModelShape, Run};

/// Bytes of output after which a shard of a model is written (`files/bnb.rs`).
const SHARD: u64 = 4 << 30;

/// What stays, by component: weights, two copies of the adapters, the optimizer's state and what it would undo the last step
/// with, the kernels' scratch.
pub(crate) fn persistent(model: &ModelShape, run: &Run) -> Parts {
    let mut parts = Parts::default();
    let layer = model.linears().iter().fold(0u64, |sum, l| sum.saturating_add(linear_bytes(l.elements(), run)));
    parts[Component::Base as usize] = product([model.layers, layer]);
    parts[Component::Other as usize] = product([frozen_elements(model, run), run.weight_bytes]);
    let trained = run.trained(model);
    parts[Component::Adapters as usize] = match run.method {
        // The f32 copy that the optimizer writes.
        Method::Full => product([trained, F32]),
        Method::Lora | Method::Qlora => product([2, trained, F32]),
    };
    parts[Component::Optimizer as usize] = optimizer_places(model, run).0;
    if run.method != Method::Full {
        parts[Component::Gradients as usize] = product([trained, F32]);
    }
    parts[Component::Scratch as usize] = scratch(model, run);
    parts
}

impl Walk<'_> {
    fn held(&mut self, parts: &Parts, of: &[Component]) {
        for component in of {
            self.ledger.bring(*component, parts[*component as usize]);
        }
    }

    /// Tokens and targets on the host, and the cosines and sines of the positions.
    fn batch(&mut self) -> u64 {
        let (run, head) = (self.run, self.model.head());
        // Grown by doubling: room for the angles of a power of two of sequences, and as many targets.
        let angles = match run.sequences.as_slice() {
            [] => product([run.length, run.batch.checked_next_power_of_two().unwrap_or(u64::MAX)]),
            lengths => {
                lengths
                    .iter()
                    .fold((0u64, 0u64), |(room, used), n| {
                        let used = used.saturating_add(*n);
                        (if used > room { used.max(product([2, room])) } else { room }, used)
                    })
                    .0
            }
        };
        let tables = product([2, angles, head, F32]);
        let bytes = if self.cpu() {
            let targets = self.tokens.checked_next_power_of_two().unwrap_or(u64::MAX);
            let micro = product([4, self.tokens]).saturating_add(product([16, targets]));
            product([run.accumulation, micro]).saturating_add(product([12, self.tokens])).saturating_add(tables)
        } else {
            // Two numbers a query, or the mask that hides what comes later.
            let seen =
                if self.fused() { product([8, self.tokens]) } else { product([run.longest(), run.longest(), F32]) };
            tables.saturating_add(seen)
        };
        self.ledger.bring(Component::Batch, bytes);
        bytes
    }

    /// Bytes of an embedding or a head in f32.
    fn table(&self) -> u64 {
        product([self.model.vocab_size, self.model.hidden_size, F32])
    }

    /// The loss, with gradients or without: `[chunk, vocabulary]` at a time (`train/loss.rs`). The caller holds the hidden
    /// states, and gets the gradient of them held as [`Component::Backward`].
    fn loss(&mut self, training: bool) {
        let hidden = self.wide(self.model.hidden_size);
        let rows = self.run.chunk();
        let some = product([rows, self.model.hidden_size, F32]);
        let logits = product([rows, self.model.vocab_size, F32]);
        if training {
            self.hold(Component::Backward, hidden);
        }
        self.hold(Component::Work, some);
        self.hold(Component::Work, some);
        // Kernels that take the head in 16 bits round the other operand (`half_matmul` of `halfbyte-shaders`).
        let halved = halves_head(self.run);
        let rounds = halved && self.run.in_bf16();
        let rounded = |features| if rounds { product([rows, features, 2]) } else { 0 };
        let [rounded_hidden, rounded_logits] = [self.model.hidden_size, self.model.vocab_size].map(rounded);
        self.hold(Component::Work, rounded_hidden);
        self.hold(Component::Logits, logits);
        self.free(Component::Work, rounded_hidden);
        if halved && !rounds {
            // A GPU widens a part of the head (`half_product` of `halfbyte-shaders`); a CPU has the logits of a few rows across
            // (`ops/cpu/encoded.rs`).
            let beside = match self.cpu() {
                true if (2..=SKINNY_ROWS).contains(&rows) => logits,
                true => 0,
                false => SCRATCH.min(self.table()),
            };
            self.touch(Component::Work, [beside]);
        }
        let (vocab, hidden_size) = (self.model.vocab_size, self.model.hidden_size);
        let features = if halved { tile_rows(vocab, hidden_size) } else { vocab };
        let packed = self.packing(features, hidden_size, true).min(product([512, rows, F32]));
        self.touch(Component::Work, [packed]);
        self.free(Component::Work, some);
        // The shifted logits, in the place of the logits, exist beside their exponentials, which become the gradient; a GPU's kernel writes
        // that over the logits.
        self.touch(Component::Logits, [if self.cpu() { logits } else { 0 }]);
        if training {
            // The gradient of a head that is trained is computed across and turned round; every later chunk's is added to it.
            let table = if self.run.saves_head() { self.table() } else { 0 };
            let later = rows < self.tokens.saturating_sub(self.run.rows());
            self.hold(Component::Gradients, table);
            self.touch(Component::Gradients, [table, if later { table } else { 0 }]);
            self.touch(Component::Work, [rounded_logits, some]);
            self.touch(Component::Work, [some, some]);
            self.free(Component::Logits, logits);
            self.hold(Component::Work, some);
            // A chunk's rows are added to a copy of the gradient.
            self.touch(Component::Backward, [hidden]);
            self.free(Component::Work, some);
        } else {
            self.free(Component::Logits, logits);
        }
        self.free(Component::Work, some);
        self.ledger.release();
    }

    /// A training step, stretch by stretch (`train/backprop.rs`, `train/optimization.rs`).
    fn step(&mut self, persistent: &Parts) -> Vec<Moment> {
        use Component::{Adapters, Backward, Base, Gradients, Graph, Inputs, Optimizer, Other, Scratch};
        self.held(persistent, &[Base, Other, Adapters, Optimizer, Gradients, Scratch]);
        let gradients = product([self.run.trained(self.model), if self.run.method == Method::Full { 2 } else { F32 }]);
        if self.run.accumulation > 1 || self.run.method == Method::Full {
            self.ledger.bring(Gradients, gradients);
        }
        let hidden = self.wide(self.model.hidden_size);
        let (layers, embedding) = (self.model.layers, self.run.method == Method::Full || self.run.saves_embedding());
        let batch = self.batch();
        let mut moments = Vec::new();
        // What of a layer's input leaves the device until the layer is computed again.
        let away = if self.run.recompute && self.run.inputs_on_host && !self.cpu() { hidden } else { 0 };
        self.ledger.begin();
        let in_flight = self.run.part.in_flight.max(1);
        for _ in 0..in_flight {
            self.hold(Inputs, hidden);
            for layer in 0..layers {
                match self.run.recompute {
                    true => self.forward(Forward::InputKept, Inputs),
                    false => self.forward(Forward::Graph(layer > 0 || embedding), Graph),
                }
                self.free(Inputs, away);
                self.ends(Stretch::Forward(layer), &mut moments);
            }
            if self.run.part.head {
                self.ledger.release();
                self.ledger.begin();
                self.loss(true);
            } else {
                // The gradient of what goes on to the next device comes back from there.
                self.hold(Backward, hidden);
            }
            if self.run.recompute {
                // The hidden states that the loss was taken on.
                self.free(Inputs, hidden);
            }
            self.ends(Stretch::Loss, &mut moments);
        }
        let (run, model, table) = (self.run, self.model, self.table());
        // Of a gradient what is part of a sum is gone.
        let summed = run.accumulation > 1;
        for _ in 0..in_flight {
            if summed && run.saves_head() {
                self.free(Gradients, table);
            }
            for layer in (0..layers).rev() {
                if self.run.recompute {
                    self.hold(Inputs, away);
                    self.forward(Forward::Graph(layer > 0 || embedding), Graph);
                }
                self.backward(layer > 0 || embedding);
                self.free(Graph, hidden);
                if self.run.recompute {
                    self.free(Inputs, hidden);
                }
                if summed {
                    let of_layer = run.adapted(model).flatten();
                    of_layer.for_each(|elements| self.free(Gradients, product([elements, F32])));
                }
                if layer == 0 && run.saves_embedding() {
                    self.hold(Gradients, table);
                    if summed {
                        self.free(Gradients, table);
                    }
                }
                self.ends(Stretch::Backward(layer), &mut moments);
            }
        }
        for _ in 0..in_flight {
            if embedding || layers == 0 {
                self.free(Backward, hidden);
            }
            if !self.run.recompute {
                self.free(Inputs, hidden);
            }
        }
        self.ledger.take(Component::Batch, batch);
        self.ledger.begin();
        // New values take the place of those of a step before; the moments' arithmetic needs one tensor more, in 8 bits two
        // more for the moments as they are decoded.
        let tensors = self.run.adapted(self.model).flatten().chain(self.run.saved(self.model));
        let largest = tensors.max().unwrap_or(0);
        let each = product([largest, F32]);
        match self.run.optimizer {
            crate::Optimizer::AdamW => self.touch(Component::Work, [each]),
            crate::Optimizer::AdamW8bit => self.touch(Component::Work, [each; 3]),
        }
        self.ends(Stretch::Update, &mut moments);
        moments
    }

    /// A stretch of a step ends, and the next one begins with what is there.
    fn ends(&mut self, stretch: Stretch, moments: &mut Vec<Moment>) {
        moments.push(Moment { stretch, most: self.ledger.most(), left: self.ledger.live() });
        self.ledger.begin();
    }

    /// A held-out loss, without what stays (`train/trainer.rs`).
    fn evaluate(&mut self) -> Parts {
        let hidden = self.wide(self.model.hidden_size);
        self.batch();
        self.hold(Component::Inputs, hidden);
        for _ in 0..self.model.layers {
            self.forward(Forward::Alone, Component::Inputs);
        }
        if self.run.part.head {
            self.ledger.release();
            self.loss(false);
        }
        self.ledger.most()
    }

    /// The adapter on its way into a file: every tensor encoded, and the file put together from them (`files/peft.rs`).
    fn save(&mut self) -> Parts {
        if self.run.method == Method::Full {
            return self.ledger.most();
        }
        let bytes = product([self.run.trained(self.model), F32]);
        self.hold(Component::File, bytes);
        self.hold(Component::File, bytes);
        self.ledger.most()
    }

    /// Loading, one tensor after another (`model/load.rs`, `nf4/quantize.rs`, `ops/weight.rs`): a GPU takes it in its file's type, a CPU reads
    /// it where the file is mapped; both quantize it from there, the scales on the host.
    fn load(&mut self) -> Parts {
        let (model, run) = (self.model, self.run);
        let parts = [product([model.vocab_size, model.hidden_size]), model.hidden_size];
        // As it is in the file, or widened, and rounded again.
        let read = match run.weight_bytes {
            bytes if bytes == run.file_bytes => bytes,
            F32 => F32,
            bytes => F32 + bytes,
        };
        let dense = |walk: &mut Self, elements: u64, place: Component| {
            walk.touch(Component::File, [product([elements, read])]);
            walk.hold(place, product([elements, run.weight_bytes]));
        };
        if run.part.embedding {
            dense(self, parts[0], Component::Other);
        }
        for _ in 0..model.layers {
            for linear in self.linears {
                let elements = linear.elements();
                if run.method != Method::Qlora {
                    dense(self, elements, Component::Base);
                    continue;
                }
                let blocks = product([elements.div_ceil(run.block_size.max(1)), F32]);
                let [codes, scales, header] = nf4_buffers(elements, run);
                let uploaded = if matches!(run.device, Device::Gpu) { product([elements, run.file_bytes]) } else { 0 };
                self.hold_all(Component::File, &[uploaded, codes, blocks]);
                self.free(Component::File, uploaded);
                // Read back, their mean subtracted, and quantized.
                self.hold(Component::File, blocks);
                self.touch(Component::File, if run.double_quant { [blocks, scales] } else { [0, 0] });
                self.free_all(Component::File, &[codes, blocks, blocks]);
                self.hold_all(Component::Base, &[codes, scales, header]);
            }
        }
        // What is trained of the tables is parted from them later.
        let head = run.part.head && !(model.tied && run.part.embedding);
        let others = model.small_elements().saturating_add(if head { parts[0] } else { 0 });
        self.hold(Component::Other, product([others, run.weight_bytes]));
        if head && !model.tied {
            let beyond = product([parts[0], read]).saturating_sub(product([parts[0], run.weight_bytes]));
            self.touch(Component::File, [beyond]);
        }
        self.ledger.most()
    }

    /// An adapter merged into its base and written in 16 bits, one weight at a time, shards of 4 GiB being put together in
    /// memory as `halfbyte quantize` does.
    fn merge(&mut self) -> Parts {
        let model = self.model;
        self.hold(Component::Adapters, product([self.run.trained(model), F32]));
        let largest = self.linears.iter().map(crate::LinearShape::elements).max().unwrap_or(0);
        let table = product([model.vocab_size, model.hidden_size]);
        self.hold(Component::File, SHARD.min(product([2, model.parameters()])));
        // The weight, the adapter's product, and the sum in 16 bits; an embedding is copied as it is.
        self.touch(Component::Decoded, [product([largest, F32 + F32 + 2]).max(product([2, table]))]);
        self.ledger.most()
    }
}

/// A training step, stretch by stretch.
pub(crate) fn step(model: &ModelShape, run: &Run) -> Vec<Moment> {
    Walk::new(model, run).step(&persistent(model, run))
}

/// What the phases of a step hold at their most, on top of what stays.
fn step_phases(model: &ModelShape, run: &Run, persistent: &Parts) -> impl Iterator<Item = (Phase, Parts)> {
    let moments = Walk::new(model, run).step(persistent);
    [Phase::Layers, Phase::Loss, Phase::Update].into_iter().map(move |phase| {
        let of_phase = |moment: &&Moment| match moment.stretch {
            Stretch::Forward(_) | Stretch::Backward(_) => phase == Phase::Layers,
            Stretch::Loss => phase == Phase::Loss,
            Stretch::Update => phase == Phase::Update,
        };
        let live = |moment: &&Moment| moment.peak() - moment.most[Component::Kept as usize];
        let most = moments.iter().filter(of_phase).max_by_key(live);
        let mut parts: Parts =
            core::array::from_fn(|i| most.map_or(0, |moment| moment.most[i]).saturating_sub(persistent[i]));
        // What is kept grows until a phase ends, and what is held sinks from layer to layer.
        let taken = moments.iter().filter(of_phase).map(Moment::peak).max();
        parts[Component::Kept as usize] = taken.zip(most.as_ref().map(live)).map_or(0, |(taken, live)| taken - live);
        (phase, parts)
    })
}

/// The most of every phase; [`Phase::Load`] and [`Phase::Merge`] hold all there is, the others what comes on top of
/// [`persistent`].
pub(crate) fn phases(model: &ModelShape, run: &Run, persistent: &Parts) -> Vec<(Phase, Parts)> {
    let mut phases = vec![(Phase::Load, Walk::of_files(model, run).load())];
    phases.extend(step_phases(model, run, persistent));
    // Nothing is dropped out where nothing is trained.
    let still = Run { dropout: false, ..run.clone() };
    phases.push((Phase::Evaluate, Walk::new(model, &still).evaluate()));
    phases.push((Phase::Save, Walk::of_files(model, run).save()));
    if run.method != Method::Full {
        phases.push((Phase::Merge, Walk::of_files(model, run).merge()));
    }
    phases
}
