"""Tiny random models of every family but Llama, and what transformers + PEFT + bitsandbytes compute with them.

Whatever distinguishes a family is switched on and large enough to be felt: windows are shorter than the sequences, both
kinds of layer occur, caps lie near the values that they bound, heads are not `hidden_size / num_attention_heads` wide.
"""

import pathlib

import llama
import torch
from transformers import Gemma2Config, Gemma3TextConfig, MistralConfig, Phi3Config, Qwen2Config, Qwen3Config

SIZES = dict(
    vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.15, bos_token_id=0, eos_token_id=1,
    pad_token_id=0,
)


def configurations():
    return {
        "mistral": MistralConfig(**SIZES, head_dim=16, sliding_window=7, rope_theta=1000000.0),
        "qwen2": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=6, max_window_layers=1,
                             tie_word_embeddings=True, rope_theta=1000000.0),
        "qwen3": Qwen3Config(**SIZES, head_dim=16, rope_theta=1000.0,
                             rope_scaling={"rope_type": "yarn", "factor": 4.0, "beta_fast": 4.0,
                                           "original_max_position_embeddings": 1024}),
        "gemma2": Gemma2Config(**SIZES, head_dim=16, query_pre_attn_scalar=24, sliding_window=6,
                               attn_logit_softcapping=1.5, final_logit_softcapping=4.0),
        "gemma3": Gemma3TextConfig(**SIZES, head_dim=16, query_pre_attn_scalar=24, sliding_window=5,
                                   sliding_window_pattern=2, rope_theta=100000.0, rope_local_base_freq=1000.0,
                                   rope_scaling={"rope_type": "linear", "factor": 8.0}),
        # The sequences are longer than the original context; the generated text grows beyond it.
        "phi3": Phi3Config(**(SIZES | dict(hidden_size=64, max_position_embeddings=64)), sliding_window=9,
                           original_max_position_embeddings=16, partial_rotary_factor=0.5, rope_theta=100.0,
                           rope_scaling={"type": "longrope", "short_factor": [1.0, 0.7, 0.5, 0.3],
                                         "long_factor": [1.2, 1.5, 2.5, 4.0]}),
    }


def main(here: pathlib.Path):
    for name, config in configurations().items():
        lora = dict(r=2, lora_alpha=4, target_modules="all-linear")
        llama.fixtures(here / name, config, torch.bfloat16, "10GB", lora, training=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(__file__).parent)
