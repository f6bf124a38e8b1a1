"""Loads in transformers, bitsandbytes and PEFT what Halfbyte wrote into out/check, and compares logits.

Written by a test (`what_is_written_is_what_was_computed` in tests/llama.rs); `cargo xtask golden` runs both.
"""

import json
import pathlib
import sys

import blocks  # noqa: F401, before anything decodes
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerState

TOLERANCE = 1e-4


def compare(what, found, expected):
    error = ((found - expected).norm() / expected.norm()).item()
    print(f"{what}: relative error of the logits {error:.2e}")
    return error <= TOLERANCE


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
        assert (ours["base"] - ours["adapted"]).norm() > 0.01 * ours["base"].norm(), "the adapter does nothing"
        # A checkpoint is an adapter folder of the same model.
        base = AutoModelForCausalLM.from_pretrained(root / "models" / "wordnet-4m", dtype=torch.float32,
                                                    device_map="cpu", quantization_config=kind).train()
        model = PeftModel.from_pretrained(base, out / "checkpoint-10").train()
        good &= compare("a checkpoint", model(input_ids=ids).logits, ours["adapted"])
    sys.exit(0 if good else "the logits differ")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(__file__).parents[2])
