"""What only a CUDA device can show: `pytest -m gpu`. The built-in demo is the model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from memory import RUNS, Mode, alone, write_project

from zimage_gui.demo.project import DATA
from zimage_gui.engine.generator import Generator, PictureRequest
from zimage_gui.engine.model_files import ModelFiles
from zimage_gui.engine.model_key import Memory, ModelKey
from zimage_gui.model.weights import load_transformer, load_vae

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def command(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zimage_gui", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@torch.no_grad()
def test_the_transformer_gives_the_cpu_values_on_a_gpu() -> None:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 12, 10, generator=generator)
    time = torch.tensor([0.03, 0.8])
    models = [load_transformer(DATA / "transformer", torch.device(d), torch.float32) for d in ("cpu", "cuda")]
    captions = [torch.randn(n, models[0].config.cap_feat_dim, generator=generator) for n in (9, 20)]
    on_cpu = models[0](latents, time, captions)
    on_gpu = models[1](latents.cuda(), time.cuda(), [caption.cuda() for caption in captions])
    assert (on_gpu.cpu() - on_cpu).abs().max() < 1e-4 * on_cpu.abs().max()


@torch.no_grad()
def test_the_autoencoder_gives_the_cpu_values_on_a_gpu() -> None:
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    vaes = [load_vae(DATA / "vae", torch.device(d), torch.float32) for d in ("cpu", "cuda")]
    on_cpu, on_gpu = vaes[0].encode_mode(images), vaes[1].encode_mode(images.cuda())
    # cuDNN computes convolutions in TF32 unless told otherwise: ten bits of mantissa
    assert (on_gpu.cpu() - on_cpu).abs().max() < 1e-2 * on_cpu.abs().max()


def test_replayed_graphs_give_the_latents_of_plain_steps() -> None:
    def latents(graphs: bool) -> torch.Tensor:
        notes: list[str] = []
        ours.note = notes.append
        ours.use_graphs(graphs)
        found = [
            ours.latents(PictureRequest("a red circle", "x", 128, 128, 6, g, 3.0, 1)) for g in (0.0, 3.0, 0.0)
        ]
        assert not notes
        return torch.cat(found)

    for quant in ("none", "fp8"):
        files = ModelFiles(DATA / "transformer", DATA / "vae", DATA / "text_encoder")
        key = ModelKey.of(files, None, torch.device("cuda"), "bf16", Memory(base=quant))
        ours = Generator(key)
        plain = latents(False)
        recorded = latents(True)
        assert ours._graphs is not None and len(ours._graphs._recordings) == 2
        assert (recorded - plain).abs().max() < 0.02 * plain.abs().max()


def test_a_lora_is_trained_stopped_resumed_and_used_on_a_gpu(tmp_path: Path) -> None:
    command("demo", "--to", str(tmp_path / "demo"))
    train = [
        "train-lora", str(tmp_path / "demo" / "train_lora.toml"), "--device", "cuda",
        "--output_dir", str(tmp_path / "out"), "--output_name", "z", "--runs_dir", str(tmp_path / "runs"), "--save_state_on_train_end",
    ]  # fmt: skip
    watch = ["--ema_decay", "0.9", "--validation_split", "0.2", "--early_stop", "validation"]
    objective = [
        "--loss_type",
        "huber",
        "--min_snr_gamma",
        "5",
        "--noise_offset",
        "0.05",
        "--num_timestep_buckets",
        "4",
    ]
    command(*train, *watch, *objective, "--output_name", "watched", "--max_train_steps", "10")
    command(*train, "--max_train_steps", "10")
    command(*train, "--max_train_steps", "20", "--resume", str(tmp_path / "out" / "z-state"))
    command(
        "generate", "--model_dir", str(tmp_path / "demo" / "models" / "hub"), "--device", "cuda", "--prompt", "a red zorb on a white background",
        "--image_size", "128", "128", "--lora_weight", str(tmp_path / "out" / "z.safetensors"), "--save_path", str(tmp_path / "pictures"),
    )  # fmt: skip
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 1


@pytest.fixture(scope="module")
def wide_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks of the released width: tensors weigh far more there than what torch keeps beside them."""
    folder = tmp_path_factory.mktemp("wide")
    write_project(folder, 4, 1)
    return folder


@pytest.mark.parametrize("mode", RUNS, ids=lambda mode: mode.name)
def test_a_run_reserves_what_it_was_estimated_at(wide_project: Path, mode: Mode) -> None:
    """The table of the released model: `python -m tests.benchmarks memory --device cuda --write`."""
    found = alone(mode, wide_project, "cuda")
    assert found["expected"] == pytest.approx(found["in use"], rel=0.1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two CUDA devices are needed")
def test_two_gpus_share_out_a_finetune_and_end_as_one(tmp_path: Path) -> None:
    command("demo", "--to", str(tmp_path / "demo"))
    demo = tmp_path / "demo"
    train = [
        "finetune", "--model_dir", str(demo / "models" / "hub"), "--dataset_config", str(demo / "dataset.toml"),
        "--output_dir", str(tmp_path / "out"), "--runs_dir", str(tmp_path / "runs"), "--max_train_steps", "4", "--seed", "1",
        "--mixed_precision", "no", "--save_precision", "fp32", "--optimizer_type", "SGD", "--learning_rate", "0.01",
    ]  # fmt: skip
    command(
        *train, "--gpus", "2", "--shard_weights", "--ema_decay", "0.9", "--save_state", "--output_name", "two"
    )
    command(
        *train,
        "--gradient_accumulation_steps",
        "2",
        "--ema_decay",
        "0.9",
        "--device",
        "cuda",
        "--output_name",
        "one",
    )
    two, one = (load_file(tmp_path / "out" / f"{name}.safetensors") for name in ("two", "one"))
    assert all(torch.allclose(two[name], one[name], rtol=1e-3, atol=1e-4) for name in one)
