//! What has to be equal however a step is computed: alone or in a batch, from stored or from recomputed graphs, with
//! adapters on every layer or on some.

use burn::tensor::{FloatDType, TensorData};
use halfbyte::data::Batch;
use halfbyte::files::load_adapter;
use halfbyte::lora::{Dropout, LoraConfig, Targets, attach};
use halfbyte::model::{Base, Table, Transformer, load, save_dense};
use halfbyte::ops::{ComputeDtype, Ops, Product, Variant};
use halfbyte::optim::{Gradients, accumulate};
use halfbyte::train::{Recompute, Step, backpropagate, whole_graph};

use crate::reference::{NF4, expected, golden_batch, model, values, with_adapter};
use crate::{assert_close, golden};

const MODEL: &str = "llama-untied";

/// The golden batch's tokens cut into sequences of differing lengths, the loss on every token that has a next one.
fn ragged(name: &str) -> Vec<Batch> {
    let tokens = golden_batch(&expected(name)).tokens;
    let mut rest = tokens.as_slice();
    let lengths = [7, 1, 24, 2, 13];
    let sequences = lengths.map(|length| {
        let (sequence, after) = rest.split_at(length);
        rest = after;
        let targets = sequence.iter().skip(1).enumerate().map(|(i, token)| (i, *token)).collect();
        Batch { lengths: vec![length], tokens: sequence.to_vec(), targets }
    });
    sequences.into()
}

/// The same sequences as one batch.
fn together(sequences: &[Batch]) -> Batch {
    let mut batch = Batch { lengths: Vec::new(), tokens: Vec::new(), targets: Vec::new() };
    for sequence in sequences {
        let start = batch.tokens.len();
        batch.targets.extend(sequence.targets.iter().map(|(row, token)| (start + row, *token)));
        batch.tokens.extend(&sequence.tokens);
        batch.lengths.extend(&sequence.lengths);
    }
    batch
}

fn assert_same<B: Ops>(what: &str, found: Step<B>, expected: &Step<B>) {
    assert_close(what, &values(found.loss_sum), &values(expected.loss_sum.clone()), 1e-5);
    let paths = |gradients: &Gradients<B>| gradients.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&found.gradients), paths(&expected.gradients), "{what}");
    for (path, gradient) in found.gradients {
        let expected = values(expected.gradients[&path].clone());
        assert_close(&format!("{what}: {path}"), &values(gradient), &expected, 1e-5);
    }
}

/// Sequences of differing lengths in one batch: logits, loss and gradients are those of each alone, through windows too.
pub fn ragged_batches_are_their_sequences<B: Ops>(device: &B::Device) {
    for name in [MODEL, "gemma2"] {
        let model = with_adapter::<B>(name, device);
        let sequences = ragged(name);
        let batch = together(&sequences);
        let alone = |one: &Batch| values(model.logits(&one.tokens, &one.lengths));
        let logits: Vec<f32> = sequences.iter().flat_map(alone).collect();
        let what = format!("ragged {name}");
        assert_close(&what, &values(model.logits(&batch.tokens, &batch.lengths)), &logits, 1e-5);
        let weight = 1.0 / batch.targets.len() as f64;
        let step = |batch: &Batch| backpropagate(&model, batch, weight, 8, Recompute::Layers, None);
        let sum = sequences.iter().filter(|one| !one.targets.is_empty()).map(step).reduce(|mut sum, one| {
            sum.loss_sum = sum.loss_sum + one.loss_sum;
            accumulate(&mut sum.gradients, one.gradients);
            sum
        });
        assert_same(&what, step(&batch), &sum.expect("sequences"));
    }
}

/// A layer that is computed again drops the elements that it dropped before; another step drops others.
pub fn recomputation_drops_the_same_elements<B: Ops>(device: &B::Device) {
    let mut model = model::<B>(MODEL, NF4, device);
    attach(&mut model, &LoraConfig { r: 4, lora_dropout: 0.3, ..Default::default() }, 1).expect("an adapter");
    // The branch starts at zero and would hide what is dropped.
    let model = model.map(|path, parameter| {
        let mut parameter = parameter.clone();
        if path.ends_with("lora_B.weight") {
            parameter.value = parameter.value.ones_like() * 0.05;
        }
        parameter
    });
    let batch = golden_batch(&expected(MODEL));
    let step = |recompute, dropout| backpropagate(&model, &batch, 0.1, 16, recompute, dropout);
    let key = |step| Some(Dropout { seed: 3, step, micro: 1 });
    let stored = step(Recompute::None, key(0));
    assert_same("recomputed", step(Recompute::Layers, key(0)), &stored);
    assert_same("from the host", step(Recompute::LayersFromHost, key(0)), &stored);
    let loss = |step: Step<B>| values(step.loss_sum)[0];
    let [first, other, without] =
        [loss(stored), loss(step(Recompute::Layers, key(1))), loss(step(Recompute::Layers, None))];
    assert!(first != other && first != without && other != without, "{first}, {other}, {without}");
}

/// Products in 16 bits are those in f32 to that type's rounding: logits, loss and every gradient. A type in which a device computes no
/// products is refused by its name.
pub fn products_in_16_bits_are_nearly_the_same<B: Ops>(device: &B::Device) {
    let mut computed = 0;
    for (compute, rounding) in [(ComputeDtype::Bf16, 2e-2), (ComputeDtype::F16, 3e-3)] {
        let tiled = if compute == ComputeDtype::Bf16 { Variant::TiledBf16 } else { Variant::TiledF16 };
        let can = B::nf4_variants(device, [64, 64], 72, Product::Forward).contains(&tiled);
        for name in [MODEL, "gemma2"] {
            let base = Base { compute, ..NF4.into() };
            let mut rounded = match (load::<B>(&golden(name), base, device, &mut |_| {}), can) {
                (Ok(model), true) => model,
                (Err(error), false) => {
                    assert!(error.to_string().contains(&format!("no products in {compute:?}")), "{error}");
                    continue;
                }
                (found, _) => panic!("{compute:?}: {:?}", found.err()),
            };
            load_adapter(&mut rounded, golden(name).join("adapter"), true).expect(name);
            let (exact, batch) = (with_adapter::<B>(name, device), golden_batch(&expected(name)));
            let logits = |model: &Transformer<B>| values(model.logits(&batch.tokens, &batch.lengths));
            let what = format!("{name} in {compute:?}");
            assert_close(&what, &logits(&rounded), &logits(&exact), rounding);
            // Not by chance the same: something was rounded.
            assert_ne!(logits(&rounded), logits(&exact), "{what}");
            let step = |model: &Transformer<B>| backpropagate(model, &batch, 0.1, 16, Recompute::Layers, None);
            let (found, expected) = (step(&rounded), step(&exact));
            assert_close(&what, &values(found.loss_sum), &values(expected.loss_sum), rounding);
            for (path, gradient) in expected.gradients {
                let found = values(found.gradients[&path].clone());
                assert_close(&format!("{what}: {path}"), &found, &values(gradient), 2.0 * rounding);
            }
            computed += 1;
        }
    }
    println!("{computed} models computed in 16 bits");
}

/// Embedding and head in 16 bits give what the same values in f32 give, gradients too, frozen and trained; and so does a token alone, as in
/// decoding.
pub fn tables_in_16_bits_are_their_values<B: Ops>(device: &B::Device) {
    let batch = golden_batch(&expected(MODEL));
    let saved: [&[&str]; 2] = [&[], &["lm_head", "embed_tokens"]];
    for (tables, saved) in [FloatDType::BF16, FloatDType::F16].into_iter().flat_map(|t| saved.map(|saved| (t, saved))) {
        let held = load::<B>(&golden(MODEL), Base { tables: Some(tables), ..NF4.into() }, device, &mut |_| {});
        let mut held = held.expect("a type that every device holds tables in");
        let mut wide: Transformer<B> = model(MODEL, NF4, device);
        for table in [&mut wide.embedding, &mut wide.head.weight] {
            *table = Table::upload(data_of(table).convert_dtype(tables.into()).convert::<f32>(), device);
        }
        assert_ne!(held.embedding.dtype(), wide.embedding.dtype());
        let modules_to_save = saved.iter().map(|name| name.to_string()).collect();
        let lora = LoraConfig { r: 4, modules_to_save, ..Default::default() };
        for model in [&mut held, &mut wide] {
            attach(model, &lora, 1).expect("an adapter");
        }
        let what = format!("{tables:?}, saved {saved:?}");
        let one = |model: &Transformer<B>| values(model.logits(&batch.tokens[..1], &[1]));
        assert_close(&format!("a token, {what}"), &one(&held), &one(&wide), 1e-5);
        let step = |model: &Transformer<B>| backpropagate(model, &batch, 0.1, 16, Recompute::Layers, None);
        assert_same(&what, step(&held), &step(&wide));
    }
}

/// Tables in parts, as a device has them that holds none so large in one, give what they give whole, and are written as one.
pub fn tables_in_parts_are_the_whole<B: Ops>(device: &B::Device) {
    for (name, tables) in [(MODEL, FloatDType::BF16), (MODEL, FloatDType::F32), ("llama-tied", FloatDType::BF16)] {
        let batch = golden_batch(&expected(name));
        let whole = load::<B>(&golden(name), Base { tables: Some(tables), ..NF4.into() }, device, &mut |_| {});
        let mut whole = whole.expect("a type that every device holds tables in");
        let mut parts = whole.clone();
        let [vocab, hidden] = parts.embedding.dims();
        for table in [&mut parts.embedding, &mut parts.head.weight] {
            // Of 64 rows, whatever is asked for.
            *table = Table::upload_within(data_of(table), 1, device);
            assert_eq!((table.parts().len(), table.dims()), (vocab.div_ceil(64), [vocab, hidden]));
        }
        assert!(parts.embedding.parts().len() > 1, "{vocab} tokens are of one part");
        let what = format!("{name}, {tables:?}");
        let counts = [&mut whole, &mut parts].map(|model| model.parameter_counts());
        assert_eq!(counts[0], counts[1], "{what}");
        let folder = tempfile::tempdir().expect("a folder");
        let written = [&whole, &parts].map(|model| {
            let path = folder.path().join("model.safetensors");
            pollster::block_on(save_dense(model, &path)).expect("a file");
            std::fs::read(&path).expect("what was written")
        });
        assert!(written[0] == written[1], "{what}: other files");
        let saved = LoraConfig { modules_to_save: vec!["embed_tokens".into()], ..Default::default() };
        let refusal = attach(&mut parts, &saved, 1).expect_err("parts are not trained").to_string();
        assert!(refusal.contains("modules_to_save") && refusal.contains("embed_tokens"), "{refusal}");
        for model in [&mut whole, &mut parts] {
            attach(model, &LoraConfig { r: 4, ..Default::default() }, 1).expect("an adapter");
        }
        // Out of order, of parts that nobody asks for, of one alone, and of none.
        let all: Vec<u32> = (0..vocab as u32).map(|i| (i * 7 + 3) % vocab as u32).collect();
        for tokens in [&all[..], &[vocab as u32 - 1, 0, vocab as u32 - 1], &[70], &[]] {
            let rows = [&whole, &parts].map(|model| values(model.embed(tokens)));
            assert_eq!(rows[0], rows[1], "{what}: {} rows", tokens.len());
        }
        let one = |model: &Transformer<B>| values(model.logits(&batch.tokens[..1], &[1]));
        assert_close(&format!("a token, {what}"), &one(&parts), &one(&whole), 1e-5);
        let step = |model: &Transformer<B>| backpropagate(model, &batch, 0.1, 16, Recompute::Layers, None);
        assert_same(&what, step(&parts), &step(&whole));
    }
}

/// The values of a table in one piece, as it holds them.
fn data_of<B: Ops>(table: &Table<B>) -> TensorData {
    table.parts()[0].value.to_data()
}

/// Adapters on the upper layer only: nothing below is kept or given a gradient, and the rest is what the whole graph says.
pub fn an_adapter_may_sit_on_the_upper_layer_alone<B: Ops>(device: &B::Device) {
    let mut model: Transformer<B> = model(MODEL, NF4, device);
    let targets = Targets::Pattern(r"model\.layers\.1\..*_proj".into());
    attach(&mut model, &LoraConfig { target_modules: targets, ..Default::default() }, 1).expect("an adapter");
    assert_eq!(model.lowest_trained(), 1);
    let batch = golden_batch(&expected(MODEL));
    let whole = whole_graph(&model, &batch, 0.1);
    assert_eq!(whole.gradients.len(), 14, "two matrices for each of seven layers");
    for recompute in [Recompute::Layers, Recompute::None] {
        assert_same("the upper layer", backpropagate(&model, &batch, 0.1, 16, recompute, None), &whole);
    }
}
