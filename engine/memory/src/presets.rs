//! Well-known models by name.

use alloc::string::ToString;

use crate::ModelShape;

/// vocab, hidden, intermediate, layers, heads, key heads, width of a head, tied, `model_type`.
type Row = (&'static str, [u64; 7], bool, &'static str);

/// Shapes as the models' own `config.json` files state them; of a multi-modal model that of its text.
const PRESETS: [Row; 35] = [
    ("llama-3.1-8b", [128_256, 4096, 14_336, 32, 32, 8, 128], false, "llama"),
    ("llama-3.1-70b", [128_256, 8192, 28_672, 80, 64, 8, 128], false, "llama"),
    ("llama-3.1-405b", [128_256, 16_384, 53_248, 126, 128, 8, 128], false, "llama"),
    ("llama-3.2-1b", [128_256, 2048, 8192, 16, 32, 8, 64], true, "llama"),
    ("llama-3.2-3b", [128_256, 3072, 8192, 28, 24, 8, 128], true, "llama"),
    ("llama-7b", [32_000, 4096, 11_008, 32, 32, 32, 128], false, "llama"),
    ("llama-13b", [32_000, 5120, 13_824, 40, 40, 40, 128], false, "llama"),
    ("llama-33b", [32_000, 6656, 17_920, 60, 52, 52, 128], false, "llama"),
    ("llama-65b", [32_000, 8192, 22_016, 80, 64, 64, 128], false, "llama"),
    ("codellama-34b", [32_000, 8192, 22_016, 48, 64, 8, 128], false, "llama"),
    ("llama-2-7b", [32_000, 4096, 11_008, 32, 32, 32, 128], false, "llama"),
    ("llama-2-13b", [32_000, 5120, 13_824, 40, 40, 40, 128], false, "llama"),
    ("llama-2-70b", [32_000, 8192, 28_672, 80, 64, 8, 128], false, "llama"),
    ("mistral-7b-v0.3", [32_768, 4096, 14_336, 32, 32, 8, 128], false, "mistral"),
    ("qwen2.5-0.5b", [151_936, 896, 4864, 24, 14, 2, 64], true, "qwen2"),
    ("qwen2.5-1.5b", [151_936, 1536, 8960, 28, 12, 2, 128], true, "qwen2"),
    ("qwen2.5-3b", [151_936, 2048, 11_008, 36, 16, 2, 128], true, "qwen2"),
    ("qwen2.5-7b", [152_064, 3584, 18_944, 28, 28, 4, 128], false, "qwen2"),
    ("qwen2.5-14b", [152_064, 5120, 13_824, 48, 40, 8, 128], false, "qwen2"),
    ("qwen2.5-32b", [152_064, 5120, 27_648, 64, 40, 8, 128], false, "qwen2"),
    ("qwen2.5-72b", [152_064, 8192, 29_568, 80, 64, 8, 128], false, "qwen2"),
    ("qwen3-0.6b", [151_936, 1024, 3072, 28, 16, 8, 128], true, "qwen3"),
    ("qwen3-1.7b", [151_936, 2048, 6144, 28, 16, 8, 128], true, "qwen3"),
    ("qwen3-4b", [151_936, 2560, 9728, 36, 32, 8, 128], true, "qwen3"),
    ("qwen3-8b", [151_936, 4096, 12_288, 36, 32, 8, 128], false, "qwen3"),
    ("qwen3-14b", [151_936, 5120, 17_408, 40, 40, 8, 128], false, "qwen3"),
    ("qwen3-32b", [151_936, 5120, 25_600, 64, 64, 8, 128], false, "qwen3"),
    ("gemma-2-2b", [256_000, 2304, 9216, 26, 8, 4, 256], true, "gemma2"),
    ("gemma-2-9b", [256_000, 3584, 14_336, 42, 16, 8, 256], true, "gemma2"),
    ("gemma-2-27b", [256_000, 4608, 36_864, 46, 32, 16, 128], true, "gemma2"),
    ("gemma-3-1b", [262_144, 1152, 6912, 26, 4, 1, 256], true, "gemma3_text"),
    ("gemma-3-4b", [262_208, 2560, 10_240, 34, 8, 4, 256], true, "gemma3_text"),
    ("gemma-3-12b", [262_208, 3840, 15_360, 48, 16, 8, 256], true, "gemma3_text"),
    ("gemma-3-27b", [262_208, 5376, 21_504, 62, 32, 16, 128], true, "gemma3_text"),
    ("phi-3-mini", [32_064, 3072, 8192, 32, 32, 32, 96], false, "phi3"),
];

/// The model of this name, whatever the case.
pub fn preset(name: &str) -> Option<ModelShape> {
    let (_, numbers, tied, model_type) = PRESETS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name))?;
    let [vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head] = *numbers;
    Some(ModelShape {
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads: Some(kv_heads),
        head_dim: Some(head),
        tied: *tied,
        attention_bias: false,
        mlp_bias: false,
        model_type: (*model_type).to_string(),
        in_16_bits: true,
    })
}

/// Every name.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::{names, preset};

    #[test]
    fn parameters_are_those_that_the_models_have() {
        let published = [
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.1-70b", 70_553_706_496),
            ("llama-3.1-405b", 405_853_388_800),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-3.2-3b", 3_212_749_824),
            ("llama-7b", 6_738_415_616),
            ("llama-13b", 13_015_864_320),
            ("llama-33b", 32_528_943_616),
            ("llama-65b", 65_285_660_672),
            ("codellama-34b", 33_743_970_304),
            ("llama-2-7b", 6_738_415_616),
            ("llama-2-13b", 13_015_864_320),
            ("llama-2-70b", 68_976_648_192),
            ("mistral-7b-v0.3", 7_248_023_552),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-1.5b", 1_543_714_304),
            ("qwen2.5-3b", 3_085_938_688),
            ("qwen2.5-7b", 7_615_616_512),
            ("qwen2.5-14b", 14_770_033_664),
            ("qwen2.5-32b", 32_763_876_352),
            ("qwen2.5-72b", 72_706_203_648),
            ("qwen3-0.6b", 596_049_920),
            ("qwen3-1.7b", 1_720_574_976),
            ("qwen3-4b", 4_022_468_096),
            ("qwen3-8b", 8_190_735_360),
            ("qwen3-14b", 14_768_307_200),
            ("qwen3-32b", 32_762_123_264),
            ("gemma-2-2b", 2_614_341_888),
            ("gemma-2-9b", 9_241_705_984),
            ("gemma-2-27b", 27_227_128_320),
            ("gemma-3-1b", 999_885_952),
            ("gemma-3-4b", 3_880_263_168),
            ("gemma-3-12b", 11_766_034_176),
            ("gemma-3-27b", 27_009_346_304),
            ("phi-3-mini", 3_821_079_552),
        ];
        for (name, count) in published {
            assert_eq!(preset(name).map(|shape| shape.parameters()), Some(count), "{name}");
        }
        for name in names() {
            assert!(published.iter().any(|(known, _)| *known == name), "{name} is compared with nothing");
        }
        assert!(preset("Llama-3.1-8B").is_some() && preset("llama-9").is_none());
    }
}
