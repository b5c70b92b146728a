"""Settings in pictures: ours, A1111's and ComfyUI's."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from zimage_gui.engine.png_settings import a1111_text, png_bytes, read_settings
from zimage_gui.errors import UserError

SETTINGS = {
    "prompt": "eine Katze, 4k\nzweite Zeile 猫",
    "negative_prompt": "blurry, Steps: none",
    "image_size": [48, 64],
    "infer_steps": 8,
    "guidance_scale": 3.0,
    "flow_shift": 6.0,
    "seed": 2**40,
    "cpu_noise": True,
    "mixed_precision": "bf16",
    "lora_weight": ["a b.safetensors"],
    "lora_multiplier": [0.5],
}


def _picture(tmp_path, texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (2, 2)).save(tmp_path / "p.png", pnginfo=info)
    return tmp_path / "p.png"


def test_our_settings_come_back_whole(tmp_path):
    (tmp_path / "p.png").write_bytes(
        png_bytes(Image.new("RGB", (2, 2)), SETTINGS | {"dit": "model.safetensors"})
    )
    assert read_settings(tmp_path / "p.png") == SETTINGS


def test_our_a1111_text_says_the_same(tmp_path):
    found = read_settings(_picture(tmp_path, {"parameters": a1111_text(SETTINGS)}))
    same = ("prompt", "negative_prompt", "image_size", "infer_steps", "guidance_scale", "flow_shift", "seed")
    assert {name: found[name] for name in same} == {name: SETTINGS[name] for name in same}


def test_a_picture_of_a1111_is_read(tmp_path):
    text = "a cat <lora:x:0.8>, night\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 12, Size: 500x768, Model: m"
    assert read_settings(_picture(tmp_path, {"parameters": text})) == {
        "prompt": "a cat, night",
        "negative_prompt": "bad",
        "infer_steps": 20,
        "seed": 12,
        "guidance_scale": 6.5,
        "image_size": [768, 496],
    }


def test_a_comfyui_graph_is_read(tmp_path):
    graph = {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 5,
                "steps": 8,
                "cfg": 1.0,
                "positive": ["6", 0],
                "negative": ["7", 0],
                "model": ["4", 0],
            },
        },
        "4": {"class_type": "ModelSamplingAuraFlow", "inputs": {"shift": 3, "model": ["1", 0]}},
        "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 512}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox"}},
        "7": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}},
    }
    found = read_settings(_picture(tmp_path, {"prompt": json.dumps(graph)}))
    assert found == {
        "prompt": "a fox", "negative_prompt": "a fox", "infer_steps": 8, "seed": 5, "guidance_scale": 0.0,
        "flow_shift": 3.0, "image_size": [512, 1024],
    }  # fmt: skip


@given(st.dictionaries(st.sampled_from(["zimage_gui", "parameters", "prompt"]), st.text(max_size=80)))
def test_any_text_in_a_picture_is_harmless(tmp_path_factory, texts):
    picture = _picture(tmp_path_factory.mktemp("p"), texts)
    assert isinstance(read_settings(picture), dict)


@pytest.mark.parametrize(
    "text",
    [
        '{"seed": "x", "prompt": 3, "cpu_noise": 1}',
        "[1]",
        "null",
        "[" * 20_000,
        '{"3": {"inputs": {"positive": ["3", 0]}, "class_type": "KSampler"}}',
    ],
)
def test_values_of_another_type_are_left_out(tmp_path, text):
    assert read_settings(_picture(tmp_path, {"zimage_gui": text, "prompt": text})) == {}


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(UserError, match="not a picture"):
        read_settings(tmp_path / "p.png")
