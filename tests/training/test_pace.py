"""How long a run will take is known from an earlier one with the same settings, and not guessed otherwise."""

from pathlib import Path

from run_helpers import StoppedAt
from tiny_project import lora_config

from zimage_gui.engine.pace import FILE, known_pace, time_line
from zimage_gui.engine.train import run
from zimage_gui.events import Note


def told(project: Path, name: str, **options: object) -> str:
    """What a run said about its time before it began."""
    folder = project / "runs" / name
    folder.mkdir(parents=True)
    reporter = StoppedAt(folder)
    run(lora_config(project, output_name=name, **options), reporter)
    (found,) = [note.text for note in reporter.of(Note) if note.text.startswith("Estimated")]
    return found.splitlines()[-1]


def test_the_time_of_a_run_is_told_when_one_like_it_was_measured(project: Path) -> None:
    assert "no run here had these settings" in told(project, "2026-01-01_a", max_train_steps=12)
    assert (project / "runs" / "2026-01-01_a" / FILE).is_file()
    again = told(project, "2026-01-02_b", max_train_steps=3, learning_rate=1e-3)
    assert "time for 3 steps: about " in again and "in 2026-01-01_a)" in again
    assert "no run here" in told(project, "2026-01-03_c", max_train_steps=1, batch_size=1)
    assert "no run here" in told(project, "2026-01-04_d", max_train_steps=1, network_dim=4)


def test_a_broken_record_is_passed_over(tmp_path: Path) -> None:
    for name, text in {
        "2026-1": '{"key": "k", "seconds": 3.0}',
        "2026-2": "{",
        "2026-3": "[]",
        "2026-4": '{"key": "k"}',
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_text(text, encoding="utf-8")
    assert known_pace(tmp_path, "k") == (3.0, "2026-1") and known_pace(tmp_path, "other") is None
    assert "about 2 h 30 min" in time_line((3.0, "x"), 3000)
