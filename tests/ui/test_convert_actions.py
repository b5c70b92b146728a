"""What the Convert tab offers for a file, what it says beforehand, and the copy to ComfyUI's folders."""

from pathlib import Path

import pytest

from zimage_gui.demo.project import DATA
from zimage_gui.engine.comfy_folder import copy_into_comfy, models_folder
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.errors import UserError
from zimage_gui.ui.convert_actions import ACTIONS, actions_for, needed_bytes, output_name
from zimage_gui.ui.convert_words import plan_words

LORA = Path(__file__).parents[1] / "data" / "lora_dialects" / "all_kohya_split.safetensors"
BY_KEY = {action.key: action for action in ACTIONS}


def keys(path: Path) -> set[str]:
    return {action.key for action in actions_for(inspect(path))}


def test_a_file_is_offered_only_what_fits_it(tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    assert keys(DATA / "transformer") == {"convert", "merge-model", "extract"}
    assert keys(DATA / "vae") == {"convert"}
    assert keys(LORA) == {"convert-lora", "merge-loras", "resize", "edit", "verify", "average"}
    assert keys(tmp_path / "note.txt") == set() and actions_for(None) == []


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
