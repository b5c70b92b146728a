"""A preview during training is the picture that Generate makes with the saved file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_project import finetune_config, lora_config

from zimage_gui.config.generate import GenerateConfig
from zimage_gui.demo.project import DATA
from zimage_gui.engine.generate import run as generate
from zimage_gui.engine.train import run as train
from zimage_gui.events import NullRun

LINES = """a red circle on a white background --w 64 --h 64 --s 4 --d 5
a blue square on a gray background --w 64 --h 48 --s 5 --d 6 --l 3 --sampler res_multistep --scheduler simple
"""
MODELS = {"dit": DATA / "transformer", "vae": DATA / "vae", "text_encoder": DATA / "text_encoder"}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("make", [lora_config, finetune_config])
def test_the_last_preview_is_the_picture_that_the_saved_file_gives(project: Path, make) -> None:
    prompts = project / "prompts.txt"
    prompts.write_text(LINES, encoding="utf-8")
    options = {
        "sample_prompts": prompts,
        "sample_every_n_steps": 3,
        "max_train_steps": 3,
        "save_precision": "fp32",
    }
    config = make(project, learning_rate=1e-3, **MODELS, **options)
    (saved,) = (path for path in train(config, NullRun(project / "run")) if path.suffix == ".safetensors")
    previews = sorted((project / "out" / "sample").glob("*.png"))
    model = {"dit": config.dit, "lora_weight": [saved]} if make is lora_config else {"dit": saved}
    again = generate(
        GenerateConfig(
            from_file=prompts, vae=config.vae, text_encoder=config.text_encoder, mixed_precision="no", device="cpu",
            save_path=project / "generated", **model,
        ),
        NullRun(project / "generate"),
    )  # fmt: skip
    assert len(previews) == len(again) == 2
    for preview, picture in zip(previews, again, strict=True):
        assert np.abs(pixels(preview) - pixels(picture)).max() <= 1
    assert np.abs(pixels(again[0])).std() > 1
