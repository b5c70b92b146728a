"""A sample of the demo's figures (docs/demo.md holds the whole): what the shipped model draws, judged by pixels."""

import pytest

from zimage_gui.demo.draw import SHAPES, held_out_subjects, trained_subjects
from zimage_gui.demo.measure import DemoModel, held_out_prompts, measure
from zimage_gui.demo.pictures import ZORB_PROMPT
from zimage_gui.demo.project import DATA


@pytest.fixture(scope="module")
def model() -> DemoModel:
    return DemoModel(DATA)


def test_combinations_never_trained_come_out_right(model: DemoModel) -> None:
    score = measure(model, held_out_prompts(2 * len(held_out_subjects())))
    assert score.background >= 0.94 and score.colour >= 0.94, score.line()
    assert score.shape >= 0.84, score.line()


def test_the_shipped_model_does_not_know_the_zorb(model: DemoModel) -> None:
    assert ZORB_PROMPT.shape not in {subject.shape for subject in trained_subjects()} == set(SHAPES)
    assert measure(model, [ZORB_PROMPT] * 10).stars <= 0.1


def test_the_whole_demo_stays_below_thirty_megabytes() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 30e6
