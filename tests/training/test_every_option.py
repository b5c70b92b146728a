"""Every option of both training commands: a value other than the default shows in a run, or is refused."""

import option_cases
import pytest
from option_cases import Case, Changes, Serves
from option_tables import shared_cases
from option_tables_network import finetune_cases, lora_cases
from option_walk import MAKERS, Walk, walks

from zimage_gui.config.idle import idle_options
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import options_of

__all__ = ["walks"]

OPTIONS = [(command, option) for command in MAKERS for option in options_of(COMMANDS[command])]


def cases_of(walk: Walk) -> dict[str, Case]:
    own = lora_cases if walk.command == "train-lora" else finetune_cases
    return shared_cases(walk) | own(walk.project)


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_an_option_shows_in_a_run_or_is_refused(walks: dict[str, Walk], command: str, option: str) -> None:
    walk = walks[command]
    cases = cases_of(walk)
    assert option in cases, (
        f"{option} is new: say in tests/training/option_tables.py what it changes in a run"
    )
    cases[option].hold(walk, option)


@pytest.mark.parametrize("command", MAKERS)
def test_an_option_that_shows_is_never_said_to_have_no_effect(walks: dict[str, Walk], command: str) -> None:
    walk = walks[command]
    for option, case in cases_of(walk).items():
        if isinstance(case, Changes | Serves):
            given = {"output_dir": walk.project} | walk.options() | case.beside | {option: case.value}
            config = MAKERS[command](walk.project, **given)
            assert option not in {problem.option for problem in idle_options(config)}, option


@pytest.mark.parametrize("command", MAKERS)
def test_no_case_is_of_an_option_that_is_gone(walks: dict[str, Walk], command: str) -> None:
    assert set(cases_of(walks[command])) == set(options_of(COMMANDS[command]))


LOOKS = ("losses", "rates", "counts", "held", "weights", "formats", "layers", "header", "names", "told", "samples",
         "validated", "blocks", "moved", "threads", "switches", "asked", "first_step")  # fmt: skip


@pytest.mark.parametrize("command", MAKERS)
def test_two_runs_with_the_same_options_look_the_same(walks: dict[str, Walk], command: str) -> None:
    """Otherwise a difference between two runs would show nothing of an option."""
    options = {
        "log_with": "wandb", "huggingface_repo_id": "ann/cats", "validation_split": 0.3, "blocks_to_swap": 2,
        "gradient_checkpointing": True, "compile_backend": "eager",
    }  # fmt: skip
    one, other = (walks[command].fresh(**options) for _ in range(2))
    assert not one.failed
    for name in LOOKS:
        look = getattr(option_cases, name)
        assert look(one) == look(other), name
