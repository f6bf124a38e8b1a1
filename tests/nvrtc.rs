//! CUDA kernels compile for every architecture that is supported, without a GPU, and keep their values in registers.

use std::ffi::{CStr, CString};

use burn::tensor::DType;
use cudarc::nvrtc::{result, sys};
use halfbyte::nf4::NF4_TABLE;
use halfbyte_shaders::{
    AttentionKernels, Language, LowRank, Pass, SkinnyBlock, Source, dropout_source, fetch_source, half_matmul_source,
    half_rows_source, half_skinny_source, half_warpgroup_source, low_rank_source, nf4_dequantize_source,
    nf4_matmul_source, nf4_mma_source, nf4_quantize_source, nf4_skinny_mma_source, nf4_skinny_source,
    nf4_warpgroup_source,
};

/// Turing in f32, Ampere, Ada, Hopper.
const ARCHITECTURES: [&str; 4] = ["sm_75", "sm_80", "sm_89", "sm_90a"];

/// What kernels on tensor cores give, and take beside what they round.
const RESULTS: [DType; 2] = [DType::F32, DType::BF16];
/// Without a branch and with one, in both types of results.
const BRANCHES: [(bool, DType); 4] =
    [(false, DType::F32), (false, DType::BF16), (true, DType::F32), (true, DType::BF16)];

/// Scores without a cap and with one.
const CAPPED: [(bool, &str); 2] = [(false, ""), (true, ", capped")];

fn direction(gradient: bool) -> &'static str {
    if gradient { "gradient" } else { "forward" }
}

fn with(branch: bool) -> &'static str {
    if branch { ", branch" } else { "" }
}

/// A kernel under a name of its own.
type Named = (String, Source);

/// Widths of heads that models have.
const WIDTHS: [usize; 5] = [64, 80, 96, 128, 256];

/// Types of 16 bits.
const HALVES: [DType; 2] = [DType::BF16, DType::F16];

/// What a GPU of an architecture can run, every kernel with every option.
fn kernels(architecture: &str) -> Vec<Named> {
    let mut kernels = in_f32();
    if architecture != "sm_75" {
        kernels.extend(in_bf16());
    }
    if architecture == "sm_90a" {
        kernels.extend(by_warpgroups());
    }
    kernels
}

/// Those that use no tensor cores, for GPUs older than Ampere, too.
fn in_f32() -> Vec<Named> {
    let (cuda, table) = (Language::Cuda, &NF4_TABLE);
    let mut kernels = vec![("fetch".to_string(), fetch_source())];
    for dtype in [DType::F32, DType::BF16] {
        kernels.push((format!("dropout of {dtype:?}"), dropout_source(cuda, dtype)));
    }
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        kernels.push((format!("nf4_quantize {dtype:?}"), nf4_quantize_source(cuda, table, dtype)));
        kernels.push((format!("nf4_dequantize {dtype:?}"), nf4_dequantize_source(cuda, table, dtype)));
    }
    for (rows, branch) in [1, 2, 4, 8, 16].into_iter().flat_map(|rows| [(rows, false), (rows, true)]) {
        let name = format!("nf4_skinny, {rows} rows{}", with(branch));
        kernels.push((name, nf4_skinny_source(cuda, table, rows, true, branch)));
    }
    for (picked, dtype) in [false, true].into_iter().flat_map(|picked| HALVES.map(|dtype| (picked, dtype))) {
        let name = format!("half_rows {dtype:?}{}", if picked { ", picked" } else { "" });
        kernels.push((name, half_rows_source(cuda, dtype, picked)));
    }
    for (rows, dtype) in [1, 2, 4, 8, 16].into_iter().flat_map(|rows| HALVES.map(|dtype| (rows, dtype))) {
        let name = format!("half_skinny {dtype:?}, {rows} rows");
        kernels.push((name, half_skinny_source(cuda, rows, true, dtype)));
    }
    for gradient in [false, true] {
        let name = format!("nf4_matmul {}", direction(gradient));
        kernels.push((name, nf4_matmul_source(cuda, table, DType::F32, gradient)));
    }
    for (pass, head_dim) in Pass::ALL.into_iter().flat_map(|pass| WIDTHS.map(|width| (pass, width))) {
        for (capped, what) in CAPPED {
            let source = AttentionKernels::Simt.source(pass, head_dim, capped, DType::F32);
            kernels.push((format!("attention {pass:?}, {head_dim}{what}"), source));
        }
    }
    kernels
}

/// Those that multiply in bf16, from Ampere on.
fn in_bf16() -> Vec<Named> {
    let table = &NF4_TABLE;
    let mut kernels = vec![];
    for block in [1, 2].into_iter().flat_map(SkinnyBlock::all) {
        for branch in [false, true] {
            let SkinnyBlock { eights, threads, stages, closer } = block;
            let name = format!("nf4_skinny_mma, {} rows by {threads} x {stages}, {closer}{}", 8 * eights, with(branch));
            kernels.push((name, nf4_skinny_mma_source(table, block, branch)));
        }
    }
    for gradient in [false, true] {
        let of = direction(gradient);
        for (branch, result) in BRANCHES {
            let name = format!("nf4_mma {of} in {result:?}{}", with(branch));
            kernels.push((name, nf4_mma_source(table, gradient, branch, result)));
        }
        kernels.push((format!("half_matmul {of}"), half_matmul_source(gradient)));
    }
    for (kernel, tile) in [(LowRank::Narrow, 16), (LowRank::Narrow, 32), (LowRank::Outer, 32)] {
        for (tiles, transposed) in [1, 2, 4, 8].into_iter().flat_map(|tiles| [(tiles, false), (tiles, true)]) {
            for wide in RESULTS {
                let across = if transposed { ", transposed" } else { "" };
                let name = format!("low rank {kernel:?}, {tile} x {} in {wide:?}{across}", 8 * tiles);
                kernels.push((name, low_rank_source(kernel, tile, tiles, transposed, wide)));
            }
        }
    }
    for (pass, head_dim) in Pass::ALL.into_iter().flat_map(|pass| WIDTHS.map(|width| (pass, width))) {
        for (result, (capped, what)) in RESULTS.into_iter().flat_map(|result| CAPPED.map(|capped| (result, capped))) {
            let source = AttentionKernels::Mma.source(pass, head_dim, capped, result);
            kernels.push((format!("attention {pass:?}, {head_dim} in {result:?}{what}, mma"), source));
        }
    }
    kernels
}

/// Those for Hopper alone.
fn by_warpgroups() -> Vec<Named> {
    let mut kernels = Vec::new();
    for (gradient, rows) in [false, true].into_iter().flat_map(|gradient| [(gradient, 128), (gradient, 256)]) {
        for (branch, result) in BRANCHES {
            let what = format!("{}, {rows} in {result:?}{}", direction(gradient), with(branch));
            kernels.push((format!("half_warpgroup {what}"), half_warpgroup_source(rows, gradient, branch, result)));
            let source = nf4_warpgroup_source(&NF4_TABLE, rows, gradient, branch, result);
            kernels.push((format!("nf4_warpgroup {what}"), source));
        }
    }
    for (pass, head_dim) in Pass::ALL.into_iter().flat_map(|pass| [(pass, 64), (pass, 128)]) {
        for result in RESULTS {
            let source = AttentionKernels::Groups.source(pass, head_dim, false, result);
            kernels.push((format!("attention {pass:?}, {head_dim} in {result:?}, groups"), source));
        }
    }
    kernels
}

/// Compiles as the runtime does; whether it went well, and what the compiler said.
fn compile(source: &Source, architecture: &str) -> (bool, String) {
    let text = CString::new(&*source.text).expect("a source without NUL");
    let options = [format!("--gpu-architecture={architecture}"), "--ptxas-options=-v".to_string()];
    let program = result::create_program(&text, None).expect("a program");
    // SAFETY: the program is valid until it is destroyed, which is the last thing done with it.
    unsafe {
        let compiled = result::compile_program(program, &options).is_ok();
        let log = result::get_program_log(program).expect("a log");
        result::destroy_program(program).expect("it is destroyed once");
        (compiled, CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned())
    }
}

/// What says that the compiler makes the products of groups of warps wait for each other.
const SERIALIZED: &str = "wgmma.mma_async instructions are serialized";

/// The number before `unit` in the compiler's report.
fn number(log: &str, unit: &str) -> Option<u32> {
    let before = log.split(unit).next().filter(|before| before.len() < log.len())?;
    before.split_whitespace().next_back()?.parse().ok()
}

#[test]
#[ignore = "needs NVRTC, which `cargo xtask test` brings"]
fn every_kernel_compiles_without_spilling() {
    // SAFETY: only tries to open a shared library.
    assert!(unsafe { sys::is_culib_present() }, "NVRTC is not on the library path");
    let mut wrong = vec![];
    println!("{:<38} {:<8} {:>9} {:>12} {:>6}", "kernel", "for", "registers", "shared bytes", "spills");
    for architecture in ARCHITECTURES {
        for (name, source) in kernels(architecture) {
            let (compiled, log) = compile(&source, architecture);
            assert!(compiled, "{name} for {architecture}:\n{log}");
            let registers = number(&log, "registers").unwrap_or_else(|| panic!("no report on {name}: {log}"));
            let shared = number(&log, "bytes smem").unwrap_or(0) + source.shared;
            let spills = number(&log, "bytes spill stores").unwrap_or(0);
            println!("{name:<38} {architecture:<8} {registers:>9} {shared:>12} {spills:>6}");
            if spills > 0 {
                wrong.push(format!("{name} spills {spills} bytes of registers on {architecture}"));
            }
            if log.contains(SERIALIZED) {
                wrong.push(format!("{name} for {architecture}:\n{log}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
