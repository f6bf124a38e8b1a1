//! The composed forms, which GPUs run, give what the CPU's own forms give; those are compared with formulas elsewhere.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;

use super::fused::{self, primitive, tensor};
use super::{Activation, AttentionShape, Composed, Masking, Ops, Sequences, attention};

/// Values between -1 and 1 with no pattern that an operation could miss.
fn rows(count: usize, width: usize, seed: u32) -> FloatTensor<Flex> {
    let value = |i: usize| {
        let mixed = (i as u32 + 1)
            .wrapping_mul(2_654_435_761)
            .wrapping_add(seed.wrapping_mul(40_503))
            .wrapping_mul(2_246_822_519);
        (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..count * width).map(value).collect();
    primitive(Tensor::<Flex, 2>::from_data(TensorData::new(values, [count, width]), &Default::default()))
}

fn assert_same(what: &str, found: FloatTensor<Flex>, expected: FloatTensor<Flex>) {
    let [found, expected] = [found, expected].map(|x| tensor::<Flex, 2>(x).into_data().to_vec::<f32>().expect("f32"));
    assert_eq!(found.len(), expected.len(), "{what}");
    let size = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
    let off = found.iter().zip(&expected).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
    assert!(off <= 1e-5 * size && size > 0.0, "{what}: off by {off} of {size}");
}

#[test]
fn attention_is_the_same() {
    let sequences =
        [Sequences::new(&[6, 6]), Sequences::new(&[3, 1, 7, 2]), Sequences::after(4, 3), Sequences::after(5, 1)];
    let kinds = [(None, None), (Some(3), None), (Some(1), None), (None, Some(0.5)), (Some(4), Some(0.7))];
    for (sequences, (window, softcap)) in sequences.iter().flat_map(|s| kinds.map(|kind| (s.clone(), kind))) {
        let (tokens, keys) = (sequences.tokens(), sequences.spans().map(|span| span.total).sum());
        let (masking, none) = (Composed::new(&sequences, window, &Default::default()), Masking::Sequences);
        let shape = AttentionShape { sequences, window, heads: 4, kv_heads: 2, head_dim: 6, scale: 0.8, softcap };
        let qkv = || [rows(tokens, 24, 1), rows(keys, 12, 2), rows(keys, 12, 3)];
        let what = format!("{shape:?}");
        assert_same(
            &what,
            attention::forward::<Flex>(qkv(), &masking, &shape).y,
            Flex::causal_attention(qkv(), &none, &shape).y,
        );
        let gradient = || rows(tokens, 24, 4);
        let found = attention::backward::<Flex>(qkv(), &masking, gradient(), &shape);
        let expected = Flex::causal_attention_backward(qkv(), None, &none, gradient(), &shape);
        // Through a window of one token no score matters: only the values have a gradient.
        let from = if window == Some(1) { 2 } else { 0 };
        for (found, expected) in found.into_iter().zip(expected).skip(from) {
            assert_same(&what, found, expected);
        }
    }
}

#[test]
fn gates_are_the_same() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let wide = |seed| primitive(tensor::<Flex, 2>(rows(7, 33, seed)) * 6.0);
        let what = format!("{activation:?}");
        let found = fused::gated::<Flex>(wide(1), wide(2), activation);
        assert_same(&what, found, Flex::gated(wide(1), wide(2), activation));
        let (gate, up) = fused::gated_backward::<Flex>(wide(1), wide(2), wide(3), activation);
        let (of_gate, of_up) = Flex::gated_backward(wide(1), wide(2), wide(3), activation);
        assert_same(&what, gate, of_gate);
        assert_same(&what, up, of_up);
    }
}
