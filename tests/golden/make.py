"""Makes every golden fixture in this folder from the Python reference. Run by `cargo xtask golden`."""

import pathlib

import torch

import events
import llama
import nf4
import text

if __name__ == "__main__":
    torch.set_num_threads(1)
    here = pathlib.Path(__file__).parent
    events.main(here / "events")
    nf4.main(here / "nf4")
    text.main(here / "text")
    llama.main(here)
