//! A model whose layers lie on several devices is the model that lies on one.

use halfbyte::data::{Dataset, Example};
use halfbyte::generate::{Sampling, generate};
use halfbyte::lora::{LoraConfig, attach};
use halfbyte::model::{Base, DeviceMap, load_mapped};
use halfbyte::ops::{FloatDType, Ops};
use halfbyte::optim::{DeviceBudget, Optim};
use halfbyte::train::{Recompute, Trainer, TrainerConfig};
use pollster::block_on;

use crate::reference::{NF4, expected, tokens, values};
use crate::{assert_close, golden};

const SEED: u64 = 5;

/// Ten micro-batches of two examples a step, more than are under way at a time, of which the last is short.
fn data(name: &str) -> Dataset {
    let expected = expected(name);
    let ids = tokens(&expected.integers("input_ids"));
    let examples = (0..57).map(|i| {
        let length = 5 + 3 * i % 17;
        let tokens: Vec<u32> = ids.iter().cycle().skip(7 * i).take(length).copied().collect();
        Example { trained: (0..length).map(|place| place % 3 > 0).collect(), tokens }
    });
    Dataset { examples: examples.collect(), ..Dataset::default() }
}

/// What is trained and how, by name. The gradients are not clipped: their norm is summed up in another order.
fn cases() -> Vec<(&'static str, &'static str, LoraConfig, TrainerConfig)> {
    let lora = LoraConfig { r: 4, lora_dropout: 0.1, ..LoraConfig::default() };
    let training = TrainerConfig {
        batch_size: 2,
        gradient_accumulation_steps: 10,
        epochs: 2,
        learning_rate: 1e-2,
        max_grad_norm: 0.0,
        ..TrainerConfig::default()
    };
    let with = |modules: &[&str], lora: &LoraConfig| LoraConfig {
        modules_to_save: modules.iter().map(|module| (*module).to_string()).collect(),
        ..lora.clone()
    };
    let paged = TrainerConfig {
        optim: Optim::PagedAdamW8bit,
        optim_device_budget: DeviceBudget(Some(2048)),
        neftune_noise_alpha: 5.0,
        recompute: Recompute::LayersFromHost,
        ..training.clone()
    };
    let kept = TrainerConfig { recompute: Recompute::None, ..training.clone() };
    let upper = LoraConfig { layers_to_transform: vec![1], ..lora.clone() };
    vec![
        ("llama-tied", "a tied head", lora.clone(), training.clone()),
        ("llama-untied", "pages, noise, inputs in host memory", lora.clone(), paged),
        ("gemma2", "windows, graphs that are kept", lora.clone(), kept),
        ("llama-tied", "head and embedding trained", with(&["lm_head", "embed_tokens"], &lora), training.clone()),
        ("llama-tied", "DoRA", LoraConfig { use_dora: true, ..lora.clone() }, training.clone()),
        ("llama-untied", "the upper layer alone", upper, training),
    ]
}

/// A run over two devices, in two stages and in three, is that on the first of them: losses, evaluation, adapter, the optimizer's
/// state and answers, to the bit.
pub fn stages_change_no_bit<B: Ops>(devices: &[B::Device; 2]) {
    for case in cases() {
        stages_agree::<B>(case, devices, 0.0);
    }
}

/// The same to rounding, as where a backend fuses what one device does at a time, in its two most different cases.
pub fn stages_change_next_to_nothing<B: Ops>(devices: &[B::Device; 2]) {
    for (name, what, lora, training) in cases().into_iter().take(2) {
        stages_agree::<B>((name, what, lora, TrainerConfig { epochs: 1, ..training }), devices, 1e-5);
    }
}

fn stages_agree<B: Ops>(
    (name, what, lora, training): (&str, &str, LoraConfig, TrainerConfig),
    [first, second]: &[B::Device; 2],
    tolerance: f64,
) {
    let what = format!("{name}, {what}");
    let close = |part: &str, found: f64, expected: f64| {
        let apart = (found - expected).abs() / expected.abs().max(1e-30);
        assert!(apart <= tolerance, "{what}: {part}: {found} instead of {expected}");
    };
    let trainer = |map: &DeviceMap<B>| {
        let base = Base { tables: Some(FloatDType::BF16), ..NF4.into() };
        let mut model = load_mapped(&golden(name), base, map, &mut |_| {}).expect(name);
        attach(&mut model, &lora, SEED).expect("an adapter");
        Trainer::new(model, data(name), training.clone(), SEED).expect("a trainer")
    };
    let whole = DeviceMap::Whole(first.clone());
    let mut alone = trainer(&whole);
    let layers = alone.model().layers.len();
    let shares = |counts: &[(&B::Device, usize)]| {
        DeviceMap::Shares(counts.iter().map(|(device, count)| ((*device).clone(), *count)).collect())
    };
    let half = shares(&[(first, layers / 2), (second, layers - layers / 2)]);
    let three = shares(&[(second, 1), (first, 0), (second, layers - 1)]);
    let mut spread = [trainer(&half), trainer(&three)];
    assert!(alone.total_steps() > 2, "{what}");
    for step in 0..alone.total_steps() {
        let expected = block_on(alone.step()).expect("a step").expect("a step");
        for (trainer, stages) in spread.iter_mut().zip([2, 3]) {
            let found = block_on(trainer.step()).expect("a step").expect("a step");
            close(&format!("loss of step {step}, {stages} stages"), found.loss, expected.loss);
            // Summed up device by device.
            let apart = (found.grad_norm / expected.grad_norm - 1.0).abs();
            assert!(apart < tolerance.max(1e-6), "{what}: step {step}, {stages} stages, norms apart by {apart:.1e}");
        }
    }
    let evaluation = block_on(alone.evaluate(&data(name))).expect("an evaluation");
    let state = block_on(alone.optimizer_state()).expect("a state");
    let answer = |trainer: &Trainer<B>| {
        let sampling = Sampling { max_new_tokens: 12, ..Sampling::default() };
        let prompt = &data(name).examples[3].tokens;
        let go_on = |_| std::ops::ControlFlow::Continue(());
        block_on(generate(trainer.model(), prompt, &sampling, &[], go_on)).expect("an answer")
    };
    for trainer in &mut spread {
        let found = block_on(trainer.evaluate(&data(name))).expect("an evaluation");
        close("evaluation", found.loss, evaluation.loss);
        assert_eq!(answer(trainer), answer(&alone), "{what}");
        let found = block_on(trainer.optimizer_state()).expect("a state");
        assert!(found.keys().eq(state.keys()), "{what}");
        assert!(tolerance > 0.0 || found == state, "{what}: the optimizer's state");
        let mut parameters = vec![];
        trainer.model().visit(|path, parameter| parameters.push((path.to_string(), parameter.value.clone())));
        let mut parameters = parameters.into_iter();
        alone.model().visit(|path, expected| {
            let (other, found) = parameters.next().expect("as many parameters");
            assert_eq!((other.as_str(), found.dtype()), (path, expected.value.dtype()), "{what}");
            // An optimizer makes much of a gradient that is next to nothing.
            assert_close(
                &format!("{what}: {path}"),
                &values(found),
                &values(expected.value.clone()),
                100.0 * tolerance,
            );
        });
    }
    // What two devices began goes on on one.
    let [of_two, _] = spread;
    let (at, optimizer) = (of_two.state.clone(), block_on(of_two.optimizer_state()).expect("a state"));
    let mut resumed = trainer(&whole);
    resumed.restore(at, optimizer.clone()).expect("the same run");
    assert_eq!(block_on(resumed.optimizer_state()).expect("a state"), optimizer, "{what}");
}
