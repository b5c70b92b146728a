"""An option that is set and does nothing is said to: every condition has both sides, and neither is told wrongly."""

from pathlib import Path

import pytest
from test_presets_fit import PRESETS
from test_schema import another

from zimage_gui import cli
from zimage_gui.config.idle import idle_options
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import options_of
from zimage_gui.config.toml_io import load, read_text, source
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig

FILE = {"dataset_config": Path("d.toml")}
REPOSITORY = {"huggingface_repo_id": "ann/cats"}
MODELS = {name: Path(name) for name in ("dit", "vae", "text_encoder")}
EACH = {unit: {f"save_every_n_{unit}": 1} for unit in ("steps", "epochs")}
SHOWN = {"sample_prompts": Path("p")}
MATTERS, IDLE = 0, 1
SIDES = {
    "a LoRA is given": ({"lora_weight": "a"}, {}),
    "a model is not named by itself": ({"dit": Path("d")}, MODELS),
    "a picture folder is given": ({"dataset": Path("d")}, FILE),
    "a picture folder is given and buckets are on": ({}, {"enable_bucket": False}),
    "a picture to begin from is given": ({"image_path": Path("a.png")}, {}),
    "a prompt has several pictures": ({"batch_count": 2}, {}),
    "Adafactor is not told to find its own (relative_step=True)": (
        {}, {"optimizer_type": "Adafactor", "optimizer_args": "relative_step = True"},
    ),
    "an output is named or a run is resumed": ({"output_dir": Path("o")}, {"output": None}),
    "as_json is off": ({}, {"as_json": True}),
    "base_weights is set": ({"base_weights": "a"}, {}),
    "blocks_to_swap is above 0": ({"blocks_to_swap": 1}, {}),
    "compile is off": ({}, {"compile": True}),
    "compile is on": ({"compile": True}, {}),
    "debug_mode is console": ({"debug_mode": "console"}, {"debug_mode": "image"}),
    "debug_mode is empty": ({}, {"debug_mode": "image"}),
    "debug_mode is set": ({"debug_mode": "image"}, {}),
    "dim_from_weights is off and no LoKr is at full rank": (
        {"lokr_full": True}, {"network_module": "lokr", "lokr_full": True},
    ),
    "early_stop is on": ({"early_stop": "loss"}, {}),
    "ema_decay is above 0": ({"ema_decay": 0.9}, {}),
    "full_bf16 is on": ({"full_bf16": True}, {}),
    "gradient_accumulation_steps is 1 and mixed_precision is not fp16": ({}, {"gradient_accumulation_steps": 2}),
    "gradient_checkpointing is on": ({}, {"gradient_checkpointing": False}),
    "gradient_checkpointing is on and its share above 0": ({}, {"gradient_checkpointing_fraction": "0"}),
    "guidance_scale is above 0": ({"grid_x": "guidance_scale=0,4"}, {"guidance_scale": 0}),
    "huggingface_repo_id is set": (REPOSITORY, {}),
    "huggingface_repo_id or huggingface_resume is set": ({"huggingface_resume": "ann/cats/state"}, {}),
    "huggingface_resume is empty": ({}, {"huggingface_resume": "ann/cats/state"}),
    "latent_path is empty": ({}, {"latent_path": "a"}),
    "log_with is wandb or all": ({"log_with": "all"}, {"logging_dir": Path("l")}),
    "log_with or logging_dir is set": ({"logging_dir": Path("l")}, {}),
    "logging_dir is set": ({"logging_dir": Path("l")}, {"log_with": "all"}),
    "loss_type is huber or smooth_l1": ({"loss_type": "huber"}, {}),
    "lr_scheduler_type is empty": ({}, {"lr_scheduler_type": "StepLR"}),
    "max_train_epochs is empty": ({"max_train_epochs": None}, {"max_train_epochs": 2}),
    "min_timestep or max_timestep is set": ({"min_timestep": 1}, {}),
    "mixed_precision is bf16": ({}, {"mixed_precision": "fp16"}),
    "network_weights is set": ({"network_weights": Path("a")}, {}),
    "no base model is given": ({}, {"dit": Path("d")}),
    "no_metadata is off": ({}, {"no_metadata": True}),
    "pictures are decoded": ({}, {"output_type": "latent"}),
    "pictures are held out": ({"validation_split": 0.1}, {}),
    "pictures have masks": ({"alpha_mask": True}, {}),
    "sample_prompts is set": (SHOWN, {}),
    "sample_prompts is set and the run has so many epochs": (SHOWN | {"max_train_epochs": 7}, SHOWN | {"max_train_epochs": 6}),
    "sample_prompts is set and the run has so many steps": (SHOWN | {"max_train_steps": 7}, SHOWN | {"max_train_steps": 6, "max_train_epochs": None}),
    "save_every_n_epochs is set": (EACH["epochs"], EACH["steps"]),
    "save_every_n_epochs is set and save_state is on": (EACH["epochs"] | {"save_state": True}, EACH["epochs"]),
    "save_every_n_steps is set": (EACH["steps"], EACH["epochs"]),
    "save_every_n_steps is set and save_state is on": (EACH["steps"] | {"save_state": True}, EACH["steps"]),
    "save_path, output or save_merged_model is set": ({"save_path": Path("s")}, {}),
    "shuffle_caption is on": ({"shuffle_caption": True}, {}),
    "sigma_rel is empty": ({}, {"sigma_rel": 0.2}),
    "target is other": ({}, {"target": "peft"}),
    "texts are encoded": ({"text_encoder": Path("t")}, {}),
    "the file is a LoKr and target is comfy, peft or rust": ({}, {"reverse": True}),
    "the kind is lokr and dim_from_weights is off": ({"network_module": "lokr"}, {"network_module": "loha"}),
    "the kind is lora or dora": ({"network_module": "dora"}, {"network_module": "lokr"}),
    "the output is a folder": ({"output": Path("o")}, {"output": Path("o.safetensors")}),
    "the run goes on after so many epochs": ({"max_train_epochs": 8}, {"max_train_epochs": 7}),
    "the run goes on after so many steps": ({"max_train_epochs": 1}, {"max_train_steps": 7, "max_train_epochs": None}),
    "the run is longer than early_stop_patience, with loss by over 200 steps": (
        {"max_train_epochs": None, "max_train_steps": 701, "early_stop": "loss"},
        {"max_train_epochs": None, "max_train_steps": 500, "early_stop": "loss"},
    ),
    "the scheduler has cycles": ({"lr_scheduler": "cosine_with_restarts"}, {"lr_scheduler": "cosine"}),
    "the scheduler is cosine_with_min_lr, warmup_stable_decay or rex": ({"lr_scheduler": "rex"}, {}),
    "the scheduler is inverse_sqrt": ({"lr_scheduler": "inverse_sqrt"}, {}),
    "the scheduler is not linear_quadratic": ({"scheduler": "beta"}, {"scheduler": "linear_quadratic"}),
    "the scheduler is polynomial": ({"lr_scheduler": "polynomial"}, {"lr_scheduler": "rex"}),
    "the scheduler is warmup_stable_decay": (
        {"lr_scheduler": "warmup_stable_decay"}, {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_type": "StepLR"},
    ),
    "there are several processes": ({"gpus": "2"}, {}),
    "timestep_sampling is shift": ({}, {"timestep_sampling": "flux_shift"}),
    "timestep_sampling is sigmoid, qinglong or a shift other than ideogram4_shift": (
        {"timestep_sampling": "qinglong_qwen"}, {"timestep_sampling": "ideogram4_shift"},
    ),
    "weighting_scheme is logit_normal or timestep_sampling is logsnr or qinglong": (
        {"timestep_sampling": "logsnr"}, {"timestep_sampling": "sigma"},
    ),
    "weighting_scheme is mode": ({"weighting_scheme": "mode"}, {}),
    "write_toml is set": ({"write_toml": Path("d.toml")}, {}),
}  # fmt: skip
CONDITIONS = [
    (command, name) for command, cls in COMMANDS.items() for name, known in options_of(cls).items() if known.extra.matters
]  # fmt: skip


def idle_names(config):
    return {problem.option for problem in idle_options(config)}


@pytest.mark.parametrize(("command", "name"), CONDITIONS)
def test_a_condition_holds_in_some_configs_and_not_in_others(command, name, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    cls = COMMANDS[command]
    known = options_of(cls)[name]
    sides = SIDES[known.extra.matters.words]
    configs = [cls(**{key: value for key, value in side.items() if key in cls.model_fields} | {name: another(known)}) for side in sides]  # fmt: skip
    assert name not in idle_names(configs[MATTERS])
    assert name in idle_names(configs[IDLE])
    assert name not in idle_names(configs[IDLE].with_(**{name: known.default}))


def test_no_side_is_of_a_condition_that_is_gone():
    words = {options_of(COMMANDS[command])[name].extra.matters.words for command, name in CONDITIONS}
    assert set(SIDES) == words


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
@pytest.mark.parametrize("models", [{}, {"model_dir": "m"}, MODELS], ids=["alone", "folder", "files"])
def test_a_shipped_preset_sets_nothing_without_effect(path, models):
    """Text encoders in fp8 wait for one that is named, which is the user's."""
    cls = COMMANDS[path.parent.name]
    preset = source(cls, read_text(path), None)
    given = {name: value for name, value in models.items() if name in cls.model_fields}
    assert idle_names(cls(**preset.values | given)) <= (set() if models else {"fp8_llm"})


def test_the_demos_settings_set_nothing_without_effect():
    settings = Path(cli.__file__).parent / "demo" / "settings" / "train_lora.toml"
    assert not idle_names(load(TrainLoraConfig, settings))


def test_an_early_end_by_held_out_pictures_waits_for_no_mean_of_losses():
    given = {"early_stop": "validation", "validation_split": 0.1}
    assert not idle_names(TrainLoraConfig(**given, max_train_steps=501))
    assert idle_names(TrainLoraConfig(**given, max_train_steps=500)) == {"early_stop"}


def test_the_sentence_names_option_value_and_condition():
    (idle,) = idle_options(FinetuneConfig(stochastic_rounding=False))
    assert idle.sentence() == (
        "stochastic_rounding = false: has no effect here. Matters when full_bf16 is on."
    )


def test_a_secret_without_effect_is_named_without_its_value():
    (idle,) = idle_options(TrainLoraConfig(huggingface_token="hf_secret"))
    assert "huggingface_token: has no effect" in idle.sentence() and "hf_secret" not in idle.sentence()


def test_a_prompt_files_lines_may_say_what_the_options_do_not():
    cls = COMMANDS["generate"]
    values = {"negative_prompt": "bad", "strength": 0.5, "batch_size": 2, "from_file": Path("prompts.txt")}
    assert not idle_names(cls(**values))
    assert idle_names(cls(**values | {"from_file": None})) == {"negative_prompt", "strength", "batch_size"}


def test_a_command_warns_once_and_does_its_work(capsys):
    picture = (
        Path(__file__).parents[1]
        / "data"
        / "reference"
        / "hub"
        / "vae"
        / "diffusion_pytorch_model.safetensors"
    )
    assert cli.main(["inspect", str(picture), "--json", "--limit", "3"]) == 0
    said = capsys.readouterr()
    assert said.err.count("Warning: limit = 3: has no effect here. Matters when as_json is off.") == 1
    assert said.out.startswith("{")
