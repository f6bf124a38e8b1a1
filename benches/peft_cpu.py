"""Training speed of transformers + PEFT on this CPU, for the run of recipes/kinds.toml: same model, data, batch and rank.

    python benches/peft_cpu.py [--steps 30]

Each line is one process: base weights in bitsandbytes' NF4 with double quantization (QLoRA) or in f32 (LoRA), one or two
threads. Tokens are counted as Halfbyte counts them, padding left out; the first two steps are not timed. Needs the
packages of tests/golden/requirements.txt.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
BATCH, RANK = 16, 16


def load(kind):
    """The shipped model with a new adapter, its trained parameters and its tokenizer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    folder = ROOT / "models" / "wordnet-4m"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32) if kind == "nf4" else None
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu",
                                                quantization_config=quantization)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear",
                                            task_type="CAUSAL_LM")).train()
    return model, [p for p in model.parameters() if p.requires_grad], tokenizer


def examples(tokenizer, file):
    """Each record's tokens, and where its answer begins and ends; the line end after it is layout and not trained."""
    rows = []
    for line in (ROOT / "recipes" / "kinds" / file).read_text().splitlines():
        messages = json.loads(line)["messages"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        whole, answered = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, text.rstrip()))
        prompt = tokenizer(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True),
                           add_special_tokens=False)["input_ids"]
        rows.append((whole, len(prompt), len(answered)))
    return rows


def collate(batch):
    """Padded on the right; labels are -100 outside of the answer."""
    import torch

    length = max(len(ids) for ids, _, _ in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (whole, begin, end) in enumerate(batch):
        ids[row, :len(whole)] = torch.tensor(whole)
        mask[row, :len(whole)] = 1
        labels[row, begin:end] = ids[row, begin:end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def measure(kind, steps):
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model, parameters, tokenizer = load(kind)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    rows = examples(tokenizer, "train.jsonl")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    seconds, tokens = 0.0, 0
    for step in range(steps + 2):
        batch = collate([rows[i] for i in order[step * BATCH:(step + 1) * BATCH]])
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:
            seconds += time.perf_counter() - start
            tokens += int(batch["attention_mask"].sum())
    print(f"{kind}, {os.environ['OMP_NUM_THREADS']} threads: {tokens / seconds:.0f} tokens/s, loss {loss.item():.3f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--one", choices=["nf4", "f32"])
    arguments = parser.parse_args()
    if arguments.one:
        return measure(arguments.one, arguments.steps)
    for kind in ["nf4", "f32"]:
        for threads in ["1", "2"]:
            command = [sys.executable, __file__, "--one", kind, "--steps", str(arguments.steps)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": threads})


if __name__ == "__main__":
    main()
