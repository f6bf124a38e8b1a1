//! Packed batches on a model: they change nothing but the number of steps.

use burn::tensor::Tensor;
use halfbyte::backends::Cpu;
use halfbyte::data::{Batch, Batches, Dataset, Example, Grouping};
use halfbyte::ops::Sequences;
use halfbyte::train::{Recompute, Targets, Trainer, TrainerConfig, backpropagate, loss_and_hits};
use halfbyte_tests::assert_close;
use halfbyte_tests::reference::{values, with_adapter};
use pollster::block_on;

/// Examples of the tiny models' vocabulary, of lengths from 2 to 30.
fn examples(count: u32) -> Vec<Example> {
    let example = |i: u32| {
        let length = 2 + (i * 7 % 29) as usize;
        let tokens = (0..length as u32).map(|j| (i * 31 + j * 17) % 90 + 3).collect();
        Example { tokens, trained: (0..length).map(|j| j > length / 3).collect() }
    };
    (0..count).map(example).collect()
}

/// Each example's own loss, from one backward pass over a batch of several.
fn losses(examples: &[Example], rows: &[usize]) -> Vec<f32> {
    let model = with_adapter::<Cpu>("llama-tied", &Default::default());
    let batch = Batch::collate(rows.iter().map(|i| &examples[*i]));
    let hidden: Tensor<Cpu, 2> = model.hidden(&batch.tokens, &model.passes(&Sequences::new(&batch.lengths)), None);
    let mut begin = 0;
    let of = |length: &usize| {
        let rows = begin..begin + length;
        begin += length;
        let targets: Vec<_> = batch.targets.iter().filter(|(row, _)| rows.contains(row)).copied().collect();
        let (rows, tokens) = targets.into_iter().unzip();
        let targets = Targets { rows, tokens };
        values(loss_and_hits(&model.head, hidden.clone(), &targets, 64)[0].clone())[0]
    };
    batch.lengths.iter().map(of).collect()
}

#[test]
fn packed_and_unpacked_examples_have_the_same_loss_and_gradients() {
    let examples = examples(24);
    let lengths: Vec<usize> = examples.iter().map(|e| e.tokens.len()).collect();
    let packed = Batches::new(lengths, Grouping::Packed { bin: 32 }, 2, 1, 5);
    let batches: Vec<Vec<usize>> = (0..packed.steps_per_epoch()).flat_map(|s| packed.step(0, s)).collect();
    assert!(batches[0].len() > 2, "bins of several examples: {batches:?}");
    for rows in &batches {
        let alone: Vec<f32> = rows.iter().flat_map(|i| losses(&examples, &[*i])).collect();
        assert_close("losses of a packed batch", &losses(&examples, rows), &alone, 1e-5);
    }
    let model = with_adapter::<Cpu>("llama-tied", &Default::default());
    let gradients = |rows: &[usize]| {
        let batch = Batch::collate(rows.iter().map(|i| &examples[*i]));
        backpropagate(&model, &batch, 1.0, 64, Recompute::None, None).gradients
    };
    let together = gradients(&batches[0]);
    let apart: Vec<_> = batches[0].iter().map(|i| gradients(&[*i])).collect();
    for (path, gradient) in together {
        let sum = apart.iter().map(|g| g[&path].clone()).reduce(|a, b| a + b).expect("some");
        assert_close(&path, &values(gradient), &values(sum), 1e-4);
    }
}

#[test]
fn a_trainer_takes_packed_data_and_every_token_once_an_epoch() {
    let mut data = Dataset::new(examples(40));
    let tokens = data.token_count();
    data.grouping = Grouping::Packed { bin: 32 };
    let model = with_adapter::<Cpu>("llama-tied", &Default::default());
    let config = TrainerConfig { batch_size: 2, gradient_accumulation_steps: 2, ..Default::default() };
    let mut trainer = Trainer::new(model, data, config, 3).expect("a trainer");
    let mut seen = 0;
    while let Some(metrics) = block_on(trainer.step()).expect("a finite step") {
        assert!(metrics.tokens <= 4 * 32);
        seen += metrics.tokens;
    }
    assert_eq!(seen, tokens);
}
