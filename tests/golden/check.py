"""Loads in transformers, bitsandbytes, PEFT and gguf what Halfbyte wrote into out/check, out/check-interchange and
out/check-multimodal, and compares.

Written by tests (`what_is_written_is_what_was_computed` in tests/llama.rs and `what_is_written_for_others` in
tests/interchange.rs and tests/multimodal.rs), and by a short run, whose event file TensorBoard reads; `cargo xtask golden` runs them and this.
"""

import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # PEFT would ask the hub for the configuration of a base that it takes for a name

import blocks  # noqa: F401, before anything decodes
import events
import numpy
import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Gemma3ForConditionalGeneration, TrainerState

from llama import quantized

TOLERANCE = 1e-4


def compare(what, found, expected, tolerance=TOLERANCE):
    error = ((found - expected).norm() / expected.norm()).item()
    print(f"{what}: relative error of the logits {error:.2e}")
    return error <= tolerance


def interchange(root, out):
    """The adapters of PEFT's less usual kinds as Halfbyte wrote them again, merged models, and a 4-bit folder."""
    good, golden = True, root / "tests" / "golden"
    for case, written in json.loads((out / "logits.json").read_text()).items():
        base = written.get("base", "llama-untied")
        ids = load_file(golden / base / "expect.safetensors")["input_ids"]
        expected = torch.tensor(written["logits"]).reshape(3, 3, -1)
        last = lambda model: model(input_ids=ids).logits[:, -3:]
        if case == "skipped":
            model = AutoModelForCausalLM.from_pretrained(out / case, dtype=torch.float32, device_map="cpu").train()
            kinds = {type(layer.mlp.down_proj).__name__ for layer in model.model.layers}
            good &= kinds == {"Linear"} and type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
            good &= compare("a 4-bit folder with skipped modules", last(model), expected)
            continue
        model = PeftModel.from_pretrained(quantized(golden / base), out / case).train()
        good &= compare(f"adapter {case}", last(model), expected)
        merged = AutoModelForCausalLM.from_pretrained(out / f"{case}-merged", dtype="auto")
        assert merged.dtype == torch.bfloat16
        good &= compare(f"{case}, merged in bf16", last(merged.float()), expected, 2e-2)
    return good


def multimodal(root, out):
    """An adapter of the text part of a multi-modal model on the class that transformers loads the folder with, and merged."""
    written = json.loads((out / "logits.json").read_text())
    ids = load_file(root / "tests" / "golden" / "gemma3" / "expect.safetensors")["input_ids"]
    expected = torch.tensor(written["logits"]).reshape(*ids.shape, -1)
    load = lambda name: Gemma3ForConditionalGeneration.from_pretrained(out / name, dtype=torch.float32)
    logits = lambda model: model(input_ids=ids).logits
    merged = load("merged")
    model = PeftModel.from_pretrained(load("base"), out / "adapter")
    adapted = [name for name, _ in model.named_modules() if name.endswith(".lora_A.default")]
    assert adapted and all(".language_model.layers." in name for name in adapted), "the vision tower is adapted"
    good = compare("a multi-modal model's adapter", logits(model), expected)
    return compare("the same, merged", logits(merged), expected) and good


def permuted(b, heads):
    """The rows of q and k as llama.cpp keeps them (LlamaModel.permute)."""
    return b.reshape(heads, 2, b.shape[0] // heads // 2, *b.shape[1:]).swapaxes(1, 2).reshape(b.shape)


def gguf(root, out):
    """GGUF adapters against what convert_lora_to_gguf.py's rules make of the folder that was exported for SGLang."""
    config = json.loads((root / "tests" / "golden" / "llama-untied" / "config.json").read_text())
    of_llama = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    architectures = {"patterns": "llama", "rslora": "llama", **{name: name for name in ["gemma2", "gemma3", "phi3", "qwen3"]}}
    for name, architecture in architectures.items():
        heads = of_llama if architecture == "llama" else {}
        key = next(key for key, known in MODEL_ARCH_NAMES.items() if known == architecture)
        names = get_tensor_name_map(key, 16)
        reader = GGUFReader(out / f"{name}-ollama" / "adapter.gguf")
        field = lambda key: reader.fields[key].contents()
        tensors = load_file(out / f"{name}-sglang" / "adapter_model.safetensors")
        adapter = json.loads((out / f"{name}-sglang" / "adapter_config.json").read_text())
        assert field("general.architecture") == architecture and field("general.type") == "adapter"
        assert field("adapter.type") == "lora"
        found = {tensor.name: tensor for tensor in reader.tensors}
        assert len(found) == len(tensors)
        for path in {key.rsplit(".lora_", 1)[0] for key in tensors}:
            module = path.split(".")[-1]
            layer = names.get_name(path.removeprefix("base_model.model."))
            a, b = (found[f"{layer}.weight.lora_{side}"] for side in "ab")
            # ggml names the contiguous dimension first.
            assert list(a.shape) == [*a.data.shape[::-1]] and list(b.shape) == [*b.data.shape[::-1]]
            assert a.shape[1] == b.shape[0]
            rank = int(a.shape[1])
            update = field("adapter.lora.alpha") / rank * b.data @ a.data
            of_folder = [tensors[f"{path}.lora_{side}.weight"].numpy() for side in "BA"]
            if module in heads:
                of_folder[0] = permuted(of_folder[0], heads[module])
            expected = adapter["lora_alpha"] / adapter["r"] * of_folder[0] @ of_folder[1]
            assert numpy.allclose(update, expected, rtol=1e-4, atol=1e-6), f"{name} {path}"
            assert numpy.array_equal(a.data, of_folder[1][:rank]), f"{name} {path}"
        print(f"GGUF adapter {name}: {len(found)} tensors are as they should be")
    return True


def check_state(checkpoint: pathlib.Path):
    """A checkpoint's trainer_state.json is what transformers' Trainer would have left, its optimizer's state fits its adapter."""
    state = TrainerState.load_from_json(checkpoint / "trainer_state.json")
    assert (state.global_step, state.max_steps, state.train_batch_size) == (10, 10, 16)
    steps = [entry for entry in state.log_history if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 11))
    assert {"epoch", "grad_norm", "learning_rate", "loss", "step"} <= steps[0].keys()
    evaluation = state.log_history[-1]
    assert {"epoch", "eval_loss", "step"} <= evaluation.keys() and abs(state.epoch - 10 / 94) < 1e-12
    # Through transformers and back nothing is lost or added.
    again = checkpoint.parent / "trainer_state.json"
    state.save_to_json(again)
    assert json.loads(again.read_text()) == json.loads((checkpoint / "trainer_state.json").read_text())
    adapter, moments = load_file(checkpoint / "adapter_model.safetensors"), load_file(checkpoint / "optimizer.safetensors")
    for name, value in adapter.items():
        for moment in ["exp_avg", "exp_avg_sq"]:
            assert moments.pop(f"{name.removeprefix('base_model.model.')}.{moment}").shape == value.shape, name
    assert not moments, "moments of no parameter"
    print("a checkpoint: its state is transformers', its optimizer's fits the adapter")


def main(root: pathlib.Path):
    out = root / "out" / "check"
    check_state(out / "checkpoint-10")
    halfbyte = json.loads((out / "logits.json").read_text())
    ids = torch.tensor([halfbyte["ids"]])
    kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=torch.float32)
    ours = {name: torch.tensor(halfbyte[name]).reshape(1, ids.shape[1], -1) for name in ["base", "adapted"]}
    with torch.no_grad():
        # The folder that Halfbyte quantized says itself how; the other is quantized by bitsandbytes.
        written = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32, device_map="cpu").train()
        good = compare("a model that Halfbyte quantized", written(input_ids=ids).logits, ours["base"])
        base = AutoModelForCausalLM.from_pretrained(root / "models" / "wordnet-4m", dtype=torch.float32,
                                                    device_map="cpu", quantization_config=kind).train()
        # In training mode, without dropout: bitsandbytes infers on a CPU in bf16 where the CPU has instructions for it.
        model = PeftModel.from_pretrained(base, out / "adapter").train()
        good &= compare("an adapter that Halfbyte trained", model(input_ids=ids).logits, ours["adapted"])
        beside = root / "out" / "check-interchange"
        good &= interchange(root, beside) and gguf(root, beside)
        good &= multimodal(root, root / "out" / "check-multimodal")
        assert (ours["base"] - ours["adapted"]).norm() > 0.01 * ours["base"].norm(), "the adapter does nothing"
        # A checkpoint is an adapter folder of the same model.
        base = AutoModelForCausalLM.from_pretrained(root / "models" / "wordnet-4m", dtype=torch.float32,
                                                    device_map="cpu", quantization_config=kind).train()
        model = PeftModel.from_pretrained(base, out / "checkpoint-10").train()
        good &= compare("a checkpoint", model(input_ids=ids).logits, ours["adapted"])
    good &= events.check(out / "run")
    sys.exit(0 if good else "what Halfbyte wrote is read differently")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(__file__).parents[2])
