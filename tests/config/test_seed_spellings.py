"""Spellings of the first seed's users that are not in its own examples: TOMLs, odd values, options in two places."""

import pytest

from zimage_gui.config import toml_io
from zimage_gui.config.argv import parse
from zimage_gui.config.build import finish, read
from zimage_gui.config.schema import options_of
from zimage_gui.config.toml_io import source
from zimage_gui.config.training import FinetuneConfig, TrainLoraConfig
from zimage_gui.errors import UserError

TRAIN = 'dit = "a"\ndataset = "pictures"\n'


def loaded(text: str, *words: str) -> TrainLoraConfig:
    """A TOML, with options on the command line beside it."""
    parsed = parse(TrainLoraConfig, words)
    assert not parsed.problems
    return finish(
        TrainLoraConfig,
        [source(TrainLoraConfig, TRAIN + text, None), read(TrainLoraConfig, parsed.given, None)],
    )


@pytest.mark.parametrize(("written", "value"), [("true", "true"), ("false", "false"), ('"auto"', "auto")])
def test_a_tomls_boolean_is_a_choice_of_that_name(written: str, value: str) -> None:
    assert loaded(f"compile_dynamic = {written}").compile_dynamic == value


@pytest.mark.parametrize(
    "name", ["network_alpha", "scale_weight_norms", "min_snr_gamma", "save_every_n_steps"]
)
@pytest.mark.parametrize("zero", ["0", "0.0", '"0"'])
def test_zero_is_off_as_in_kohyas_programs(name: str, zero: str) -> None:
    assert getattr(loaded(f"{name} = {zero}"), name) is None


def test_a_kind_of_network_and_its_arguments_may_stand_in_two_places() -> None:
    for text, words in (
        ('network_module = "lycoris.kohya"', ["--network_args", "algo=lokr", "factor=4"]),
        ('network_args = ["algo=lokr", "factor=4"]', ["--network_module", "lycoris.kohya"]),
    ):
        config = loaded(text, *words)
        assert (config.network_module, config.lokr_factor) == ("lokr", 4)


def test_network_args_of_the_command_line_replace_those_of_the_toml() -> None:
    config = loaded('network_args = ["rank_dropout=0.1"]', "--network_args", "module_dropout=0.2")
    assert (config.rank_dropout, config.module_dropout) == (0, 0.2)
    assert loaded("rank_dropout = 0.3", "--network_args", "rank_dropout=0.1").rank_dropout == 0.1
    assert loaded('network_args = ["rank_dropout=0.3"]', "--rank_dropout", "0.1").rank_dropout == 0.1
    other = loaded(
        'network_module = "lycoris.kohya"\nnetwork_args = ["algo=loha"]',
        "--network_module",
        "networks.lora_zimage",
    )
    assert other.network_module == "lora"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resume_from_huggingface = true", ["--resume", "a/b/c"]),
        ('resume = "a/b/c"', ["--resume_from_huggingface"]),
    ],
)
def test_a_place_on_the_hub_may_stand_apart_from_the_word_that_says_so(text: str, words: list[str]) -> None:
    config = loaded(text, *words)
    assert config.huggingface_resume == "a/b/c" and config.resume is None


def test_what_network_args_hold_without_meaning_is_said() -> None:
    found = source(TrainLoraConfig, 'network_args = ["verbose=True", "conv_dim=4", "rank_dropout=0.1"]', None)
    assert [note.split()[0] for note in found.notes] == ["verbose", "conv_dim"] and not found.problems


def test_lists_may_be_empty_and_what_is_off_without_meaning_is_not_worth_a_line() -> None:
    lists = 'optimizer_args = ""\nnetwork_args = ""\nlr_scheduler_args = []\nbase_weights = []\n'
    found = source(TrainLoraConfig, f"{lists}split_attn = false\nddp_static_graph = true\n", None)
    assert not found.problems and [note.split()[0] for note in found.notes] == ["ddp_static_graph"]


def test_a_section_may_have_the_name_of_an_option() -> None:
    config = loaded('[optimizer_args]\noptimizer_type = "SGD"\n[network_args]\nnetwork_dim = 4\n')
    assert (config.optimizer_type, config.network_dim) == ("SGD", 4)
    with pytest.raises(UserError, match="is a table; this is an option"):
        loaded("[optimizer_args]\nweight_decay = 0.1\n")


def test_a_secret_that_is_empty_may_stand_in_a_toml() -> None:
    assert loaded('wandb_api_key = ""\nhuggingface_token = ""').wandb_api_key == ""
    with pytest.raises(UserError, match="is a secret"):
        loaded('wandb_api_key = "abc"')


def test_several_arguments_in_one_text_are_taken_apart() -> None:
    config = loaded("", "--optimizer_args", "weight_decay=0.01 betas=(0.9, 0.99)", "eps = 1e-6")
    assert config.optimizer_args == ("weight_decay=0.01", "betas=(0.9, 0.99)", "eps = 1e-6")


def test_the_schedule_the_first_seed_makes_of_relative_steps_is_ours() -> None:
    assert loaded('lr_scheduler = "adafactor:0.0001"').lr_scheduler == "adafactor"


def test_the_ending_of_a_config_file_with_a_dot_in_its_name_may_be_left_out(tmp_path) -> None:
    for name, file in (("run.v2", "run.v2.toml"), ("run", "run.toml"), ("RUN.TOML", "RUN.TOML")):
        assert parse(TrainLoraConfig, ["--config_file", str(tmp_path / name)]).config_file == tmp_path / file
    (tmp_path / "run.conf").touch()
    assert (
        parse(TrainLoraConfig, ["--config_file", str(tmp_path / "run.conf")]).config_file
        == tmp_path / "run.conf"
    )


def test_options_of_a_lora_are_refused_by_finetune_and_sent_to_train_lora() -> None:
    for name in ("network_dim", "network_module", "base_weights"):
        assert name not in options_of(FinetuneConfig)
        with pytest.raises(
            UserError, match=f"{name}: is not an option of finetune. It belongs to train-lora"
        ):
            toml_io.loads(FinetuneConfig, f"{TRAIN}{name} = 4\n")
