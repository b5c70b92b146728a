"""Training a LoRA on quantised base weights: every part of a run works on them as on whole ones."""

from pathlib import Path

import pytest
import torch
from run_helpers import equal, train
from safetensors.torch import load_file
from tiny_project import lora_config

from zimage_gui.config.build import build
from zimage_gui.config.cache import CacheTextConfig
from zimage_gui.config.convert_model import ConvertConfig
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.engine import cache_text, convert_model, generate
from zimage_gui.events import Note, NullRun, Sample, Step
from zimage_gui.model.lora_entries import LowRank
from zimage_gui.model.lora_write import write_lora


def notes(reporter: NullRun) -> str:
    return "\n".join(event.text for event in reporter.events if isinstance(event, Note))


@pytest.mark.parametrize("quant", ["fp8", "int8", "nf4"])
def test_a_lora_learns_on_quantised_weights_and_stop_and_resume_change_no_bit(
    project: Path, quant: str
) -> None:
    options = {"max_train_steps": 12, "base_quant": quant, "gradient_checkpointing": True}
    whole, straight = train(lora_config(project, output_name="straight", **options))
    stopped = train(lora_config(project, output_name="parts", **options), stop_at=5)[1]
    resumed = train(lora_config(project, output_name="parts", resume=stopped[-1], **options))[1]
    assert equal(straight[-1], resumed[-1])
    assert f"kept as {quant}" in notes(whole)
    plain = train(lora_config(project, output_name="plain", max_train_steps=12))[0]
    losses = [[step.loss for step in run.of(Step)] for run in (whole, plain)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.1)


def test_a_scaled_fp8_file_is_a_base_like_any_other(project: Path) -> None:
    dit = project / "models" / "dit.safetensors"
    (fp8,) = convert_model.run(
        ConvertConfig(input=dit, output=project / "fp8.safetensors", dtype="fp8_comfy"), NullRun(project)
    )
    for options in ({}, {"base_quant": "fp8"}):
        _, results = train(lora_config(project, dit=fp8, output_name=f"o{len(options)}", **options))
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(results[-1]).values())
    assert equal(project / "out" / "o0.safetensors", project / "out" / "o1.safetensors")


def test_base_weights_are_in_the_quantised_base_and_previews_are_made_of_it(project: Path) -> None:
    adapter = project / "adapter.safetensors"
    entry = LowRank(torch.randn(2, 32), torch.randn(32, 2), 2.0)
    write_lora(adapter, {"layers.0.attention.to_q": entry})
    prompts = project / "prompts.txt"
    prompts.write_text("a red picture --w 32 --h 32 --s 2\n", encoding="utf-8")
    options = {"base_quant": "fp8", "sample_prompts": prompts, "sample_at_first": True, "fp8_llm": True}
    merged, results = train(lora_config(project, base_weights=(adapter,), output_name="m", **options))
    plain, others = train(lora_config(project, output_name="p", **options))
    assert "merged adapter.safetensors x 1 into 1 layers" in notes(merged)
    pictures = [Path(run.of(Sample)[0].path).read_bytes() for run in (merged, plain)]
    assert pictures[0] != pictures[1] and not equal(results[-1], others[-1])


def test_a_text_encoder_in_fp8_makes_other_features_and_is_remembered_in_the_cache(project: Path) -> None:
    def cache(**options: object) -> tuple[str, dict[str, torch.Tensor]]:
        values = {"dataset": project / "pictures", "text_encoder": project / "models" / "te.safetensors"}
        run = NullRun(project / "run")
        config = build(CacheTextConfig, {**values, "mixed_precision": "no", "device": "cpu", **options})
        (folder,) = cache_text.run(config, run)
        return notes(run), load_file(min(folder.glob("*_zi_te.safetensors")))

    plain, small = cache()[1], cache(fp8_llm=True)[1]
    (name,) = plain
    difference = (small[name].float() - plain[name].float()).norm() / plain[name].float().norm()
    assert 0 < difference < 0.1
    assert "5 ready" in cache(fp8_llm=True)[0] and "another precision" in cache()[0]


def test_pictures_of_a_quantised_model_are_near_and_its_loras_come_off(project: Path, tmp_path: Path) -> None:
    models = {name: project / "models" / f"{file}.safetensors" for name, file in (("dit", "dit"), ("vae", "vae"), ("text_encoder", "te"))}  # fmt: skip
    lora = tmp_path / "l.safetensors"
    write_lora(lora, {"layers.0.attention.to_q": LowRank(torch.randn(2, 32), torch.randn(32, 2), 2.0)})

    def latents(resident: generate.Resident, **options: object) -> torch.Tensor:
        values = {"prompt": "a red picture", "image_size": (32, 32), "infer_steps": 2, "seed": 1}
        values |= {"mixed_precision": "no", "device": "cpu", "output_type": "latent", **models}
        (file,) = resident.run(GenerateConfig(**values | options), NullRun(tmp_path / "run"))
        return load_file(file)["latent"].clone()

    resident = generate.Resident()
    whole = latents(resident)
    for quant, bound in (("fp8", 0.1), ("int8", 0.03), ("nf4", 0.3)):
        alone = latents(resident, base_quant=quant)
        assert 0 < float((alone - whole).norm() / whole.norm()) < bound
        assert not torch.equal(latents(resident, base_quant=quant, lora_weight=(lora,)), alone)
        assert torch.equal(latents(resident, base_quant=quant), alone)
    assert not torch.equal(latents(resident, fp8_llm=True), whole)
    resident.close()
