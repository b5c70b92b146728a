"""Which models are in memory, and how: what must be loaded again when it changes.

Knows files by path, time and size, and the options that a loaded model depends on. Must not know how anything
is loaded.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zimage_gui.engine.model_files import ModelFiles
from zimage_gui.model.compiling import Compiler
from zimage_gui.model.quantise import Quant


@dataclass(frozen=True)
class Memory:
    """How the models' weights are kept: the transformer's, the text encoder's; how many of the transformer's
    blocks are swapped through a ring of how many."""

    base: Quant = "none"
    llm: Quant = "none"
    swapped: int = 0
    ring: int = 2


@dataclass(frozen=True)
class ModelKey:
    """What is loaded: a changed key means loading again. File times and sizes notice a replaced file."""

    files: ModelFiles
    tokenizer: Path | None
    device: str
    precision: str
    stamps: tuple[tuple[str, int, int], ...] = ()
    memory: Memory = Memory()
    compiler: Compiler | None = None

    @classmethod
    def of(
        cls,
        files: ModelFiles,
        tokenizer: Path | None,
        device: torch.device,
        precision: str,
        memory: Memory = Memory(),
    ) -> "ModelKey":
        places = (files.dit, files.vae, files.text_encoder, tokenizer)
        stamps = stamps_of(path for path in places if path)
        return cls(files, tokenizer, str(device), precision, stamps, memory)

    def but_for_transformer(self) -> "ModelKey":
        """The same without the transformer's files."""
        dit = self.files.dit
        stamps = (one for one in self.stamps if dit is None or dit not in (Path(one[0]), Path(one[0]).parent))
        return replace(self, files=replace(self.files, dit=None), stamps=tuple(stamps))


def stamps_of(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """(path, time, size) of files and of the files directly in folders; a missing file has neither."""
    found = []
    for path in paths:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            stat = file.stat() if file.exists() else None
            found.append((str(file), stat.st_mtime_ns if stat else 0, stat.st_size if stat else -1))
    return tuple(found)
