"""Training steps of Unsloth on the models of peft_training.py, with the settings and the output of that script.

    python benches/unsloth_training.py --model llama-3.1-8b --length 512,2048,8192 --json unsloth.json

The made-up model is written below TMPDIR as a checkpoint in NF4 (6 GB for 8B, removed at the end) and loaded by
FastLanguageModel.from_pretrained, as a downloaded one would be. A step is forward (under autocast to bf16, as in
Unsloth's trainer), backward, clipping and AdamW. Unsloth compiles its decoder layer with torch.compile in the first
steps, which are not timed; that takes a minute or so, --no-compile does without. The script says whether Unsloth's own
functions were in use and ends with an error if not. Nothing is fetched. Needs an NVIDIA GPU and the packages unsloth,
unsloth_zoo, trl, datasets, torchao and cut_cross_entropy beside those of peft_training.py.
"""

import faulthandler
import gc
import json
import os
import pathlib
import sys
import tempfile
import time

from peft_training import TABLE, build, configuration, measured, multiplied, parser

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def say(text):
    print(f"[{time.perf_counter() - say.start:6.1f} s] {text}", file=sys.stderr, flush=True)


say.start = time.perf_counter()


def prepare_environment(scratch, compiled):
    """What Unsloth, transformers and torch read when they are imported."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "UNSLOTH_DISABLE_STATISTICS"):
        os.environ[name] = "1"
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(scratch / "trainers")
    if not compiled:
        os.environ["UNSLOTH_COMPILE_DISABLE"] = "1"


def allocate_once(device):
    """Unsloth asks for expandable segments, which some virtual machines and containers lack."""
    import torch

    try:
        torch.empty(1 << 24, device=device).fill_(1)
        torch.cuda.synchronize()
    except RuntimeError as error:
        say(f"WARNING: allocating without expandable segments after: {str(error).splitlines()[0]}")
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")
        torch.empty(1 << 24, device=device).fill_(1)
        torch.cuda.synchronize()


def write_tokenizer(folder):
    """A tokenizer of a few words: Unsloth loads one with every model, the steps need none."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "<pad>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                            pad_token="<pad>").save_pretrained(folder)


def write_checkpoint(config, device, dtype, folder):
    import torch
    from safetensors.torch import save_file
    from transformers import BitsAndBytesConfig

    tensors = build(config, device, dtype).state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                      bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=["lm_head"])
    described = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": str(dtype).removeprefix("torch."),
                                    "quantization_config": quantization.to_dict()}
    described.pop("torch_dtype", None)
    (folder / "config.json").write_text(json.dumps(described, indent=2))
    write_tokenizer(folder)
    del tensors
    gc.collect()
    torch.cuda.empty_cache()


def load(folder, length, rank, checkpointing, dtype, device):
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(str(folder), max_seq_length=length, dtype=dtype, load_in_4bit=True,
                                                 use_gradient_checkpointing=checkpointing,
                                                 device_map={"": device}, local_files_only=True)
    model = FastLanguageModel.get_peft_model(model, r=rank, lora_alpha=2 * rank, lora_dropout=0, bias="none",
                                             target_modules=PROJECTIONS, use_gradient_checkpointing=checkpointing,
                                             max_seq_length=length)
    FastLanguageModel.for_training(model)
    return model


def nodes(loss):
    """The names of the functions that backward will call outside of the recomputed layers."""
    found, waiting = {}, [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = type(node).__name__
            waiting += [following for following, _ in node.next_functions]
    return set(found.values())


def unsloth_in_use(model, functions, checkpointing, compiled):
    """What of Unsloth's runs: a line to print and what is missing."""
    from unsloth.kernels import apply_lora_mlp_swiglu, apply_lora_o, apply_lora_qkv

    layers = model.base_model.model.model.layers
    modes = {0: "not compiled", 1: "compiled", 2: "compiled in parts"}
    parts = {
        "MLP": sum(getattr(layer.mlp.forward, "__func__", None) is apply_lora_mlp_swiglu for layer in layers),
        "QKV": sum(layer.self_attn.apply_qkv is apply_lora_qkv for layer in layers),
        "O": sum(layer.self_attn.apply_o is apply_lora_o for layer in layers),
        "fast path": sum(getattr(layer, "_unsloth_fast_path", False) for layer in layers),
    }
    states = {modes.get(vars(layer).get("_unsloth_block_mode"), "not compiled") for layer in layers}
    missing = [f"{part} in {len(layers) - count} layers" for part, count in parts.items() if count < len(layers)]
    expected = {
        "the loss": ("fused_linear_ce", "UnslothFusedLoss", "UnslothChunkedCE"),
        "gradient checkpointing": ("UnslothCheckpoint",) if checkpointing == "unsloth" else ("Checkpoint",),
    }
    for part, known in expected.items():
        if not any(piece in name for piece in known for name in functions):
            missing.append(part)
    if compiled and states != {"compiled"}:
        say(f"WARNING: decoder layers: {', '.join(sorted(states))}")
    text = (f"Unsloth's functions in {len(layers)} layers: {parts}; layers {', '.join(sorted(states))}; "
            f"backward: {', '.join(sorted(functions))}")
    return text, missing


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--warmup", type=int, default=3, help="steps before the timed ones, at every length")
    arguments.add_argument("--gradient-checkpointing", choices=("unsloth", "true"), default="unsloth")
    arguments.add_argument("--no-compile", action="store_true", help="without torch.compile")
    arguments.add_argument("--limit", type=float, default=480, help="seconds after which to end with a stack trace")
    arguments.add_argument("--profile", action="store_true", help="print the GPU's kernels of one step of every length")
    arguments = arguments.parse_args()
    faulthandler.dump_traceback_later(arguments.limit, exit=True)
    with tempfile.TemporaryDirectory(prefix="unsloth-training-") as scratch:
        measure(arguments, pathlib.Path(scratch))
    faulthandler.cancel_dump_traceback_later()


def measure(arguments, scratch):
    compiled = not arguments.no_compile
    checkpointing = "unsloth" if arguments.gradient_checkpointing == "unsloth" else True
    lengths = [int(length) for length in arguments.length.split(",")]
    prepare_environment(scratch, compiled)
    say("importing Unsloth")
    # Before torch and transformers, which it configures and patches.
    import unsloth  # isort: skip
    import torch
    import transformers

    if not torch.cuda.is_available():
        sys.exit("unsloth_training.py: torch sees no GPU, and Unsloth's kernels run on nothing else")
    device, dtype = torch.device("cuda", 0), torch.bfloat16
    allocate_once(device)
    torch.manual_seed(1)
    config = configuration(arguments.model)
    config.use_cache = False
    folder = scratch / "model"
    folder.mkdir()
    say(f"writing {arguments.model} to {folder}")
    write_checkpoint(config, device, dtype, folder)
    say("loading it with Unsloth")
    model = load(folder, max(lengths), arguments.rank, checkpointing, dtype, device)
    gc.collect()
    torch.cuda.empty_cache()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    products = multiplied(model)

    def step(length, look=None):
        tokens = torch.randint(config.vocab_size, (arguments.batch, length), device=device)
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=dtype):
            loss = model(input_ids=tokens, labels=tokens).loss
        if look:
            look(loss)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    device_name = torch.cuda.get_device_name()
    versions = {"unsloth": unsloth.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    print(f"{device_name}; {arguments.model}, {versions}, {dtype}, adapters {trained[0].dtype}, "
          f"gradient checkpointing {checkpointing}, {'torch.compile' if compiled else 'no torch.compile'}")
    functions, rows, described, missing = set(), [], None, []
    for length in lengths:
        torch.cuda.reset_peak_memory_stats()
        say(f"length {length}: first steps{', compiling' if compiled else ''}")
        first = [step(length, lambda loss: functions.update(nodes(loss))) for _ in range(arguments.warmup)]
        say(f"length {length}: first steps took {', '.join(f'{seconds:.2f}' for seconds in first)} s")
        if described is None:
            described, missing = unsloth_in_use(model, functions, checkpointing, compiled)
            print(described)
            if missing:
                say(f"WARNING: not Unsloth's: {'; '.join(missing)}")
            print(TABLE)
        # What compiling took is left out of the peak.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds = [step(length) for _ in range(arguments.steps)]
        row = measured(length, arguments.batch, seconds, products, torch.cuda.max_memory_reserved())
        rows.append(row | {"first_seconds": first})
        if arguments.json:
            arguments.json.write_text(json.dumps({"device": device_name, "model": arguments.model, "measurements": rows,
                                                  "versions": versions, "unsloth": described, "missing": missing},
                                                 indent=2))
        if arguments.profile:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                step(length)
            print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=25,
                                               max_name_column_width=90))
    if missing:
        sys.exit(f"unsloth_training.py: these steps were not Unsloth's in {'; '.join(missing)}")


if __name__ == "__main__":
    main()
