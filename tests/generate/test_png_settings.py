"""Settings in pictures: ours, A1111's and ComfyUI's."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from PIL.PngImagePlugin import PngInfo

from zimage_gui.engine.png_settings import a1111_text, png_bytes, read_settings, settings_in
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
    assert (found["lora_weight"], found["lora_multiplier"]) == (["a b"], [0.5])


def test_a_picture_of_a1111_is_read(tmp_path):
    text = "a cat <lora:x:0.8>, night\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 12, Size: 500x768, Model: m"
    assert read_settings(_picture(tmp_path, {"parameters": text})) == {
        "prompt": "a cat, night",
        "negative_prompt": "bad",
        "infer_steps": 20,
        "seed": 12,
        "guidance_scale": 6.5,
        "image_size": [768, 496],
        "lora_weight": ["x"],
        "lora_multiplier": [0.8],
    }


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Sampler: DPM++ 2M Karras", {"sampler": "dpmpp_2m"}),
        ("Sampler: DPM++ 2M SGM Uniform", {"sampler": "dpmpp_2m", "scheduler": "sgm_uniform"}),
        ("Sampler: Heun, Schedule type: Beta", {"sampler": "heun", "scheduler": "beta"}),
        ("Sampler: Euler a", {}),
        ("Sampler: DPM++ 2M SDE Karras", {}),
    ],
)
def test_samplers_of_a1111_are_known_with_their_schedule_in_the_name(tmp_path, said, found):
    text = f"a cat\nSteps: 20, {said}"
    rest = {"prompt": "a cat", "negative_prompt": "", "infer_steps": 20}
    assert read_settings(_picture(tmp_path, {"parameters": text})) == rest | found


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
        "prompt": "a fox", "negative_prompt": "", "infer_steps": 8, "seed": 5, "guidance_scale": 0.0,
        "flow_shift": 3.0, "image_size": [512, 1024],
    }  # fmt: skip


def test_numbers_and_loras_that_are_linked_into_a_comfyui_graph_are_read(tmp_path):
    graph = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 12}},
        "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "zit\\猫.safetensors", "strength_model": 0.75, "model": ["9", 0]}},
        "3": {"class_type": "KSampler", "inputs": {
            "seed": ["1", 0], "steps": ["1", 0], "cfg": 5, "sampler_name": "res_multistep", "scheduler": "simple",
            "positive": ["4", 0], "model": ["2", 0]}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"text": ["5", 0]}},
        "5": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a fox"}},
    }  # fmt: skip
    assert read_settings(_picture(tmp_path, {"prompt": json.dumps(graph)})) == {
        "prompt": "a fox", "infer_steps": 12, "seed": 12, "guidance_scale": 4.0, "sampler": "res_multistep",
        "scheduler": "simple", "lora_weight": ["猫.safetensors"], "lora_multiplier": [0.75],
    }  # fmt: skip


def test_a_comfyui_picture_of_separate_sampler_nodes_is_read_whatever_came_after_it(tmp_path):
    """SamplerCustomAdvanced with rgthree's LoRA rows, then a second pass and an upscale that stand first."""
    graph = {
        "0": {"class_type": "KSampler", "inputs": {
            "seed": 9, "steps": 3, "cfg": 1, "positive": ["2", 0], "latent_image": ["14", 0]}},
        "1": {"class_type": "ImageScale", "inputs": {"width": 2048, "height": 2048, "image": ["0", 0]}},
        "2": {"class_type": "CLIPTextEncodeLumina2", "inputs": {
            "system_prompt": "superior", "user_prompt": ["3", 0]}},
        "3": {"class_type": "StringConcatenate", "inputs": {
            "string_a": "a fox", "string_b": "rain", "delimiter": ", "}},
        "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 832, "height": 1216}},
        "10": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "11": {"class_type": "BasicScheduler", "inputs": {"scheduler": "beta", "steps": 12, "model": ["20", 0]}},
        "16": {"class_type": "SplitSigmas", "inputs": {"sigmas": ["11", 0], "step": 9}},
        "12": {"class_type": "RandomNoise", "inputs": {"noise_seed": 77}},
        "13": {"class_type": "CFGGuider", "inputs": {
            "cfg": 4, "model": ["20", 0], "positive": ["2", 0], "negative": ["15", 0]}},
        "15": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly"}},
        "14": {"class_type": "SamplerCustomAdvanced", "inputs": {
            "noise": ["12", 0], "guider": ["13", 0], "sampler": ["10", 0], "sigmas": ["16", 0],
            "latent_image": ["5", 0]}},
        "20": {"class_type": "Power Lora Loader (rgthree)", "inputs": {
            "lora_1": {"on": True, "lora": "x\\zorb.safetensors", "strength": 0.8},
            "lora_2": {"on": False, "lora": "off.safetensors", "strength": 1}}},
    }  # fmt: skip
    wanted = {
        "prompt": "a fox, rain", "negative_prompt": "ugly", "image_size": [1216, 832], "infer_steps": 12,
        "seed": 77, "guidance_scale": 3.0, "sampler": "euler", "scheduler": "beta",
        "lora_weight": ["zorb.safetensors"], "lora_multiplier": [0.8],
    }  # fmt: skip
    assert read_settings(_picture(tmp_path, {"prompt": json.dumps(graph)})) == wanted
    graph["13"] = {"class_type": "BasicGuider", "inputs": {"conditioning": ["2", 0]}}
    found = read_settings(_picture(tmp_path, {"prompt": json.dumps(graph)}))
    assert found == {k: v for k, v in wanted.items() if k != "negative_prompt"} | {"guidance_scale": 0.0}


def test_separate_sampler_nodes_are_read_as_they_are_drawn(tmp_path):
    def node(number, kind, values, **links):
        inputs = [{"name": name, "link": link} for name, link in links.items()]
        return {"id": number, "type": kind, "widgets_values": values, "inputs": inputs}

    nodes = [
        node(1, "SamplerCustomAdvanced", [], noise=1, guider=2, sampler=3, sigmas=4),
        node(2, "RandomNoise", [77, "fixed"]),
        node(3, "CFGGuider", [4], positive=5),
        node(4, "KSamplerSelect", ["euler"]),
        node(5, "BasicScheduler", ["beta", 12, 1]),
        node(6, "CLIPTextEncodeLumina2", ["superior", "a fox"]),
        node(
            7, "Power Lora Loader (rgthree)", [{}, {"on": True, "lora": "z.safetensors", "strength": 0.5}, ""]
        ),
    ]
    links = [[1, 2, 0], [2, 3, 0], [3, 4, 0], [4, 5, 0], [5, 6, 0]]
    workflow = json.dumps({"nodes": nodes, "links": links})
    assert read_settings(_picture(tmp_path, {"workflow": workflow})) == {
        "prompt": "a fox", "infer_steps": 12, "seed": 77, "guidance_scale": 3.0, "sampler": "euler",
        "scheduler": "beta", "lora_weight": ["z.safetensors"], "lora_multiplier": [0.5],
    }  # fmt: skip


def test_quoted_values_and_lora_tags_without_a_plain_number_are_read(tmp_path):
    text = 'a <lora:x> <lora:y:.5>\nSteps: 9, ADetailer prompt: "b, Steps: 40, Seed: 4, ", Seed: 1, Lora hashes: "x: 1"'
    assert read_settings(_picture(tmp_path, {"parameters": text})) == {
        "prompt": "a", "negative_prompt": "", "infer_steps": 9, "seed": 1,
        "lora_weight": ["x", "y"], "lora_multiplier": [1.0, 0.5],
    }  # fmt: skip


def test_a_comfyui_workflow_with_a_subgraph_is_read(tmp_path):
    inner = {
        "id": "abc",
        "inputs": [{"name": "text"}, {"name": "steps"}],
        "nodes": [
            {"id": 3, "type": "KSampler", "widgets_values": [1, "fixed", 4, 1, "res_multistep", "simple", 1],
             "inputs": [{"name": "positive", "link": 1}, {"name": "steps", "link": 3}]},
            {"id": 27, "type": "CLIPTextEncode", "widgets_values": [""], "inputs": [{"name": "text", "link": 2}]},
            {"id": 11, "type": "ModelSamplingAuraFlow", "widgets_values": [3], "inputs": []},
            {"id": 12, "type": "LoraLoaderModelOnly", "widgets_values": ["off.safetensors", 1], "mode": 4},
        ],
        "links": [
            {"id": 1, "origin_id": 27, "origin_slot": 0}, {"id": 2, "origin_id": -10, "origin_slot": 0},
            {"id": 3, "origin_id": -10, "origin_slot": 1},
        ],
    }  # fmt: skip
    outer = {
        "id": 57, "type": "abc", "widgets_values": ["a fox", 8, 77],
        "properties": {"proxyWidgets": [["-1", "text"], ["-1", "steps"], ["3", "seed"]]},
    }  # fmt: skip
    workflow = {"nodes": [outer], "links": [], "definitions": {"subgraphs": [inner]}}
    assert read_settings(_picture(tmp_path, {"workflow": json.dumps(workflow)})) == {
        "prompt": "a fox", "infer_steps": 8, "seed": 77, "guidance_scale": 0.0, "flow_shift": 3.0,
        "sampler": "res_multistep", "scheduler": "simple",
    }  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["zimage_gui", "parameters", "prompt", "workflow"]), st.text(max_size=80))
)
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
        '{"nodes": [{"type": "KSampler", "id": 1, "widgets_values": {}, "inputs": [3]}], "links": [[1], 2]}',
    ],
)
def test_values_of_another_type_are_left_out(tmp_path, text):
    assert read_settings(_picture(tmp_path, {"zimage_gui": text, "prompt": text, "workflow": text})) == {}


@pytest.mark.parametrize("inside", [{"id": 1, "type": "sub"}, {"id": 1, "type": "Note"}])
def test_subgraphs_that_hold_each_other_a_million_times_end_at_once(tmp_path, inside):
    nodes = [{"id": number, "type": "sub"} for number in range(9)]
    subgraph = {"id": "sub", "nodes": [*nodes, inside], "links": []}
    workflow = {"nodes": nodes, "links": [], "definitions": {"subgraphs": [subgraph]}}
    begun = time.process_time()
    assert read_settings(_picture(tmp_path, {"workflow": json.dumps(workflow)})) == {}
    assert time.process_time() - begun < 5


def test_numbers_no_option_takes_are_left_out(tmp_path):
    """A1111 writes seed -1 for "random"; a form filled with it would only be refused."""
    text = "x\nSteps: 99999, Seed: -1, Size: 99999x64, Shift: inf"
    assert read_settings(_picture(tmp_path, {"parameters": text})) == {"prompt": "x", "negative_prompt": ""}


def test_half_a_character_in_a_picture_is_left_out(tmp_path):
    """No browser and no tokenizer takes it."""
    picture = _picture(tmp_path, {"zimage_gui": '{"prompt": "\\ud800 x", "seed": 3}'})
    assert read_settings(picture) == {"seed": 3}


def test_a_file_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(UserError, match="not a picture"):
        read_settings(tmp_path / "p.png")


def test_a_file_of_a_kind_nobody_asked_for_is_not_opened(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for it."""
    started = []
    monkeypatch.setattr(
        EpsImagePlugin, "Ghostscript", lambda *_: started.append(1) or Image.core.new("RGB", (2, 2))
    )
    Image.new("RGB", (2, 2)).save(tmp_path / "p.eps")
    (tmp_path / "p.eps").rename(tmp_path / "p.png")
    with pytest.raises(UserError):
        read_settings(tmp_path / "p.png")
    assert not started


@pytest.mark.parametrize(
    "text",
    [
        "y" + " " * 200_000 + "x\nSteps: 8",
        "x\nSteps: 8," + " " * 200_000 + "-",
        "x\nSteps: 8," + 'A: "' * 50_000 + '\\"' * 50_000,
    ],
)
def test_long_hostile_texts_are_read_at_once(text):
    begun = time.monotonic()
    assert settings_in({"parameters": text})["infer_steps"] == 8
    assert time.monotonic() - begun < 5
