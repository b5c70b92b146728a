"""`python tests/benchmarks`: measure this project beside diffusers and peft, and write the table of docs/benchmarks.md."""

import argparse
import logging
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
PACKAGES = ("torch", "diffusers", "peft", "transformers", "accelerate", "numpy")
INTRODUCTION = """# Benchmarks

Measured by

    {command}

on {when}: {machine}. {packages}.

Both contenders run in one process in the order A B B A, on the same weights, pictures and noise, one torch thread. The
figures are processor time (the machine may be shared); the ratio of the smallest times is the one to look at. `drift of ours`
is how far our own odd and even rounds lie apart: above 5 % the machine was too restless to trust the second digit.

"""
NOTES = """
What is compared: *LoRA step* is one whole update (noise, forward, backward, clipping, AdamW) of rank 16 adapters on a
6-layer model of width 256 with 1024 image and 64 caption tokens, against diffusers' `ZImageTransformer2DModel` with a peft
adapter as in its training script; loss and adapter gradients of the two agree in fp32 to better than 1e-5 first. Both execute
the same matrix products here (all captions have one length, so diffusers needs no mask either): in fp32 they are two thirds of
its time, which bounds what can be saved; in bf16, the default of training, element-wise work and attention weigh more.
*Latent cache* is the whole command from an empty cache (reading, resizing, encoding, writing with fingerprints) against the
loop of a diffusers script. Executed FLOPs of a step are counted by `tests/training/test_flops.py`: 1.013 of the useful work
without checkpointing and 1.406 with it, the adapters' own included.

No GPU was at hand for these figures.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("steps", "convert"), default="steps", help="convert: a 12.3 GB model, 40 GB of disk")
    parser.add_argument("--folder", type=Path, help="convert: where to work (default: the system's temp folder)")
    parser.add_argument("--layers", type=int, default=30, help="convert: fewer layers for a smaller model (default 30)")
    parser.add_argument("--pairs", type=int, default=9, help="rounds of each comparison (default 9)")
    parser.add_argument("--starts", type=int, default=5, help="rounds of the start times (default 5)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.what == "convert":
        import convert_model

        convert_model.main(options.folder, options.layers, PAGE if options.write else None)
        return 0
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import alternate
    import latent_cache
    import lora_step
    import starts
    import torch
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    pieces = [alternate.HEADER, *lora_step.rows(options.pairs, print), *latent_cache.rows(options.pairs, print)]
    times = [starts.HEADER, *starts.rows(options.starts, print)]
    head = INTRODUCTION.format(
        command=f"python tests/benchmarks --pairs {options.pairs} --starts {options.starts} --write",
        when=time.strftime("%Y-%m-%d"),
        machine=f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread, Python {platform.python_version()}",
        packages=", ".join(f"{name} {version(name)}" for name in PACKAGES),
    )
    page = head + "\n".join(pieces) + "\n\n## Start\n\n" + "\n".join(times) + "\n" + NOTES
    if options.write:
        kept = PAGE.read_text(encoding="utf-8").partition("## Converting")
        PAGE.write_text(page + "\n" + "".join(kept[1:]), encoding="utf-8")
    else:
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
