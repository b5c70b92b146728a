"""What the walk over all options is made of: one project, runs of three steps in it, and what each run showed.

A run is known by its options and made once. Libraries that talk to servers are replaced by recorders of what
they are asked to do; nothing of our own is.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_project import TRANSFORMER, finetune_config, lora_config, randomise, write_models

from zimage_gui.engine.train import run
from zimage_gui.errors import UserError
from zimage_gui.events import Event, Note, NullRun, Stage, Step
from zimage_gui.model.boundaries import BoundaryOffload
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_write import write_lora
from zimage_gui.model.offload import BlockSwap
from zimage_gui.model.saving import save_transformer
from zimage_gui.model.transformer import Block, ZImageTransformer

STEPS = 3
MAKERS = {"train-lora": lora_config, "finetune": finetune_config}
_COUNTED = {BoundaryOffload: ("bytes_moved",), BlockSwap: ("bytes_moved", "ring_bytes")}


class Watched(NullRun):
    """Notes at each step what is gone after a run: threads, torch's switches, counters of what was moved."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.threads: set[str] = set()
        self.switches: list[object] = []
        self.moved: dict[str, int] = {}
        self.before: list[object] | None = None

    def emit(self, event: Event) -> None:
        super().emit(event)
        if not isinstance(event, Step):
            return
        self.threads |= {thread.name.rpartition("_")[0] for thread in threading.enumerate()}
        self.switches = [torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark]
        for one in movers() if self.before is not None else ():
            if not any(one is other for other in self.before or ()):
                for name in _COUNTED[type(one)]:
                    self.moved[f"{type(one).__name__}.{name}"] = getattr(one, name)


def movers() -> list[object]:
    """Whatever moves weights or activations in this process, of earlier runs too."""
    return [one for one in gc.get_objects() if type(one) in _COUNTED]


@dataclass
class Seen:
    """One run. failed: the sentence of each option that was refused; asked: what foreign libraries were asked
    for; blocks: how often a block of the transformer was computed; compiled: pieces of compiled code."""

    out: Path
    run: Watched
    results: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    blocks: int = 0

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.run.events if isinstance(event, kind)]

    @property
    def file(self) -> Path:
        return [path for path in self.results if path.suffix == ".safetensors"][-1]

    def tensors(self) -> dict[str, tuple[str, bytes]]:
        """Format and bytes of each tensor of the result."""
        with safe_open(self.file, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return {
            name: (str(tensor.dtype), tensor.flatten().view(torch.uint8).numpy().tobytes())
            for name, tensor in tensors.items()
        }

    def header(self) -> dict[str, str]:
        with safe_open(self.file, "pt") as file:
            return {
                name: value
                for name, value in file.metadata().items()
                if name.startswith(("ss_", "modelspec."))
            }

    def names(self) -> list[str]:
        return sorted(path.name for path in self.out.iterdir() if path.name != "run")

    def told(self) -> list[str]:
        return [event.text for event in self.run.events if isinstance(event, Note | Stage)]


class Walk:
    """Runs of one command in one project."""

    def __init__(self, project: Path, command: str) -> None:
        self.project, self.command = project, command
        self._made: dict[str, Seen] = {}

    def options(self) -> dict[str, Any]:
        """Of every run; the encoders are left out where the caches are there, to save their loading."""
        common = {
            "max_train_steps": STEPS,
            "vae": None,
            "text_encoder": None,
            "runs_dir": self.project / "runs",
        }
        return common if self.command == "train-lora" else common | {"save_precision": "fp32"}

    @property
    def states(self) -> Path:
        """Where the state is that a run may go on from."""
        return self.project / f"states-{self.command}"

    def seen(self, options: dict[str, Any]) -> Seen:
        key = repr(sorted(options.items()))
        if key not in self._made:
            self._made[key] = self.fresh(**options)
        return self._made[key]

    def fresh(self, **options: Any) -> Seen:
        """A run of its own. `cache_directory` "new": an empty one."""
        out = self.project / f"{self.command}-{len(self._made)}-{os.urandom(3).hex()}"
        given = {"output_dir": out} | self.options() | options
        if given.get("cache_directory") == "new":
            given["cache_directory"] = out / "cache"
        (out / "run").mkdir(parents=True)
        found = Seen(out, Watched(out / "run"), asked=ASKED)
        ASKED.clear()
        RecordedHub.states = self.states
        os.environ.pop("WANDB_API_KEY", None)
        if given.get("blocks_to_swap") or given.get("gradient_checkpointing_cpu_offload"):
            found.run.before = movers()
        # before, not after: what is computed again ends as soon as the backward pass has what it needs
        counting = torch.nn.modules.module.register_module_forward_pre_hook(_count(found))
        try:
            found.results = run(MAKERS[self.command](self.project, **given), found.run)
        except UserError as error:
            for problem in error.problems:
                found.failed[problem.option] = found.failed.get(problem.option, "") + problem.sentence()
        finally:
            counting.remove()
        found.asked = list(ASKED)
        return found


def _count(found: Seen) -> Callable[..., None]:
    def look(module: torch.nn.Module, *_: object) -> None:
        found.blocks += isinstance(module, Block)

    return look


ASKED: list[Any] = []


class RecordedHub:
    """huggingface_hub's client: uploads are noted, a state comes from a folder."""

    states: Path

    def __init__(self, token: str | None = None, endpoint: str | None = None) -> None:
        ASKED.append(("token", token))

    def create_repo(self, name: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        ASKED.append(("made", name, repo_type, private))

    def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, repo_type: str, **_: object) -> None:
        thread = threading.current_thread().name
        ASKED.append(("file", Path(path_or_fileobj).name, path_in_repo, repo_type, thread))

    def upload_folder(self, *, folder_path: str, path_in_repo: str, **_: object) -> None:
        ASKED.append(("folder", Path(folder_path).name, path_in_repo))

    def snapshot_download(self, repo_id: str, *, local_dir: Path, **_: object) -> str:
        shutil.copytree(self.states, local_dir, dirs_exist_ok=True)
        return str(local_dir)


def recorded_compile(function: Any, **arguments: Any) -> Any:
    """torch.compile, which leaves the function as it is: compiling takes minutes and has tests of its own."""
    ASKED.append((arguments, torch._dynamo.config.recompile_limit))
    return function


def recorded_wandb() -> types.ModuleType:
    """The library's `init`, which notes its arguments and the key it would use."""
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
    session = types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    def init(**arguments: Any) -> Any:
        folder = Path(arguments.pop("dir")).name.rstrip("0123456789")
        ASKED.append((arguments, folder, os.environ.get("WANDB_API_KEY")))
        return session

    module.init = init  # type: ignore[attr-defined]
    return module


def make_project(folder: Path) -> None:
    """Pictures half transparent with captions of two lines, masks, others of other shapes; models and others."""
    write_models(folder / "models")
    for place, size, green in (("pictures", (48, 32), 100), ("held", (48, 32), 180), ("wide", (160, 64), 20)):
        _write_varied(folder / place, size, green)
    (folder / "masks").mkdir()
    for path in (folder / "pictures").glob("*.png"):
        Image.linear_gradient("L").resize((48, 32)).save(folder / "masks" / path.name)
    other = ZImageTransformer(TRANSFORMER)
    randomise(other, 99)
    save_transformer(other, folder / "other.safetensors")
    for part in ("vae", "te"):
        _altered(folder / "models" / f"{part}.safetensors", folder / f"other_{part}.safetensors")
    (folder / "all").mkdir()
    for name, part in {"z_image": "dit", "ae": "vae", "qwen_3_4b": "te"}.items():
        os.link(folder / "models" / f"{part}.safetensors", folder / "all" / f"{name}.safetensors")
    table = (
        '[[datasets]]\nimage_directory = "pictures"\nresolution = 32\nbatch_size = 1\nenable_bucket = true\n'
    )
    (folder / "data.toml").write_text(table, encoding="utf-8")
    (folder / "prompts.txt").write_text("a red picture --w 32 --h 32 --s 1 --d 5\n", encoding="utf-8")
    (folder / "wandb.toml").write_text('[wandb]\ntags = ["cats"]\n', encoding="utf-8")
    generator = torch.Generator().manual_seed(5)
    pair = [torch.randn(shape, generator=generator) for shape in ((2, 32), (32, 2))]
    write_lora(folder / "adapter.safetensors", {"layers.0.attention.to_q": LowRank(*pair, 2.0)})


def _write_varied(folder: Path, size: tuple[int, int], green: int) -> None:
    folder.mkdir()
    for number in range(5):
        path = folder / f"{number}.png"
        pixels = Image.new("RGBA", size, (200, green, 40 * number, 255))
        pixels.paste((20, 200, 90, 0), (size[0] // 2, 0, *size))
        pixels.save(path)
        text = f"red, blue {number}, round, large\na picture of the number {number}"
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
        path.with_suffix(".cap").write_text("something else", encoding="utf-8")


def _fill(walk: Walk) -> None:
    """The caches that runs without encoders use, and a state to go on from, under each command's folder."""
    encoders = {
        "vae": walk.project / "models" / "vae.safetensors",
        "text_encoder": walk.project / "models" / "te.safetensors",
    }
    walk.fresh(**encoders, caption_lines=True, max_train_steps=1)
    seen = walk.fresh(**encoders, output_name="owner", max_train_steps=2, save_state_on_train_end=True)
    shutil.copytree(seen.out / "owner-state", walk.states / "owner-state")


def _altered(source: Path, target: Path) -> None:
    from safetensors.torch import load_file, save_file

    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    save_file({name: tensor * 0.7 for name, tensor in load_file(source).items()}, target, metadata)


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A `Walk` for each command, their caches filled."""
    folder = tmp_path_factory.mktemp("walk")
    make_project(folder)
    patch = pytest.MonkeyPatch()
    patch.setattr(huggingface_hub, "HfApi", RecordedHub)
    patch.setattr(torch, "compile", recorded_compile)
    limit = torch._dynamo.config.recompile_limit  # monkeypatch would delete it from torch's config at the end
    patch.setitem(sys.modules, "wandb", recorded_wandb())
    found = {command: Walk(folder, command) for command in MAKERS}
    for walk in found.values():
        _fill(walk)
    gc.collect()
    gc.freeze()  # a run collects garbage between its stages: over all that pytest holds this takes long
    yield found
    gc.unfreeze()
    torch._dynamo.config.recompile_limit = limit
    patch.undo()
