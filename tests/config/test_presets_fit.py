"""The shipped presets agree with the rules: with models and pictures added, nothing is wrong with them; and with
the card that a name promises."""

import re
from pathlib import Path

import pytest

from zimage_gui.config.build import finish, read
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import options_of, show
from zimage_gui.config.toml_io import read_text, source
from zimage_gui.engine.memory_estimate import GIB, Batch, Workload, estimate, least_recomputed
from zimage_gui.engine.memory_models import ModelSizes
from zimage_gui.engine.model_files import plain_turbo

PRESETS = sorted((Path(__file__).parents[2] / "presets").glob("*/*.toml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_preset_is_right_once_models_and_pictures_are_chosen(path):
    config, bare = made_of(path)
    assert config != bare


def made_of(path):
    """The preset's config and the one without it."""
    cls = COMMANDS[path.parent.name]
    chosen = {"model_dir": "m", "dataset": "d", "prompt": "p", "sample_prompts": "prompts.txt"}
    preset = source(cls, read_text(path), None)
    needed = {"sample_prompts": any("sample_" in name for name in preset.values)}
    given = [
        (name, value) for name, value in chosen.items() if name in options_of(cls) and needed.get(name, True)
    ]
    return finish(cls, [preset, read(cls, given, None)]), finish(cls, [read(cls, given, None)])


@pytest.mark.parametrize(
    "path", [path for path in PRESETS if path.parent.name != "generate"], ids=lambda path: path.stem
)
def test_the_released_model_fits_the_card_of_a_preset(path):
    """With half a GiB left for the screen; presets that promise no card fit one of 24 GB, finetuning 48."""
    config, _ = made_of(path)
    named = re.search(r"(\d+)_GB", path.stem)
    card = int(named[1]) if named else 48 if path.parent.name == "finetune" else 24
    batch = Batch(*config.resolution, 256, config.batch_size)
    found = estimate(config, ModelSizes(), Workload(batch), "cuda")
    assert found.peak <= (card - 0.5) * GIB
    if config.gradient_checkpointing_fraction == "auto":
        load = Workload(batch)
        count = least_recomputed(config, ModelSizes(), load, "cuda", (card - 0.5) * GIB)
        chosen = config.model_copy(update={"gradient_checkpointing_fraction": str(count / 30)})
        fewer = config.model_copy(update={"gradient_checkpointing_fraction": str((count - 1) / 30)})
        peaks = [estimate(one, ModelSizes(), load, "cuda").peak for one in (chosen, fewer)]
        assert 0 < count < 29 and peaks[0] <= (card - 0.5) * GIB < peaks[1]
    assert "# Source: " in path.read_text(encoding="utf-8")


def test_the_presets_name_the_cards_that_are_promised():
    cards = {"train-lora": (6, 8, 12, 16, 24), "finetune": (16, 24, 48)}
    named = {(path.parent.name, path.stem.partition("_on_")[2]) for path in PRESETS}
    assert named >= {(command, f"{card}_GB") for command, sizes in cards.items() for card in sizes}


def test_there_are_presets():
    assert {path.parent.name for path in PRESETS} <= set(COMMANDS) and PRESETS


@pytest.mark.parametrize(
    ("path", "adapter", "warned"),
    [
        ("m/z_image_turbo_bf16.safetensors", (), True),
        ("Z-Image-Turbo/transformer", (), True),
        ("m/z_image_turbo_bf16.safetensors", ("adapter.safetensors",), False),
        ("m/z_image_de_turbo_v1_bf16.safetensors", (), False),
        ("Z-Image/transformer", (), False),
    ],
)
def test_turbo_without_its_adapter_is_warned_about(path, adapter, warned):
    config = COMMANDS["train-lora"](base_weights=adapter)
    assert ("unlearns" in plain_turbo(config, Path(path))) == warned
    assert bool(plain_turbo(COMMANDS["finetune"](), Path(path))) == (warned or bool(adapter))


def test_a_preset_leaves_nothing_of_one_of_its_kind_that_was_chosen_before():
    """Presets are laid over the form: what another one of the kind changes, each must say itself."""
    kinds: dict[tuple[str, bool], dict[Path, dict[str, object]]] = {}
    for path in PRESETS:
        preset = source(COMMANDS[path.parent.name], read_text(path), None)
        kinds.setdefault((path.parent.name, "_GB" in path.stem), {})[path] = preset.values
    for (command, _), presets in kinds.items():
        known = options_of(COMMANDS[command])
        for path, values in presets.items():
            changed = {
                name
                for other in presets.values()
                for name, value in other.items()
                if show(value) != show(known[name].default)
            }
            # Beside a length in epochs the one in steps does not count.
            idle = {"max_train_steps"} if values.get("max_train_epochs") else set()
            assert changed - idle <= values.keys(), path.stem
