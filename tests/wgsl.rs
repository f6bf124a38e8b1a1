//! Every WGSL kernel is valid, and stays within what WebGPU grants every device: a driver that refuses one drops the
//! submission and leaves old data in the result.

use burn::tensor::DType;
use halfbyte::nf4::NF4_TABLE;
use halfbyte_shaders::{
    AttentionKernels, Language, Pass, Source, dropout_source, half_rows_source, half_skinny_source,
    nf4_dequantize_source, nf4_matmul_source, nf4_quantize_source, nf4_skinny_source,
};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, front::wgsl};

/// WebGPU's default limits.
const WORKGROUP_BYTES: u32 = 16_384;
const STORAGE_BUFFERS: usize = 8;
const INVOCATIONS: u32 = 256;

fn kernels() -> Vec<Source> {
    let (language, table) = (Language::Wgsl, &NF4_TABLE);
    let mut kernels = vec![dropout_source(language, DType::F32)];
    kernels.extend([DType::F32, DType::BF16, DType::F16].map(|dtype| nf4_quantize_source(language, table, dtype)));
    kernels.extend([DType::F32, DType::F16].map(|dtype| nf4_dequantize_source(language, table, dtype)));
    for rows in [1, 2, 4, 8, 16] {
        for branch in [false, true] {
            kernels.extend([true, false].map(|subgroups| nf4_skinny_source(language, table, rows, subgroups, branch)));
        }
        for dtype in [DType::BF16, DType::F16] {
            kernels.extend([true, false].map(|subgroups| half_skinny_source(language, rows, subgroups, dtype)));
        }
    }
    for dtype in [DType::BF16, DType::F16] {
        kernels.extend([true, false].map(|picked| half_rows_source(language, dtype, picked)));
    }
    for gradient in [false, true] {
        kernels.extend([DType::F32, DType::F16].map(|dtype| nf4_matmul_source(language, table, dtype, gradient)));
    }
    for head_dim in [5, 64, 96, 128, 256] {
        kernels.extend(Pass::ALL.map(|pass| AttentionKernels::Wgsl.source(pass, head_dim, false, DType::F32)));
    }
    kernels
}

#[test]
fn kernels_are_valid_and_small_enough() {
    for Source { name, text, threads, .. } in kernels() {
        let module = wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&text)));
        // No capability but subgroups and f16, and those only in the variants that say so.
        let mut capabilities = Capabilities::empty();
        capabilities.set(Capabilities::SUBGROUP, text.contains("subgroup_size"));
        capabilities.set(Capabilities::SHADER_FLOAT16, text.contains("enable f16;"));
        let mut validator = Validator::new(ValidationFlags::all(), capabilities);
        validator.validate(&module).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&text)));
        let globals = |wanted: fn(AddressSpace) -> bool| {
            module.global_variables.iter().filter(move |(_, global)| wanted(global.space))
        };
        let workgroup = globals(|space| space == AddressSpace::WorkGroup);
        let bytes: u32 = workgroup.map(|(_, global)| module.types[global.ty].inner.size(module.to_ctx())).sum();
        assert!(bytes <= WORKGROUP_BYTES, "{name}: {bytes} bytes of workgroup storage");
        let storage = globals(|space| matches!(space, AddressSpace::Storage { .. })).count();
        assert!(storage <= STORAGE_BUFFERS, "{name}: {storage} storage buffers");
        assert!(threads <= INVOCATIONS, "{name}: {threads} invocations");
    }
}
