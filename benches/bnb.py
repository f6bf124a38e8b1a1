"""Measures bitsandbytes' 4-bit products on the layer shapes that `halfbyte bench` measures, to stand beside its table.

    .venv/bin/python benches/bnb.py --device cuda --model llama-3.1-8b --json out/bnb.json

Needs the packages of tests/golden/requirements.txt, on a GPU with a CUDA build of torch. On the CPU it runs too.
"""

import argparse
import json
import time

import bitsandbytes as bnb
import bitsandbytes.functional as F
import torch

SHAPES = {
    "llama-3.1-8b": [(1024, 4096), (4096, 4096), (4096, 14336), (14336, 4096)],
    "llama-3.1-70b": [(1024, 8192), (8192, 8192), (8192, 28672), (28672, 8192)],
}


def sync(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(device, run):
    """Seconds of one run: one to warm up, one to see how long it takes, then as many as fill 0.3 s."""
    run()
    sync(device)
    start = time.perf_counter()
    run()
    sync(device)
    count = max(1, int(0.3 / max(time.perf_counter() - start, 1e-7)))
    start = time.perf_counter()
    for _ in range(min(count, 10_000)):
        run()
    sync(device)
    return (time.perf_counter() - start) / min(count, 10_000)


def measure(device, dtype, shape, rows):
    """The products of `rows` rows with an NF4 weight `[out, in]` with double quantization, and the dense ones."""
    out, width = shape
    weight = torch.randn(out, width, device=device, dtype=dtype)
    packed, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    x = torch.randn(rows, width, device=device, dtype=dtype)
    dy = torch.randn(rows, out, device=device, dtype=dtype)
    kernels = {
        # One row takes bitsandbytes' own kernel, more take its decode and the dense product.
        "bnb Forward": lambda: bnb.matmul_4bit(x, packed.t(), quant_state=state),
        "bnb InputGradient": lambda: dy @ F.dequantize_4bit(packed, state).to(dtype),
        f"matmul Forward, {dtype}": lambda: x @ weight.t(),
        f"matmul InputGradient, {dtype}": lambda: dy @ weight,
    }
    four_bit = packed.numel() * packed.element_size() + out * width // 64
    for kernel, run in kernels.items():
        with torch.no_grad():
            took = seconds(device, run)
        stored = four_bit if kernel.startswith("bnb") else weight.numel() * weight.element_size()
        moved = stored + x.element_size() * rows * (out + width)
        yield {
            "kernel": kernel,
            "shape": [out, width],
            "rows": rows,
            "seconds": took,
            "bandwidth": moved / took / 1e9,
            "arithmetic": 2 * rows * out * width / took / 1e9,
        }


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    arguments.add_argument("--model", default="llama-3.1-8b", choices=list(SHAPES))
    arguments.add_argument("--rows", default="1,4,16,512")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    arguments.add_argument("--json")
    chosen = arguments.parse_args()
    dtype = getattr(torch, chosen.dtype)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else "CPU"
    print(f"{name}; {chosen.model}; bitsandbytes {bnb.__version__}, torch {torch.__version__}, {chosen.dtype}")
    print("| kernel | weight | rows | ms | GB/s | GFLOP/s |\n|---|---|---|---|---|---|")
    measurements = []
    for shape in SHAPES[chosen.model]:
        for rows in map(int, chosen.rows.split(",")):
            for m in measure(chosen.device, dtype, shape, rows):
                print(
                    f"| {m['kernel']} | {m['shape']} | {m['rows']} | {1e3 * m['seconds']:.3f} "
                    f"| {m['bandwidth']:.1f} | {m['arithmetic']:.1f} |"
                )
                measurements.append(m)
    if chosen.json:
        report = {"device": name, "model": chosen.model, "dtype": chosen.dtype, "measurements": measurements}
        with open(chosen.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
