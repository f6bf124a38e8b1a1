//! NF4 storage against bitsandbytes: every bit of codes, scales and offset.

use halfbyte::nf4::{
    Absmax, NF4_TABLE, Nf4Data, decode, dynamic_map, naive_quantile_table, quantize, rmse, uniform_table,
};
use halfbyte_tests::{Expected, golden, relative_error};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn expected() -> Expected {
    Expected::open(&golden("nf4/cases.safetensors"))
}

#[test]
fn the_tables_are_those_of_bitsandbytes() {
    assert_eq!(bits(&NF4_TABLE), bits(&expected().floats("nf4_table")));
    assert_eq!(bits(dynamic_map()), bits(&expected().floats("dynamic_map")));
}

#[test]
fn every_case_is_quantized_to_the_same_bits() {
    let expected = expected();
    let names: Vec<&str> = expected.names().into_iter().filter_map(|n| n.strip_suffix(".weight")).collect();
    assert!(names.len() >= 12);
    for name in names {
        let part = |suffix: &str| format!("{name}.{suffix}");
        let shape = expected.shape(&part("weight"));
        let shape = [shape[0], shape[1]];
        let block_size = name.split_once("_b").map_or(64, |(_, n)| n.parse().expect("a block size"));
        let weight = expected.floats(&part("weight"));
        let plain = quantize(&weight, shape, block_size, false).expect(name);
        assert_eq!(plain.packed, expected.bytes(&part("packed")), "{name}: codes");
        let Absmax::Plain(absmax) = &plain.absmax else { panic!("{name}: plain was asked for") };
        assert_eq!(bits(absmax), bits(&expected.floats(&part("plain.absmax"))), "{name}: absmax");
        let double = quantize(&weight, shape, block_size, true).expect(name);
        assert_eq!(double.packed, plain.packed, "{name}: codes do not depend on double quantization");
        let Absmax::Double { codes, nested, offset } = &double.absmax else { panic!("{name}: double was asked for") };
        assert_eq!(bits(&[*offset]), bits(&expected.floats(&part("double.offset"))), "{name}: offset");
        assert_eq!(bits(nested), bits(&expected.floats(&part("double.nested_absmax"))), "{name}: nested absmax");
        assert_eq!(codes, &expected.bytes(&part("double.absmax")), "{name}: absmax codes");
        for (kind, data) in [("plain", &plain), ("double", &double)] {
            let dequantized = expected.floats(&part(&format!("{kind}.dequantized")));
            assert_eq!(bits(&data.dequantize()), bits(&dequantized), "{name}: {kind} dequantized");
        }
    }
}

#[test]
fn the_offset_is_torchs_mean_for_any_length() {
    let expected = expected();
    let lengths: Vec<&str> = expected.names().into_iter().filter_map(|n| n.strip_prefix("mean.")).collect();
    assert!(lengths.len() >= 17);
    for length in lengths {
        let count: usize = length.parse().expect("a length");
        // Blocks of 32 equal elements, so that each block's scale is the element itself.
        let element = |i: usize| ((i as u64 * 2_654_435_761) as u32 as f64 / 4_294_967_296.0) as f32;
        let weight: Vec<f32> = (0..count).flat_map(|i| [element(i); 32]).collect();
        let data = quantize(&weight, [count, 32], 32, true).expect(length);
        let Absmax::Double { offset, .. } = data.absmax else { panic!("double was asked for") };
        assert_eq!(bits(&[offset]), bits(&expected.floats(&format!("mean.{length}"))), "mean of {length}");
    }
}

#[test]
fn any_range_decodes_to_the_same_values() {
    let weight: Vec<f32> = (0..33 * 65).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    let data = quantize(&weight, [33, 65], 64, true).expect("finite weights");
    let (all, absmax) = (data.dequantize(), data.decoded_absmax());
    for start in [0, 1, 2, 63, 64, 65, 127, 2000, 2144] {
        for length in [0, 1, 2, 3, 17, 64, 129, 500] {
            let end = (start + length).min(all.len());
            let mut out = vec![f32::NAN; end - start];
            decode(&data.packed, &absmax, 64, start, &mut out);
            assert_eq!(bits(&out), bits(&all[start..end]), "{start}..{end}");
        }
    }
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let refused = |weights: &[f32], shape, block_size| {
        quantize(weights, shape, block_size, true).expect_err("must be refused").to_string()
    };
    let mut weights = vec![0.5; 130];
    weights[67] = f32::NAN;
    assert!(refused(&weights, [2, 65], 64).contains("[1, 2] is NaN"));
    weights[67] = f32::INFINITY;
    assert!(refused(&weights, [2, 65], 64).contains("[1, 2] is inf"));
    assert!(refused(&[0.0; 4], [2, 3], 64).contains("do not fill"));
    assert!(refused(&[0.0; 4], [2, 2], 48).contains("block size 48"));
    let data = Nf4Data { shape: [2, 64], block_size: 64, packed: vec![0; 64].into(), absmax: Absmax::Plain(vec![1.0]) };
    assert!(
        data.validate().expect_err("one scale is missing").to_string().contains("absmax has 1 elements; expected 2")
    );
}

#[test]
fn double_quantization_saves_what_the_paper_says() {
    let weight = vec![0.5; 256 * 64 * 16];
    let size = |double| quantize(&weight, [256, 1024], 64, double).expect("finite").bits_per_parameter();
    assert_eq!(size(false), 4.5);
    assert!((size(false) - size(true) - 0.373).abs() < 1e-3, "0.373 bits per parameter (arXiv:2305.14314, section 3)");
}

#[test]
fn the_tables_of_the_lesson_and_their_errors_are_those_of_torch() {
    let expected = expected();
    let weights = expected.floats("normal.weight");
    let tables = [NF4_TABLE, naive_quantile_table(), uniform_table()];
    for (table, name) in tables.iter().zip(["nf4_table", "naive_table", "uniform_table"]) {
        assert!(relative_error(table, &expected.floats(name)) < 1e-7, "{name}");
    }
    let errors = tables.map(|table| rmse(&weights, &table, 64) as f32);
    assert!(relative_error(&errors, &expected.floats("rmse")) < 1e-6, "{errors:?}");
    // What the lesson tells: quantiles beat equal distances; of the two quantile tables only NF4 has an exact zero.
    assert!(errors[0] < errors[2] && errors[1] < errors[2]);
    assert!(NF4_TABLE.contains(&0.0) && !naive_quantile_table().contains(&0.0));
    assert_eq!(rmse(&[0.0, 1.0], &NF4_TABLE, 64), 0.0);
}
