"""Makes every golden fixture in this folder from the Python reference. Run by `cargo xtask golden`."""

import pathlib

import torch

import events
import families
import interchange
import llama
import masks
import nf4
import optim
import tables
import text

if __name__ == "__main__":
    torch.set_num_threads(1)
    here = pathlib.Path(__file__).parent
    events.main(here / "events")
    nf4.main(here / "nf4")
    optim.main(here / "optim")
    text.main(here / "text")
    masks.main(here / "text")
    tables.main(here / "data")
    llama.main(here)
    families.main(here)
    interchange.main(here)
