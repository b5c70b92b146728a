"""Puts a finished file where ComfyUI looks for it. Knows ComfyUI's folders and free space; must not know what
the file's tensors mean, and imports no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from zimage_gui.errors import UserError
from zimage_gui.files import atomic_write, free_name, sweep_temp_files

FOLDERS = {
    "lora": "loras", "transformer": "diffusion_models", "vae": "vae", "text_encoder": "text_encoders"
}  # fmt: skip
"""Folder below ComfyUI's `models` for each kind of `inspect`."""
_CHUNK = 16 << 20
_SPARE = 64 << 20
"""Bytes left free beside the copy."""


def models_folder(folder: Path, option: str = "comfy_folder") -> Path:
    """ComfyUI's `models` folder: `folder` itself or the one in it. Raises UserError when it is neither."""
    for candidate in (folder / "models", folder):
        if any((candidate / name).is_dir() for name in (*FOLDERS.values(), "checkpoints")):
            return candidate
    rule = "is not there" if not folder.is_dir() else "is neither ComfyUI's folder nor its models folder"
    raise UserError.one(option, folder, rule, "Choose the folder that holds models/loras")


def copy_into_comfy(
    source: Path, kind: str, folder: Path, on_bytes: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Path, bool]:
    """Copies one file into the folder of its kind; (where it is, whether it was there already).

    Nothing is replaced: another file of the same name makes the copy take the next free name. Raises
    UserError for a kind that ComfyUI has no folder for, a missing folder or too little space.
    """
    if kind not in FOLDERS:
        rule = f"is no model or LoRA but {kind.replace('_', ' ')}"
        raise UserError.one("file", source, rule, "Choose a LoRA or a model")
    if not source.is_file():
        rule = "is a folder; ComfyUI takes single files" if source.is_dir() else "does not exist"
        raise UserError.one("file", source, rule, "Convert it to a single file first")
    target_folder = models_folder(folder) / FOLDERS[kind]
    target_folder.mkdir(exist_ok=True)
    sweep_temp_files(target_folder)
    wanted = target_folder / source.name
    if wanted.is_file() and _same(source, wanted):
        return wanted, True
    size = source.stat().st_size
    free = shutil.disk_usage(target_folder).free
    if size + _SPARE > free:
        rule = f"has {free / 1e9:.1f} GB free; the copy needs {size / 1e9:.1f} GB"
        raise UserError.one("comfy_folder", target_folder, rule, "Free some space")

    def write(file: BinaryIO) -> None:
        done = 0
        with source.open("rb") as original:
            while chunk := original.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                on_bytes(done, size)

    return atomic_write(free_name(wanted), write), False


def _same(one: Path, other: Path) -> bool:
    if one.samefile(other):
        return True
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while chunk := first.read(_CHUNK):
            if chunk != second.read(_CHUNK):
                return False
    return True
