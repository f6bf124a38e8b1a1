"""Makes every golden fixture in this folder from the Python reference. Run by `cargo xtask golden`."""

import pathlib

import torch

import interchange
import llama
import nf4
import text

if __name__ == "__main__":
    torch.set_num_threads(1)
    here = pathlib.Path(__file__).parent
    nf4.main(here / "nf4")
    text.main(here / "text")
    llama.main(here)
    interchange.main(here)
