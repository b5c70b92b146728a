"""What is not a whole, plain Z-Image model is refused with one sentence that says what it is."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from variants import FUSED, HUB, LDM, QWEN, renamed, tensors, write

from zimage_gui.errors import UserError
from zimage_gui.model.recognise import recognise
from zimage_gui.model.weights import load_text_encoder, load_transformer, load_vae, model_problems

Change = Callable[[dict[str, torch.Tensor]], object]


def changed(path: Path, tmp_path: Path, *changes: Change) -> Path:
    state = dict(tensors(path))
    for change in changes:
        change(state)
    return write(tmp_path / "changed.safetensors", state)


def test_missing_unexpected_and_misshaped_tensors_are_named_in_one_error(tmp_path: Path) -> None:
    file = changed(
        FUSED,
        tmp_path,
        lambda state: state.pop("layers.1.feed_forward.w2.weight"),
        lambda state: state.update({"layers.0.attention.extra": torch.zeros(2)}),
        lambda state: state.update({"cap_embedder.0.weight": torch.zeros(63)}),
    )
    with pytest.raises(UserError) as caught:
        load_transformer(file)
    text = str(caught.value)
    assert len(caught.value.problems) == 1 and caught.value.problems[0].option == "dit"
    assert "1 tensor missing (layers.1.feed_forward.w2.weight)" in text
    assert "1 tensor unexpected (layers.0.attention.extra)" in text
    assert "cap_embedder.0.weight is [63], needed [64]" in text


def test_a_missing_qkv_is_named_for_each_of_its_parts(tmp_path: Path) -> None:
    file = changed(FUSED, tmp_path, lambda state: state.pop("layers.1.attention.qkv.weight"))
    with pytest.raises(UserError, match=r"3 tensors missing \(layers\.1\.attention\.to_k\.weight"):
        load_transformer(file)


def add(name: str, tensor: torch.Tensor) -> Change:
    return lambda state: state.update({name: tensor})


def fp8(state: dict[str, torch.Tensor]) -> None:
    for name, tensor in list(state.items()):
        if tensor.dim() == 2:
            state[name] = tensor.to(torch.float8_e4m3fn)


FOREIGN = {
    "omni": (FUSED, [add("siglip_embedder.0.weight", torch.zeros(8))], "Omni"),
    "controlnet": (FUSED, [add("control_layers.0.attention.to_q.weight", torch.zeros(2, 2))], "ControlNet"),
    "pixel": (FUSED, [add("dec_net.cond_embed.weight", torch.zeros(2))], "pixel-space"),
    "lumina2": (FUSED, [lambda s: s.pop("cap_pad_token"), add("cap_embedder.1.weight", torch.zeros(64, 2304))], "Lumina-Image 2.0"),
    "padless": (FUSED, [lambda s: s.pop("cap_pad_token")], "without its pad tokens"),
    "fp8": (FUSED, [fp8], "stored as fp8"),
    "scaled_fp8": (FUSED, [fp8, add("layers.0.feed_forward.w1.scale_weight", torch.ones(1))], "scaled fp8"),
    "comfy_quant": (FUSED, [add("layers.0.feed_forward.w1.comfy_quant", torch.zeros(9, dtype=torch.uint8))], "comfy_quant"),
    "nvfp4": (FUSED, [add("layers.0.feed_forward.w1.weight_scale_2", torch.ones(1))], "NVFP4"),
    "int8": (FUSED, [add("layers.0.feed_forward.w1.weight", torch.zeros(170, 64, dtype=torch.int8))], "8-bit integers"),
    "nunchaku": (FUSED, [add("layers.0.feed_forward.w1.qweight", torch.zeros(2, 2))], "nunchaku"),
    "bitsandbytes": (FUSED, [add("layers.0.feed_forward.w1.weight.absmax", torch.zeros(2))], "bitsandbytes"),
    "vae as transformer": (LDM, [], "Flux VAE"),
    "text encoder as transformer": (QWEN, [], "Qwen3 text encoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_or_quantised_model_is_named(name: str, tmp_path: Path) -> None:
    source, changes, word = FOREIGN[name]
    with pytest.raises(UserError, match=word) as caught:
        load_transformer(changed(source, tmp_path, *changes), option="dit")
    problem = caught.value.problems[0]
    assert problem.option == "dit" and "changed.safetensors" in problem.value and problem.remedy


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ({"lora_unet_layers_0_attention_to_q.lora_down.weight": (4, 64)}, "LoRA"),
        ({"diffusion_model.layers.0.attention.to_q.lora_A.weight": (4, 64)}, "LoRA"),
        ({"lycoris_layers_0_attention_to_q.lokr_w1": (4, 4)}, "LoKr"),
        ({"diffusion_model.layers.0.attention.to_q.hada_w1_a": (4, 4)}, "LoHa"),
        ({"model.diffusion_model.input_blocks.1.0.in_layers.0.weight": (4,)}, "Stable Diffusion model"),
        ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "Flux model"),
        ({"transformer_blocks.0.attn.to_q.weight": (4, 4)}, "Qwen-Image"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)}, "T5"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}, "CLIP"),
        ({"latents_1x8x8_float32": (16, 1, 8, 8)}, "latent cache"),
        ({"varlen_llm_embed_bfloat16": (8, 64)}, "text cache"),
        ({"latent": (1, 16, 8, 8)}, "stored as a latent"),
        ({"weights.bin": (1,)}, "does not know"),
        ({}, "does not know"),
    ],
)
def test_other_files_are_named(names: dict[str, tuple[int, ...]], word: str, tmp_path: Path) -> None:
    file = write(tmp_path / "other.safetensors", {name: torch.zeros(shape) for name, shape in names.items()})
    assert word in recognise(file).sentence
    with pytest.raises(UserError, match=word):
        load_transformer(file)


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"PK\x03\x04....", "pickle"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"NRUB\x01\x00", "burnpack"),
    ],
)
def test_formats_other_than_safetensors_are_named(head: bytes, word: str, tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(head + bytes(100))
    for load in (load_transformer, load_vae, load_text_encoder):
        with pytest.raises(UserError, match=word):
            load(file)


def test_a_stable_diffusion_vae_is_named(tmp_path: Path) -> None:
    shape = tensors(LDM)["decoder.conv_in.weight"].shape
    file = changed(LDM, tmp_path, add("decoder.conv_in.weight", torch.zeros(shape[0], 4, 3, 3)))
    with pytest.raises(UserError, match=r"vae = .*Stable Diffusion VAE.*ae\.safetensors"):
        load_vae(file)


def test_a_language_model_that_is_not_qwen3_is_named(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in tensors(QWEN).items() if "q_norm" not in name}
    with pytest.raises(UserError, match="not Qwen3"):
        load_text_encoder(write(tmp_path / "llama.safetensors", state))


def test_all_three_models_problems_come_at_once(tmp_path: Path) -> None:
    problems = model_problems(tmp_path / "no.safetensors", FUSED, LDM)
    assert [problem.option for problem in problems] == ["dit", "vae", "text_encoder"]


def test_a_whole_hub_folder_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="whole model folder"):
        recognise(HUB)
    assert recognise(HUB, part="vae").kind == "vae"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    for file in sorted((HUB / "transformer").iterdir()):
        if "00002" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="00002-of-00003"):
        load_transformer(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(FUSED.read_bytes())
    with pytest.raises(UserError, match="twice"):
        load_transformer(tmp_path / "model-00001-of-00002.safetensors")


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = FUSED.read_bytes()
    file = tmp_path / "cut.safetensors"
    for size in (0, 4, 8, 100, 20_000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError):
            load_transformer(file)


def hostile(header: object, data: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


@pytest.mark.parametrize("layers", [5_000, 50_000])
def test_a_header_that_claims_endless_layers_is_refused_quickly(layers: int, tmp_path: Path) -> None:
    names = [
        "cap_embedder.1.weight",
        "cap_pad_token",
        *(f"layers.{i}.attention.norm_q.weight" for i in range(layers)),
    ]
    entries = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}
    entries["cap_embedder.1.weight"] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    entries["layers.0.attention.norm_q.weight"] = {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}
    entries["all_x_embedder.2-1.weight"] = {"dtype": "F32", "shape": [1, 4], "data_offsets": [24, 40]}
    file = tmp_path / "hostile.safetensors"
    file.write_bytes(hostile(entries, 40))
    with pytest.raises(UserError, match="more than any model"):
        load_transformer(file)


@limits(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_never_gives_anything_but_a_user_error(data: st.DataObject, tmp_path: Path) -> None:
    whole = bytearray(data.draw(st.sampled_from([FUSED, LDM, QWEN])).read_bytes())
    (length,) = struct.unpack("<Q", whole[:8])
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(whole)
    for load in (load_transformer, load_vae, load_text_encoder):
        try:
            load(file)
        except UserError:
            continue


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"dim": "wide"}', '{"axes_dims": [1, 2, 3]}', '{"norm_eps": -1}', "[" * 90_000]
)
def test_a_broken_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(FUSED.read_bytes())
    with pytest.raises(UserError, match=r"config\.json|rope axes"):
        load_transformer(tmp_path)


def test_recognising_needs_no_torch() -> None:
    code = "import sys, zimage_gui.model.recognise, zimage_gui.model.sizes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prefix_variants_are_recognised_with_their_layout(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.safetensors", renamed(tensors(FUSED), lambda name: "model.diffusion_model." + name)
    )
    found = recognise(file)
    assert (found.kind, found.layout, found.prefix) == ("transformer", "comfy", "model.diffusion_model.")
    assert recognise(HUB / "transformer").layout == "diffusers" and recognise(LDM).layout == "ldm"


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "stretched"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6}}, "stretched"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"num_attention_heads": 8}, "num_attention_heads = 8"),
    ],
)
def test_a_text_encoder_we_would_run_wrongly_is_refused(
    settings: dict[str, object], word: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"} | settings), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(QWEN.read_bytes())
    with pytest.raises(UserError, match=word):
        load_text_encoder(tmp_path)
