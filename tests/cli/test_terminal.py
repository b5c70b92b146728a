"""Events as text, on a terminal and in a file."""

import io
import math

import pytest

from zimage_gui.events import (
    Checkpoint,
    Failed,
    Finished,
    Note,
    Progress,
    Sample,
    Stage,
    Started,
    Step,
    Warning,
)
from zimage_gui.terminal import TerminalView, duration, sentence, speed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(number: int, seconds: float = 0.5, **more: object) -> Step:
    return Step(
        step=number, total_steps=10, epoch=1, total_epochs=2, loss=0.5, loss_average=0.25, lr=1e-4, seconds=seconds,
        samples_per_second=1 / seconds, **more,
    )  # fmt: skip


def shown(*events: object, out: io.StringIO | None = None) -> tuple[str, str]:
    out, err = out or io.StringIO(), io.StringIO()
    view = TerminalView(out, err)
    for event in events:
        view(event)
    return out.getvalue(), err.getvalue()


def test_a_file_gets_whole_lines_and_few_of_them():
    out, _ = shown(*(step(number) for number in range(1, 11)))
    assert out.splitlines()[0].startswith("step 1/10") and out.splitlines()[-1].startswith("step 10/10")
    assert len(out.splitlines()) == 2 and "\r" not in out


def test_a_terminal_is_rewritten_in_place(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out, _ = shown(step(1), Note(text="between"), step(10), out=Terminal())
    first, cleared, rest = out.split("\r", 3)[1:]
    assert len(first) == 39 and first.endswith("…") and not cleared.strip()
    assert rest.startswith("between\n")
    assert out.endswith("\n")


def test_a_shorter_line_covers_a_longer_one():
    out = Terminal()
    view = TerminalView(out, io.StringIO())
    view(Progress(done=100, total=1000, unit="pictures", rate=3.0, eta=300.0))
    view(Progress(done=1000, total=1000, unit="pictures"))
    before, after = out.getvalue().rstrip("\n").split("\r")[1:]
    assert len(after) == len(before)


def test_warnings_and_failures_go_to_the_error_stream_with_their_hint():
    out, err = shown(Warning(text="careful"), Failed(error_kind="oom", message="too big", hint="Use less"))
    assert out == "" and err == "Warning: careful\nFailed: too big\nUse less\n"


def test_progress_tells_rate_and_time_left():
    out, _ = shown(Progress(done=5, total=20, unit="pictures", rate=0.25, eta=60.0))
    assert out == " 25%  5/20 pictures  4.0 s each  1:00 min left\n"
    assert "0.50 it/s" not in sentence(step(1)) and "2.00 it/s" in sentence(step(1))
    assert "2.00 s/it" in sentence(step(1, 2.0, vram_gb=11.26)) and "VRAM 11.3 GB" in sentence(
        step(1, 2.0, vram_gb=11.26)
    )


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Stage(name="load", text="Loading"), "Loading"),
        (
            Sample(path="a.png", step=3, prompt="p", seed=1, adapter="off"),
            "Picture at step 3: a.png (training adapter off)",
        ),
        (Checkpoint(path="x", step=4, epoch=1, what="lora"), "Saved lora at step 4: x"),
        (Finished(outcome="stopped", results=["a", "b"]), "Stopped; everything is saved.\n  a\n  b"),
        (Progress(done=3, total=0, unit="files"), "3 files"),
        (Started(command="generate", pid=1), "generate started"),
        (Failed(error_kind="x", message="Bad.", hint="Try."), "Bad. Try."),
    ],
)
def test_every_event_is_a_sentence(event, text):
    assert sentence(event) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1:00 min"),
        (187, "3:07 min"),
        (3730, "1:02:10 h"),
        (1e6, "11 days"),
        (math.nan, "very long"),
        (math.inf, "very long"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_pictures_before_training_and_long_lists_are_short():
    assert sentence(Sample(path="a.png", step=0, prompt="p", seed=1)) == "Picture: a.png"
    lines = sentence(Finished(outcome="done", results=[str(number) for number in range(50)])).splitlines()
    assert len(lines) == 22 and lines[-1] == "  … and 30 more"


def test_one_slow_step_does_not_make_the_time_left_jump(monkeypatch):
    monkeypatch.setattr("zimage_gui.terminal._EVERY_ON_SCREEN", 0.0)
    lines, _ = shown(step(1), step(2, 20.0), out=Terminal())
    assert lines.count("left") == 2 and "20 s left" in lines  # 8 steps of 0.9 x 0.5 + 0.1 x 20 s


def test_a_file_is_spared_the_beginning_of_nothing():
    out, _ = shown(Progress(done=0, total=5), Progress(done=1, total=5))
    assert out.splitlines() == [" 20%  1/5 items"]


def test_speed_turns_round_when_slow():
    assert speed(12.34, "pictures") == "12.3 pictures/s" and speed(0.5, "pictures") == "2.0 s each"
