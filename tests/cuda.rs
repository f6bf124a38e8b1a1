//! CUDA kernels compute the right numbers, without a GPU: `tests/cuda` runs them on the host, as C++.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::path::Path;
use std::process::Command;

use burn::tensor::DType;
use halfbyte::nf4::NF4_TABLE;
use halfbyte::ops::Dropped;
use halfbyte_shaders::{
    AttentionKernels, Language, LowRank, PTX, Pass, SkinnyBlock, Source, dropout_source, fetch_source,
    half_matmul_source, half_rows_source, half_skinny_source, half_warpgroup_source, low_rank_source,
    nf4_dequantize_source, nf4_matmul_source, nf4_mma_source, nf4_quantize_source, nf4_skinny_mma_source,
    nf4_skinny_source, nf4_warpgroup_source,
};

/// Compiles the program `tests/cuda/{program}` around a kernel, runs it and prints what it found.
fn run(program: &str, source: &Source, what: &str) {
    run_with(program, source, what, &[]);
}

/// [`run`] with options for the compiler.
fn run_with(program: &str, source: &Source, what: &str, options: &[&str]) {
    let name = format!("{} {what}", source.name);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [kernel, binary] = ["kernel.cu", "test"].map(|file| folder.path().join(file));
    // The instructions that these functions wrap exist on a GPU only; the host has functions of its own.
    std::fs::write(&kernel, source.text.replacen(PTX, "", 1)).expect("the temporary folder can be written to");
    let compiled = Command::new("c++")
        // tests/cuda/device.h says what for.
        .args(["-std=c++17", "-O1", "-ffp-contract=off"])
        .args(["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"])
        .arg(format!("-D{}", source.name.to_uppercase()))
        .args(options)
        .arg(format!("-DKERNEL=\"{}\"", kernel.display()))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda").join(program))
        .arg("-o")
        .arg(&binary)
        .output()
        .unwrap_or_else(|error| panic!("a C++ compiler is needed to test CUDA kernels: c++ can't be started: {error}"));
    assert!(compiled.status.success(), "{name}:\n{}", String::from_utf8_lossy(&compiled.stderr));
    let tested = Command::new(&binary).output().expect("what was just compiled can be started");
    let output = [tested.stdout, tested.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(tested.status.success(), "{name}, {}:\n{output}", tested.status);
    println!("{name}: {}", output.trim_end());
}

#[test]
fn products_of_a_few_rows_are_those_in_f64() {
    for (rows, branch) in [1, 2, 4, 8, 16].into_iter().flat_map(|rows| [(rows, false), (rows, true)]) {
        let source = nf4_skinny_source(Language::Cuda, &NF4_TABLE, rows, true, branch);
        run("products.cpp", &source, &format!("for {rows} rows{}", if branch { ", with a branch" } else { "" }));
    }
}

#[test]
fn products_of_a_few_rows_on_tensor_cores_are_those_in_f64_of_rounded_operands() {
    for block in [1, 2].into_iter().flat_map(SkinnyBlock::all) {
        for branch in [false, true] {
            let what = format!("by {block:?}{}", if branch { ", with a branch" } else { "" });
            run("few_rows.cpp", &nf4_skinny_mma_source(&NF4_TABLE, block, branch), &what);
        }
    }
}

#[test]
fn products_and_gradients_are_those_in_f64() {
    for (gradient, what) in [(false, "forward"), (true, "gradient")] {
        run("products.cpp", &nf4_matmul_source(Language::Cuda, &NF4_TABLE, DType::F32, gradient), what);
    }
}

/// What kernels on tensor cores give.
const RESULTS: [DType; 2] = [DType::F32, DType::BF16];

/// Both directions of a kernel, without a branch and with one, in both types of results.
fn with_branches(program: &str, source: impl Fn(bool, bool, DType) -> Source, what: &str) {
    for (gradient, branch) in [(false, false), (false, true), (true, false), (true, true)] {
        for result in RESULTS {
            let direction = if gradient { "gradient" } else { "forward" };
            let what = format!("{what}{direction} in {result:?}{}", if branch { ", with a branch" } else { "" });
            run_with(program, &source(gradient, branch, result), &what, if branch { &["-DWITH_BRANCH"] } else { &[] });
        }
    }
}

#[test]
fn products_on_tensor_cores_are_those_in_f64_of_rounded_operands() {
    let source = |gradient, branch, result| nf4_mma_source(&NF4_TABLE, gradient, branch, result);
    with_branches("tensor_cores.cpp", source, "");
}

#[test]
fn products_by_groups_of_warps_are_those_in_f64_of_rounded_operands() {
    for tile_rows in [128, 256] {
        let source = |gradient, branch, result| nf4_warpgroup_source(&NF4_TABLE, tile_rows, gradient, branch, result);
        with_branches("tensor_cores.cpp", source, &format!("by {tile_rows} rows, "));
    }
}

#[test]
fn products_with_weights_in_bf16_are_those_in_f64() {
    for (gradient, what) in [(false, "forward"), (true, "gradient")] {
        run("half.cpp", &half_matmul_source(gradient), what);
    }
    for tile_rows in [128, 256] {
        let source = |gradient, branch, result| half_warpgroup_source(tile_rows, gradient, branch, result);
        with_branches("half.cpp", source, &format!("by {tile_rows} rows, "));
    }
}

#[test]
fn products_of_a_few_rows_with_weights_in_16_bits_are_those_in_f64() {
    for rows in [1, 2, 4, 8, 16] {
        for (dtype, option) in [(DType::BF16, "-DBF16"), (DType::F16, "-DF16")] {
            let source = half_skinny_source(Language::Cuda, rows, true, dtype);
            run_with("half_skinny.cpp", &source, &format!("for {rows} rows in {dtype:?}"), &[option]);
        }
    }
}

#[test]
fn rows_in_16_bits_are_what_they_hold() {
    for (dtype, option) in [(DType::BF16, "-DBF16"), (DType::F16, "-DF16")] {
        for (picked, what) in [(false, "one after the other"), (true, "picked")] {
            let source = half_rows_source(Language::Cuda, dtype, picked);
            run_with("half_rows.cpp", &source, &format!("in {dtype:?}, {what}"), &[option]);
        }
    }
}

#[test]
fn products_with_low_rank_matrices_are_those_in_f64_of_rounded_operands() {
    let kernels = [(LowRank::Narrow, 16), (LowRank::Narrow, 32), (LowRank::Outer, 32)];
    let kernels = kernels.into_iter().flat_map(|kernel| [(kernel, false), (kernel, true)]);
    for (((kernel, tile), transposed), tiles) in kernels.flat_map(|kernel| [1, 2, 4, 8].map(|tiles| (kernel, tiles))) {
        for (wide, options) in [(DType::F32, &[][..]), (DType::BF16, &["-DBF16"])] {
            let across = if transposed { ", transposed" } else { "" };
            let what = format!("of {tile} x {} in {wide:?}{across}", 8 * tiles);
            run_with("low_rank.cpp", &low_rank_source(kernel, tile, tiles, transposed, wide), &what, options);
        }
    }
}

#[test]
fn attention_is_that_in_f64_of_rounded_operands() {
    let widths = [5, 16, 64, 96, 128, 168, 256].map(|width| (width, false));
    for (pass, (head_dim, capped)) in Pass::ALL
        .into_iter()
        .flat_map(|pass| widths.into_iter().chain([(16, true), (128, true), (256, true)]).map(move |of| (pass, of)))
    {
        let what = format!("of heads of {head_dim}{}", if capped { ", capped" } else { "" });
        run("attention.cpp", &AttentionKernels::Mma.source(pass, head_dim, capped, DType::F32), &what);
        // Heads of an even and of an odd width are written in different ways.
        if !capped && matches!(head_dim, 5 | 64 | 168) {
            let what = format!("{what}, in bf16");
            run("attention.cpp", &AttentionKernels::Mma.source(pass, head_dim, capped, DType::BF16), &what);
        }
    }
}

#[test]
fn attention_in_f32_is_that_in_f64() {
    let widths = [5, 16, 64, 96, 128, 256].map(|width| (width, false));
    for (pass, (head_dim, capped)) in Pass::ALL
        .into_iter()
        .flat_map(|pass| widths.into_iter().chain([(16, true), (128, true)]).map(move |of| (pass, of)))
    {
        let what = format!("of heads of {head_dim}, in f32{}", if capped { ", capped" } else { "" });
        let source = AttentionKernels::Simt.source(pass, head_dim, capped, DType::F32);
        run_with("attention.cpp", &source, &what, &["-DF32"]);
    }
}

#[test]
fn attention_by_groups_of_warps_is_that_in_f64_of_rounded_operands() {
    for (pass, head_dim) in Pass::ALL.into_iter().flat_map(|pass| [64, 128].map(|head_dim| (pass, head_dim))) {
        for result in RESULTS {
            let source = AttentionKernels::Groups.source(pass, head_dim, false, result);
            let what = format!("of heads of {head_dim}, by groups, in {result:?}");
            run_with("attention.cpp", &source, &what, &["-DGROUPS"]);
        }
    }
}

#[test]
fn quantizing_gives_the_bits_of_the_plain_code() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let source = nf4_quantize_source(Language::Cuda, &NF4_TABLE, dtype);
        let what = format!("of {dtype:?} in all block sizes");
        run_with("quantize.cpp", &source, &what, &[&format!("-D{dtype:?}")]);
    }
}

#[test]
fn host_memory_is_copied_whole() {
    run("fetch.cpp", &fetch_source(), "of all lengths");
}

#[test]
fn dropout_drops_what_the_key_says() {
    // What the CPU drops, whose words are compared with those of Random123.
    let drop = Dropped::new(0x1234_5678_9abc_def0, 0.25);
    let factors: Vec<String> = (0..1003).map(|i| format!("{:?}f", drop.factor(i))).collect();
    let [low, high] = drop.key;
    let options = [
        format!("-DKEY={low}u, {high}u"),
        format!("-DTHRESHOLD={}u", drop.threshold),
        format!("-DKEPT={:?}f", drop.kept),
        format!("-DFACTORS={}", factors.join(",")),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    for dtype in RESULTS {
        let what = format!("of a tensor in {dtype:?} whose length is odd");
        run_with("dropout.cpp", &dropout_source(Language::Cuda, dtype), &what, &options);
    }
}

#[test]
fn dequantizing_gives_the_bits_of_the_plain_code() {
    for (dtype, option) in [(DType::F32, "-DF32"), (DType::F16, "-DF16"), (DType::BF16, "-DBF16")] {
        let source = nf4_dequantize_source(Language::Cuda, &NF4_TABLE, dtype);
        run_with("dequantize.cpp", &source, &format!("of all block sizes into {dtype:?}"), &[option]);
    }
}
