"""Files that are no models but lie beside them: pictures, TOML and JSON files, pickles, downloads gone wrong.

Each is told in one sentence from its first bytes, or from a bounded read of a small text. Knows formats by
their marks; must not know torch, and decodes no picture.
"""

from __future__ import annotations

import json
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zimage_gui.engine.inspect_report import FileReport
from zimage_gui.engine.inspect_text import plain

_LONGEST_TEXT = 2_000_000
PICTURES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".avif", ".tif", ".tiff"))

# Kind, sentence, first bytes.
_MAGICS: tuple[tuple[str, str, bytes], ...] = (
    ("pickle", "a PyTorch pickle, which can run code when opened; it was not opened", b"\x80\x02"),
    ("pickle", "a Python pickle, which can run code when opened; it was not opened", b"\x80\x03"),
    ("pickle", "a Python pickle, which can run code when opened; it was not opened", b"\x80\x04"),
    ("pickle", "a Python pickle, which can run code when opened; it was not opened", b"\x80\x05"),
    ("other_file", "a gzip archive", b"\x1f\x8b"),
    ("other_file", "a 7-Zip archive", b"7z\xbc\xaf\x27\x1c"),
    ("other_file", "a RAR archive", b"Rar!"),
    ("other_file", "an HDF5 file (Keras or TensorFlow weights)", b"\x89HDF"),
    ("other_file", "a PDF document", b"%PDF"),
    ("other_file", "a Windows program", b"MZ"),
    ("other_file", "a Linux program or library", b"\x7fELF"),
    ("other_file", "a NumPy array", b"\x93NUMPY"),
    ("other_file", "a SQLite database", b"SQLite format 3"),
    ("incomplete", "a Git LFS pointer: the real file was not downloaded (run `git lfs pull`)",
     b"version https://git-lfs"),
    ("incomplete", "a web page, saved under this name in place of the file", b"<!doctype html"),
    ("incomplete", "a web page, saved under this name in place of the file", b"<html"),
)  # fmt: skip
_PICTURE_MAGICS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_JSON_MARKS: tuple[tuple[str, str], ...] = (
    ("_diffusers_version", "the settings of a diffusers model or pipeline"),
    ("weight_map", "the index of a shard set"),
    ("model_type", "the settings of a transformers model"),
    ("added_tokens", "a tokenizer"),
    ("target_refiners", "the sidecar of a z-image-train LoRA"),
    ("nodes", "a ComfyUI workflow"),
    ("datasets", "a dataset description"),
)


def small_thing(path: Path, head: bytes, size: int) -> FileReport | None:
    """The report of a file that is none of the model formats; None when its marks are unknown."""
    if head.startswith(b"PK\x03\x04"):
        return _report(path, size, *_zip(path, head))
    for kind, sentence, magic in _MAGICS:
        if head.startswith(magic) or head[: len(magic)].lower() == magic:
            return _report(path, size, kind, sentence)
    if path.suffix.lower() in PICTURES or head.startswith(_PICTURE_MAGICS):
        return _picture(path, size)
    if path.suffix.lower() in (".toml", ".json", ".jsonl", ".txt", ".csv", ".md", ".yaml", ".yml"):
        return _text_file(path, size)
    return None


def _report(
    path: Path, size: int, kind: str, sentence: str, form: str = "", facts: tuple[tuple[str, str], ...] = ()
) -> FileReport:
    return FileReport(path, kind, "", form or kind, sentence, bytes=size, facts=facts)


def _zip(path: Path, head: bytes) -> tuple[str, str]:
    """A PyTorch file is a zip whose first member is `NAME/data.pkl`."""
    length = int.from_bytes(head[26:28], "little")
    first = head[30 : 30 + length]
    if b"data.pkl" in first or path.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin"):
        return "pickle", "a PyTorch pickle, which can run code when opened; it was not opened"
    return "other_file", "a ZIP archive"


def _picture(path: Path, size: int) -> FileReport:
    from PIL import Image, UnidentifiedImageError

    from zimage_gui.engine.png_settings import settings_in

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height, form = image.width, image.height, image.format or ""
                texts = {str(key): value for key, value in image.info.items()}
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return _report(path, size, "other_file", "a picture that cannot be read")
    settings = settings_in(texts)
    maker = _picture_maker(texts)
    made = f" with the settings {maker} wrote" if maker else ""
    facts = tuple((name, plain(str(value), 300)) for name, value in settings.items() if value not in ("", []))
    return _report(
        path, size, "picture", f"a {form} picture of {width}x{height} pixels{made}", "picture", facts
    )


def _picture_maker(texts: Mapping[str, object]) -> str:
    keys = (
        ("zimage_gui", "this program"),
        ("prompt", "ComfyUI"),
        ("workflow", "ComfyUI"),
        ("parameters", "A1111 (or an heir)"),
    )
    return next((maker for key, maker in keys if isinstance(texts.get(key), str)), "")


def _text_file(path: Path, size: int) -> FileReport:
    kind = path.suffix.lower().lstrip(".")
    with open(path, "rb") as file:
        data = file.read(_LONGEST_TEXT + 1)
    if len(data) > _LONGEST_TEXT and kind != "jsonl":
        return _report(path, size, "other_file", f"a {kind.upper()} file, too long to be settings", kind)
    try:
        text = data.decode("utf-8-sig", "ignore" if kind == "jsonl" else "strict")
    except UnicodeDecodeError:
        return _report(path, size, "other_file", f"a file named .{kind} that is not UTF-8 text", kind)
    if kind == "toml":
        return _toml(path, size, text)
    if kind == "json":
        return _json(path, size, text)
    if kind == "jsonl":
        return _report(path, size, "dataset", "a dataset list in JSON lines", kind)
    lines = text.count("\n") + bool(text.strip())
    shown = f", it begins {plain(text, 80)!r}" if text.strip() else ""
    return _report(path, size, "other_file", f"a text file of {lines} lines{shown}", "text")


def _toml(path: Path, size: int, text: str) -> FileReport:
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        return _report(path, size, "other_file", f"a TOML file with a mistake: {plain(str(error))}", "toml")
    kind, sentence = _toml_words(tables)
    options = [(str(key), plain(str(value), 120)) for key, value in _leaves(tables)]
    return _report(path, size, kind, sentence, "toml", tuple(options[:40]) if kind != "other_file" else ())


def _toml_words(tables: Mapping[str, Any]) -> tuple[str, str]:
    from zimage_gui.config.registry import COMMANDS
    from zimage_gui.config.schema import options_of

    sets = tables.get("datasets")
    if isinstance(sets, list):
        count = f"{len(sets)} dataset{'' if len(sets) == 1 else 's'}"
        return "dataset", f"a dataset description with {count} (musubi's TOML form)"
    names = {str(key) for key, _ in _leaves(tables)}
    fitting = {command: len(names & set(options_of(cls))) for command, cls in COMMANDS.items()}
    command = max(fitting, key=lambda one: fitting[one], default="")
    if not command or not fitting[command]:
        return "other_file", "a TOML file without options of this program"
    unknown = len(names) - fitting[command]
    rest = f", {unknown} of its keys are not known to it" if unknown else ""
    return "settings", f"a preset or config for {command} with {fitting[command]} options{rest}"


def _leaves(tables: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Options stand at the top or in one level of sections."""
    flat: list[tuple[str, Any]] = []
    for key, value in tables.items():
        flat += list(value.items()) if isinstance(value, dict) else [(key, value)]
    return flat


def _json(path: Path, size: int, text: str) -> FileReport:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _report(path, size, "other_file", f"a JSON file with a mistake: {plain(str(error))}", "json")
    keys = table.keys() if isinstance(table, dict) else ()
    told = next((sentence for key, sentence in _JSON_MARKS if key in keys), "a JSON file")
    name = table.get("_class_name") or table.get("model_type") if isinstance(table, dict) else None
    detail = f" ({plain(name, 60)})" if isinstance(name, str) else ""
    return _report(path, size, "settings" if told != "a JSON file" else "other_file", told + detail, "json")
