"""Adapters with PEFT's less usual features on the tiny Llama models, and 4-bit weights as bitsandbytes stores them."""

import os
import pathlib
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT would ask the hub for the configuration of a base that it takes for a name

import blocks  # noqa: F401, before anything decodes
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from llama import quantized, sum_loss

# The base, and what differs from plain LoRA of rank 4. Patterns that overlap are in the order of the alphabet, as PEFT
# saves them.
CASES = {
    "dora": ("llama-tied", dict(
        use_dora=True, target_modules=["q_proj", "k_proj", "down_proj"],
        rank_pattern={"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 6},
        alpha_pattern={"^model.layers.0.self_attn.k_proj": 3, "down_proj": 5})),
    "dora-biased": ("llama-untied", dict(
        use_dora=True, use_rslora=True, target_modules=["v_proj", "o_proj", "up_proj"], layers_to_transform=[1],
        layers_pattern="layers")),
    "patterns": ("llama-untied", dict(
        use_rslora=True, target_modules=["k_proj", "gate_proj"], layers_to_transform=0,
        rank_pattern={"gate.*": 3, "gate_proj": 5}, alpha_pattern={"self_attn.k_proj": 2.5})),
    "saved-tied": ("llama-tied", dict(target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"],
                                      exclude_modules=["gate_proj", "up_proj", "down_proj", "k_proj"], r=2)),
    "saved-norms": ("llama-untied", dict(target_modules=r".*\.1\..*v_proj", modules_to_save=["norm"])),
}


def name_of(parameter):
    """A parameter's name as PEFT saves it."""
    for part in [".modules_to_save.default", ".default"]:
        parameter = parameter.replace(part, "")
    return parameter.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def disturb(model):
    """Values that no initialisation gives."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
            elif "lora_magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
            elif "modules_to_save.default" in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)


def adapters(here, folder):
    for case, (base, options) in CASES.items():
        reference = load_file(here / base / "expect.safetensors")
        ids, labels = reference["input_ids"], reference["labels"]
        config = LoraConfig(**(dict(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM") | options))
        model = get_peft_model(quantized(here / base), config)
        disturb(model)
        model.peft_config["default"].base_model_name_or_path = base
        target = folder / case
        model.save_pretrained(target)
        (target / "README.md").unlink()
        model = PeftModel.from_pretrained(quantized(here / base), target, is_trainable=True).train()
        loss = sum_loss(model, ids, labels) / (labels[:, 1:] != -100).sum()
        loss.backward()
        out = {f"grad.{name_of(n)}": p.grad for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            out |= {"loss": loss.reshape(1), "logits": model(input_ids=ids).logits[:, -3:]}
        save_file({k: v.detach().clone().contiguous() for k, v in out.items()}, target / "expect.safetensors")


def stored(folder):
    """One weight in every way that bitsandbytes stores it, and what it decodes to."""
    torch.manual_seed(13)
    weight = torch.randn(20, 96) * 0.1
    out, states = {}, {}
    for kind in ["nf4", "fp4"]:
        for double in [False, True]:
            for storage in [torch.uint8, torch.bfloat16, torch.float16, torch.float32]:
                if kind == "fp4" and storage != torch.uint8:
                    continue
                name = f"{kind}-{'double' if double else 'plain'}-{str(storage).removeprefix('torch.')}.weight"
                packed, state = quantize_4bit(weight, quant_type=kind, compress_statistics=double, quant_storage=storage)
                out[name] = packed
                out |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
                if storage == torch.uint8 and kind == "nf4":
                    states["double" if double else "plain"] = dequantize_4bit(packed, state)
    save_file({k: v.contiguous() for k, v in out.items()}, folder / "stored.safetensors")
    save_file(states, folder / "decoded.safetensors")


def main(here: pathlib.Path):
    folder = here / "interchange"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    adapters(here, folder)
    stored(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(__file__).parent)
