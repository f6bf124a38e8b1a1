"""Tiny random Llama models, and what transformers + PEFT + bitsandbytes compute with them in f32 on the CPU.

`families.py` makes the same for other families, by the functions of this file.
"""

import pathlib
import shutil

import blocks  # noqa: F401, before anything decodes
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, get_cosine_schedule_with_warmup

STEPS, WARMUP, LENGTH = 20, 2, 24


def configurations():
    """Rows of 96 elements on purpose: blocks of 64 straddle them."""
    tied = LlamaConfig(
        vocab_size=128, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, rope_theta=500000.0, rms_norm_eps=1e-5,
        max_position_embeddings=256, initializer_range=0.1, bos_token_id=0, eos_token_id=1,
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 32},
    )
    untied = LlamaConfig(
        vocab_size=160, hidden_size=96, intermediate_size=144, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
        max_position_embeddings=256, initializer_range=0.1, bos_token_id=0, eos_token_id=1,
    )
    return {
        "llama-tied": (tied, torch.float32, "10GB", dict(target_modules="all-linear")),
        "llama-untied": (untied, torch.bfloat16, "150KB",
                         dict(target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True)),
    }


def build(config):
    """A model whose norms and biases are not trivial."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def quantized(folder):
    # In training mode: bitsandbytes' packed inference path for the CPU rejects rows that are no multiple of a block.
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32),
    ).train()


def tokens(vocab, *shape):
    """Repeating patterns, so that there is something to learn."""
    start = torch.randint(2, vocab, (*shape, 1))
    step = torch.randint(1, 4, (*shape, 1))
    return 2 + (start + step * torch.arange(LENGTH)) % (vocab - 2)


def masked(ids, begin):
    labels = ids.clone()
    for row, first in zip(labels.view(-1, LENGTH), begin):
        row[:first] = -100
    return labels


def sum_loss(model, ids, labels):
    """The sum of the losses of the trained tokens, each predicted from the position before."""
    logits = model(input_ids=ids).logits
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1), ignore_index=-100, reduction="sum")


def strip(name):
    """A parameter's name as PEFT saves it, without the adapter's name."""
    return name.replace(".default", "")


def states(model, out):
    for name, module in model.named_modules():
        if hasattr(module, "weight") and hasattr(module.weight, "quant_state") and module.weight.quant_state is not None:
            state = module.weight.quant_state
            out[f"codes.{name}.weight"] = module.weight.data.flatten().clone()
            out[f"absmax.{name}.weight"] = state.absmax
            out[f"nested_absmax.{name}.weight"] = state.state2.absmax
            out[f"offset.{name}.weight"] = state.offset.reshape(1)


def curve(model, vocab, out):
    """20 steps of AdamW over 2 accumulated micro-batches, normalised by the trained tokens of the whole step."""
    torch.manual_seed(11)
    ids = tokens(vocab, STEPS, 2, 2)
    labels = masked(ids, torch.randint(2, 16, (STEPS * 4,)).tolist())
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        trained = (labels[step][:, :, 1:] != -100).sum()
        total = 0.0
        for micro in range(2):
            loss = sum_loss(model, ids[step, micro], labels[step, micro]) / trained
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    out |= {"curve_input_ids": ids, "curve_labels": labels, "curve_loss": torch.tensor(losses),
            "curve_grad_norm": torch.tensor(norms), "curve_lr": torch.tensor(rates, dtype=torch.float32)}


def fixtures(folder, config, dtype, shard, lora, training=True):
    """Everything about one model; `training` adds what no family changes: bitsandbytes' codes and a curve of steps."""
    shutil.rmtree(folder, ignore_errors=True)
    build(config).to(dtype).save_pretrained(folder, max_shard_size=shard)
    torch.manual_seed(5)
    ids = tokens(config.vocab_size, 3)
    labels = masked(ids, [8, 5, 11])
    trained = (labels[:, 1:] != -100).sum()
    out = {"input_ids": ids, "labels": labels}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    base = quantized(folder)
    if training:
        states(base, out)
    with torch.no_grad():
        for prefix, model in [("", plain), ("nf4_", base)]:
            out[f"{prefix}logits"] = model(input_ids=ids).logits
            out[f"{prefix}loss"] = (sum_loss(model, ids, labels) / trained).reshape(1)
    model = get_peft_model(base, LoraConfig(lora_dropout=0.0, task_type="CAUSAL_LM", **({"r": 4, "lora_alpha": 8} | lora)))
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    # Not the path of the machine that makes the fixture.
    model.peft_config["default"].base_model_name_or_path = folder.name
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    model = PeftModel.from_pretrained(quantized(folder), folder / "adapter", is_trainable=True).train()
    with torch.no_grad():
        out["lora_logits"] = model(input_ids=ids).logits
    loss = sum_loss(model, ids, labels) / trained
    loss.backward()
    out["lora_loss"] = loss.detach().reshape(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            out[f"grad.{strip(name)}"] = parameter.grad.clone()
            parameter.grad = None
    prompt = ids[:1, :8]
    # Without a cache: the reference is what the model says of the whole text so far.
    made = model.generate(input_ids=prompt, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0,
                          use_cache=False)
    out |= {"generate_prompt": prompt[0], "generate_ids": made[0, 8:]}
    out["trainable"] = torch.tensor(model.get_nb_trainable_parameters())
    if training:
        curve(model, config.vocab_size, out)
    save_file({k: v.detach().clone().contiguous() for k, v in out.items()}, folder / "expect.safetensors")


def main(here: pathlib.Path):
    for name, (config, dtype, shard, lora) in configurations().items():
        fixtures(here / name, config, dtype, shard, lora)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(__file__).parent)
