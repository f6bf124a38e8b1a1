"""The run of recipes/kinds.toml, cut to some steps, by transformers + PEFT + bitsandbytes: from the same adapter, over the same
tokens in the same order as Halfbyte's, so that loss stands beside loss.

    cargo run --release -p halfbyte-benches --bin start -- recipes/kinds.toml --steps 200 out/start
    cargo run --release -- train recipes/kinds.toml --max-steps 200 --device cpu --output out/start/halfbyte
    python benches/peft_loss.py out/start

Needs the packages of tests/golden/requirements.txt.
"""

import argparse
import json
import pathlib

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, get_cosine_schedule_with_warmup

ROOT = pathlib.Path(__file__).parents[1]


def collate(rows):
    """Padded on the right."""
    length = max(len(row["input_ids"]) for row in rows)
    pad = lambda key, value: torch.tensor([row[key] + [value] * (length - len(row[key])) for row in rows])
    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
    return {"input_ids": pad("input_ids", 0), "attention_mask": mask, "labels": pad("labels", -100)}


def held_out(model, rows):
    """Mean loss over the trained tokens. In training mode, which drops nothing: bitsandbytes infers on a CPU in bf16."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), 16):
            batch = collate(rows[start:start + 16])
            trained = int((batch["labels"][:, 1:] != -100).sum())
            total += model(**batch).loss.item() * trained
            count += trained
    return total / count


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("start", type=pathlib.Path)
    folder = parser.parse_args().start
    run = json.loads((folder / "steps.json").read_text())
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(ROOT / "models" / "wordnet-4m", dtype=torch.float32, device_map="cpu",
                                                quantization_config=quantization)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = len(run["steps"])
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, -(-steps * 5 // 100), steps)
    losses = []
    before = held_out(model, run["test"])
    for rows in run["steps"]:
        loss = model(**collate(rows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    after = held_out(model, run["test"])

    lines = [json.loads(line) for line in (folder / "halfbyte" / "metrics.jsonl").read_text().splitlines()]
    ours = [line["loss"] for line in lines if "loss" in line]
    evaluated = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert len(ours) == steps, f"halfbyte's run has {len(ours)} steps, the start {steps}"
    apart = [abs(a / b - 1.0) for a, b in zip(ours, losses)]
    print("| | transformers + PEFT + bitsandbytes | Halfbyte | apart |\n|---|---|---|---|")
    for what, theirs, ours in [("held-out loss before", before, evaluated[0]), (f"after {steps} steps", after, evaluated[steps])]:
        print(f"| {what} | {theirs:.4f} | {ours:.4f} | {abs(ours / theirs - 1.0):.2%} |")
    print(f"loss of a step: apart by {sum(apart) / steps:.2%} on average, {max(apart):.2%} at most; "
          f"{max(apart[:20]):.3%} at most in the first 20")


if __name__ == "__main__":
    main()
