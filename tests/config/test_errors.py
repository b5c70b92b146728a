import pickle

import pytest

from zimage_gui.errors import Problem, UserError, raise_if_any


def test_a_problem_is_one_sentence_with_the_way_out():
    assert (
        Problem("rank", "0", "must be at least 1", "Its default is 16").sentence()
        == "rank = 0: must be at least 1. Its default is 16."
    )
    assert (
        Problem("rank", "", "is missing.", "Did you mean dim?").sentence()
        == "rank: is missing. Did you mean dim?"
    )
    assert Problem("rank", "", "is missing", "").sentence() == "rank: is missing."


def test_control_characters_and_long_values_do_not_reach_the_terminal():
    text = Problem("prompt", "\x1b[2J" + "x" * 1000, "is bad", "").sentence()
    assert "\x1b" not in text and len(text) < 300


def test_a_user_error_holds_all_problems_and_survives_pickling():
    error = UserError([Problem("a", "1", "is bad", ""), Problem("b", "2", "is bad", "")])
    assert str(error) == "a = 1: is bad.\nb = 2: is bad."
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


def test_nothing_wrong_raises_nothing():
    raise_if_any([])
    with pytest.raises(ValueError, match="at least one"):
        UserError([])
    with pytest.raises(UserError, match="b = 2"):
        raise_if_any([Problem("b", "2", "is bad", "")])
