"""NF4 fixtures from bitsandbytes on the CPU: codes, scales, double quantization, and torch's mean."""

import pathlib

import blocks  # noqa: F401, before anything decodes
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_4bit, get_4bit_type, quantize_4bit
from safetensors.torch import save_file


def cases():
    """Named weights [out, in]; a name that ends in _bN is quantized in blocks of N."""
    g = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(*shape, generator=g)
    mixed = normal(24, 64)
    mixed[::3] = 0
    return {
        "normal": normal(96, 160) * 0.02,
        "one": torch.tensor([[0.3]]),
        "odd": normal(7, 13),
        "straddle": normal(33, 65),
        "short": normal(5, 50),
        "constant": torch.full((32, 64), -0.25),
        "zero": torch.zeros(8, 64),
        "denormal": normal(16, 64) * 1e-40,
        "huge": normal(16, 64).clamp(-3, 3) * 1e38,
        "mixed": mixed,
        "large": normal(300, 128) * torch.linspace(0.01, 1, 300)[:, None],
        "normal_b128": normal(64, 96),
        "normal_b32": normal(9, 33),
    }


def means():
    """torch's mean, on one thread, of x_i = (i * 2654435761 mod 2^32) / 2^32, for several lengths."""
    out = {}
    for n in [1, 7, 8, 31, 32, 33, 63, 100, 255, 256, 257, 1000, 4095, 4096, 10007, 65536, 300001]:
        i = torch.arange(n, dtype=torch.int64)
        x = ((i * 2654435761) % 2**32).double().div(2**32).float()
        out[f"mean.{n}"] = x.mean().reshape(1)
    return out


def tables(weight):
    """The lesson's tables, and the root mean square error that each makes of a weight in blocks of 64."""
    quantiles = torch.special.ndtri((torch.arange(16, dtype=torch.float64) + 0.5) / 16)
    all_tables = {"nf4": get_4bit_type("nf4", device="cpu").double(), "naive": quantiles / quantiles[-1],
                  "uniform": torch.linspace(-1, 1, 16, dtype=torch.float64)}
    blocks = weight.double().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    errors = [((blocks - scale * t[(blocks[..., None] / scale[..., None] - t).abs().argmin(-1)]) ** 2).mean().sqrt()
              for t in all_tables.values()]
    return {"naive_table": all_tables["naive"].float(), "uniform_table": all_tables["uniform"].float(),
            "rmse": torch.stack(errors).float()}


def main(folder: pathlib.Path):
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    tensors = {"dynamic_map": create_dynamic_map(), "nf4_table": get_4bit_type("nf4", device="cpu"), **means(),
               **tables(cases()["normal"])}
    for name, weight in cases().items():
        block = int(name.split("_b")[1]) if "_b" in name else 64
        packed, plain = quantize_4bit(weight, blocksize=block, quant_type="nf4", compress_statistics=False)
        double_packed, double = quantize_4bit(weight, blocksize=block, quant_type="nf4", compress_statistics=True)
        tensors |= {
            f"{name}.weight": weight,
            f"{name}.packed": packed.flatten(),
            f"{name}.plain.absmax": plain.absmax,
            f"{name}.double.absmax": double.absmax,
            f"{name}.double.nested_absmax": double.state2.absmax,
            f"{name}.double.offset": double.offset.reshape(1),
            f"{name}.plain.dequantized": dequantize_4bit(packed, plain),
            f"{name}.double.dequantized": dequantize_4bit(double_packed, double),
        }
        assert torch.equal(packed, double_packed)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "cases.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(__file__).parent / "nf4")
