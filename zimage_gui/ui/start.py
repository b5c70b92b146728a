"""What the window opens on: the built-in demo project when nothing was set up yet.

Knows the demo's files and the drafts. The demo is written by the command `demo` in a process of its own,
because making its model files needs torch and the window never imports it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from zimage_gui.config.cache import CacheLatentsConfig, CacheTextConfig
from zimage_gui.config.dataset import DatasetConfig
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.schema import Options, options_of
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.errors import UserError
from zimage_gui.events import Note, Run
from zimage_gui.jobs.launch import environment
from zimage_gui.ui.desk import Desk
from zimage_gui.ui.presets import Presets
from zimage_gui.ui.values import Raw

FOLDER = "demo_project"
MARK = "models/hub/model_index.json"  # the demo writes it last
PROMPT = "a red zorb on a white background"
LONGEST_WRITE = 300.0  # seconds; it takes about five

FORMS: dict[str, type[Options]] = {
    "train-lora": TrainLoraConfig,
    "finetune": FinetuneConfig,
    "cache-latents": CacheLatentsConfig,
    "cache-text": CacheTextConfig,
    "dataset": DatasetConfig,
    "generate": GenerateConfig,
    "models": GenerateConfig,
}


def open_project(desk: Desk, run: Run) -> None:
    """Fill the forms that were never used with the demo project, writing it first when it is not there."""
    untouched = [form for form in FORMS if not desk.drafts.load(form)]
    if "train-lora" not in untouched:
        return
    folder = desk.working / FOLDER
    if not (folder / MARK).is_file() and not write_demo(folder, run):
        return
    try:
        contents = suggestions(desk, folder)
    except UserError as error:
        run.emit(Note(text=f"The demo project in {folder} cannot be opened: {error}"))
        return
    for form in untouched:
        desk.drafts.save(form, contents[form])
    words = f"No models are set up yet: the window opens on the demo project in {folder}"
    run.emit(Note(text=f"{words}. Its tab Models names the files of the real models"))


def write_demo(folder: Path, run: Run) -> bool:
    """Have the demo written; False when that did not work, and then the window opens empty."""
    run.emit(Note(text=f"Writing the demo project to {folder}"))
    argv = [sys.executable, "-m", "zimage_gui", "demo", "--to", str(folder)]
    try:
        done = subprocess.run(
            argv,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LONGEST_WRITE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        run.emit(Note(text=f"The demo project could not be written: {error}"))
        return False
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        run.emit(Note(text=f"The demo project could not be written: {said[-1] if said else done.returncode}"))
    return done.returncode == 0 and (folder / MARK).is_file()


def suggestions(desk: Desk, folder: Path) -> dict[str, dict[str, Raw]]:
    """Field contents per form, taken from the demo's own settings file."""
    training = Presets(desk.presets_dir, TrainLoraConfig).read(folder / "train_lora.toml")
    common = {
        name: training[name] for name in ("dit", "vae", "text_encoder", "dataset_config") if name in training
    }
    shared: dict[str, dict[str, Raw]] = {
        form: {name: value for name, value in common.items() if name in options_of(config_class)}
        for form, config_class in FORMS.items()
    }
    length: dict[str, Raw] = {
        name: training[name]
        for name in ("sample_prompts", "sample_every_n_steps", "mixed_precision")
        if name in training
    }
    made: dict[str, dict[str, Raw]] = {
        "train-lora": {**training, "sample_at_first": True, "save_state": True},
        "finetune": {
            **length,
            "learning_rate": "1e-4",
            "max_train_steps": "200",
            "output_dir": str(folder / "output"),
            "output_name": "finetuned",
        },
        "generate": {
            "prompt": PROMPT,
            "image_size": "128 x 128",
            "infer_steps": "20",
            "batch_count": "4",
            "seed": "1",
        },
        "dataset": {"write_toml": ""},
    }
    return {form: {**shared[form], **made.get(form, {})} for form in FORMS}
