//! Well-known models by name.

use crate::ModelShape;

/// vocab, hidden, intermediate, layers, heads, key heads, tied, `model_type`.
type Row = (&'static str, [u64; 6], bool, &'static str);

/// Shapes as the models' own `config.json` files state them.
const PRESETS: [Row; 16] = [
    ("llama-3.1-8b", [128_256, 4096, 14_336, 32, 32, 8], false, "llama"),
    ("llama-3.1-70b", [128_256, 8192, 28_672, 80, 64, 8], false, "llama"),
    ("llama-3.1-405b", [128_256, 16_384, 53_248, 126, 128, 8], false, "llama"),
    ("llama-3.2-1b", [128_256, 2048, 8192, 16, 32, 8], true, "llama"),
    ("llama-3.2-3b", [128_256, 3072, 8192, 28, 24, 8], true, "llama"),
    ("llama-7b", [32_000, 4096, 11_008, 32, 32, 32], false, "llama"),
    ("llama-13b", [32_000, 5120, 13_824, 40, 40, 40], false, "llama"),
    ("llama-33b", [32_000, 6656, 17_920, 60, 52, 52], false, "llama"),
    ("llama-65b", [32_000, 8192, 22_016, 80, 64, 64], false, "llama"),
    ("codellama-34b", [32_000, 8192, 22_016, 48, 64, 8], false, "llama"),
    ("llama-2-7b", [32_000, 4096, 11_008, 32, 32, 32], false, "llama"),
    ("llama-2-13b", [32_000, 5120, 13_824, 40, 40, 40], false, "llama"),
    ("llama-2-70b", [32_000, 8192, 28_672, 80, 64, 8], false, "llama"),
    ("mistral-7b-v0.3", [32_768, 4096, 14_336, 32, 32, 8], false, "mistral"),
    ("qwen2.5-0.5b", [151_936, 896, 4864, 24, 14, 2], true, "qwen2"),
    ("qwen2.5-7b", [152_064, 3584, 18_944, 28, 28, 4], false, "qwen2"),
];

/// The model of this name, whatever the case.
pub fn preset(name: &str) -> Option<ModelShape> {
    let (_, numbers, tied, model_type) = PRESETS.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name))?;
    let [vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads] = *numbers;
    Some(ModelShape {
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads: Some(kv_heads),
        head_dim: None,
        tied: *tied,
        attention_bias: false,
        mlp_bias: false,
        model_type: (*model_type).to_string(),
    })
}

/// Every name.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::preset;

    #[test]
    fn parameters_are_those_that_the_models_have() {
        let published = [
            ("llama-3.1-8b", 8_030_261_248),
            ("llama-3.1-70b", 70_553_706_496),
            ("llama-3.2-1b", 1_235_814_400),
            ("llama-7b", 6_738_415_616),
            ("llama-13b", 13_015_864_320),
            ("llama-33b", 32_528_943_616),
            ("llama-65b", 65_285_660_672),
            ("codellama-34b", 33_743_970_304),
            ("llama-2-7b", 6_738_415_616),
            ("llama-2-70b", 68_976_648_192),
            ("mistral-7b-v0.3", 7_248_023_552),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen2.5-7b", 7_615_616_512),
        ];
        for (name, count) in published {
            assert_eq!(preset(name).map(|shape| shape.parameters()), Some(count), "{name}");
        }
        assert!(preset("Llama-3.1-8B").is_some() && preset("llama-9").is_none());
    }
}
