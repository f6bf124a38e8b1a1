"""Loads in transformers, bitsandbytes and PEFT what Halfbyte wrote into out/check, and compares logits.

Written by a test (`what_is_written_is_what_was_computed` in tests/llama.rs), and by a short run, whose event file
TensorBoard reads; `cargo xtask golden` runs all three.
"""

import json
import pathlib
import sys

import blocks  # noqa: F401, before anything decodes
import events
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

TOLERANCE = 1e-4


def compare(what, found, expected):
    error = ((found - expected).norm() / expected.norm()).item()
    print(f"{what}: relative error of the logits {error:.2e}")
    return error <= TOLERANCE


def main(root: pathlib.Path):
    out = root / "out" / "check"
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
    good &= events.check(out / "run")
    sys.exit(0 if good else "what Halfbyte wrote is read differently")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(__file__).parents[2])
