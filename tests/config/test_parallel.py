"""How many processes, on which GPUs: what may be asked for and what a launcher says."""

import pytest

from zimage_gui.config.build import build
from zimage_gui.config.parallel_parts import launched_place, processes_of, shards_weights
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.errors import UserError

NEEDED = {"dit": "d", "vae": "v", "text_encoder": "t", "dataset": "x"}


def refusal(cls, values) -> str:
    with pytest.raises(UserError) as error:
        build(cls, {**NEEDED, **values})
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "count", "numbers"),
    [("", None, ()), ("1", 1, ()), (2, 2, ()), ([0, 2], 2, (0, 2)), ("3", 3, ()), (" 0, 2 ", 2, (0, 2))],
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


def accelerate(monkeypatch, count="2", **more):
    for name, value in {
        "WORLD_SIZE": count,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "ACCELERATE_USE_FSDP": "true",
        **more,
    }.items():
        monkeypatch.setenv(name, value)


def test_weights_are_shared_out_where_asked_and_where_accelerate_asks(monkeypatch):
    config = build(FinetuneConfig, {**NEEDED, "gpus": "2", "shard_weights": True})
    assert shards_weights(config) and not shards_weights(build(FinetuneConfig, {**NEEDED, "gpus": "2"}))
    accelerate(monkeypatch)
    assert shards_weights(build(FinetuneConfig, NEEDED))
    accelerate(monkeypatch, count="1")
    assert not shards_weights(build(FinetuneConfig, NEEDED))


def test_what_shared_out_weights_exclude_is_refused_with_the_reason():
    def told(**values):
        return refusal(FinetuneConfig, {"gpus": "2", "shard_weights": True, **values})

    assert "there is one" in told(gpus="")
    assert "fp16" in told(mixed_precision="fp16")
    assert "CPU memory" in told(blocks_to_swap=4)
    assert "added up over several" in told(fused_backward_pass=True)


def test_what_a_launcher_asks_for_in_vain_is_refused(monkeypatch):
    accelerate(monkeypatch)
    assert "frozen weights of a LoRA" in refusal(TrainLoraConfig, {})
    off = {"gradient_checkpointing": False}
    for name, value in (
        ("OFFLOAD_PARAMS", "true"),
        ("ACTIVATION_CHECKPOINTING", "true"),
        ("SHARDING_STRATEGY", "NO_SHARD"),
    ):
        with monkeypatch.context() as one:
            one.setenv(f"FSDP_{name}", value)
            assert f"FSDP_{name} = {value}" in refusal(FinetuneConfig, off)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "DeepSpeed" in refusal(FinetuneConfig, {})


def test_a_launcher_that_starts_one_process_where_two_were_asked_for_is_noticed(monkeypatch):
    for name, value in (("ACCELERATE_USE_CPU", "True"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    assert "starts one process" in refusal(FinetuneConfig, {})
    assert processes_of(build(TrainLoraConfig, {**NEEDED, "gpus": "2"})) == 2
