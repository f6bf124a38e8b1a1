"""Training steps of transformers + PEFT + bitsandbytes on models of any size with made-up weights: what `halfbyte bench-training` is
compared with, on the same machine and with the same settings.

    python benches/peft_training.py --model llama-3.1-8b --length 512,2048,8192 --json peft.json
    halfbyte bench-training         --model llama-3.1-8b --length 512,2048,8192 --json halfbyte.json

NF4 with double quantization, rank 16 on all linear layers, gradient checkpointing, bf16 where there is a GPU and f32 where there is
none, AdamW, random tokens, the loss on all of them; the first step is not timed. --model is a name below or a folder with
config.json. Needs the packages of tests/golden/requirements.txt, on a GPU those of its driver.
"""

import argparse
import json
import pathlib
import statistics
import time

# vocabulary, hidden, intermediate, layers, heads, key heads, head width, tied
SHAPES = {
    "llama-3.2-1b": (128256, 2048, 8192, 16, 32, 8, 64, True),
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8, 128, False),
    "llama-3.1-70b": (128256, 8192, 28672, 80, 64, 8, 128, False),
}


def configuration(name):
    from transformers import AutoConfig, LlamaConfig

    if name not in SHAPES:
        return AutoConfig.from_pretrained(pathlib.Path(name))
    vocab, hidden, inner, layers, heads, kv_heads, width, tied = SHAPES[name]
    return LlamaConfig(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width, rope_theta=500000.0,
                       max_position_embeddings=1 << 20, tie_word_embeddings=tied)


def build(config, device, dtype):
    """The model, made layer by layer on the device, its linear layers quantized as they come."""
    import bitsandbytes
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    modules = dict(model.named_modules())
    for name, module in list(modules.items()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        linear = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, bias=module.bias is not None,
                                            compute_dtype=dtype, compress_statistics=True, quant_type="nf4",
                                            device="meta")
        weight = torch.randn(module.out_features, module.in_features, dtype=dtype, device=device) * 0.02
        linear.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, compress_statistics=True,
                                                   quant_type="nf4").to(device)
        if module.bias is not None:
            linear.bias = torch.nn.Parameter(torch.zeros(module.out_features, dtype=dtype, device=device))
        parent, _, child = name.rpartition(".")
        setattr(modules[parent], child, linear)
    for name, parameter in list(model.named_parameters()):
        if parameter.device.type != "meta":
            continue
        parent, _, child = name.rpartition(".")
        values = torch.ones if "norm" in name else lambda *size, **more: torch.randn(*size, **more) * 0.02
        values = values(*parameter.shape, dtype=dtype, device=device)
        setattr(model.get_submodule(parent), child, torch.nn.Parameter(values, requires_grad=False))
    model.tie_weights()
    # Angles are computed, not stored.
    rotary = type(model.model.rotary_emb)(config=config, device=device)
    model.model.rotary_emb = rotary
    model.is_loaded_in_4bit = True
    return model


TABLE = "| length | batch | s a step | tokens/s | GFLOP/s | peak GiB |\n|---|---|---|---|---|---|"


def parser(description):
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="llama-3.2-1b")
    arguments.add_argument("--length", default="512,2048")
    arguments.add_argument("--batch", type=int, default=1)
    arguments.add_argument("--rank", type=int, default=16)
    arguments.add_argument("--steps", type=int, default=5)
    arguments.add_argument("--json", type=pathlib.Path)
    return arguments


def multiplied(model):
    """Weights of the linear layers and the head, without the adapters'."""
    import torch

    return sum(module.in_features * module.out_features for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and "lora_" not in name)


def measured(length, batch, seconds, products, peak):
    """A row of the JSON, printed as one of the table."""
    once, count = statistics.median(seconds), batch * length
    row = {"length": length, "batch": batch, "seconds": seconds, "tokens_per_second": count / once,
           "gflops": 6 * products * count / once / 1e9, "peak": peak}
    shown = f"{peak / 2**30:.2f}" if peak else "-"
    print(f"| {length} | {batch} | {once:.3f} | {row['tokens_per_second']:.1f} | {row['gflops']:.1f} | {shown} |", flush=True)
    return row


def main():
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    arguments = parser(__doc__).parse_args()

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    torch.manual_seed(1)
    config = configuration(arguments.model)
    config.use_cache = False
    model = prepare_model_for_kbit_training(build(config, device, dtype),
                                            gradient_checkpointing_kwargs={"use_reentrant": False})
    model = get_peft_model(model, LoraConfig(r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules="all-linear",
                                             task_type="CAUSAL_LM")).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    products = multiplied(model)
    name = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; {arguments.model}, torch {torch.__version__}, {dtype}")
    print(TABLE)
    rows = []
    for length in map(int, arguments.length.split(",")):
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for step in range(arguments.steps + 1):
            tokens = torch.randint(config.vocab_size, (arguments.batch, length), device=device)
            start = time.perf_counter()
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
            if gpu:
                torch.cuda.synchronize()
            if step > 0:
                seconds.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_reserved() if gpu else None
        rows.append(measured(length, arguments.batch, seconds, products, peak))
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": name, "model": arguments.model, "measurements": rows}, indent=2))


if __name__ == "__main__":
    main()
