"""The panel's reader: cheap for long runs, patient with half lines, honest about outliers."""

import json
import math
import time

from fake_engine import a_step
from hypothesis import given
from hypothesis import strategies as st

from zimage_gui.events import (
    Checkpoint,
    EventLog,
    Failed,
    Progress,
    Resumed,
    Sample,
    Stage,
    Validation,
    Warning,
    to_line,
)
from zimage_gui.jobs.reader import Curves, Readers, RunReader


def write(folder, *events):
    with EventLog(folder / "events.jsonl") as log:
        for event in events:
            log.append(event)


def test_a_reader_gathers_what_the_panel_shows(new_run):
    folder = new_run().folder
    sample = Sample(path="samples/a.png", step=1, prompt="a cat", seed=1)
    write(folder, Stage(name="load", text="Loading"), Progress(done=1, total=2), a_step(1), sample)
    write(folder, Checkpoint(path="/x/a.safetensors", step=1, epoch=1, what="lora"), Warning(text="odd"))
    write(folder, a_step(2, loss=math.nan), Failed(error_kind="x", message="m"))
    reader = RunReader(folder)
    view = reader.poll()
    assert view.stage.name == "load" and view.progress.done == 1
    assert list(view.curves.steps) == [1, 2] and math.isnan(view.curves.loss[1])
    assert [sample.path for sample in view.samples] == ["samples/a.png"]
    assert [point.step for point in view.checkpoints] == [1]
    assert view.warnings == ["odd"] and view.failed.message == "m"
    assert view.state.state == "queued"


def test_a_resumed_run_shows_the_steps_before_it_too(tmp_path):
    folders = [tmp_path / f"2026-11-2{day}_120000_train-lora_cats" for day in (1, 2, 3)]
    for folder in folders:
        folder.mkdir()
    held = [Validation(step=step, epoch=1, loss=0.5, pictures=2) for step in (2, 4)]
    write(folders[0], *(a_step(number) for number in range(1, 4)), held[0])
    write(folders[1], Resumed(run=folders[0].name, step=2), a_step(3), a_step(4), held[1], a_step(5))
    write(folders[2], Resumed(run=folders[1].name, step=4), a_step(5))
    view = RunReader(folders[2]).poll()
    assert list(view.curves.steps) == [1, 2, 3, 4, 5] and view.step.step == 5
    assert [one.step for one in view.validations] == [2, 4]
    for name in ("gone", folders[2].name, "", "..", "../../x"):  # no folder, itself, nothing, one outside
        (folder := tmp_path / f"2026-11-25_120000_{len(name)}-{name[:1]}").mkdir()
        write(folder, Resumed(run=name, step=4), a_step(5))
        assert list(RunReader(folder).poll().curves.steps)[-1] == 5


def test_a_half_written_line_waits_for_its_rest_and_a_broken_one_is_counted(new_run):
    folder = new_run().folder
    reader = RunReader(folder)
    assert reader.poll().version == 0
    line = to_line(a_step(1))
    with open(folder / "events.jsonl", "ab", buffering=0) as file:
        file.write(line[:20])
        assert reader.poll().version == 0
        file.write(line[20:] + b'{"kind": "step", "st\n' + to_line(a_step(2)))
        view = reader.poll()
    assert list(view.curves.steps) == [1, 2]
    assert (view.version, view.broken_lines) == (2, 1)


def test_a_log_that_begins_anew_is_read_anew(new_run):
    folder = new_run().folder
    reader = RunReader(folder)
    write(folder, *(a_step(number) for number in range(1, 20)))
    assert len(reader.poll().curves.steps) == 19
    (folder / "events.jsonl").unlink()
    write(folder, a_step(1))
    assert list(reader.poll().curves.steps) == [1]


def test_a_resumed_run_replaces_the_steps_it_does_again(new_run):
    folder = new_run().folder
    write(folder, *(a_step(number, loss=1.0) for number in (1, 2, 3, 4)), a_step(3, loss=0.5))
    curves = RunReader(folder).poll().curves
    assert list(curves.steps) == [1, 2, 3] and list(curves.loss) == [1.0, 1.0, 0.5]


def test_polling_a_run_of_a_hundred_thousand_steps_costs_nothing_when_nothing_is_new(new_run):
    folder = new_run().folder
    template = json.loads(to_line(a_step(1)))
    with open(folder / "events.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(template | {"step": number}) + "\n" for number in range(1, 100_001))
    reader = RunReader(folder)
    while reader.poll().curves.steps[-1] < 100_000:
        pass
    write(folder, a_step(100_001))
    began = time.process_time()
    for _ in range(20):
        view = reader.poll()
    assert (time.process_time() - began) / 20 < 0.02
    assert view.curves.steps[-1] == 100_001
    assert 100 < len(view.curves.thinned(1000).steps) <= 1001


@given(st.lists(st.floats(0, 10) | st.just(math.nan), min_size=1, max_size=400), st.integers(10, 100))
def test_a_thinned_curve_is_short_and_keeps_the_extremes_and_the_end(losses, most):
    curves = Curves()
    for number, loss in enumerate(losses, start=1):
        curves.add(a_step(number, loss=loss))
    thin = curves.thinned(most)
    assert len(thin.steps) <= most + 1
    assert thin.steps[-1] == len(losses)
    if not any(map(math.isnan, losses)):
        assert (min(thin.loss), max(thin.loss)) == (min(losses), max(losses))
    elif all(math.isfinite(loss) for loss in thin.loss):
        raise AssertionError("the step without a loss has vanished")


def test_all_pages_share_one_reader_of_a_run(tmp_path):
    readers = Readers()
    assert readers.of(tmp_path) is readers.of(tmp_path)


def test_the_view_of_a_folder_that_was_deleted_has_no_state(tmp_path):
    view = RunReader(tmp_path / "gone").poll()
    assert view.state is None and view.version == 0


def test_what_one_page_was_given_does_not_change_under_it(new_run):
    folder = new_run().folder
    reader = RunReader(folder)
    write(folder, a_step(1))
    given = reader.poll()
    write(folder, a_step(2))
    assert len(reader.poll().curves.steps) == 2 and len(given.curves.steps) == 1


def test_losses_of_held_out_pictures_are_kept_and_replaced_from_a_resumed_step_on(new_run):
    folder = new_run().folder
    measured = ((0, 0.5), (10, 0.4), (20, 0.3), (10, 0.45))
    write(folder, *(Validation(step=step, epoch=1, loss=loss, pictures=2) for step, loss in measured))
    view = RunReader(folder).poll()
    assert [(one.step, one.loss) for one in view.validations] == [(0, 0.5), (10, 0.45)]
