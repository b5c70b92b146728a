"""ema-lora: the average of checkpoints is that of the first seed's tool."""

import os

import pytest
import torch
from lora_tool_files import run_tool, write_small_lora
from safetensors.torch import load_file

from zimage_gui.cli import main
from zimage_gui.config.lora_tools import (
    EmaLoraConfig,
)
from zimage_gui.engine import (
    lora_ema,
)


def _checkpoints(folder, count=4):
    paths = [write_small_lora(folder / f"c{index}.safetensors", index) for index in range(count)]
    for index, path in enumerate(paths):
        os.utime(path, (1_000_000 + index, 1_000_000 + index))
    return paths


@pytest.mark.parametrize(
    ("options", "betas"),
    [
        ({}, [0.95, 0.95, 0.95]),
        ({"beta": 0.9, "beta2": 0.5}, [0.9, 0.7, 0.5]),
        ({"sigma_rel": 0.2}, [0.0, 0.5**2.8395, (2 / 3) ** 2.8395]),
    ],
)
def test_the_average_is_the_first_seeds(tmp_path, options, betas):
    paths = _checkpoints(tmp_path)
    if "sigma_rel" in options:
        power = lora_ema.gamma(0.2) + 1
        assert ((power) / ((power + 1) ** 2 * (power + 2))) ** 0.5 == pytest.approx(
            0.2
        )  # the average's width
        betas = [0.0, 0.5**power, (2 / 3) ** power]
    config = EmaLoraConfig(path=tuple(reversed(paths)), output_file=tmp_path / "ema.safetensors", **options)
    path, _ = run_tool(lora_ema, config, tmp_path)
    wanted = load_file(paths[0])
    for file, beta in zip(paths[1:], betas, strict=True):
        wanted = {name: wanted[name] * beta + tensor * (1 - beta) for name, tensor in load_file(file).items()}
    for name, tensor in load_file(path).items():
        torch.testing.assert_close(tensor, wanted[name])


def test_the_first_seeds_line_for_the_average_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = [path.name for path in _checkpoints(tmp_path)]
    assert main(["ema-lora", *names, "--no_sort", "--beta", "0.9", "--output_file", "out.safetensors"]) == 0
    assert main(["ema-lora", *names, "--output_file", "out.safetensors"]) == 2
    assert "exists already" in capsys.readouterr().err
    write_small_lora(tmp_path / "other.safetensors", rank=5)
    assert main(["ema-lora", names[0], "other.safetensors", "--output_file", "x.safetensors"]) == 2
    assert "in the first file" in capsys.readouterr().err
