//! Optimizers on any backend against torch and bitsandbytes: the fixture's parameters, their formulas, and the comparisons.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use halfbyte::files::read;
use halfbyte::nf4::{dynamic_map, unsigned_dynamic_map};
use halfbyte::ops::Ops;
use halfbyte::optim::{
    AdamWConfig, DeviceBudget, Gradients, Optim, Optimizer, OptimizerConfig, StateTensor, clip_factor,
};
use pollster::block_on;

use crate::{Expected, assert_close, golden};

/// Steps of the fixture.
pub const STEPS: usize = 20;
/// Its parameters, in the order that salts their gradients.
pub const SHAPES: [(&str, [usize; 2]); 4] = [
    ("big.lora_A.weight", [96, 50]),
    ("whole.lora_B.weight", [64, 128]),
    ("small.lora_A.weight", [9, 31]),
    ("model.norm.weight", [1, 40]),
];

/// Parameters or their values by path.
pub type Values<B> = BTreeMap<String, Tensor<B, 2>>;

fn random(count: usize, salt: u64) -> impl Iterator<Item = f64> {
    let number = move |i| (i * 2_654_435_761 + salt * 2_246_822_519) % (1 << 32);
    (0..count as u64).map(move |i| number(i) as f64 / 4_294_967_296.0)
}

fn tensor<B: Ops>(values: Vec<f32>, shape: [usize; 2], device: &B::Device) -> Tensor<B, 2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The fixture's initial values.
pub fn initial<B: Ops>(device: &B::Device) -> Values<B> {
    let value = |(path, shape): &(&str, [usize; 2])| {
        let values = random(shape[0] * shape[1], 99).map(|x| x as f32).collect();
        (path.to_string(), tensor(values, *shape, device))
    };
    SHAPES.iter().map(value).collect()
}

/// The fixture's gradients of a step, counted from 0.
pub fn gradients<B: Ops>(step: usize, device: &B::Device) -> Gradients<B> {
    let gradient = |(k, (path, shape)): (usize, &(&str, [usize; 2]))| {
        let values = random(shape[0] * shape[1], (10 * step + k) as u64).enumerate();
        let scaled = values.map(|(i, x)| match i {
            256..512 => 0.0,
            512..768 => (x - 0.5) * 2f64.powi(-(i as i32 % 16) - 66),
            _ => (x - 0.5) * 2f64.powi(-(i as i32 % 16)),
        });
        (path.to_string(), tensor(scaled.map(|x| x as f32).collect(), *shape, device))
    };
    SHAPES.iter().enumerate().map(gradient).collect()
}

/// The fixture's learning rate of a step, counted from 0.
pub fn rate(step: usize) -> f64 {
    1e-3 * (1 + step % 5) as f64
}

/// An optimizer for the fixture's parameters.
pub fn optimizer<B: Ops>(optim: Optim, budget: Option<u64>, device: &B::Device) -> Optimizer<B> {
    let config = OptimizerConfig {
        optim,
        adamw: AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() },
        device_budget: DeviceBudget(budget),
        ..OptimizerConfig::default()
    };
    let shapes = SHAPES.iter().map(|(path, shape)| (path.to_string(), *shape)).collect();
    Optimizer::new(config, shapes, device)
}

/// Runs steps of the fixture from `range`.
pub fn run<B: Ops>(
    optimizer: &mut Optimizer<B>,
    mut values: Values<B>,
    range: std::ops::Range<usize>,
    device: &B::Device,
) -> Values<B> {
    for step in range {
        values = block_on(optimizer.step(values, gradients(step, device), rate(step))).expect("a step");
    }
    values
}

/// All values on the host.
pub fn host<B: Ops>(values: &Values<B>) -> BTreeMap<String, Vec<f32>> {
    values.iter().map(|(path, value)| (path.clone(), crate::reference::values(value.clone()))).collect()
}

/// A saved tensor's f32 values.
pub fn floats(tensor: &StateTensor) -> Vec<f32> {
    tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// What the reference computed.
pub fn expected() -> Expected {
    Expected::open(&golden("optim/cases.safetensors"))
}

/// Values and moments of `adamw` after twenty steps, to 1e-6.
pub fn adamw_is_torchs<B: Ops>(device: &B::Device) {
    let expected = expected();
    let mut optimizer = optimizer::<B>(Optim::AdamW, None, device);
    let values = host(&run(&mut optimizer, initial(device), 0..STEPS, device));
    let state = block_on(optimizer.state()).expect("a state");
    for (path, _) in SHAPES {
        let key = |part: &str| format!("adamw.{STEPS}.{path}.{part}");
        assert_close(path, &values[path], &expected.floats(&key("value")), 1e-6);
        for moment in ["exp_avg", "exp_avg_sq"] {
            let name = format!("{path}.{moment}");
            assert_close(&name, &floats(&state[&name]), &expected.floats(&key(moment)), 1e-6);
        }
    }
}

/// The state of `adamw_8bit` after 1, 7 and 20 steps against bitsandbytes': every bit where `exact`, and else a few codes
/// may be neighbours, because devices differ in whether they round between a product and a sum. The values, to 1e-6 or,
/// where not exact, 1e-5.
pub fn eight_bit_is_bitsandbytes<B: Ops>(exact: bool, device: &B::Device) {
    let expected = expected();
    let mut optimizer = optimizer::<B>(Optim::AdamW8bit, None, device);
    let (mut values, mut done, mut compared) = (initial(device), 0, 0);
    for step in [1, 7, STEPS] {
        values = run(&mut optimizer, values, done..step, device);
        done = step;
        let state = block_on(optimizer.state()).expect("a state");
        for (path, shape) in SHAPES {
            let key = |part: &str| format!("adamw_8bit.{step}.{path}.{part}");
            if shape[0] * shape[1] < 4096 {
                assert_eq!(state[&format!("{path}.exp_avg")].dtype, safetensors::Dtype::F32, "{path} is small");
                continue;
            }
            for (moment, levels) in [("exp_avg", dynamic_map()), ("exp_avg_sq", unsigned_dynamic_map())] {
                let (codes, absmax) = (&state[&format!("{path}.{moment}")], &state[&format!("{path}.{moment}.absmax")]);
                assert_eq!((codes.dtype, codes.shape.as_slice()), (safetensors::Dtype::U8, &shape[..]));
                let (of_codes, of_absmax) =
                    (expected.bytes(&key(moment)), expected.floats(&key(&format!("{moment}.absmax"))));
                compared += codes.bytes.len();
                if exact {
                    assert!(codes.bytes == of_codes, "{}: codes", key(moment));
                    assert_eq!(floats(absmax), of_absmax, "{}: scales", key(moment));
                    continue;
                }
                let differing = codes.bytes.iter().zip(&of_codes).filter(|(a, b)| a != b).count();
                // The block of squares that are denormal is flushed where a device does so.
                let allowed = codes.bytes.len() / 50 + 256;
                assert!(differing <= allowed, "{}: {differing} codes differ", key(moment));
                let decode = |codes: &[u8], absmax: &[f32]| -> Vec<f32> {
                    codes.iter().enumerate().map(|(i, code)| levels[usize::from(*code)] * absmax[i / 256]).collect()
                };
                assert_close(
                    &key(moment),
                    &decode(&codes.bytes, &floats(absmax)),
                    &decode(&of_codes, &of_absmax),
                    1e-3,
                );
            }
        }
    }
    assert_eq!(compared, 3 * 2 * (96 * 50 + 64 * 128), "every code of two parameters, three times");
    let values = host(&values);
    for (path, _) in SHAPES {
        let value = expected.floats(&format!("adamw_8bit.{STEPS}.{path}.value"));
        assert_close(path, &values[path], &value, if exact { 1e-6 } else { 1e-5 });
    }
}

/// Values and saved state are the same bits whatever the budget; the budget holds; what was moved is counted.
pub fn paging_changes_no_bit<B: Ops>(device: &B::Device) {
    for (plain, paged) in [(Optim::AdamW, Optim::PagedAdamW32bit), (Optim::AdamW8bit, Optim::PagedAdamW8bit)] {
        let mut whole = optimizer::<B>(plain, None, device);
        let mut unpaged = initial(device);
        for step in 0..7 {
            unpaged = run(&mut whole, unpaged, step..step + 1, device);
        }
        let state = block_on(whole.state()).expect("a state");
        assert!(whole.paging().is_none());
        let all = whole.device_bytes();
        // None of it, more than the largest page, all, no limit.
        for budget in [Some(0), Some(all * 2 / 3), Some(all), None] {
            let mut optimizer = optimizer::<B>(paged, budget, device);
            let mut values = initial(device);
            for step in 0..7 {
                values = run(&mut optimizer, values, step..step + 1, device);
                let held = optimizer.device_bytes();
                assert!(held <= budget.unwrap_or(all), "{held} bytes on the device, allowed are {budget:?}");
            }
            assert_eq!(host(&values), host(&unpaged), "{paged:?} {budget:?}");
            assert_eq!(block_on(optimizer.state()).expect("a state"), state, "{paged:?} {budget:?}");
            let report = optimizer.paging().expect("a paged optimizer reports");
            assert_eq!((report.pages, report.bytes, report.budget), (4, all, budget));
            match budget {
                Some(0) => {
                    assert_eq!((report.spilled.pages, report.fetched.pages), (4 * 7, 4 * 6));
                    assert_eq!((report.spilled.bytes, report.fetched.bytes), (7 * all, 6 * all));
                    assert!(report.peak_device_bytes < all, "one page at a time");
                }
                Some(budget) if budget < all => {
                    assert!(report.peak_device_bytes <= budget);
                    // Back and forth, what was used last is used first: less is moved than everything in every step.
                    assert!((1..4 * 6 / 2 + 1).contains(&report.fetched.pages), "{report}");
                }
                _ => assert_eq!((report.spilled.pages, report.peak_device_bytes), (0, all)),
            }
        }
    }
}

/// A step whose factor proves to be 0 leaves parameters, state and what was spare to the bit as they were, and what follows it is as if it
/// had not been; another factor is one of the gradients.
pub fn withheld_steps_change_no_bit<B: Ops>(device: &B::Device) {
    for (optim, budget) in [
        (Optim::AdamW, None),
        (Optim::AdamW8bit, None),
        (Optim::PagedAdamW32bit, Some(20_000)),
        (Optim::PagedAdamW8bit, Some(20_000)),
    ] {
        let factor = |value: f32| Tensor::<B, 1>::from_data([value], device);
        let mut withheld = optimizer::<B>(optim, budget, device);
        let mut straight = optimizer::<B>(optim, budget, device);
        let (mut before, mut values) = (initial::<B>(device), run(&mut withheld, initial(device), 0..1, device));
        let mut expected = run(&mut straight, initial(device), 0..1, device);
        for step in 1..5 {
            let state = block_on(withheld.state()).expect("a state");
            let mut spare = host(&before);
            // Gradients that would leave their mark; once not of all, after a step that had some.
            let mut bad = gradients::<B>(step, device);
            if step == 3 {
                bad.remove(SHAPES[0].0);
                spare.remove(SHAPES[0].0);
            }
            let bad = bad.into_iter().map(|(path, gradient)| (path, gradient * f32::NAN));
            let after = withheld.step_into(before, values.clone(), bad.collect(), factor(0.0), rate(step));
            before = block_on(after).expect("a step");
            withheld.conclude(false);
            assert_eq!(host(&before), spare, "{optim:?}: what was spare");
            assert_eq!((withheld.steps(), &block_on(withheld.state()).expect("a state")), (step, &state), "{optim:?}");
            let after = withheld.step_into(before, values.clone(), gradients(step, device), factor(0.5), rate(step));
            (before, values) = (values, block_on(after).expect("a step"));
            withheld.conclude(true);
            let halves = gradients::<B>(step, device).into_iter().map(|(path, gradient)| (path, gradient * 0.5));
            expected = block_on(straight.step(expected, halves.collect(), rate(step))).expect("a step");
            assert_eq!(host(&values), host(&expected), "{optim:?}");
        }
        let [withheld, straight] = [withheld, straight].map(|optimizer| block_on(optimizer.state()).expect("a state"));
        assert_eq!(withheld, straight, "{optim:?}");
    }
}

/// Parameters of all sizes that are moved together, some faster than others, end at the bits of each moved alone; and the squares of them all
/// have the right sum. Some have as few columns as `fewest`.
pub fn many_at_once_are_each_alone<B: Ops>(device: &B::Device, fewest: usize) {
    const MANY: usize = 70;
    let shape = |k: usize| [1 + k % 7, [fewest, 3, 64, 50, 129, 700][k % 6]];
    let path = |k: usize| format!("{k}.lora_{}.weight", if k.is_multiple_of(3) { "B" } else { "A" });
    let of = |k: usize, salt: u64| {
        let count = shape(k)[0] * shape(k)[1];
        tensor::<B>(random(count, salt + k as u64).map(|x| x as f32 - 0.5).collect(), shape(k), device)
    };
    let moved = |some: Vec<usize>| {
        let values = |salt| -> Values<B> { some.iter().map(|k| (path(*k), of(*k, salt))).collect() };
        let config = OptimizerConfig {
            adamw: AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() },
            loraplus_lr_ratio: 4.0,
            ..OptimizerConfig::default()
        };
        let mut optimizer = Optimizer::new(config, some.iter().map(|k| (path(*k), shape(*k))).collect(), device);
        let step =
            |after, step: u64| block_on(optimizer.step(after, values(100 * (1 + step)), rate(1))).expect("a step");
        let after = host(&(0..3).fold(values(0), step));
        (after, block_on(optimizer.state()).expect("a state"))
    };
    let (values, state) = moved((0..MANY).collect());
    for k in 0..MANY {
        let (alone, of_alone) = moved(vec![k]);
        assert_eq!(alone[&path(k)], values[&path(k)], "{} of {:?}", path(k), shape(k));
        assert!(of_alone.iter().all(|(name, moment)| state[name] == *moment), "{}", path(k));
    }
    assert_eq!((values.len(), state.len()), (MANY, 2 * MANY));

    let all: Vec<Tensor<B, 2>> = (0..MANY).map(|k| of(k, 7)).collect();
    let squares: f64 = all.iter().flat_map(|x| crate::reference::values(x.clone())).map(|x| f64::from(x).powi(2)).sum();
    let sum = B::sum_of_squares(all.into_iter().map(|x| x.into_primitive().tensor()).collect());
    let sum = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(sum));
    assert_close("the squares", &block_on(read(sum)).expect("a sum"), &[squares as f32], 1e-6);
}

/// Factors of gradients against `torch.nn.utils.clip_grad_norm_`'s formula, and 0 where a step is not to be applied.
pub fn factors_are_zero_for_no_numbers<B: Ops>(device: &B::Device) {
    let number = |value: f32| Tensor::<B, 1>::from_data([value], device);
    let factor = |loss, norm, max| block_on(read(clip_factor(number(loss), number(norm), max))).expect("a factor")[0];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for max in [0.0, 1.0] {
            assert_eq!((factor(bad, 0.5, max), factor(0.5, bad, max)), (0.0, 0.0), "{bad} {max}");
        }
    }
    for (norm, max) in [(0.0, 1.0), (0.5, 1.0), (3.0, 1.0), (3.0, 0.25), (1e30, 1.0)] {
        let expected = (max / (f64::from(norm) + 1e-6)).min(1.0);
        assert_close("a factor", &[factor(2.0, norm, max)], &[expected as f32], 1e-6);
    }
    assert_eq!((factor(f32::MAX, 1e30, 0.0), factor(-f32::MAX, 0.0, 0.0)), (1.0, 1.0));
    assert!(factor(2.0, f32::MAX, 1e-3) > 0.0, "small as it is, the step is applied");
}
