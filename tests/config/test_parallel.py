"""How many processes, on which GPUs: what may be asked for and what a launcher says."""

import pytest

from zimage_gui.config.build import build
from zimage_gui.config.parallel_parts import launched_place, processes_of
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.errors import UserError

NEEDED = {"dit": "d", "vae": "v", "text_encoder": "t", "dataset": "x"}


def refusal(cls, values) -> str:
    with pytest.raises(UserError) as error:
        build(cls, {**NEEDED, **values})
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "count", "numbers"), [("", None, ()), ("1", 1, ()), (2, 2, ()), ([0, 2], 2, (0, 2)), ("3", 3, ()), (" 0, 2 ", 2, (0, 2))]
)
def test_gpus_are_a_number_or_a_list(text, count, numbers):
    config = build(TrainLoraConfig, {**NEEDED, "gpus": text})
    assert (config.processes_asked, config.gpu_numbers) == (count, numbers)
    assert processes_of(config) == (count or 1)


@pytest.mark.parametrize("text", ["0", "-1", "two", "0,", "1,1", "2 3"])
def test_what_is_neither_is_refused(text):
    assert refusal(TrainLoraConfig, {"gpus": text}).startswith("gpus = ")


def test_what_several_processes_cannot_do_is_refused_with_the_reason():
    assert "names one GPU" in refusal(TrainLoraConfig, {"gpus": "2", "device": "cuda:1"})
    assert "added up over several" in refusal(FinetuneConfig, {"gpus": "2", "fused_backward_pass": True})


def test_a_launcher_counts_and_must_not_be_contradicted(monkeypatch):
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    place = launched_place()
    assert place is not None and (place.rank, place.count, place.local) == (3, 4, 1)
    assert processes_of(build(TrainLoraConfig, NEEDED)) == 4
    assert "differs from the 4" in refusal(TrainLoraConfig, {"gpus": "2"})
    assert "added up over several" in refusal(FinetuneConfig, {"fused_backward_pass": True})
    monkeypatch.delenv("RANK")
    with pytest.raises(UserError, match="say no place"):
        launched_place()
