"""Every option of `generate` shows its effect when the command line is run with it and without it.

An option without a case here fails: whoever adds one says what it changes, and on which aspect of a run that
is seen.
"""

import contextlib
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_forward_hook

from zimage_gui.cli import main
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.schema import options_of
from zimage_gui.engine.generator import Generator
from zimage_gui.events import STEP_PICTURE
from zimage_gui.model.offload import BlockSwap
from zimage_gui.model.transformer import ZImageTransformer

DATA = Path(__file__).parents[1] / "data"
HUB = DATA / "reference" / "hub"
LORA = str(DATA / "lora_dialects" / "main_kohya_split.safetensors")
OTHER_LORA = str(DATA / "lora_dialects" / "main_peft_diffusers.safetensors")

Words = dict[str, str | None]
BASE: Words = {
    "model_dir": str(HUB), "prompt": "two dogs", "image_size": "32 32", "infer_steps": "2", "seed": "7",
    "mixed_precision": "no", "device": "cpu", "save_path": "{out}", "runs_dir": "{out}/runs",
    "step_preview": "false",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The option's value (None: the switch is off), what else both runs are given, and the aspects of `Seen`
    that must differ. `typed`: what is typed meanwhile."""

    value: str
    differs: str
    beside: Words = field(default_factory=dict)
    without: str | None = None
    drops: tuple[str, ...] = ()
    typed: str = ""


@dataclass
class Seen:
    """What a run shows: its exit code and refusal, files and pictures, settings in them, events, passes of the
    network, and the switches of torch while it computed."""

    code: int = 0
    said: str = ""
    files: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    pixels: list[tuple[tuple[int, ...], bytes]] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    switches: set[Any] = field(default_factory=set)
    compiled: list[str] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    places: set[bool] = field(default_factory=set)
    previews: int = 0
    bells: int = 0


GUIDED: Words = {"guidance_scale": "3"}
BEGUN: Words = {"image_path": "{picture}"}
WITH_LORA: Words = {"lora_weight": LORA, "lora_multiplier": "2"}
COMPILED: Words = {"compile": "true"}
PAIR: Words = {"batch_count": "2"}
CASES: dict[str, Case] = {
    "model_dir": Case("{models}", "pixels"),
    "dit": Case("{models}/transformer", "pixels"),
    "vae": Case("{models}/vae", "pixels"),
    "text_encoder": Case("{models}/text_encoder", "pixels"),
    "tokenizer": Case("{tokenizer}", "pixels"),
    "sampler": Case("heun", "pixels passes"),
    "scheduler": Case("beta", "pixels"),
    "cfg_truncation": Case("0.1", "pixels passes", GUIDED),
    "cfg_normalization": Case("0.5", "pixels", GUIDED),
    "cfg_batch": Case("never", "passes", GUIDED, without="always"),
    "image_path": Case("{picture}", "pixels", {"infer_steps": "5"}),
    "strength": Case("0.9", "pixels", {**BEGUN, "infer_steps": "5"}, without="0.2"),
    "mask_path": Case("{mask}", "pixels", {**BEGUN, "strength": "1"}),
    "grid_x": Case("seed=1,2", "files"),
    "grid_y": Case("steps=1,2", "files"),
    "grid_z": Case("sampler=euler,heun", "files"),
    "compare_lora": Case("true", "files", WITH_LORA),
    "wildcards_dir": Case("{wildcards}", "pixels settings", {"prompt": "__animal__"}),
    "vae_dtype": Case("bf16", "pixels"),
    "vae_tiling": Case("always", "calls", without="never"),
    "fp8_llm": Case("true", "pixels calls"),
    "blocks_to_swap": Case("2", "slots calls"),
    "block_swap_ring_size": Case("1", "slots", {"blocks_to_swap": "2"}, without="2"),
    "base_quant": Case("nf4", "pixels calls"),
    "cuda_graphs": Case("true", "code said"),
    "compile": Case("true", "compiled told"),
    "compile_backend": Case("aot_eager", "compiled", COMPILED, without="eager"),
    "compile_mode": Case("max-autotune", "compiled", COMPILED),
    "compile_dynamic": Case("true", "compiled", COMPILED, without="false"),
    "compile_fullgraph": Case("true", "compiled", COMPILED),
    "compile_cache_size_limit": Case("3", "switches", COMPILED, without="5"),
    "cuda_allow_tf32": Case("true", "switches"),
    "cuda_cudnn_benchmark": Case("true", "switches"),
    "device": Case("cuda:99", "code said"),
    "runs_dir": Case("{out}/elsewhere", "runs"),
    "overwrite": Case("true", "files", {"output": "{out}/there.png"}, drops=("save_path",)),
    "prompt": Case("a cat", "pixels settings"),
    "negative_prompt": Case("blurry", "pixels settings", GUIDED),
    "from_file": Case("{prompts}", "pixels settings", drops=("prompt",)),
    "interactive": Case("true", "pixels settings", drops=("prompt",), typed="a fox\n"),
    "image_size": Case("48 32", "pixels"),
    "width": Case("48", "pixels", {"height": "32"}, without="32", drops=("image_size",)),
    "height": Case("48", "pixels", {"width": "32"}, without="32", drops=("image_size",)),
    "infer_steps": Case("3", "pixels passes"),
    "guidance_scale": Case("2", "pixels passes"),
    "flow_shift": Case("6", "pixels"),
    "seed": Case("8", "pixels files"),
    "cpu_noise": Case("true", "settings"),
    "batch_count": Case("3", "files pixels"),
    "batch_size": Case("2", "passes", PAIR),
    "lora_weight": Case(LORA, "pixels told"),
    "lora_multiplier": Case("0.3", "pixels", {"lora_weight": LORA}),
    "include_patterns": Case("attention", "pixels told", WITH_LORA),
    "exclude_patterns": Case("attention", "pixels told", WITH_LORA),
    "save_merged_model": Case("{out}/merged.safetensors", "files", WITH_LORA),
    "latent_path": Case("{latent}", "files passes told"),
    "save_path": Case("{out}/more", "files"),
    "output": Case("{out}/one.png", "files", drops=("save_path",)),
    "output_type": Case("latent_images", "files", without="images"),
    "no_metadata": Case("true", "settings"),
    "bell": Case("true", "bells"),
    "step_preview": Case("true", "previews"),
    "text_encoder_cpu": Case("true", "places"),
    "mixed_precision": Case("fp16", "pixels"),
    "attn_mode": Case("sage", "code said"),
}  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files that the cases name."""
    folder = tmp_path_factory.mktemp("things 物")
    shutil.copytree(HUB, folder / "models")
    for part in ("transformer", "vae", "text_encoder"):
        for weights in (folder / "models" / part).glob("*.safetensors"):
            save_file({name: tensor * 1.3 for name, tensor in load_file(weights).items()}, weights)
    shutil.copytree(HUB / "tokenizer", folder / "tokenizer")
    vocabulary = json.loads((folder / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    words = vocabulary["model"]["vocab"]
    words["t"], words["d"] = words["d"], words["t"]
    vocabulary["model"]["merges"] = []
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    rows, columns = np.mgrid[:32, :32]
    Image.fromarray(np.stack([rows * 7, columns * 7, rows + columns], 2).astype(np.uint8)).save(
        folder / "start.png"
    )
    Image.fromarray(np.where(columns < 12, 0, 255).astype(np.uint8)).save(folder / "mask.png")
    (folder / "wildcards").mkdir()
    (folder / "wildcards" / "animal.txt").write_text("a red fox", encoding="utf-8")
    (folder / "prompts.txt").write_text("a green frog --s 1\n", encoding="utf-8")
    save_file({"latent": torch.zeros(16, 4, 4)}, folder / "old_latent.safetensors")
    named = {
        "picture": "start.png",
        "mask": "mask.png",
        "prompts": "prompts.txt",
        "latent": "old_latent.safetensors",
    }
    folders = {name: str(folder / name) for name in ("models", "tokenizer", "wildcards")}
    return folders | {name: str(folder / file) for name, file in named.items()}


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch, things: dict[str, Any]) -> Callable[[Words, Path, str], Seen]:
    """Runs the command line with these options into a folder, and watches it."""
    monkeypatch.setattr("zimage_gui.engine.step_pictures.EVERY", 0)
    known: dict[Any, Seen] = things.setdefault("runs", {})

    def run(words: Words, out: Path, typed: str) -> Seen:
        key = (*sorted(words.items()), typed)
        if key not in known:
            known[key] = _run(monkeypatch, things, words, out, typed)
        return known[key]

    return run


def _run(
    monkeypatch: pytest.MonkeyPatch, things: dict[str, Any], words: Words, out: Path, typed: str = ""
) -> Seen:
    out.mkdir()
    Image.new("RGB", (8, 8)).save(out / "there.png")
    argv = ["generate"]
    for name, value in words.items():
        if value is not None:
            parts = value.format(out=out, **things)
            argv += [f"--{name}", *(parts.split() if name == "image_size" else [parts])]
    seen = Seen()
    with monkeypatch.context() as patch, _watched(patch, seen, out):
        patch.setattr(sys, "stdin", io.StringIO(typed))
        spoken, complained = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(spoken), contextlib.redirect_stderr(complained):
            seen.code = main(argv)
    seen.bells = spoken.getvalue().count("\a")
    seen.said = complained.getvalue() if seen.code else ""
    _collect(seen, out)
    return seen


@contextlib.contextmanager
def _watched(patch: pytest.MonkeyPatch, seen: Seen, out: Path) -> Iterator[None]:
    """Our own code runs as it is; torch.compile alone is kept from taking minutes."""

    def after(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        seen.calls[type(module).__name__] += 1
        if isinstance(module, ZImageTransformer):
            seen.passes.append(len(inputs[0]))
            limit = torch._dynamo.config.recompile_limit
            seen.switches.add((torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, limit))
            seen.previews += any(True for _ in out.glob(f"runs/*/{STEP_PICTURE}"))

    def compiled(function: Any, **options: Any) -> Any:
        seen.compiled.append(str(sorted(options.items())))
        return function

    ready, latents_of = BlockSwap.__init__, Generator.latents_of

    def swapping(self: BlockSwap, *given: Any, **more: Any) -> None:
        ready(self, *given, **more)
        seen.slots.append(len(self._slots))

    def making(self: Generator, *given: Any, **more: Any) -> torch.Tensor:
        seen.places.add(self.text_encoder_cpu)
        return latents_of(self, *given, **more)

    patch.setattr(torch, "compile", compiled)
    patch.setattr(BlockSwap, "__init__", swapping)
    patch.setattr(Generator, "latents_of", making)
    hook = register_module_forward_hook(after)
    limit = torch._dynamo.config.recompile_limit
    try:
        yield
    finally:
        hook.remove()
        torch._dynamo.config.recompile_limit = limit
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False


def _collect(seen: Seen, out: Path) -> None:
    """What lies in the folder afterwards; names without the time in them."""
    for path in sorted(out.rglob("*")):
        place = path.relative_to(out).as_posix()
        if path.name == "events.jsonl":
            events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            seen.told += [event["text"] for event in events if event["kind"] in ("note", "stage", "warning")]
            seen.runs.append(place.split("/")[0])
        elif path.suffix in (".png", ".safetensors") and "runs" not in place.split("/")[0]:
            parts = path.name.split("_", 1)
            seen.files.append(parts[-1] + ("/more" if "more/" in place else ""))
            if path.suffix == ".png" and path.name != "there.png":
                with Image.open(path) as image:
                    seen.pixels.append((np.asarray(image).shape, image.tobytes()))
                    seen.settings.append(str(image.info.get("zimage_gui")))


@pytest.mark.parametrize("name", [*options_of(GenerateConfig)])
def test_every_option_shows_its_effect(
    name: str, look: Callable[[Words, Path, str], Seen], tmp_path: Path
) -> None:
    assert name in CASES, f"generate has a new option, {name}: say here what it changes"
    case = CASES[name]
    # A run's own prompt stays where the case takes the option's away: else nothing would be asked for.
    plain = {
        key: value for key, value in BASE.items() if key not in case.drops or key == "prompt"
    } | case.beside
    given = {key: value for key, value in BASE.items() if key not in case.drops} | case.beside
    if case.without is not None:
        plain[name] = case.without
    given[name] = case.value
    before = look(plain, tmp_path / "plain", "")
    after = look(given, tmp_path / "given", case.typed)
    assert before.code == 0, before.said
    if "code" not in case.differs:
        assert after.code == 0, after.said
    for aspect in case.differs.split():
        assert getattr(before, aspect) != getattr(after, aspect), (name, aspect)
    idle = [text for text in after.told if "has no effect here" in text]
    assert not any(text.startswith(f"{name} =") for text in idle), idle


def test_no_case_is_left_over() -> None:
    assert set(CASES) == set(options_of(GenerateConfig))
