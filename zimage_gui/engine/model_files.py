"""Which files a run's three models are, from single paths or from one folder told apart by looking.

Knows the folder layouts a user may have: Hugging Face, ComfyUI's `models`, the flat folder of z-image-train.
It must not know torch or what is done with the models.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zimage_gui.errors import Problem, UserError
from zimage_gui.model.recognise import recognise


class NamesModels(Protocol):
    """Options that name models; `config.common.TransformerPaths` is one."""

    @property
    def model_dir(self) -> Path | None: ...
    @property
    def dit(self) -> Path | None: ...
    @property
    def vae(self) -> Path | None: ...
    @property
    def text_encoder(self) -> Path | None: ...


@dataclass(frozen=True)
class ModelFiles:
    """Paths as the loaders take them; None where a model is not needed or was not found."""

    dit: Path | None
    vae: Path | None
    text_encoder: Path | None


@dataclass(frozen=True)
class _Part:
    option: str
    label: str
    folders: tuple[str, ...]
    names: tuple[str, ...]


# Names known to be meant when a folder holds several files of a kind; the first that is there wins, in the
# order of z-image-train.
_PARTS = {
    "transformer": _Part(
        "dit",
        "Z-Image transformer",
        ("diffusion_models", "unet", "."),
        ("z_image_turbo_f16", "z_image_turbo_bf16", "z_image_turbo", "z_image"),
    ),
    "vae": _Part("vae", "VAE", ("vae", "."), ("ae",)),
    "text_encoder": _Part(
        "text_encoder",
        "text encoder",
        ("text_encoders", "clip", "."),
        ("qwen_3_4b", "qwen3_4b_text_encoder"),
    ),
}
_DEEPEST = 2


def find_models(config: NamesModels, *needed: str) -> tuple[ModelFiles, list[Problem]]:
    """The files of the `needed` parts ("transformer", "vae", "text_encoder").

    A path named in the options wins over what is found in `model_dir`. Whether a named file is what it should
    be is the loader's question; here a part of the folder that is absent or ambiguous is a problem.
    """
    paths: dict[str, Path | None] = {}
    problems: list[Problem] = []
    for part, known in _PARTS.items():
        paths[part] = getattr(config, known.option)
        if paths[part] is None and config.model_dir is not None and part in needed:
            try:
                paths[part] = find_part(config.model_dir, part)
            except UserError as error:
                problems += error.problems
    return ModelFiles(paths["transformer"], paths["vae"], paths["text_encoder"]), problems


def plain_turbo(config: Any, dit: Path | None) -> str:
    """A warning where Turbo itself is trained without its training adapter; empty otherwise. Only names tell
    Turbo from the models made of it."""
    if dit is None or getattr(config, "base_weights", None):
        return ""
    name = " ".join(dit.parts[-3:]).lower()
    if "turbo" not in name or re.search(r"de[-_ ]?turbo|deturbo|de[-_ ]?distill", name):
        return ""
    adapter = "set base_weights to zimage_turbo_training_adapter_v2.safetensors, or "
    remedy = (adapter if hasattr(config, "base_weights") else "") + "train De-Turbo or the base model"
    what = f"{dit.name} looks like Turbo itself: trained without its adapter it unlearns its few steps"
    return f"{what}; {remedy}"


def find_part(model_dir: Path, part: str) -> Path:
    """The file or folder of one part inside a models folder of any layout. Raises UserError naming
    `model_dir`."""
    if not model_dir.is_dir():
        raise UserError.one("model_dir", str(model_dir), "is not a folder", "Check the path")
    if _is_hub_folder(model_dir) and (model_dir / part).is_dir():
        return model_dir / part
    known = _PARTS[part]
    found = _of_kind(_candidates(model_dir, known.folders), part)
    if not found:
        # A file by one of the names is meant, so its own fault is the better answer than its absence.
        meant = _named(_candidates(model_dir, known.folders), known.names)
        if meant:
            return meant[0]
        raise UserError.one(
            "model_dir",
            str(model_dir),
            f"holds no {known.label} (looked in {', '.join(known.folders)})",
            f"Put the file there, or give its path as {known.option}",
        )
    named = _named(found, known.names)
    if len(found) == 1 or named:
        return (named or found)[0]
    raise UserError.one(
        "model_dir",
        str(model_dir),
        f"holds several files that could be the {known.label}: {', '.join(file.name for file in found[:6])}",
        f"Give the one you mean as {known.option}",
    )


def _named(files: Iterable[Path], names: tuple[str, ...]) -> list[Path]:
    """Those with one of the names, the first name first and of one name the .bpk, as z-image-train looks."""
    there = sorted(files, key=lambda file: file.suffix.lower() != ".bpk")
    return [file for name in names for file in there if file.stem == name]


def _is_hub_folder(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "transformer").is_dir()


def _candidates(model_dir: Path, folders: tuple[str, ...]) -> Iterator[Path]:
    """Single files and first shards, those of the part's own folders first."""
    for name in folders:
        folder = model_dir / name
        depth = 1 if name == "." else _DEEPEST
        for level in range(depth):
            here = folder.glob("*/" * level + "*")
            for file in sorted(file for file in here if file.suffix in (".safetensors", ".bpk")):
                if "-of-" not in file.stem or file.stem.split("-of-")[0].endswith("-00001"):
                    yield file


def _of_kind(files: Iterator[Path], part: str) -> list[Path]:
    """Those files whose header says they are this part. A broken neighbour is no reason to refuse the
    folder."""
    found = []
    for file in files:
        try:
            kind = recognise(file, "model_dir").kind
        except UserError:
            continue
        if kind in (part, "all_in_one"):
            found.append(file)
    return found
