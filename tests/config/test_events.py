import math

from hypothesis import example, given
from hypothesis import strategies as st

from zimage_gui.events import (
    EventLog,
    Failed,
    Finished,
    Follower,
    Note,
    Progress,
    Sample,
    Step,
    follow,
    from_line,
    to_line,
)

STEP = Step(
    step=3, total_steps=10, epoch=1, total_epochs=2, loss=math.nan, loss_average=math.inf, lr=1e-4, grad_norm=-math.inf,
    seconds=1.5, samples_per_second=0.7,
)  # fmt: skip


def test_not_a_number_survives_the_file():
    back = from_line(to_line(STEP))
    assert isinstance(back, Step)
    assert math.isnan(back.loss) and back.loss_average == math.inf and back.grad_norm == -math.inf
    assert back.time == STEP.time and back.v == 1


@given(st.text(st.characters()))
@example("half a pair \ud83d, no text \udcff")
def test_any_text_is_one_line(text):
    line = to_line(Note(text=text))
    assert line.count(b"\n") == 1
    assert from_line(line).text == text.encode("utf-8", "backslashreplace").decode("utf-8")


def test_what_utf_8_cannot_hold_is_kept_as_its_escape_in_every_event():
    sample = Sample(path="a/\udcff.png", step=1, prompt="x \ud83d", seed=1)
    assert from_line(to_line(sample)) == sample.model_copy(
        update={"path": r"a/\udcff.png", "prompt": r"x \ud83d"}
    )
    assert from_line(to_line(Finished(outcome="done", results=["\ud800"]))).results == [r"\ud800"]


def test_a_newer_events_unknown_fields_are_dropped():
    assert from_line(b'{"kind": "note", "text": "x", "v": 2, "colour": "red"}').text == "x"


def test_a_reader_follows_and_stops_at_the_last_whole_line(tmp_path):
    path = tmp_path / "events.jsonl"
    assert follow(path, 0) == ([], 0)
    with EventLog(path) as log:
        log.append(Note(text="one"))
        events, offset = follow(path, 0)
        assert [event.text for event in events] == ["one"]
        log.append(Progress(done=1, total=2))
        with open(path, "ab") as file:
            file.write(b'{"kind": "note", "te')
        events, offset = follow(path, offset)
        assert [event.kind for event in events] == ["progress"]
        assert follow(path, offset) == ([], offset)


def test_broken_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "nonsense"}\n\xff\xff\n\n' + to_line(Note(text="good")) + b"[]\n")
    follower = Follower(path)
    assert [event.text for event in follower.read()] == ["good"]
    assert follower.broken == 3


def test_a_log_goes_on_after_half_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(to_line(Note(text="one")) + b'{"kind": "no')
    with EventLog(path) as log:
        log.append(Failed(error_kind="x", message="two"))
    follower = Follower(path)
    assert [event.kind for event in follower.read()] == ["note", "failed"] and follower.broken == 1


def test_a_file_replaced_by_a_shorter_one_is_read_from_the_start(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(to_line(Note(text="x" * 500)))
    _, offset = follow(path, 0)
    path.write_bytes(to_line(Note(text="new")))
    events, _ = follow(path, offset)
    assert [event.text for event in events] == ["new"]
