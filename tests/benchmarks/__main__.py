"""`python tests/benchmarks`: measure this project beside diffusers and peft, and write the table of docs/benchmarks.md."""

import argparse
import logging
import os
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

# Also for `python -m tests.benchmarks`, whose own folder is not on the path.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
TYPES = ("float32", "bfloat16")
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
the same matrix products here (all captions have one length, so diffusers needs no mask either): in fp32 on a CPU these and
attention are four fifths of its time, which bounds what can be saved. In bf16 element-wise work weighs more; its rows need a
CPU with bf16 instructions (without them one step takes 20 s and compares emulations), so `--types float32` leaves them out.
*Latent cache* is the whole command from an empty cache (reading, resizing, encoding, writing with fingerprints) against the
loop of a diffusers script. Executed FLOPs of a step are counted by `tests/training/test_flops.py`: 1.010 of the useful work
without checkpointing and 1.403 with it, the adapters' own included. What a LoRA block keeps for its backward pass is counted by
`tests/model/test_recompute.py`: 13.5 rows of the model's width per token in bf16, 1 with checkpointing; the
bound is 14. (On a CPU, bf16 models whose attention weights take at most 64 MiB a layer keep these too.)

No GPU was at hand for these figures.
"""


def machine() -> str:
    """The processor and whether it has bf16 instructions: without them torch's bf16 is slower than its fp32."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(
        tuple(part.strip() for part in line.split(":", 1)) for line in reversed(lines) if ":" in line
    )
    found = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(facts.get("flags", "").split())
    name = facts.get("model name", platform.machine())
    return f"{name}, {os.cpu_count()} cores ({', '.join(sorted(found)) or 'no vector flags known'})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("steps", "convert", "generate"),
        default="steps",
        help="convert: a 12.3 GB model, 40 GB of disk; generate: the denoising loop",
    )
    parser.add_argument(
        "--folder", type=Path, help="convert: where to work (default: the system's temp folder)"
    )
    parser.add_argument(
        "--layers", type=int, default=30, help="convert: fewer layers for a smaller model (default 30)"
    )
    parser.add_argument("--pairs", type=int, default=9, help="rounds of each comparison (default 9)")
    parser.add_argument("--starts", type=int, default=5, help="rounds of the start times (default 5)")
    parser.add_argument(
        "--types", nargs="+", choices=TYPES, default=TYPES, help="number types (default both)"
    )
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.what == "convert":
        import convert_model

        convert_model.main(options.folder, options.layers, PAGE if options.write else None)
        return 0
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if options.what == "generate":
        import denoising

        denoising.main(options.pairs, machine(), PAGE if options.write else None)
        return 0
    import alternate
    import latent_cache
    import lora_step
    import starts
    import torch
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    dtypes = [getattr(torch, name) for name in options.types]
    pieces = [
        alternate.HEADER,
        *lora_step.rows(options.pairs, dtypes, print),
        *latent_cache.rows(options.pairs, dtypes, print),
    ]
    times = [starts.HEADER, *starts.rows(options.starts, print)]
    head = INTRODUCTION.format(
        command=f"python tests/benchmarks --pairs {options.pairs} --starts {options.starts} --types {' '.join(options.types)} --write",
        when=time.strftime("%Y-%m-%d"),
        machine=f"{machine()}, {torch.get_num_threads()} thread, Python {platform.python_version()}",
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
