"""Every kind of network, and the whole model, learns the zorb on the demo with a validation set and an averaged model;
what they write is read by ComfyUI's rules, by diffusers or both. Run by `pytest -n 0 -s -m slow` with this file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from zimage_gui.demo.measure import DemoModel, measure
from zimage_gui.demo.pictures import ZORB_PROMPT
from zimage_gui.demo.project import write_project
from zimage_gui.model.lora_read import read_lora

sys.path.append(str(Path(__file__).parents[1] / "lora_files"))
from comfy_twin import apply

STEPS, PICTURES = 300, 20
HUB = Path("models") / "hub"
KINDS = {
    "lora": "--network_dim 32",
    "lora, rank-stabilised": "--network_dim 32 --network_alpha 6 --use_rslora",
    "dora": "--network_module dora --network_dim 32",
    "loha": "--network_module loha --network_dim 16 --network_alpha 16 --learning_rate 1e-3",
    "lokr": "--network_module lokr --network_dim 16 --network_alpha 16 --lokr_factor 4 --learning_rate 4e-3",
    "lokr, whole": "--network_module lokr --lokr_full --lokr_factor 4 --learning_rate 4e-3",
}
COMMON = [
    "--max_train_steps", str(STEPS), "--ema_decay", "0.97", "--validation_split", "0.2",
    "--sample_prompts", "", "--sample_every_n_steps", "0",
    "--validate_every_n_epochs", "4", "--save_every_n_steps", "0", "--output_name", "taught",
]  # fmt: skip


def run(folder: Path, command: str, *options: str) -> None:
    settings = str(folder / "train_lora.toml")
    full = [sys.executable, "-m", "zimage_gui", command, settings, "--runs_dir", str(folder), *options]
    subprocess.run(full, check=True, stdout=subprocess.DEVNULL)


def validation_losses(folder: Path) -> list[float]:
    lines = [
        json.loads(line)
        for file in folder.glob("*/events.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return [line["loss"] for line in lines if line["kind"] == "validation"]


def told(name: str, losses: list[float], model: DemoModel) -> None:
    score = measure(model, [ZORB_PROMPT] * PICTURES)
    print(f"\n| {name} | {losses[0]:.4f} | {losses[-1]:.4f} | {score.stars:.0%} |", flush=True)
    assert losses[-1] < losses[0] and score.stars > 0


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_learns_and_its_file_is_read(tmp_path: Path, kind: str) -> None:
    write_project(tmp_path)
    run(tmp_path, "train-lora", *COMMON, *KINDS[kind].split())
    path = tmp_path / "output" / "taught.safetensors"
    assert not read_lora(path).problems
    if kind == "dora":
        _diffusers_reads(path, tmp_path / HUB)
    else:
        _found, unused = apply(_matrices(tmp_path / HUB), load_file(path))
        assert not unused
        if kind.startswith("lora"):
            _diffusers_reads(path, tmp_path / HUB)
    told(kind, validation_losses(tmp_path), DemoModel(tmp_path / HUB, lora=path))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("layout", ["comfy", "diffusers"])
def test_a_finetuned_model_learns_and_is_read(tmp_path: Path, layout: str) -> None:
    from diffusers import ZImageTransformer2DModel

    write_project(tmp_path)
    settings = (tmp_path / "train_lora.toml").read_text(encoding="utf-8")
    without_lora = settings.replace("[lora]\nnetwork_dim = 32\nnetwork_alpha = 32.0\n", "")
    (tmp_path / "train_lora.toml").write_text(without_lora, encoding="utf-8")
    run(tmp_path, "finetune", *COMMON, "--save_layout", layout, "--learning_rate", "3e-4")
    path = next((tmp_path / "output").glob("taught*"))
    told(f"finetune, {layout}", validation_losses(tmp_path), DemoModel(tmp_path / HUB, transformer=path))
    if layout == "diffusers":
        hub = str(tmp_path / HUB)
        ZImageTransformer2DModel.from_single_file(str(path), config=hub, subfolder="transformer")
    else:
        assert any(name.endswith("attention.qkv.weight") for name in load_file(path))


def _matrices(hub: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in (hub / "transformer").glob("*.safetensors"):
        weights |= load_file(file)
    return {
        name: tensor.float() for name, tensor in weights.items() if tensor.dim() == 2 and "pad" not in name
    }


def _diffusers_reads(path: Path, hub: Path) -> None:
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(hub)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    assert pipeline.get_list_adapters()["transformer"]
