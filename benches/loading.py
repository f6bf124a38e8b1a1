"""Seconds to load a model in bf16 and quantize it, and to load it in 4 bits: layers of Llama 3.1 8B's shape, of made-up weights.

Writes the model to FOLDER and its 4-bit copy to FOLDER-nf4 (2.8 and 0.8 GB with 6 layers), and runs `halfbyte generate` for one token
from each. Needs nothing but Python; the tokenizer is the shipped model's.
"""

import argparse
import json
import pathlib
import random
import shutil
import struct
import subprocess
import time

# A table would be as large as the smallest device takes, 128 MiB, were it held in f32.
VOCABULARY, HIDDEN, INNER, KEYS = 8192, 4096, 14336, 1024
SHIPPED = pathlib.Path(__file__).parent.parent / "models" / "wordnet-4m"


def shapes(layers):
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    for layer in range(layers):
        path = f"model.layers.{layer}."
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"]:
            yield f"{path}self_attn.{name}.weight", [KEYS if name in ["k_proj", "v_proj"] else HIDDEN, HIDDEN]
        yield f"{path}mlp.gate_proj.weight", [INNER, HIDDEN]
        yield f"{path}mlp.up_proj.weight", [INNER, HIDDEN]
        yield f"{path}mlp.down_proj.weight", [HIDDEN, INNER]
        for name in ["input_layernorm", "post_attention_layernorm"]:
            yield f"{path}{name}.weight", [HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCABULARY, HIDDEN]


def write(folder, layers):
    folder.mkdir(parents=True)
    header, at = {}, 0
    for name, shape in shapes(layers):
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # bf16 is the upper half of an f32; the same weights come again and again.
    pool = b"".join(struct.pack("<f", random.gauss(0, 0.02))[2:] for _ in range(1 << 18))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in header.values():
            begin, end = tensor["data_offsets"]
            whole, rest = divmod(end - begin, len(pool))
            file.write(pool * whole + pool[:rest])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        shutil.copy(SHIPPED / name, folder)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--layers", type=int, default=6)
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--halfbyte", default="target/release/halfbyte")
    arguments.add_argument("--json", type=pathlib.Path, help="where to write the figures, too")
    given = arguments.parse_args()
    quantized = given.folder.with_name(given.folder.name + "-nf4")
    if not given.folder.exists():
        write(given.folder, given.layers)
    if not quantized.exists():
        subprocess.run([given.halfbyte, "quantize", given.folder, quantized], check=True)
    figures = []
    for folder in [given.folder, quantized]:
        size = (folder / "model.safetensors").stat().st_size / 1e9
        seconds = []
        # The first brings the file into memory.
        for _ in range(4):
            begin = time.perf_counter()
            command = [given.halfbyte, "generate", folder, "--raw", "--prompt", "a", "--max-new-tokens", "1"]
            subprocess.run([*command, "--device", given.device], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begin)
        print(f"{folder}, {size:.2f} GB: first {seconds[0]:.2f} s, then {', '.join(f'{s:.2f}' for s in seconds[1:])} s")
        figures.append({"folder": folder.name, "gigabytes": size, "layers": given.layers, "seconds": seconds})
    if given.json:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
