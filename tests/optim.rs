//! Optimizers, schedules and what differs between parameters, against torch, bitsandbytes, transformers and PEFT.

use std::collections::BTreeMap;
use std::path::Path;

use burn_autodiff::Autodiff;
use halfbyte::backends::Cpu;
use halfbyte::data::{Batch, Dataset};
use halfbyte::nf4::unsigned_dynamic_map;
use halfbyte::optim::{
    AdamWConfig, DeviceBudget, Gradients, Optim, Optimizer, OptimizerConfig, is_decayed, is_loraplus,
};
use halfbyte::train::{Optimization, Recipe, Schedule, Trainer, TrainerConfig, parse_recipe};
use halfbyte_tests::optimizers::{
    SHAPES, Values, adamw_is_torchs, eight_bit_is_bitsandbytes, expected, factors_are_zero_for_no_numbers, gradients,
    host, initial, many_at_once_are_each_alone, optimizer, paging_changes_no_bit, rate, run,
    withheld_steps_change_no_bit,
};
use halfbyte_tests::reference::{expected as of_model, golden_batch, values, with_adapter};
use halfbyte_tests::{assert_close, golden};
use pollster::block_on;
use serde_json::Value;

/// The CPU with every operation in its composed form, the one that GPUs run.
type Composed = Autodiff<Cpu>;

fn cases() -> Value {
    serde_json::from_slice(&std::fs::read(golden("optim/cases.json")).expect("a fixture")).expect("JSON")
}

#[test]
fn adamw_is_torchs_for_twenty_steps() {
    adamw_is_torchs::<Cpu>(&Default::default());
    adamw_is_torchs::<Composed>(&Default::default());
}

#[test]
fn the_8_bit_state_is_that_of_bitsandbytes_bit_for_bit() {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(unsigned_dynamic_map()), bits(&expected().floats("unsigned_dynamic_map")));
    eight_bit_is_bitsandbytes::<Cpu>(true, &Default::default());
}

#[test]
fn the_composed_8_bit_state_is_nearly_so() {
    eight_bit_is_bitsandbytes::<Composed>(false, &Default::default());
}

#[test]
fn paging_changes_no_bit_and_keeps_to_its_budget() {
    paging_changes_no_bit::<Cpu>(&Default::default());
    paging_changes_no_bit::<Composed>(&Default::default());
}

#[test]
fn withheld_steps_change_no_bit_of_parameters_and_state() {
    withheld_steps_change_no_bit::<Cpu>(&Default::default());
    withheld_steps_change_no_bit::<Composed>(&Default::default());
}

#[test]
fn factors_are_zero_for_what_is_no_number() {
    factors_are_zero_for_no_numbers::<Cpu>(&Default::default());
}

#[test]
fn many_parameters_at_once_are_each_alone() {
    many_at_once_are_each_alone::<Cpu>(&Default::default(), 0);
}

#[test]
fn the_state_takes_the_bytes_that_it_should() {
    let shape = [1024usize, 1024];
    for (optim, bytes) in [(Optim::AdamW, 8.0), (Optim::AdamW8bit, 2.0 * (1.0 + 4.0 / 256.0))] {
        let config = OptimizerConfig { optim, ..OptimizerConfig::default() };
        let shapes = BTreeMap::from([("x".to_string(), shape), ("model.embed_tokens.weight".to_string(), shape)]);
        let mut optimizer = Optimizer::<Cpu>::new(config, shapes, &Default::default());
        let one = |path: &str| {
            let zeros = burn::tensor::Tensor::<Cpu, 2>::zeros(shape, &Default::default());
            BTreeMap::from([(path.to_string(), zeros)])
        };
        block_on(optimizer.step(one("x"), one("x"), 1.0)).expect("a step");
        assert_eq!(optimizer.device_bytes() as f64 / (1 << 20) as f64, bytes, "{optim:?}");
        let embedding = "model.embed_tokens.weight";
        block_on(optimizer.step(one(embedding), one(embedding), 1.0)).expect("a step");
        assert_eq!(optimizer.device_bytes() as f64 / (1 << 20) as f64, bytes + 8.0, "an embedding keeps f32 moments");
    }
}

#[test]
fn a_run_that_goes_on_from_saved_state_is_the_same_bit_for_bit() {
    let device = Default::default();
    for (before, after) in [
        (Optim::AdamW, Optim::PagedAdamW32bit),
        (Optim::AdamW8bit, Optim::AdamW8bit),
        (Optim::PagedAdamW8bit, Optim::AdamW8bit),
    ] {
        let budget = |optim: Optim| optim.is_paged().then_some(20_000);
        let mut whole = optimizer::<Cpu>(before, budget(before), &device);
        let middle = run(&mut whole, initial(&device), 0..5, &device);
        let saved = block_on(whole.state()).expect("a state");
        assert_eq!(block_on(whole.state()).expect("a state"), saved, "saving changes nothing");
        let end = run(&mut whole, middle.clone(), 5..9, &device);
        let mut second = optimizer::<Cpu>(after, budget(after), &device);
        second.restore(5, saved.clone()).expect("it fits");
        assert_eq!((second.steps(), &block_on(second.state()).expect("a state")), (5, &saved));
        let again = run(&mut second, middle, 5..9, &device);
        assert_eq!(host(&again), host(&end), "{before:?}, then {after:?}");
        assert_eq!(block_on(second.state()).expect("a state"), block_on(whole.state()).expect("a state"));
        assert!(again["big.lora_A.weight"].dims() == [96, 50] && second.steps() == 9);
    }
}

#[test]
fn state_of_another_run_is_refused_and_changes_nothing() {
    let device = Default::default();
    let mut ours = optimizer::<Cpu>(Optim::AdamW8bit, None, &device);
    run(&mut ours, initial(&device), 0..3, &device);
    let state = block_on(ours.state()).expect("a state");
    let mut refused = |what: &str, change: &dyn Fn(&mut BTreeMap<String, halfbyte::optim::StateTensor>)| {
        let mut changed = state.clone();
        change(&mut changed);
        let message = ours.restore(9, changed).expect_err(what).to_string();
        assert!(message.contains(what) && message.contains("resume with"), "{message}");
        assert_eq!((ours.steps(), &block_on(ours.state()).expect("a state")), (3, &state), "{what}");
    };
    refused("`big.lora_A.weight.exp_avg.absmax` is missing", &|s| {
        s.remove("big.lora_A.weight.exp_avg.absmax");
    });
    refused("`other.exp_avg` belongs to nothing", &|s| {
        s.insert("other.exp_avg".into(), s["small.lora_A.weight.exp_avg"].clone());
    });
    refused("`small.lora_A.weight.exp_avg_sq` is F32 [31, 9], but this run keeps F32 [9, 31]", &|s| {
        s.get_mut("small.lora_A.weight.exp_avg_sq").expect("it is there").shape = vec![31, 9];
    });
    refused("holds 3 bytes, not the 4800", &|s| {
        s.get_mut("big.lora_A.weight.exp_avg").expect("it is there").bytes.truncate(3);
    });
    for number in [f32::NAN, -1.0] {
        refused("`big.lora_A.weight.exp_avg_sq.absmax` holds a value", &|s| {
            let absmax = s.get_mut("big.lora_A.weight.exp_avg_sq.absmax").expect("it is there");
            absmax.bytes[..4].copy_from_slice(&number.to_le_bytes());
        });
    }
    let mut in_f32 = optimizer::<Cpu>(Optim::AdamW, None, &device);
    let message = in_f32.restore(3, state.clone()).expect_err("codes are no f32").to_string();
    assert!(message.contains("is U8 [96, 50], but this run keeps F32 [96, 50]"), "{message}");
    assert!(message.contains("training.optim"), "{message}");
    assert!(in_f32.restore(usize::MAX, state.clone()).is_err());
}

#[test]
fn a_step_that_is_taken_back_leaves_nothing() {
    let device = Default::default();
    for (optim, budget) in [(Optim::AdamW, None), (Optim::AdamW8bit, None), (Optim::PagedAdamW8bit, Some(20_000))] {
        let mut optimizer = optimizer::<Cpu>(optim, budget, &device);
        let before = run(&mut optimizer, initial(&device), 0..4, &device);
        let state = block_on(optimizer.state()).expect("a state");
        run(&mut optimizer, before.clone(), 9..10, &device);
        assert_ne!(block_on(optimizer.state()).expect("a state"), state);
        optimizer.undo();
        assert_eq!((optimizer.steps(), &block_on(optimizer.state()).expect("a state")), (4, &state), "{optim:?}");
        let on = run(&mut optimizer, before, 4..8, &device);
        let mut straight = halfbyte_tests::optimizers::optimizer::<Cpu>(optim, budget, &device);
        assert_eq!(host(&on), host(&run(&mut straight, initial(&device), 0..8, &device)), "{optim:?}");
    }
}

#[test]
fn a_parameter_without_a_gradient_waits() {
    let device = Default::default();
    let mut optimizer = optimizer::<Cpu>(Optim::AdamW, None, &device);
    let path = SHAPES[0].0;
    let values = run(&mut optimizer, initial(&device), 0..2, &device);
    let state = block_on(optimizer.state()).expect("a state");
    let only = |of: &Values<Cpu>| Values::from([(path.to_string(), of[path].clone())]);
    let after = block_on(optimizer.step(only(&values), only(&gradients(2, &device)), rate(2))).expect("a step");
    assert_eq!(after.keys().collect::<Vec<_>>(), [path]);
    let changed = block_on(optimizer.state()).expect("a state");
    assert_ne!(changed[&format!("{path}.exp_avg")], state[&format!("{path}.exp_avg")]);
    for (name, tensor) in changed.iter().filter(|(name, _)| !name.starts_with(path)) {
        assert_eq!(tensor, &state[name], "{name}");
    }
    let unknown = Gradients::from([("unknown".to_string(), values[path].clone())]);
    let message = block_on(optimizer.step(unknown.clone(), unknown, 1.0)).expect_err("unknown").to_string();
    assert!(message.contains("`unknown`"), "{message}");
    assert_eq!((optimizer.steps(), block_on(optimizer.state()).expect("a state")), (3, changed));
}

#[test]
fn decay_and_rates_are_grouped_as_transformers_and_peft_do() {
    let cases = cases();
    let decays = cases["decays"].as_object().expect("a table");
    assert!(decays.values().any(|d| d == true) && decays.values().any(|d| d == false) && decays.len() > 20);
    for (path, decayed) in decays {
        assert_eq!(Some(is_decayed(path)), decayed.as_bool(), "{path}");
    }
    let rates = cases["loraplus"].as_object().expect("a table");
    assert!(rates.len() >= 18);
    for (path, rate) in rates {
        assert_eq!(if is_loraplus(path) { 16.0 } else { 1.0 }, rate.as_f64().expect("a rate"), "{path}");
    }
}

#[test]
fn loraplus_raises_the_rate_of_magnitudes() {
    // A vector to PEFT, which raises the rate of every one.
    assert!(is_loraplus("model.layers.0.self_attn.q_proj.lora_magnitude_vector"));
    assert!(!is_loraplus("model.layers.0.self_attn.q_proj.lora_A.weight"));
}

#[test]
fn loraplus_multiplies_the_rate_of_b() {
    let device = Default::default();
    let shapes: BTreeMap<_, _> = SHAPES.iter().map(|(path, shape)| (path.to_string(), *shape)).collect();
    let step = |ratio: f64, rate: f64| {
        let config = OptimizerConfig { loraplus_lr_ratio: ratio, ..OptimizerConfig::default() };
        let mut optimizer = Optimizer::<Cpu>::new(config, shapes.clone(), &device);
        host(&block_on(optimizer.step(initial(&device), gradients(0, &device), rate)).expect("a step"))
    };
    let (plus, low, high) = (step(16.0, 1e-3), step(1.0, 1e-3), step(1.0, 16e-3));
    assert_eq!(plus["whole.lora_B.weight"], high["whole.lora_B.weight"]);
    assert_eq!(plus["big.lora_A.weight"], low["big.lora_A.weight"]);
    assert_ne!(low["whole.lora_B.weight"], high["whole.lora_B.weight"]);
}

#[test]
fn schedules_are_those_of_transformers() {
    let cases = cases();
    let cases = cases["schedules"].as_array().expect("a list");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap_or(0.0);
        let config = TrainerConfig {
            lr_scheduler_type: serde_json::from_value(case["name"].clone()).expect("a known name"),
            learning_rate: 2e-3,
            min_lr: number("min_lr"),
            min_lr_rate: number("min_lr_rate"),
            warmup_ratio: 0.0,
            warmup_steps: number("warmup") as usize,
            ..TrainerConfig::default()
        };
        let schedule = Schedule::new(&config, 50);
        for (step, expected) in case["rates"].as_array().expect("rates").iter().enumerate() {
            // Beyond the planned steps transformers' cosine rises again; no run gets there.
            if step > 50 {
                break;
            }
            let (found, expected) = (schedule.rate(step), expected.as_f64().expect("a rate"));
            assert!((found - expected).abs() < 1e-15, "{} step {step}: {found}, {expected}", case["name"]);
        }
    }
}

#[test]
fn the_keys_are_those_of_transformers_and_mistakes_are_answered() {
    let parse = |text: &str| parse_recipe::<Recipe>(Path::new("r.toml"), &format!("[training]\n{text}"), &[]);
    let optim = |name: &str| parse(&format!("optim = '{name}'")).expect(name).training.optim;
    assert_eq!(optim("adamw_torch"), Optim::AdamW);
    assert_eq!(optim("adamw_bnb_8bit"), Optim::AdamW8bit);
    assert_eq!(optim("paged_adamw_8bit"), Optim::PagedAdamW8bit);
    assert_eq!(optim("paged_adamw"), Optim::PagedAdamW32bit);
    assert!(parse("optim = 'sgd'").expect_err("unknown").to_string().contains("paged_adamw_32bit"));
    for (text, bytes) in [("'512MiB'", 512 << 20), ("'1.5 GB'", 1_500_000_000), ("4096", 4096), ("'4096'", 4096)] {
        let recipe = parse(&format!("optim_device_budget = {text}")).expect(text);
        assert_eq!(recipe.training.optim_device_budget, DeviceBudget(Some(bytes)), "{text}");
        // A recipe is written as it was run.
        let written = toml_of(&recipe);
        assert_eq!(parse_recipe::<Recipe>(Path::new("r.toml"), &written, &[]).expect(text), recipe);
    }
    assert!(parse("optim_device_budget = 'much'").expect_err("no size").to_string().contains("512MiB"));
    let model = || with_adapter::<Cpu>("llama-tied", &Default::default());
    let refused = |text: &str| {
        let config = parse(text).expect(text).training;
        let data = Dataset::default();
        Trainer::new(model(), data, config, 1).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refused("optim_device_budget = '1MiB'").contains("needs `optim` to be paged_adamw_32bit"));
    assert!(refused("min_lr = 1e-5").contains("must be cosine_with_min_lr"));
    assert!(refused("lr_scheduler_type = 'cosine_with_min_lr'").contains("needs it or min_lr_rate"));
    let both = "lr_scheduler_type = 'cosine_with_min_lr'\nmin_lr = 1e-5\nmin_lr_rate = 0.1";
    assert!(refused(both).contains("not both"));
    assert!(refused("neftune_noise_alpha = -1.0").contains("neftune_noise_alpha"));
    assert!(refused("loraplus_lr_ratio = 0.0").contains("loraplus_lr_ratio"));
}

fn toml_of(recipe: &Recipe) -> String {
    let value = serde_json::to_value(recipe).expect("JSON");
    format!("training.optim_device_budget = {}", value["training"]["optim_device_budget"])
}

fn optimization(config: TrainerConfig) -> (Optimization<Cpu>, Batch) {
    let name = "llama-untied";
    let model = with_adapter::<Cpu>(name, &Default::default());
    (Optimization::new(model, config, 7), golden_batch(&of_model(name)))
}

fn adapter(optimization: &Optimization<Cpu>) -> BTreeMap<String, Vec<f32>> {
    let mut found = BTreeMap::new();
    optimization.model.visit(|path, parameter| {
        if parameter.trainable {
            found.insert(path.to_string(), values(parameter.value.clone()));
        }
    });
    found
}

#[test]
fn a_bad_step_is_undone_in_the_model_the_state_and_the_count() {
    let (mut run, batch) = optimization(TrainerConfig::default());
    for _ in 0..2 {
        block_on(run.step(std::slice::from_ref(&batch), 1e-3)).expect("a good step");
    }
    let (weights, state) = (adapter(&run), block_on(run.optimizer.state()).expect("a state"));
    block_on(run.step(std::slice::from_ref(&batch), 1e30)).expect("its own loss is good");
    assert_eq!((run.steps, run.optimizer.steps()), (3, 3));
    let error = block_on(run.step(std::slice::from_ref(&batch), 1e-3)).expect_err("the loss is not finite").to_string();
    assert!(error.contains("step 4: the loss is not finite"), "{error}");
    assert_eq!((run.steps, run.optimizer.steps()), (2, 2));
    assert_eq!(adapter(&run), weights);
    assert_eq!(block_on(run.optimizer.state()).expect("a state"), state);
    // It can go on from there.
    block_on(run.step(&[batch], 1e-3)).expect("a good step");
    assert_eq!((run.steps, run.optimizer.steps()), (3, 3));
}

#[test]
fn noise_on_embeddings_is_there_in_training_only_and_can_be_repeated() {
    let losses = |alpha: f64| {
        let (mut run, batch) = optimization(TrainerConfig { neftune_noise_alpha: alpha, ..TrainerConfig::default() });
        let micro = [batch.clone(), batch];
        let loss = |run: &mut Optimization<Cpu>| block_on(run.step(&micro, 0.0)).expect("a step").0;
        [loss(&mut run), loss(&mut run)]
    };
    let (plain, noisy) = (losses(0.0), losses(5.0));
    assert_eq!(plain[0], plain[1], "at a rate of 0 nothing changes");
    assert!(noisy[0] != plain[0] && noisy[0] != noisy[1], "{noisy:?}");
    assert_eq!(noisy, losses(5.0));
    // Noise of no magnitude is none, and gradients go through it: a step with little noise is nearly the same.
    let step = |alpha: f64| {
        let (mut run, batch) = optimization(TrainerConfig { neftune_noise_alpha: alpha, ..TrainerConfig::default() });
        block_on(run.step(&[batch], 1e-3)).expect("a step").1 as f32
    };
    assert_close("gradient norm", &[step(1e-5)], &[step(0.0)], 1e-4);
    assert!((step(5.0) / step(0.0) - 1.0).abs() > 1e-3);
}

/// Time and memory of a step over 40 million parameters. `cargo test --release -p halfbyte-tests --test optim -- --ignored
/// --nocapture measure`.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let device = Default::default();
    let shapes: BTreeMap<String, [usize; 2]> = (0..160).map(|i| (format!("{i:03}"), [16, 16384])).collect();
    let count = 160.0 * 16.0 * 16384.0;
    let tensors = |scale: f32| -> Values<Cpu> {
        let data =
            |i: usize| (0..16 * 16384).map(|k| ((k * 7919 + i * 31) % 1009) as f32 * scale - 0.5 * scale).collect();
        let one = |i: usize| burn::tensor::TensorData::new::<f32, _>(data(i), [16, 16384]);
        (0..160).map(|i| (format!("{i:03}"), burn::tensor::Tensor::from_data(one(i), &device))).collect()
    };
    let (initial, gradients) = (tensors(1e-3), tensors(1e-5));
    for (name, optim, budget) in [
        ("adamw", Optim::AdamW, None),
        ("adamw_8bit", Optim::AdamW8bit, None),
        ("paged_adamw_32bit, half on the device", Optim::PagedAdamW32bit, Some(4.0 * count)),
        ("paged_adamw_8bit, half on the device", Optim::PagedAdamW8bit, Some(1.015 * count)),
        ("paged_adamw_8bit, none on the device", Optim::PagedAdamW8bit, Some(0.0)),
    ] {
        let config = OptimizerConfig {
            optim,
            adamw: AdamWConfig::default(),
            device_budget: DeviceBudget(budget.map(|b: f64| b as u64)),
            loraplus_lr_ratio: 1.0,
        };
        let mut optimizer = Optimizer::<Cpu>::new(config, shapes.clone(), &device);
        let mut values = initial.clone();
        let mut times = Vec::new();
        for _ in 0..8 {
            let start = std::time::Instant::now();
            values = block_on(optimizer.step(values, gradients.clone(), 1e-3)).expect("a step");
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        // The first has no step before it and allocates.
        times.remove(0);
        times.sort_by(f64::total_cmp);
        let bytes = optimizer.device_bytes() as f64 / count;
        println!("{name}: {:.0} ms a step, {bytes:.3} bytes of state per parameter on the device", times[3]);
        if let Some(paging) = optimizer.paging() {
            println!("  {paging}");
        }
    }
}
