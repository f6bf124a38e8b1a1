"""Blocks that run across rows.

The 4-bit format numbers its blocks over the flattened weight, and bitsandbytes' CUDA and generic code read it so. The
CPU kernel of bitsandbytes 0.50.2 starts a new block in each row instead, and so decodes rows that are no multiple of a
block to something else than what was quantized (relative error 0.23 where NF4 makes 0.09). This module puts
bitsandbytes' own generic code in that kernel's place, for all of its callers.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling for every shape takes longer than computing

import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.backends.utils import _get_4bit_code


def dequantize_4bit(A, absmax, blocksize, quant_type, shape, dtype):
    code = _get_4bit_code(quant_type, A.device)
    return _dequantize_4bit_compute(A.view(torch.uint8).reshape(-1), absmax, code, blocksize, shape, dtype)


library = torch.library.Library("bitsandbytes", "IMPL")
library.impl("dequantize_4bit", dequantize_4bit, "CPU", allow_override=True)
