//! Trainers that are ranks of one run, as threads: the same steps as one trainer, and the same state on each.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread::scope;

use halfbyte::data::{Dataset, Example};
use halfbyte::lora::{LoraConfig, attach};
use halfbyte::ops::Ops;
use halfbyte::optim::Optim;
use halfbyte::parallel::{Group, Identity, Member, Timing};
use halfbyte::train::{Trainer, TrainerConfig};
use pollster::block_on;

use crate::reference::{NF4, expected, model, tokens};

const MODEL: &str = "llama-untied";
const ROW: usize = 24;

fn data() -> Dataset {
    let expected = expected(MODEL);
    let (ids, labels) = (expected.integers("curve_input_ids"), expected.integers("curve_labels"));
    // 15 rows are 8 micro-batches of 2, the last of them a row short.
    let rows = ids.chunks(ROW).zip(labels.chunks(ROW)).take(15);
    let examples = rows.enumerate().map(|(i, (ids, labels))| Example {
        tokens: tokens(&ids[..ROW - i]),
        trained: labels.iter().take(ROW - i).map(|label| *label != -100).collect(),
    });
    Dataset { examples: examples.collect(), ..Dataset::default() }
}

/// A step of so many micro-batches, of all ranks together.
pub fn config(micro_batches: usize, world_size: usize) -> TrainerConfig {
    TrainerConfig {
        epochs: 3,
        batch_size: 2,
        gradient_accumulation_steps: micro_batches / world_size,
        learning_rate: 5e-3,
        neftune_noise_alpha: 5.0,
        optim: Optim::AdamW8bit,
        ..TrainerConfig::default()
    }
}

/// A trainer on a device, as the rank that `group` says.
pub fn trainer<B: Ops>(config: TrainerConfig, group: Option<Group>, device: &B::Device) -> Trainer<B> {
    let mut model = model::<B>(MODEL, NF4, device);
    let modules_to_save = vec!["lm_head".to_string()];
    let lora = LoraConfig { r: 4, lora_dropout: 0.2, modules_to_save, ..LoraConfig::default() };
    attach(&mut model, &lora, 7).expect("an adapter");
    let trainer = match group {
        Some(group) => Trainer::parallel(model, data(), config, 7, Arc::new(group)),
        None => Trainer::new(model, data(), config, 7),
    };
    trainer.expect("a trainer")
}

/// Does `work` on each rank, in a thread of its own; the results in their order.
pub fn ranks<T: Send>(world_size: usize, work: impl Fn(Option<Group>) -> T + Sync) -> Vec<T> {
    if world_size == 1 {
        return vec![work(None)];
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (identity, timing) = (Identity { job: [0; 32], parts: vec![] }, Timing::default());
    scope(|threads| {
        let start = |rank| {
            let (listener, address, identity, timing, work) = (&listener, &address, &identity, &timing, &work);
            threads.spawn(move || {
                let group = match rank {
                    0 => Group::lead(listener, world_size, identity, timing, &mut |_| {}),
                    rank => {
                        let find = &mut || Some(address.clone());
                        Group::follow(Member { rank, world_size }, find, identity, timing, &mut |_| {})
                    }
                };
                work(Some(group.expect("a group")))
            })
        };
        let threads: Vec<_> = (0..world_size).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}

/// What a rank knows at the end: the first evaluation, losses, gradient norms, and the optimizer's state.
type Known = (f64, Vec<f64>, Vec<f64>, Vec<(String, Vec<u8>)>);

fn run<B: Ops>(world_size: usize, device: &B::Device) -> Vec<Known> {
    ranks(world_size, |group| {
        let mut trainer = trainer::<B>(config(4, world_size), group, device);
        let evaluation = block_on(trainer.evaluate(&data())).expect("an evaluation");
        let (mut losses, mut norms) = (vec![], vec![]);
        while let Some(metrics) = block_on(trainer.step()).expect("a step") {
            losses.push(metrics.loss);
            norms.push(metrics.grad_norm);
        }
        block_on(trainer.agree()).expect("the same adapter");
        let state = block_on(trainer.optimizer_state()).expect("a state");
        (evaluation.loss, losses, norms, state.into_iter().map(|(name, tensor)| (name, tensor.bytes)).collect())
    })
}

/// So many ranks make the steps of one trainer, and hold the same state as each other, to the bit.
pub fn ranks_make_the_steps_of_one<B: Ops>(world_sizes: &[usize], device: &B::Device) {
    let one = run::<B>(1, device).remove(0);
    assert_eq!(one.1.len(), 6);
    for &world_size in world_sizes {
        let found = run::<B>(world_size, device);
        assert!(found.iter().all(|rank| *rank == found[0]), "ranks of {world_size} know different things");
        let (evaluation, losses, norms, _) = &found[0];
        assert_eq!(evaluation.to_bits(), one.0.to_bits(), "an evaluation is the same sums in the same order");
        for (what, found, expected) in [("loss", losses, &one.1), ("norm", norms, &one.2)] {
            let apart = found.iter().zip(expected).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
            println!("{world_size} ranks: {what} differs by {apart:.1e} at most");
            assert!(found.len() == expected.len() && apart < 1e-5, "{what}: {found:?}, expected {expected:?}");
        }
    }
}
