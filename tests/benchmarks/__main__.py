"""`python tests/benchmarks`: measure this project beside diffusers and peft, and write the table of docs/benchmarks.md."""

import argparse
import logging
import os
import platform
import sys
import warnings
from pathlib import Path

# Also for `python -m tests.benchmarks`, whose own folder is not on the path.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
TYPES = ("float32", "bfloat16")


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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("steps", "convert", "generate", "counters", "memory"),
        default="steps",
        help="convert: a 12.3 GB model, 40 GB of disk; generate: the denoising loop; counters: no times at all; "
        "memory: the estimate beside what is found, a quarter of an hour",
    )
    parser.add_argument(
        "--folder", type=Path, help="convert, memory: where to work (default: the system's temp folder)"
    )
    parser.add_argument(
        "--layers",
        type=int,
        help="convert, memory: layers of the model (default 30; memory: 2 on a CPU, where it runs in fp32)",
    )
    parser.add_argument("--device", default="cpu", help="memory: where the runs compute (default cpu)")
    parser.add_argument("--pairs", type=int, default=9, help="rounds of each comparison (default 9)")
    parser.add_argument("--starts", type=int, default=5, help="rounds of the start times (default 5)")
    parser.add_argument(
        "--types", nargs="+", choices=TYPES, default=TYPES, help="number types (default both)"
    )
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    page = PAGE if options.write else None
    warnings.filterwarnings("ignore")
    if options.what == "convert":
        import convert_model

        convert_model.main(options.folder, options.layers or 30, page)
    elif options.what == "generate":
        import denoising

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        denoising.main(options.pairs, machine(), page)
    elif options.what == "counters":
        import counters

        counters.main(page)
    elif options.what == "memory":
        import memory

        memory.main(page, options.folder, options.layers, options.device, machine())
    else:
        import steps

        steps.main(options.pairs, options.starts, list(options.types), machine(), page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
