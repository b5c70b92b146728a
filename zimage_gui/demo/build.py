"""The whole recipe of the built-in demo: `python -m zimage_gui.demo.build --to FOLDER`.

Takes an hour or two of two cores. Knows the order of the steps and what is shipped. Must not know how a
step works: drawing, the autoencoder's training and the base model have files of their own, the transformer
is trained by the product's `finetune`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from zimage_gui.demo.base import WEIGHTS_NAME, write_base
from zimage_gui.demo.pictures import write_training_set
from zimage_gui.demo.project import DATA
from zimage_gui.demo.train_vae import WEIGHTS as VAE_WEIGHTS

RECIPE = Path(__file__).parent / "recipe"
COPIES, EXTRA_COPIES = 60, 14


def run_module(*arguments: str) -> None:
    """One of this project's own commands in a process of its own; raises when it fails."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def prepare(folder: Path) -> None:
    """Everything before the transformer's training: autoencoder, untrained model, pictures, settings."""
    run_module("zimage_gui.demo.train_vae", "--to", str(folder / "vae"))
    write_base(folder / "base", folder / "vae" / VAE_WEIGHTS)
    write_training_set(folder / "pictures", COPIES, EXTRA_COPIES)
    for name in ("cache", "output"):
        (folder / name).mkdir(exist_ok=True)
    for settings in RECIPE.glob("*.toml"):
        shutil.copyfile(settings, folder / settings.name)


def pack(folder: Path, transformer: Path, target: Path = DATA) -> int:
    """Put the trained model into the package, transformer in bf16, VAE in fp16; returns the bytes there."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder / "base", target, dirs_exist_ok=True)
    for part, source, dtype in (
        ("transformer", transformer, torch.bfloat16),
        ("vae", folder / "vae" / VAE_WEIGHTS, torch.float16),
    ):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(source).items()}
        save_file(tensors, target / part / WEIGHTS_NAME, {"format": "pt"})
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors makes files that only their owner reads
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def main() -> None:
    """Command line: where to work; `--pack FILE` alone ships a transformer that is trained already."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, required=True, help="folder to work in")
    parser.add_argument("--pack", type=Path, help="a trained transformer to ship, without training")
    options = parser.parse_args()
    trained = options.pack
    if trained is None:
        prepare(options.to)
        run_module("zimage_gui", "finetune", str(options.to / "finetune.toml"))
        trained = options.to / "output" / "transformer.safetensors"
    print(f"{pack(options.to, trained) / 1e6:.1f} MB in {DATA}")


if __name__ == "__main__":
    main()
