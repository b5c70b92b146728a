"""What the Convert tab offers for a file, what it says beforehand, and the copy to ComfyUI's folders."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zimage_gui.config.convert_model import ConvertConfig, MergeConfig
from zimage_gui.config.lora_tools import ExtractLoraConfig
from zimage_gui.config.schema import Options
from zimage_gui.demo.project import DATA
from zimage_gui.engine import lora_extract as extract_lora
from zimage_gui.engine.comfy_folder import copy_into_comfy, models_folder
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.errors import UserError
from zimage_gui.events import NullRun
from zimage_gui.ui.convert_actions import ACTIONS, actions_for, needed_bytes, output_name
from zimage_gui.ui.convert_checks import early_problems
from zimage_gui.ui.convert_words import plan_words

FILES = Path(__file__).parents[1] / "data"
LORA = FILES / "lora_dialects" / "all_kohya_split.safetensors"
HUB = FILES / "reference" / "hub"
SINGLE = FILES / "reference" / "single" / "z_image_fused.safetensors"
BY_KEY = {action.key: action for action in ACTIONS}


def keys(path: Path) -> set[str]:
    return {action.key for action in actions_for(inspect(path))}


def test_a_file_is_offered_only_what_fits_it(tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    assert keys(DATA / "transformer") == {"convert", "merge-model", "extract"}
    assert keys(DATA / "vae") == {"convert"}
    assert keys(LORA) == {"convert-lora", "merge-loras", "resize", "edit", "verify", "average"}
    assert keys(tmp_path / "note.txt") == set() and actions_for(None) == []


def test_a_quantised_file_is_offered_only_what_can_open_it(tmp_path):
    fused = load_file(SINGLE)
    names = {"fp8": ".scale_weight", "nvfp4": ".weight_scale_2"}
    for word, ending in names.items():
        scale = {f"layers.0.attention.out{ending}": torch.ones(())}
        save_file({**fused, **scale}, tmp_path / f"{word}.safetensors")
    assert keys(tmp_path / "fp8.safetensors") == {"convert", "merge-model"}
    assert keys(tmp_path / "nvfp4.safetensors") == set()


def test_an_index_gives_its_result_the_name_of_its_set():
    index = Path("/models/model.safetensors.index.json")
    assert output_name(BY_KEY["convert"], index, {}, Path("/out")).name == "model_converted.safetensors"


def test_the_size_of_an_extracted_lora_is_told_beforehand(tmp_path):
    config = ExtractLoraConfig(
        base=SINGLE, tuned=_changed(tmp_path), output=tmp_path / "lora.safetensors", rank=3
    )
    extract_lora.run(config, NullRun(tmp_path))
    made = inspect(tmp_path / "lora.safetensors").bytes
    for source in (SINGLE, HUB / "transformer"):
        told = needed_bytes(BY_KEY["extract"], inspect(source), {"rank": "3", "dtype": "keep"})
        assert told == pytest.approx(made, rel=0.05)
    assert needed_bytes(BY_KEY["extract"], inspect(SINGLE), {"energy": "0.9"}) is None


def test_mistakes_that_headers_tell_are_told_before_anything_is_started(tmp_path):
    vae = DATA / "vae"
    (tmp_path / "taken.safetensors").touch()
    given: list[tuple[Options, str]] = [
        (ConvertConfig(input=SINGLE, output=tmp_path / "a.gguf"), "output"),
        (ConvertConfig(input=SINGLE, output=tmp_path / "a.bpk", dtype="fp8_comfy"), "dtype"),
        (ConvertConfig(input=SINGLE, output=tmp_path / "taken.safetensors"), "output"),
        (MergeConfig(dit=vae, lora_weight=(LORA,), output=tmp_path / "a.bpk"), "dit"),
        (MergeConfig(dit=SINGLE, lora_weight=(SINGLE,), output=tmp_path / "a.bpk"), "lora_weight"),
        (MergeConfig(lora_weight=(LORA, LORA), output=tmp_path / "a.bpk"), "output"),
        (ExtractLoraConfig(base=vae, tuned=SINGLE, output=tmp_path / "a.safetensors"), "base"),
    ]
    for config, option in given:
        assert [problem.option for problem in early_problems(config, "output")] == [option]
    whole = MergeConfig(dit=SINGLE, lora_weight=(LORA,), output=tmp_path / "a")
    assert early_problems(whole, "output") == []


def _changed(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: tensor + torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in load_file(SINGLE).items()
    }
    save_file(changed, folder / "tuned.safetensors")
    return folder / "tuned.safetensors"


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ({}, "model_converted.safetensors"),
        ({"layout": "burn"}, "model_burn.bpk"),
        ({"layout": "diffusers", "dtype": "f16"}, "model_diffusers_f16"),
    ],
)
def test_the_suggested_name_says_what_the_result_will_be(raw, name):
    source = Path("/models/model-00001-of-00003.safetensors")
    assert output_name(BY_KEY["convert"], source, raw, Path("/out")) == Path("/out") / name


@pytest.mark.parametrize(("dtype", "times"), [("keep", 1), ("f32", 2), ("f16", 1)])
def test_the_size_told_beforehand_follows_from_the_header(dtype, times):
    found = inspect(DATA / "transformer")
    assert needed_bytes(BY_KEY["convert"], found, {"dtype": dtype}) == pytest.approx(found.bytes * times)


def test_the_plan_warns_of_a_taken_name(tmp_path):
    found = inspect(LORA)
    taken = tmp_path / "a.safetensors"
    taken.touch()
    action = BY_KEY["convert-lora"]
    assert "zg-warn" in plan_words(action, found, {"output": str(taken)}, tmp_path)
    assert "will be replaced" in plan_words(
        action, found, {"output": str(taken), "overwrite": True}, tmp_path
    )
    assert "zg-warn" not in plan_words(action, found, {"output": "b.safetensors"}, tmp_path)
    assert plan_words(action, found, {"output": ""}, tmp_path) == ""


def test_a_copy_to_comfyui_replaces_nothing_and_is_made_once(tmp_path):
    loras = tmp_path / "ComfyUI" / "models" / "loras"
    loras.mkdir(parents=True)
    place, there = copy_into_comfy(LORA, "lora", tmp_path / "ComfyUI")
    assert (place, there) == (loras / LORA.name, False) and place.read_bytes() == LORA.read_bytes()
    assert copy_into_comfy(LORA, "lora", loras.parent) == (place, True)
    place.write_bytes(b"another")
    second, _ = copy_into_comfy(LORA, "lora", loras.parent)
    assert second.name == f"{LORA.stem}-2.safetensors" and place.read_bytes() == b"another"


def test_what_is_no_folder_of_comfyui_or_no_file_for_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="neither ComfyUI"):
        models_folder(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        models_folder(tmp_path / "nö")
    (tmp_path / "models" / "loras").mkdir(parents=True)
    with pytest.raises(UserError, match="no model or LoRA"):
        copy_into_comfy(LORA, "latent_cache", tmp_path)
    with pytest.raises(UserError, match="single files"):
        copy_into_comfy(tmp_path, "transformer", tmp_path)
