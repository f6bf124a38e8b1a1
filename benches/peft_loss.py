"""Held-out loss of transformers + PEFT + bitsandbytes after the run of recipes/kinds.toml, cut to some steps: same model, data,
batch, rank and schedule, to stand beside `halfbyte train recipes/kinds.toml --max-steps 200`.

    python benches/peft_loss.py [--steps 200] [--seed 42]

The order of the data and the adapters' start are random; neither is Halfbyte's, so several seeds are compared. Needs the
packages of tests/golden/requirements.txt.
"""

import argparse

import torch
from transformers import get_cosine_schedule_with_warmup

from peft_cpu import BATCH, collate, examples, load


def held_out(model, rows):
    """Mean loss over the trained tokens. In training mode, which drops nothing: bitsandbytes infers on a CPU in bf16."""
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            batch = collate(rows[start:start + BATCH])
            trained = int((batch["labels"][:, 1:] != -100).sum())
            total += model(**batch).loss.item() * trained
            count += trained
    return total / count


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model, parameters, tokenizer = load("nf4")
    train, test = examples(tokenizer, "train.jsonl"), examples(tokenizer, "test.jsonl")
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    warmup = -(-arguments.steps * 5 // 100)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, arguments.steps)
    before, order = held_out(model, test), []
    for _ in range(arguments.steps):
        if not order:
            order = torch.randperm(len(train)).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        loss = model(**collate([train[i] for i in chosen])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    print(f"seed {arguments.seed}, {arguments.steps} steps: held-out loss {before:.4f} before, {held_out(model, test):.4f} after")


if __name__ == "__main__":
    main()
