"""Named settings in TOML files: one folder per command, shipped ones beside those a person saves.

Knows TOML files, names and the schema. Knows nothing of gradio. A name from a page is made a harmless file
name before it touches the disk; a preset holds only what differs from the defaults, so it can be laid over
any form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

import zimage_gui
from zimage_gui.config.build import Source
from zimage_gui.config.schema import Options, by_section
from zimage_gui.config.toml_io import plain, read_text, source
from zimage_gui.errors import UserError
from zimage_gui.files import atomic_write
from zimage_gui.jobs.folder import slug
from zimage_gui.ui.folders import natural
from zimage_gui.ui.values import Raw, from_values

SHIPPED = Path(zimage_gui.__file__).parents[1] / "presets"
MACHINE_BOUND = frozenset({"runs_dir", "resume", "overwrite"})
"""Options that describe one run or one machine and are never part of a preset."""


@dataclass(frozen=True)
class Preset:
    name: str
    file: Path
    about: str


class Presets:
    """The presets of one command: the user's folder first, then the shipped one."""

    def __init__(self, folder: Path, config_class: type[Options]) -> None:
        self.config_class = config_class
        self.own = folder / config_class.command
        self.folders = tuple(dict.fromkeys([self.own, SHIPPED / config_class.command]))

    def list(self) -> list[Preset]:
        """All presets by name; one of the user's hides a shipped one of the same name."""
        found: dict[str, Preset] = {}
        for folder in self.folders:
            for file in sorted(folder.glob("*.toml")) if folder.is_dir() else []:
                found.setdefault(file.stem, Preset(file.stem, file, _about(file)))
        return sorted(found.values(), key=lambda preset: natural(Path(preset.name)))

    def load(self, name: str) -> dict[str, Raw]:
        """Field contents of a preset. Raises UserError for unknown names, broken TOML and wrong options."""
        preset = next((one for one in self.list() if one.name == name), None)
        if preset is None:
            raise UserError.one("preset", name, "does not exist", "Choose one from the list")
        return self.read(preset.file)

    def read(self, file: Path) -> dict[str, Raw]:
        """Field contents of any settings file of this command (a preset, or a run's config.toml)."""
        found: Source = source(self.config_class, read_text(file), file.absolute().parent, file.name)
        if found.problems:
            raise UserError(found.problems)
        return from_values(self.config_class, found.values)

    def save(self, name: str, config: Options) -> Path:
        """Write what differs from the defaults under a harmless form of `name`, in the place of an earlier
        preset unless that one is described, as the shipped ones are. Raises UserError."""
        stem = clean_name(name)
        if not stem:
            raise UserError.one("preset", name, "must have letters or digits in its name", "Type a name")
        file = self.own / f"{stem}.toml"
        if _about(file):
            rule = "is a preset with a description, which is not replaced"
            raise UserError.one("preset", stem, rule, "Type another name")
        try:
            return atomic_write(file, _text(config).encode("utf-8", "surrogateescape"))
        except OSError as error:
            rule = f"cannot be written to {self.own} ({error.strerror or error})"
            raise UserError.one("preset", name, rule, "Choose another presets_dir") from error


def clean_name(name: str) -> str:
    """A file name of letters (any script), digits, spaces and `-_.`; never hidden, reserved or outside its
    folder."""
    return slug(re.sub(r"\s+", "\x20", name.strip()).replace("\x20", "_")).strip("_")


def _about(file: Path) -> str:
    """The comment lines at the head of the file, which say what the preset is for."""
    try:
        lines = file.read_text(encoding="utf-8")[:4000].splitlines()
    except (OSError, ValueError):
        return ""
    comments = []
    for line in lines:
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# ").strip())
    return " ".join(comments)


def _text(config: Options) -> str:
    document = tomlkit.document()
    for key, group in by_section(type(config)).items():
        changed: dict[str, Any] = {
            known.name: plain(value)
            for known in group
            if not known.extra.secret
            and known.name not in MACHINE_BOUND
            and (value := getattr(config, known.name)) != known.default
            and value is not None
        }
        if changed:
            document.add(key, tomlkit.item(changed))
    return tomlkit.dumps(document)
