"""A training step and the latent cache beside diffusers and peft, and how long commands take to start."""

import logging
import platform
import time
from importlib.metadata import version
from pathlib import Path

import alternate
import latent_cache
import lora_step
import starts
import torch
from page import put_section

PACKAGES = ("torch", "diffusers", "peft", "transformers", "accelerate", "numpy")
SECTION, STARTS = "## A training step and the latent cache", "## Start"
TEXT = """{section}

Measured by

    {command}

on {when}: {machine}. {packages}.

Both contenders run in one process in the order A B B A, on the same weights, pictures and noise, one torch thread. The
figures are processor time (the machine may be shared); the ratio of the smallest times is the one to look at. `drift of ours`
is how far our own odd and even rounds lie apart: above 5 % the machine was too restless to trust the second digit.

{table}
"""


def main(pairs: int, rounds: int, types: list[str], machine: str, page: Path | None) -> None:
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    dtypes = [getattr(torch, name) for name in types]
    table = [
        alternate.HEADER,
        *lora_step.rows(pairs, dtypes, print),
        *latent_cache.rows(pairs, dtypes, print),
    ]
    times = [starts.HEADER, *starts.rows(rounds, print)]
    if page is None:
        return
    text = TEXT.format(
        section=SECTION,
        command=f"python -m tests.benchmarks --pairs {pairs} --starts {rounds} --types {' '.join(types)} --write",
        when=time.strftime("%Y-%m-%d"),
        machine=f"{machine}, {torch.get_num_threads()} thread, Python {platform.python_version()}",
        packages=", ".join(f"{name} {version(name)}" for name in PACKAGES),
        table="\n".join(table),
    )
    put_section(page, SECTION, text)
    put_section(page, STARTS, f"{STARTS}\n\n" + "\n".join(times))
