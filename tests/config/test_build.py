"""From spellings to one config: precedence, conflicts, refusals, paths."""

import os
from pathlib import Path

import pytest

from zimage_gui import cli
from zimage_gui.config.build import build, finish, read
from zimage_gui.config.cache import CacheLatentsConfig
from zimage_gui.config.convert import ConvertLoraConfig
from zimage_gui.config.generate import GenerateConfig
from zimage_gui.config.paths import path_problems
from zimage_gui.config.schema import options_of
from zimage_gui.config.toml_io import dump
from zimage_gui.config.training import FinetuneConfig, TrainConfig, TrainLoraConfig
from zimage_gui.errors import EXIT_USER, UserError

MODELS = {"dit": "a", "vae": "b", "text_encoder": "c"}
TRAIN = {"dit": "a", "dataset": "pictures"}
PICTURE = {**MODELS, "prompt": "a cat"}


def refusal(cls, values):
    with pytest.raises(UserError) as error:
        build(cls, values)
    return str(error.value)


def test_all_problems_are_told_at_once():
    text = refusal(TrainLoraConfig, {"rank": 0, "lr": "fast", "netwrok_alpha": 1, "attn_mode": "sage"})
    for part in (
        "network_dim = 0",
        "learning_rate = fast",
        "Did you mean network_alpha",
        "sage",
        "dit",
        "dataset",
    ):
        assert part in text


def test_a_wrong_value_is_told_once():
    assert refusal(TrainLoraConfig, {**TRAIN, "min_timestep": -1}).count("min_timestep") == 1


def test_an_option_of_another_command_is_sent_there():
    assert "belongs to" in refusal(GenerateConfig, {**PICTURE, "network_dim": 8})


def test_options_win_over_the_toml():
    toml = read(TrainLoraConfig, [("rank", 8), ("lr", 1e-3), *TRAIN.items()], None)
    words = read(TrainLoraConfig, [("network-dim", "4")], None)
    config = finish(TrainLoraConfig, [toml, words])
    assert (config.network_dim, config.learning_rate) == (4, 1e-3)


@pytest.mark.parametrize(
    ("toml", "words", "name", "value"),
    [
        ({"max_train_epochs": 16}, {"steps": 100}, "max_train_epochs", None),
        ({"max_train_epochs": 16}, {"max_train_steps": 100, "epochs": 3}, "max_train_epochs", 3),
        ({"dataset": "", "dataset_config": "d.toml"}, {"dataset": "e"}, "dataset_config", None),
        ({"output_name": "x", "output_dir": "y"}, {"output": "z.safetensors"}, "output_name", "zimage"),
        ({"output": "z.safetensors"}, {"output_dir": "y"}, "output", None),
        ({"dit": "old"}, {"model_dir": "new"}, "dit", None),
        ({"model_dir": "old"}, {"dit": "new"}, "model_dir", Path("old").absolute()),
    ],
)
def test_an_option_replaces_its_rivals_of_the_toml(toml, words, name, value):
    sources = [
        read(TrainLoraConfig, list({**TRAIN, **toml}.items()), None),
        read(TrainLoraConfig, list(words.items()), None),
    ]
    assert getattr(finish(TrainLoraConfig, sources), name) == value


def test_two_names_of_one_option_may_agree_but_not_differ():
    assert build(TrainLoraConfig, {**TRAIN, "rank": 8, "network_dim": "8"}).network_dim == 8
    assert "says otherwise" in refusal(TrainLoraConfig, {**TRAIN, "rank": 8, "network_dim": 16})
    assert "says otherwise" in refusal(TrainLoraConfig, {**TRAIN, "sdpa": True, "attn_mode": "flash"})


def test_a_switch_that_is_off_sets_nothing():
    assert build(TrainLoraConfig, {**TRAIN, "xformers": False, "sdpa": True}).attn_mode == "torch"
    assert build(TrainLoraConfig, {**TRAIN, "attn_mode": "SDPA"}).attn_mode == "torch"


def test_options_without_meaning_are_accepted_with_one_line():
    found = read(GenerateConfig, [("use_32bit_attention", "true"), ("embedded-cfg-scale", "2.5")], None)
    assert not found.problems and not found.values
    assert [note.split()[0] for note in found.notes] == ["use_32bit_attention", "embedded_cfg_scale"]


def test_what_a_launcher_has_to_be_told_is_refused_unless_it_asks_for_nothing():
    assert "num_machines = 2" in refusal(FinetuneConfig, {**TRAIN, "num_machines": "2"})
    build(TrainLoraConfig, {**TRAIN, "num_machines": "1"})


def test_the_older_switches_for_fp8_choose_it() -> None:
    for words in ({"fp8_base": True}, {"fp8_base": True, "fp8_scaled": True}, {"fp8_scaled": "true"}):
        assert build(TrainLoraConfig, {**TRAIN, **words}).base_quant == "fp8"
    assert build(TrainLoraConfig, {**TRAIN, "fp8_base": False}).base_quant == "none"
    assert "says otherwise" in refusal(TrainLoraConfig, {**TRAIN, "fp8_base": True, "base_quant": "nf4"})
    assert build(GenerateConfig, {**PICTURE, "fp8": True, "fp8_llm": True}).base_quant == "fp8"


def test_a_secret_is_not_repeated():
    config = build(TrainLoraConfig, {**TRAIN, "wandb_api_key": "hunter2", "huggingface_token": "hunter3"})
    assert (config.wandb_api_key, config.huggingface_token) == ("hunter2", "hunter3")
    assert "hunter" not in dump(config) and "hunter" not in refusal(
        TrainLoraConfig, {"huggingface_token": "hunter2"}
    )


def test_network_args_become_the_options_they_stand_for():
    arguments = ["rank_dropout=0.1", "include_patterns=['.*q', r'.*v']", "conv_dim=4"]
    config = build(TrainLoraConfig, {**TRAIN, "network_args": arguments})
    assert (config.rank_dropout, config.include_patterns, config.network_args) == (0.1, (".*q", ".*v"), ())
    words = ["loraplus_lr_ratio=4", "network_reg_dims=.*w[12]=4,layers\\.\\d{1,2}.*=32"]
    config = build(TrainLoraConfig, {**TRAIN, "network_args": words})
    lokr = build(TrainLoraConfig, {**TRAIN, "network_module": "lokr", "network_args": ["factor=8"]})
    assert (config.loraplus_lr_ratio, lokr.lokr_factor) == (4.0, 8)
    assert config.reg_dims == ((".*w[12]", 4), ("layers\\.\\d{1,2}.*", 32))
    assert "cats" in refusal(TrainLoraConfig, {**TRAIN, "network_args": ["cats=4"]})
    assert "rank_dropout = 2" in refusal(TrainLoraConfig, {**TRAIN, "network_args": ["rank_dropout=2"]})


@pytest.mark.parametrize(
    ("module", "arguments", "kind"),
    [
        ("networks.lora_zimage", [], "lora"), ("networks.loha", [], "loha"), ("networks.lokr", [], "lokr"),
        ("lokr", [], "lokr"), ("lycoris.kohya", [], "lora"), ("lycoris.kohya", ["algo=lokr", "preset=attn-mlp"], "lokr"),
        ("lycoris.kohya", ["algo=locon", "dora_wd=True", "use_tucker=False"], "dora"),
    ],
)  # fmt: skip
def test_a_network_has_the_names_of_other_programs(module, arguments, kind):
    config = build(TrainLoraConfig, {**TRAIN, "network_module": module, "network_args": arguments})
    assert config.network_module == kind and config.lora_format == ("peft" if kind == "dora" else "universal")


def test_what_only_lycoris_trains_is_refused_by_name():
    for arguments in (["algo=oft"], ["algo=loha", "dora_wd=True"], ["decompose_both=True"], ["preset=full"]):
        values = {**TRAIN, "network_module": "lycoris.kohya", "network_args": arguments}
        assert "LyCORIS" in refusal(TrainLoraConfig, values)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"dim_from_weights": True}, "needs network_weights"),
        ({"loraplus_lr_ratio": 4, "network_module": "loha"}, "a loha has none"),
        ({"network_reg_dims": ["a"]}, "pattern=number"),
        ({"network_reg_dims": ["a=0"]}, "a rank from 1"),
        ({"network_reg_lrs": ["(=1"]}, "regular expression"),
        ({"lokr_factor": 0}, "from 1 on"),
        ({"lokr_factor": 4, "network_module": "loha"}, "no effect with network_module loha"),
        ({"module_dropout": 0.1, "compile": True, "compile_fullgraph": True}, "outside of compiled code"),
        ({"lora_format": "peft", "network_module": "lokr"}, "LoRA and DoRA alone"),
        ({"metadata_reso": "wide"}, "width,height"),
        ({"network_module": "oft"}, "must be one of lora, dora, loha, lokr"),
    ],
)  # fmt: skip
def test_options_of_a_network_that_make_no_sense_are_refused(values, part):
    assert part in refusal(TrainLoraConfig, {**TRAIN, **values})


def test_zero_checkpoints_means_only_the_end():
    assert build(TrainLoraConfig, {**TRAIN, "save_every": "0"}).save_every_n_steps is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dataset_config": "d.toml"}, "excludes dataset_config"),
        ({"dataset": "", "dataset_config": "d.toml", "resolution": 512}, "beside dataset_config"),
        ({"dataset": "", "dataset_config": "d.toml", "batch_size": 2}, "beside dataset_config"),
        ({"enable_bucket": False, "bucket_no_upscale": True}, "needs buckets"),
        ({"enable_bucket": False, "resolution": 500}, "multiples of 16"),
        ({"min_timestep": 500, "max_timestep": 400}, "below max_timestep"),
        ({"preserve_distribution_shape": True}, "needs min_timestep"),
        ({"weighting_scheme": "mode"}, "sigma sampling"),
        ({"save_last_n_steps": 100}, "needs save_every_n_steps"),
        ({"sample_every_n_steps": 100}, "needs a prompt file"),
        ({"sample_prompts": "p.txt"}, "never used"),
        ({"lr_scheduler_args": ["a=1"]}, "lr_scheduler_type"),
        ({"lr_warmup_steps": 100}, "constant_with_warmup"),
        ({"base_weights_multiplier": [1.0]}, "0 base_weights"),
        ({"output": "x.safetensors", "output_name": "y"}, "excludes output_dir"),
        ({"output": "x.pt"}, "must end in .safetensors"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes, word):
    assert word in refusal(TrainLoraConfig, {**TRAIN, **changes})


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"prompt": None}, "prompt: is missing"),
        ({"from_file": "p.txt"}, "excludes prompt"),
        ({"lora_multiplier": [1, 2]}, "2 values, but lora_weight has 0"),
        ({"output": "a.png", "save_path": "x"}, "excludes save_path"),
        ({"output": "a.png", "output_type": "latent"}, "does not fit"),
        ({"output": "a.gif"}, "must end in .png"),
        ({"width": 512, "image_size": [512, 512]}, "excludes image_size"),
        ({"width": 500}, "multiple of 16"),
        ({"image_size": [500, 512]}, "multiples of 16"),
        ({"dit": ""}, "dit: is missing"),
    ],
)
def test_pictures_that_cannot_be_made_are_refused(changes, word):
    assert word in refusal(GenerateConfig, {**PICTURE, **changes})


def test_width_and_height_are_the_size_the_other_way_round():
    assert build(GenerateConfig, {**PICTURE, "width": "768", "height": "512"}).image_size == (512, 768)
    assert GenerateConfig(width=768).image_size == (1024, 768)
    assert GenerateConfig(image_size=512).image_size == (512, 512)


def test_one_models_folder_stands_for_all_models():
    assert build(GenerateConfig, {"model_dir": "m", "prompt": "p"}).model_dir == Path("m").absolute()


def test_a_finetune_in_bf16_needs_bf16():
    assert "needs mixed_precision bf16" in refusal(
        FinetuneConfig, {**TRAIN, "full_bf16": True, "mixed_precision": "no"}
    )


def test_conversions_that_make_no_sense_are_refused():
    text = refusal(
        ConvertLoraConfig,
        {"input": "a.safetensors", "output": "a.safetensors", "reverse": True, "target": "other"},
    )
    assert "is the input file itself" in text and "contradicts target" in text


def test_the_encoders_batch_touches_no_dataset():
    config = build(CacheLatentsConfig, {"vae": "v", "dataset_config": "d.toml", "batch_size": 8})
    assert config.batch_size == 8


def test_the_second_seeds_command_has_its_defaults():
    config = build(TrainConfig, {"model_dir": "m", "dataset": "d"})
    assert (config.network_dim, config.alpha, config.max_train_epochs) == (16, 16.0, 100)
    assert config.output == Path("lora_weights.safetensors").absolute()


def test_steps_replace_the_second_seeds_default_epochs():
    config = build(TrainConfig, {"model_dir": "m", "dataset": "d", "max_train_steps": 50})
    assert (config.max_train_steps, config.max_train_epochs) == (50, None)


def test_a_folder_replaces_the_second_seeds_default_file():
    config = build(TrainConfig, {"model_dir": "m", "dataset": "d", "output_dir": "out"})
    assert config.output is None and config.output_dir == Path("out").absolute()
    assert "excludes output_dir" in refusal(TrainConfig, {"output": "a.safetensors", "output_dir": "out"})


def test_missing_paths_are_named_with_the_part_that_is_wrong(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "file").touch()
    config = TrainLoraConfig(
        dit=tmp_path / "models" / "x.safetensors", dataset=tmp_path / "file", output_dir=tmp_path / "file",
        output=tmp_path / "models", resume=tmp_path, base_weights=(tmp_path / "models",),
    )  # fmt: skip
    problems = {problem.option: problem.sentence() for problem in path_problems(config)}
    assert set(problems) == {"dit", "dataset", "output_dir", "output", "base_weights"}
    assert "models exists, x.safetensors is not in it" in problems["dit"]


@pytest.mark.parametrize("command", [["convert"], ["merge", "--lora", "x"], ["convert-lora"], ["inspect"]])
def test_a_name_that_no_drive_takes_is_one_sentence(tmp_path, capsys, command):
    long = tmp_path / f"{'n' * 300}.safetensors"
    words = [*command, "--input" if len(command) == 1 else "--dit", str(long)]
    words += [] if command == ["inspect"] else ["--output", str(long)]
    assert cli.main(words) == EXIT_USER
    err = capsys.readouterr().err
    assert "nnn.safetensors is not in it" in err and "Traceback" not in err


def test_an_output_folder_that_may_not_be_written_is_refused_early(tmp_path, monkeypatch):
    """For root everything may be written, so the system's answer is replaced."""
    monkeypatch.setattr(os, "access", lambda path, mode: tmp_path not in (Path(path), *Path(path).parents))
    config = TrainLoraConfig(output_dir=tmp_path / "new", runs_dir=tmp_path.parent / "runs")
    (problem,) = path_problems(config)
    assert problem.option == "output_dir" and f"{tmp_path} cannot be written" in problem.sentence()


def test_home_and_undecodable_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert build(TrainLoraConfig, {**TRAIN, "dit": "~/m"}).dit == tmp_path / "m"
    assert "NUL" in refusal(TrainLoraConfig, {**TRAIN, "dit": "a\0b"})
    assert "Unicode" in refusal(TrainLoraConfig, {**TRAIN, "training_comment": os.fsdecode(b"\xff")})


def test_every_default_fits_its_own_option():
    for cls in (TrainLoraConfig, TrainConfig, FinetuneConfig, GenerateConfig, CacheLatentsConfig):
        defaults = {name: known.default for name, known in options_of(cls).items()}
        assert cls(**defaults) == cls()
