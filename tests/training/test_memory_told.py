"""What a run says of its memory and disk before it begins, against what it takes: a model large enough to weigh
more than the program does."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import StoppedAt, train
from tiny_project import finetune_config, lora_config, randomise, write_models, write_pictures

from zimage_gui.config.training import TrainLoraConfig
from zimage_gui.engine.dataset.scan import scan
from zimage_gui.engine.dataset.sources import sources_of
from zimage_gui.engine.memory_peak import PeakMeter, handed_out
from zimage_gui.engine.memory_plan import plan
from zimage_gui.engine.train import run
from zimage_gui.events import Checkpoint, Event, Note
from zimage_gui.model import tokenizer
from zimage_gui.model.saving import save_transformer
from zimage_gui.model.transformer import TransformerConfig, ZImageTransformer

WIDE = TransformerConfig(dim=512, n_layers=3, n_refiner_layers=1, n_heads=4, cap_feat_dim=16)
MIB = 2**20
CASES = {
    "LoRA": (lora_config, {"network_dim": 16}),
    "LoRA, recomputed, swapped": (
        lora_config,
        {"network_dim": 16, "gradient_checkpointing": True, "blocks_to_swap": 2, "base_quant": "int8"},
    ),
    "finetune": (finetune_config, {"optimizer_type": "AdamW"}),
    "finetune, updated in the backward pass, averaged": (
        finetune_config,
        {"fused_backward_pass": True, "gradient_checkpointing": True, "ema_decay": 0.9},
    ),
}


@pytest.fixture(scope="module")
def wide_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    write_models(folder / "models")
    model = ZImageTransformer(WIDE)
    randomise(model, 1, 0.02)
    save_transformer(model, folder / "models" / "dit.safetensors")
    write_pictures(folder / "pictures", 2, (256, 256))
    return folder


@pytest.mark.skipif(handed_out() is None, reason="only glibc tells what is in use")
@pytest.mark.parametrize("case", CASES)
def test_a_run_takes_the_memory_that_it_was_estimated_at(
    wide_project: Path, tmp_path: Path, case: str
) -> None:
    tokenizer.bundled_tokenizer.cache_clear()  # another test may have loaded it into this process
    config_of, options = CASES[case]
    config = config_of(wide_project, output_dir=tmp_path, max_train_steps=3, resolution=(256, 256), **options)
    reporter, _ = train(config)
    said = next(event.text for event in reversed(reporter.of(Note)) if "at the fullest" in event.text)
    found = re.search(r"training ([\d.]+) and ([\d.]+)", said)
    assert found is not None and "and grew by" in said
    assert float(found[1]) == pytest.approx(float(found[2]), rel=0.1)


class Weighed(StoppedAt):
    """The most bytes of results, states and caches that were on the disk whenever a file had been written."""

    def __init__(self, out: Path, pictures: Path) -> None:
        super().__init__(out / "run")
        self.out, self.pictures, self.most = out, pictures, dict.fromkeys(("results", "states", "caches"), 0)

    def emit(self, event: Event) -> None:
        super().emit(event)
        if isinstance(event, Checkpoint):
            files = {path: path.stat().st_size for path in self.out.rglob("*.safetensors")}
            results = sum(size for path, size in files.items() if path.parent == self.out)
            caches = sum(path.stat().st_size for path in self.pictures.rglob("*.safetensors"))
            now = {"results": results, "states": sum(files.values()) - results, "caches": caches}
            self.most = {name: max(size, now[name]) for name, size in self.most.items()}


def test_a_run_writes_the_bytes_that_it_was_estimated_at(wide_project: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(wide_project, tmp_path / "p"))
    config = lora_config(
        project, network_dim=16, output_dir=tmp_path / "out", max_train_steps=5, resolution=(256, 256),
        save_every_n_steps=1, save_last_n_steps=2, save_state=True, ema_decay=0.9, batch_size=1,
    )  # fmt: skip
    expected = estimated(config).disk
    weighed = Weighed(tmp_path / "out", project / "pictures")
    run(config, weighed)
    assert weighed.most == {name: pytest.approx(size, rel=0.1) for name, size in expected.items()}


def estimated(config: TrainLoraConfig):
    made = plan(config, scan(sources_of(config, config.batch_size)), "cpu")
    assert made is not None
    return made.estimate()


@pytest.mark.skipif(handed_out() is None, reason="only glibc tells what is in use")
def test_each_phase_has_the_peak_of_what_was_held_in_it() -> None:
    meter = PeakMeter(torch.device("cpu"))
    with meter.running():
        meter.begin("first")
        held = torch.ones(64 * MIB, dtype=torch.uint8)
        meter.begin("second")
        del held
        meter.begin("first")
        meter.begin("second")
    assert 64 * MIB <= meter.peaks["first"] < 66 * MIB
    assert meter.peaks["second"] < 2 * MIB
