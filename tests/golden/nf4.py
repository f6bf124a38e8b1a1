"""NF4 fixtures from bitsandbytes on the CPU: codes, scales, double quantization, and torch's mean."""

import pathlib

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


def main(folder: pathlib.Path):
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    tensors = {"dynamic_map": create_dynamic_map(), "nf4_table": get_4bit_type("nf4", device="cpu"), **means()}
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
