"""The command `inspect`: what a file or folder is, said from names and headers. No tensor is read but the
alphas of a LoRA, and torch is not imported.

Knows which kind of report belongs to which kind of file. It must not know how files are loaded.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path

from zimage_gui.burnpack import BpkHeader, is_bpk, read_bpk_header
from zimage_gui.config.convert import InspectConfig
from zimage_gui.engine.inspect_folders import folder_report
from zimage_gui.engine.inspect_models import base_hint, model_verdicts
from zimage_gui.engine.inspect_report import FileReport
from zimage_gui.engine.inspect_text import plain, safe_json
from zimage_gui.engine.inspect_things import small_thing
from zimage_gui.engine.inspect_training import training_facts
from zimage_gui.errors import Problem, UserError, raise_if_any
from zimage_gui.events import Run
from zimage_gui.files import Header, MissingFiles, read_header
from zimage_gui.model.checkpoint import Checkpoint, Crowded, Place, open_checkpoint
from zimage_gui.model.gguf import MAGIC as GGUF
from zimage_gui.model.gguf import read_gguf
from zimage_gui.model.recognise import Recognised, recognise_checkpoint

_HEAD = 512
_INDEX = ".safetensors.index.json"
_SAFETENSORS = (".safetensors", ".sft")
_TOLD_OF_TRANSFORMERS = ("transformer", "all_in_one", "quantised", "gguf")


def run(config: InspectConfig, run: Run) -> list[Path]:
    """Prints the report; it makes no file."""
    raise_if_any(check(config))
    assert config.input is not None  # `check` has seen to it
    report = inspect(config.input)
    if config.hash:
        from zimage_gui.engine.inspect_hash import with_hashes

        report = with_hashes(report, None if config.as_json else run)
    if config.as_json:
        print(safe_json(report.as_dict()))
    else:
        width = max(40, shutil.get_terminal_size().columns - 1) if sys.stdout.isatty() else None
        print(report.text(config.limit, width))
    return []


def check(config: InspectConfig) -> list[Problem]:
    """Whether there is something to look into; what is wrong inside is what `inspect` itself says."""
    problems = config.problems()
    if config.input is not None:
        try:
            _mode(config.input)
        except UserError as error:
            problems += error.problems
    return problems


def inspect(path: Path) -> FileReport:
    """The report of any file or folder; a folder of several things has one per part.

    Raises UserError for what is not there, cut off, malformed or may not be read.
    """
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        found = folder_report(path, inspect)
        return found if found is not None else _model(path)
    if path.name.endswith(_INDEX):
        return _model(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        rule = f"cannot be read ({error.strerror})"
        raise UserError.one("input", path, rule, "Check its permissions") from error
    if head.startswith(GGUF):
        return _gguf(path, size)
    named = path.suffix.lower()
    if named == ".bpk" or head.startswith(b"NRUB") or (named in _SAFETENSORS and head[8:9] == b"{"):
        return _model(path)
    thing = small_thing(path, head, size)
    if thing is not None:
        return thing
    return _model(path) if named in _SAFETENSORS or head[8:9] == b"{" else _unknown(path, head, size)


def _mode(path: Path) -> int:
    """What kind of entry it is, links followed; nothing is opened, for a pipe would never answer."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        rule = "is a link that leads nowhere" if path.is_symlink() else "does not exist"
        raise UserError.one("input", path, rule, "Check the path") from None
    except (OSError, ValueError) as error:
        rule = f"cannot be looked at ({getattr(error, 'strerror', None) or error})"
        raise UserError.one("input", path, rule, "Check the path and its permissions") from None
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise UserError.one(
            "input", path, "is a pipe, socket or device, not a file", "Give a file or a folder"
        )
    return mode


def _unknown(path: Path, head: bytes, size: int) -> FileReport:
    sentence = "an empty file" if not size else f"a file this program does not know; it begins {head[:16]!r}"
    return FileReport(path, "empty" if not size else "unknown", "", "", sentence, bytes=size)


def _model(path: Path) -> FileReport:
    try:
        checkpoint = open_checkpoint(path, "input")
    except MissingFiles as error:
        return _incomplete(path, error)
    except Crowded as error:
        if path.is_dir() or is_bpk(path):
            raise
        return _crowd(path, error.header)
    return _report(path, checkpoint)


def _report(path: Path, checkpoint: Checkpoint) -> FileReport:
    found = recognise_checkpoint(checkpoint)
    package = _package(checkpoint)
    report = FileReport(
        path,
        found.kind,
        found.layout,
        "bpk" if package else "safetensors",
        found.sentence,
        {name: place.info for name, place in checkpoint.places.items()},
        dict(checkpoint.metadata),
        len(checkpoint.files),
        checkpoint.total_bytes,
        facts=tuple(_model_facts(path, found, package)),
    )
    if found.kind == "lora":
        return _with_lora(report, checkpoint)
    if package is not None and found.kind == "unknown":
        words = found.sentence.replace(
            "a file this program does not know", "a burnpack file of another model"
        )
        report = replace(report, sentence=words)
    legacy = package is not None and package.alignment == "legacy"
    return replace(report, verdicts=model_verdicts(found, legacy))


def _with_lora(report: FileReport, checkpoint: Checkpoint) -> FileReport:
    # Of no use for models, whose report is to appear at once.
    from zimage_gui.engine.inspect_lora import anatomy, lora_facts, lora_sentence
    from zimage_gui.engine.inspect_lora_verdicts import lora_verdicts

    parts = anatomy(checkpoint)
    return replace(
        report,
        sentence=lora_sentence(parts),
        lora=parts.summary,
        verdicts=lora_verdicts(parts),
        facts=(*lora_facts(parts), *training_facts(checkpoint.metadata)),
    )


def _package(checkpoint: Checkpoint) -> BpkHeader | None:
    with open(checkpoint.files[0], "rb") as file:
        return read_bpk_header(checkpoint.files[0], "input") if file.read(4) == b"NRUB" else None


def _model_facts(path: Path, found: Recognised, package: BpkHeader | None) -> list[tuple[str, str]]:
    facts = []
    if found.kind in _TOLD_OF_TRANSFORMERS and "transformer" in found.sentence:
        facts.append(("Which one", base_hint(path)))
    if found.prefix:
        facts.append(("Prefix", found.prefix))
    if package is not None:
        facts += _package_facts(package)
    metadata = found.checkpoint.metadata if found.checkpoint else {}
    return facts + training_facts(metadata)


def _package_facts(package: BpkHeader) -> list[tuple[str, str]]:
    aligned = package.alignment == "aligned"
    how = "aligned to 256 bytes (burn 0.20 and later)" if aligned else "not aligned (burn 0.19)"
    facts = [("Burnpack", f"version {package.version}, {how}")]
    ids = sum(tensor.param_id is not None for tensor in package.tensors.values())
    facts.append(("Parameter ids", f"{ids} of {len(package.tensors)} tensors"))
    quantised = sum(tensor.quantised for tensor in package.tensors.values())
    if quantised:
        facts.append(("Quantised", f"{quantised} of {len(package.tensors)} tensors"))
    if package.scalars:
        values = ", ".join(f"{name} = {value}" for name, (_, value) in list(package.scalars.items())[:8])
        facts.append(("Scalars", f"{len(package.scalars)}: {plain(values)}"))
    return facts


def _incomplete(path: Path, error: MissingFiles) -> FileReport:
    """A shard set of which some files are there: what they hold, and what is missing."""
    places: dict[str, Place] = {}
    metadata: dict[str, str] = {}
    for file in error.present:
        header = read_header(file, "input")
        metadata.update(header.metadata)
        places |= {name: Place(file, info) for name, info in header.tensors.items()}
    checkpoint = Checkpoint(path, "input", error.present or (path,), places, metadata, {})
    problem = error.problems[0]
    sentence = f"an incomplete model: it {problem.rule}"
    if places:
        found = recognise_checkpoint(checkpoint)
        if found.kind != "unknown":
            sentence += f"; what is there looks like {found.sentence}"
    tensors = {name: place.info for name, place in places.items()}
    facts = (("What to do", problem.remedy),)
    return FileReport(
        path, "incomplete", "", "safetensors", sentence, tensors, metadata, len(error.present),
        checkpoint.total_bytes, facts=facts,
    )  # fmt: skip


def _crowd(path: Path, header: Header) -> FileReport:
    """A sound safetensors file with more tensors than any model has."""
    size = sum(info.end - info.start for info in header.tensors.values())
    sentence = (
        f"a safetensors file with {len(header.tensors):,} tensors, more than any model this program knows, "
        f"for example {plain(min(header.tensors), 80)!r}"
    )
    return FileReport(
        path, "unknown", "", "safetensors", sentence, header.tensors, header.metadata, bytes=size
    )


def _gguf(path: Path, size: int) -> FileReport:
    header = read_gguf(path, "input")
    places = {name: Place(path, info) for name, info in header.tensors.items()}
    inside = recognise_checkpoint(Checkpoint(path, "input", (path,), places, {}, {}))
    kind = f" of the type {header.main_type}" if header.main_type else ""
    known = inside.sentence if places and inside.kind != "unknown" else ""
    named = header.architecture and f", which calls itself {plain(header.architecture, 60)}"
    sentence = f"a GGUF file{kind}, for llama.cpp-style programs" + (f": {known}" if known else named)
    found = Recognised("gguf", "", inside.prefix, sentence, None)
    facts = [("GGUF", f"version {header.version}, architecture {header.architecture or 'not named'}")]
    if "transformer" in known:
        facts.append(("Which one", base_hint(path)))
    return FileReport(
        path, "gguf", "", "gguf", sentence, header.tensors, header.metadata, 1, size,
        verdicts=model_verdicts(found), facts=tuple(facts),
    )  # fmt: skip
