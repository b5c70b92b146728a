"""Folders: what kind of folder it is, and what lies in it, from names and headers.

Knows the folders a user of Z-Image has: hub, ComfyUI, z-image-train, datasets, caches, runs and training
states. It looks at a bounded number of entries and never follows a link into another folder.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from zimage_gui.engine.inspect_report import FileReport, Verdict
from zimage_gui.engine.inspect_things import PICTURES
from zimage_gui.errors import UserError
from zimage_gui.model.recognise import USABLE

_MOST_ENTRIES = 20_000
_MOST_PARTS = 40
_LONGEST_JSON = 1_000_000
_MODELS = (".safetensors", ".bpk", ".gguf", ".ckpt", ".pt", ".pth", ".sft")
_COMFY_FOLDERS = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "loras", "checkpoints")
_SEED_NAMES = ("z_image", "ae.", "qwen3_4b_text_encoder.")
_CAPTIONS = (".txt", ".caption")
_CALLED = {
    "vae": "VAE", "sd_vae": "other VAE", "lora": "LoRA", "all_in_one": "all-in-one file", "gguf": "GGUF file",
    "controlnet": "ControlNet", "omni": "Omni model", "pixel": "pixel-space model",
    "lumina2": "Lumina 2 model", "quantised": "quantised model", "incomplete": "incomplete model",
    "unknown": "unknown file", "broken": "broken file", "empty": "empty file",
}  # fmt: skip

Look = Callable[[Path], FileReport]


def folder_report(folder: Path, look: Look) -> FileReport | None:
    """The report of a folder that is more than one model; None when it is to be read as one model.

    look: what reports one file or model folder.
    """
    names = _entries(folder)
    for test in (_state, _run, _hub, _comfy, _caches):
        found = test(folder, names, look)
        if found is not None:
            return found
    models = [name for name in names if Path(name).suffix.lower() in _MODELS]
    if any(name.endswith(".safetensors.index.json") for name in names) or (
        len(models) == 1 and not _seed(models)
    ):
        return None
    if models and not _one_set(models):
        return _models(folder, models, look)
    if models:
        return None
    return _dataset(folder, names) or _nothing(folder, names)


def _entries(folder: Path) -> list[str]:
    """Names in the folder, in order; UserError when it may not be read."""
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) >= _MOST_ENTRIES:
                    break
    except OSError as error:
        rule = f"is a folder that cannot be read ({error.strerror})"
        raise UserError.one("input", folder, rule, "Check its permissions") from error
    return sorted(names)


def _json(path: Path) -> dict[str, object]:
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST_JSON:
            return {}
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _folder(
    folder: Path, kind: str, sentence: str, parts: list[FileReport] | None = None, **more: object
) -> FileReport:
    base = FileReport(folder, kind, "", "folder", sentence, parts=tuple(parts or ()))
    return replace(base, files=len(base.parts) or 1, **more)  # type: ignore[arg-type]


def _state(folder: Path, names: list[str], look: Look) -> FileReport | None:
    if "manifest.json" in names and any(name.endswith(".safetensors") for name in names):
        try:
            with open(folder / "manifest.json", "rb") as file:
                ours = b'"zimage_gui.state"' in file.read(4096)
        except OSError:
            ours = False
        if ours:
            sentence = "a training state of this program: give it as resume to go on where it was saved"
            return _folder(folder, "state", sentence)
    if {"optimizer.bin", "random_states_0.pkl"} & set(names):
        sentence = "a training state of accelerate (musubi-tuner, sd-scripts); its own program resumes it"
        return _folder(folder, "state", sentence)
    return None


def _run(folder: Path, names: list[str], look: Look) -> FileReport | None:
    if not {"config.toml", "events.jsonl", "status.json"} <= set(names):
        return None
    status = _json(folder / "status.json")
    facts = tuple((key, str(status[key])) for key in ("command", "state", "name") if status.get(key))
    return _folder(folder, "run", "a run of this program, with its settings, events and results", facts=facts)


def _hub(folder: Path, names: list[str], look: Look) -> FileReport | None:
    inner = [part for part in USABLE if (folder / part).is_dir()]
    single = any(name.endswith((".safetensors", ".bpk")) for name in names)
    if not inner or (single and "model_index.json" not in names):
        return None
    if "model_index.json" not in names and set(inner) == {"vae"}:
        return None  # ComfyUI's models folder has a vae folder too
    pipeline = str(_json(folder / "model_index.json").get("_class_name", ""))
    parts = _parts([folder / part for part in inner], look)
    tokenizer = " and the tokenizer" if (folder / "tokenizer").is_dir() else ", without a tokenizer"
    named = f" ({pipeline})" if pipeline else ""
    sentence = f"a whole model folder as on the hub{named}, with {', '.join(inner)}{tokenizer}"
    whole = all(
        any(one.program == "diffusers" and one.answer == "yes" for one in part.verdicts) for part in parts
    )
    diffusers = Verdict("diffusers", "yes") if whole and pipeline else Verdict(
        "diffusers", "no", "see its parts" if pipeline else "model_index.json is missing"
    )  # fmt: skip
    here = all(any(one.program == "here" and one.answer == "yes" for one in part.verdicts) for part in parts)
    verdicts = (
        Verdict("ComfyUI", "no", "it loads single files, not hub folders; convert writes them"),
        diffusers,
        Verdict("here", "yes", "as model_dir") if here else Verdict("here", "no", "see its parts"),
    )
    return _folder(folder, "model_folder", sentence, parts, verdicts=verdicts)


def _comfy(folder: Path, names: list[str], look: Look) -> FileReport | None:
    root = folder / "models" if (folder / "models").is_dir() and "comfy" in names else folder
    inner = [name for name in _COMFY_FOLDERS if (root / name).is_dir()]
    if len(inner) < 2:
        return None
    files = [file for name in inner for file in _models_in(root / name)]
    parts = _parts(files, look)
    counts = Counter(part.kind for part in parts)
    sentence = f"a ComfyUI models folder with {_listed(counts, len(files))}"
    usable = [part for part in USABLE if counts[part]]
    answer = Verdict("here", "yes", "as model_dir") if len(usable) == len(USABLE) else Verdict(
        "here", "partly", f"as model_dir it lacks {', '.join(set(USABLE) - set(usable))}"
    )  # fmt: skip
    return _folder(folder, "comfyui_folder", sentence, parts, verdicts=(answer,))


def _models_in(folder: Path) -> list[Path]:
    """Model files of a folder and its folders one level down; of a shard set only the first."""
    found: list[Path] = []
    for name in _entries(folder):
        place = folder / name
        if place.is_dir() and not place.is_symlink():
            found += [place / inner for inner in _entries(place)]
        else:
            found.append(place)
    return [file for file in found if file.suffix.lower() in _MODELS and not _later_shard(file.name)]


def _later_shard(name: str) -> bool:
    return "-of-" in name and "-00001-of-" not in name


def _caches(folder: Path, names: list[str], look: Look) -> FileReport | None:
    text = sum(name.endswith("_zi_te.safetensors") for name in names)
    latents = sum(name.endswith("_zi.safetensors") for name in names)
    if not text and not latents:
        return None
    sentence = f"a cache folder with {latents} latent and {text} text files (musubi's names)"
    size = sum(_size(folder / name) for name in names)
    return _folder(folder, "caches", sentence, bytes=size)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _seed(models: list[str]) -> bool:
    return sum(any(name.startswith(start) for name in models) for start in _SEED_NAMES) >= 2


def _one_set(models: list[str]) -> bool:
    return len({name.split("-of-")[0][:-6] for name in models if "-of-" in name}) == 1 and all(
        "-of-" in name for name in models
    )


def _models(folder: Path, models: list[str], look: Look) -> FileReport:
    files = [folder / name for name in models if not _later_shard(name)]
    parts = _parts(files, look)
    listed = _listed(Counter(part.kind for part in parts), len(files))
    if _seed(models):
        return _folder(
            folder, "model_folder", f"a models folder as z-image-train wants it, with {listed}", parts
        )
    return _folder(folder, "files", f"a folder with {listed}", parts)


def _parts(paths: list[Path], look: Look) -> list[FileReport]:
    """Reports of the first files; one that cannot be read is told, not fatal."""
    parts = []
    for path in paths[:_MOST_PARTS]:
        try:
            parts.append(look(path))
        except UserError as error:
            problem = error.problems[0]
            parts.append(FileReport(path, "broken", "", "", f"a file that {problem.rule}", bytes=_size(path)))
    return parts


def _listed(counts: Counter[str], total: int) -> str:
    words = ", ".join(f"{count} {_called(kind, count)}" for kind, count in counts.most_common())
    more = total - sum(counts.values())
    return (words or "no model files") + (f" and {more} more files" if more > 0 else "")


def _called(kind: str, count: int) -> str:
    word = _CALLED.get(kind, kind.replace("_", " "))
    return word if count == 1 else f"{word}s"


def _dataset(folder: Path, names: list[str]) -> FileReport | None:
    pictures = [name for name in names if Path(name).suffix.lower() in PICTURES]
    if not pictures:
        return None
    stems = {Path(name).stem for name in names if Path(name).suffix.lower() in _CAPTIONS}
    without = sum(Path(name).stem not in stems for name in pictures)
    captions = "every one has a caption" if not without else f"{without} of them without a caption"
    most = " (only the first are counted)" if len(names) >= _MOST_ENTRIES else ""
    sentence = (
        f"a dataset folder with {len(pictures)} picture{'s' if len(pictures) > 1 else ''}{most}, {captions}"
    )
    return _folder(folder, "dataset", sentence)


def _nothing(folder: Path, names: list[str]) -> FileReport:
    if not names:
        return _folder(folder, "unknown", "an empty folder")
    sentence = f"a folder of {len(names)} entries without a model, picture or cache this program knows"
    return _folder(folder, "unknown", sentence)
