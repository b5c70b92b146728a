"""The full state of a run on disk: everything a resumed run needs to continue bit for bit.

A state is a folder of safetensors files and `manifest.json`, which lists every file with its size and SHA-256
and is written last. The folder is built under a temp name and renamed, so a state is whole or absent; a
pointer file beside the states names the newest. Nothing is pickled. Knows folders and nested values; must not
know what the values mean.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zimage_gui.files import atomic_write, replace_folder, temp_path

FORMAT = "zimage_gui.state"
VERSION = 1
MANIFEST = "manifest.json"
FOREIGN = "is a state of musubi-tuner (accelerate's layout), which says neither step nor epoch"
_LONGEST_MANIFEST = 256 << 20
"""Bytes; the optimizer's tree of a finetune lists some thousand entries, and more is no manifest."""
_CHUNK = 1 << 20


class StateError(Exception):
    """A state that cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class State:
    """`values`: named nested values (dict, list, tuple, numbers, text, None, tensors); tensors come back on
    the CPU."""

    folder: Path
    values: dict[str, Any]


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """JSON for a nested value; its tensors go to `tensors` under names that start with `path`. Raises
    `TypeError`."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)) and type(value) in (int, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu").contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        items = [[pack(key, {}, path), pack(item, tensors, f"{path}.{key}")] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        name = "list" if isinstance(value, list) else "tuple"
        return {name: [pack(item, tensors, f"{path}.{index}") for index, item in enumerate(value)]}
    raise TypeError(f"{path} is a {type(value).__name__}, which a state cannot hold")


def unpack(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` turned into `node`. Raises `KeyError` or `ValueError` for anything else."""
    if not isinstance(node, dict):
        return node
    if len(node) != 1:
        raise ValueError("not a packed value")
    ((kind, content),) = node.items()
    if kind == "dict":
        return {unpack(key, tensors): unpack(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [unpack(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return tensors[content] if kind == "tensor" else float(content)


def save_state(folder: Path, values: Mapping[str, Any], pointer: Path) -> Path:
    """Write `values` as a new state at `folder`, replacing an older one there, then point `pointer` at it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_path(folder)
    temp.mkdir()
    try:
        files, trees = {}, {}
        for name, value in values.items():
            tensors: dict[str, Tensor] = {}
            trees[name] = pack(value, tensors, name)
            if tensors:
                file = temp / f"{name}.safetensors"
                save_file(_unshared(tensors), file)
                files[file.name] = {"size": file.stat().st_size, "sha256": _synced_digest(file)}
        manifest = {"format": FORMAT, "version": VERSION, "files": files, "values": trees}
        atomic_write(temp / MANIFEST, json.dumps(manifest, allow_nan=False).encode("utf-8"))
        replace_folder(temp, folder)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    atomic_write(pointer, json.dumps({"state": folder.name}).encode("utf-8"))
    return folder


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names for one memory, and optimizers may share constant tables."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        result[name] = tensor.clone() if tensor.data_ptr() in seen and tensor.numel() else tensor
        seen.add(tensor.data_ptr())
    return result


def _synced_digest(path: Path) -> str:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return _digest(path)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def load_state(folder: Path) -> State:
    """Read and verify a state. Raises `StateError` when a file is missing, changed or cut off."""
    manifest = read_manifest(folder)
    tensors: dict[str, Tensor] = {}
    for name, expected in manifest["files"].items():
        tensors |= _verified(folder / name, expected)
    try:
        values = {name: unpack(tree, tensors) for name, tree in manifest["values"].items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"{folder / MANIFEST} is damaged ({error})") from error
    return State(folder, values)


def of_accelerate(folder: Path) -> bool:
    """Whether the folder is a state as accelerate saves it for musubi-tuner. It holds neither step nor epoch,
    and the optimizer as a pickle."""
    return (folder / "optimizer.bin").is_file() and not (folder / MANIFEST).exists()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, checked for its form. Raises `StateError`."""
    path = folder / MANIFEST
    if of_accelerate(folder):
        raise StateError(f"{folder} {FOREIGN}")
    try:
        if path.stat().st_size > _LONGEST_MANIFEST:
            raise StateError(f"{path} is too large for a manifest")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{path} cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StateError(f"{path} is not the manifest of a training state")
    if manifest.get("version") != VERSION:
        raise StateError(
            f"{path} has version {manifest.get('version')}; this program reads version {VERSION}"
        )
    files, values = manifest.get("files"), manifest.get("values")
    if not isinstance(values, dict) or not isinstance(files, dict):
        raise StateError(f"{path} is damaged")
    for name, entry in files.items():
        if not re.fullmatch(r"\w+\.safetensors", name) or not isinstance(entry, dict):
            raise StateError(f"{path} lists {name!r}, which is no file of a state")
    return manifest


def _verified(path: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    try:
        size = path.stat().st_size
        if size != expected.get("size"):
            raise StateError(f"{path} has {size} bytes instead of {expected.get('size')}")
        if _digest(path) != expected.get("sha256"):
            raise StateError(f"{path} was changed after it was written (its checksum differs)")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StateError(f"{path} cannot be read ({error})") from error


def states_in(folder: Path) -> list[Path]:
    """State folders directly inside `folder`, newest first; the one the pointer names goes first."""
    pattern = [entry for entry in folder.glob("*-state") if (entry / MANIFEST).is_file()]
    pointed = set()
    for pointer in folder.glob("*-latest-state.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            pointed.add(str(json.loads(pointer.read_text(encoding="utf-8")).get("state")))
    return sorted(
        pattern,
        key=lambda entry: (entry.name in pointed, (entry / MANIFEST).stat().st_mtime_ns),
        reverse=True,
    )


def family(folder: Path) -> str:
    """The output name a state folder belongs to: `cats-step00000250-state` -> `cats`."""
    return re.sub(r"(-\d{6}|-step\d{8})?-state$", "", folder.name)


def load_or_previous(folder: Path) -> tuple[State, list[str]]:
    """The state at `folder`, or the newest complete one before it, with a sentence for each one passed over.

    `folder` may also hold states (then the newest is meant). Raises `StateError` when none is usable.
    """
    if (folder / MANIFEST).is_file() or folder.name.endswith("-state"):
        others = [
            entry for entry in states_in(folder.parent) if family(entry) == family(folder) and entry != folder
        ]
        candidates = [folder, *[entry for entry in others if _older(entry, folder)]]
    else:
        candidates = states_in(folder)
        if not candidates:
            raise StateError(f"{folder} is no training state and holds none (their names end in -state)")
    passed: list[str] = []
    for candidate in candidates:
        try:
            return load_state(candidate), passed
        except StateError as error:
            passed.append(f"{candidate.name} is not usable: {error}")
    raise StateError("; ".join(passed))


def _older(entry: Path, than: Path) -> bool:
    """By time of writing; a state whose own manifest is gone is taken as the newest."""
    with contextlib.suppress(OSError):
        return (entry / MANIFEST).stat().st_mtime_ns <= (than / MANIFEST).stat().st_mtime_ns
    return True


def random_states() -> dict[str, Any]:
    """The state of every global generator a step may use."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, gauss_next = random.getstate()
    states: dict[str, Any] = {
        "python": [version, list(internal), gauss_next],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = list(torch.cuda.get_rng_state_all())
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put every generator back; a CUDA state of another number of devices is left out."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
