"""Optimizer and schedule fixtures: torch.optim.AdamW, bitsandbytes' 8-bit AdamW on the CPU, transformers' schedules and
the parameters that decay, PEFT's LoRA+ groups. Gradients are formulas, which the tests evaluate too."""

import json
import pathlib

import bitsandbytes
import torch
from bitsandbytes.functional import create_dynamic_map
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, Trainer, get_scheduler

STEPS = 20
# The second is a whole number of blocks, the first is not; the third is below min_8bit_size.
SHAPES = {"big.lora_A.weight": (96, 50), "whole.lora_B.weight": (64, 128), "small.lora_A.weight": (9, 31),
          "model.norm.weight": (1, 40)}


def random(count, salt):
    """Numbers from 0 to 1 that any language computes alike."""
    i = torch.arange(count, dtype=torch.int64)
    return ((i * 2654435761 + salt * 2246822519) % 2**32).double() / 2**32


def gradient(count, salt):
    """Magnitudes over sixteen powers of two; a block of zeros; and one of numbers whose squares are denormal."""
    i = torch.arange(count)
    g = (random(count, salt) - 0.5) * 2.0 ** -(i % 16).double()
    g[256:512] = 0
    g[512:768] *= 2.0**-66
    return g.float()


def rate(step):
    return 1e-3 * (1 + step % 5)


def run(optimizer, parameters):
    """One step for each rate, the decay off for the norm."""
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        for k, parameter in enumerate(parameters.values()):
            parameter.grad = gradient(parameter.numel(), 10 * step + k).reshape(parameter.shape)
        optimizer.step()
        yield step + 1


def optimizers():
    out = {}
    for name, make in [("adamw", torch.optim.AdamW), ("adamw_8bit", bitsandbytes.optim.AdamW8bit)]:
        parameters = {path: torch.nn.Parameter(random(shape[0] * shape[1], 99).float().reshape(shape))
                      for path, shape in SHAPES.items()}
        decayed = [p for path, p in parameters.items() if "norm" not in path]
        groups = [{"params": decayed, "weight_decay": 0.1},
                  {"params": [parameters["model.norm.weight"]], "weight_decay": 0.0}]
        optimizer = make(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
        for step in run(optimizer, parameters):
            if step not in (1, 7, STEPS):
                continue
            for path, parameter in parameters.items():
                state, key = optimizer.state[parameter], f"{name}.{step}.{path}"
                if step == STEPS:
                    out[f"{key}.value"] = parameter.detach().clone()
                if name == "adamw" and step == STEPS:
                    out |= {f"{key}.exp_avg": state["exp_avg"].clone(), f"{key}.exp_avg_sq": state["exp_avg_sq"].clone()}
                elif name == "adamw_8bit" and state["state1"].dtype == torch.uint8:
                    out |= {f"{key}.exp_avg": state["state1"].clone(), f"{key}.exp_avg_sq": state["state2"].clone(),
                            f"{key}.exp_avg.absmax": state["absmax1"].clone(),
                            f"{key}.exp_avg_sq.absmax": state["absmax2"].clone()}
    kept = {path: optimizer.state[p]["state1"].dtype == torch.uint8 for path, p in parameters.items()}
    assert kept == {path: shape[0] * shape[1] >= 4096 for path, shape in SHAPES.items()}
    return out


def schedules():
    """The rates of 60 steps where 50 were planned."""
    out = []
    for name, more in [("cosine", {}), ("linear", {}), ("constant", {}), ("constant_with_warmup", {}),
                       ("cosine_with_min_lr", {"min_lr": 3e-4}), ("cosine_with_min_lr", {"min_lr_rate": 0.1})]:
        for warmup in (0, 7):
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
            schedule = get_scheduler(name, optimizer, warmup, 50, scheduler_specific_kwargs=dict(more))
            rates = []
            for _ in range(60):
                rates.append(schedule.get_last_lr()[0])
                optimizer.step()
                schedule.step()
            out.append({"name": name, "warmup": warmup, **more, "rates": rates})
    return out


def groups():
    """Which parameters decay in transformers' trainer, and the rates that PEFT's LoRA+ gives at a ratio of 16."""
    tiny = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2, head_dim=8)
    decays = {}
    for model in [LlamaForCausalLM(LlamaConfig(**tiny, attention_bias=True, mlp_bias=True)),
                  Qwen3ForCausalLM(Qwen3Config(**tiny))]:
        names = set(Trainer.get_decay_parameter_names(None, model))
        decays |= {name: name in names for name, _ in model.named_parameters()}
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**tiny, attention_bias=True)),
                           LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", bias="all"))
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1.0, loraplus_lr_ratio=16.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    clean = lambda name: name.removeprefix("base_model.model.").replace(".default", "").replace(".base_layer", "")
    return decays, {clean(name): rates[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def main(folder: pathlib.Path):
    folder.mkdir(exist_ok=True)
    tensors = {"unsigned_dynamic_map": create_dynamic_map(signed=False), **optimizers()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "cases.safetensors")
    decays, loraplus = groups()
    text = json.dumps({"schedules": schedules(), "decays": decays, "loraplus": loraplus})
    (folder / "cases.json").write_text(text + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(__file__).parent / "optim")
