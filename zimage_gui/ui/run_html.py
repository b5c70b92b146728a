"""A run as HTML: its state in words, its progress, curves, sample grid, results and last lines.

Knows `RunView` and HTML. Knows nothing of gradio and changes nothing. Every path that becomes a picture goes
through the picture cache.
"""

from __future__ import annotations

import time
from pathlib import Path

from zimage_gui.events import Sample
from zimage_gui.jobs.reader import RunView
from zimage_gui.jobs.state import RunState
from zimage_gui.ui.charts import Line, line_chart
from zimage_gui.ui.html import (
    badge,
    bullet_list,
    button,
    duration,
    escape,
    facts,
    notice,
    number,
    pace,
    progress_bar,
)
from zimage_gui.ui.pictures import PictureCache, url

WORDS = {
    "queued": ("waiting", "plain"),
    "running": ("running", "busy"),
    "stopping": ("stopping: finishes the step, then saves", "warn"),
    "stopped": ("stopped", "plain"),
    "finished": ("finished", "good"),
    "failed": ("failed", "bad"),
}
NO_SAMPLES = (
    '<p class="zg-empty">Pictures made during training appear here: one row per step, '
    "one column per prompt.</p>"
)
MOST_SAMPLE_ROWS = 40
MOST_NOTES = 6
CURVE_POINTS = 400


def state_badge(state: RunState) -> str:
    words, tone = WORDS[state.state]
    if state.state == "stopped" and state.status.results:
        words = "stopped and saved"
    return badge(words, tone)


def title(state: RunState) -> str:
    """What a list calls a run: name, command and the time it was made."""
    made = time.strftime("%d %b %H:%M", time.localtime(state.status.created))
    name = state.status.name or state.status.command
    return f"{name} · {made}"


def status(view: RunView, *, reuse: bool = True, look: bool = False) -> str:
    """The head of the panel: state, bar, numbers, what went wrong, results and what can be done.

    look: the tab can look into what was written.
    """
    state = view.state
    if state is None:
        return notice("This run's folder is gone.", "warn")
    parts = [
        (
            f'<div class="zg-chips">{state_badge(state)}<b>{escape(title(state))}</b>'
            f"{_actions(view, state, reuse)}</div>"
        )
    ]
    if not state.ended:
        parts.append(progress_bar(*progress(view, state)))
    parts.append(_numbers(view, state))
    parts += [notice(text, "warn") for text in view.warnings[-4:]]
    if state.silent is not None:
        parts.append(
            notice(
                f"No sign of life for {duration(state.silent)}. A large step or a full disk can do this.",
                "warn",
            )
        )
    if state.state == "failed":
        parts.append(failure(state))
    elif state.message:
        parts.append(notice(state.message))
    parts.append(_results(view, state) if reuse else _told(view, state, look))
    if state.ended:
        parts.append(_other_states(view))
    return "".join(parts)


def failure(state: RunState) -> str:
    """Why a run failed, what to do, and the last lines it printed."""
    words = f"<p><b>{escape(state.message or 'It failed without saying why.')}</b></p>"
    if state.hint:
        words += "".join(f"<p>{escape(line)}</p>" for line in state.hint.splitlines())
    if state.console:
        words += f'<div class="zg-log" data-follow="1">{escape(chr(10).join(state.console))}</div>'
    return notice(words, "bad", raw=True)


def progress(view: RunView, state: RunState, *, short: bool = False) -> tuple[float | None, str]:
    """How far it is (0..1, None when unknown) and the words on the bar."""
    if state.state == "queued":
        return 0.0, "Waiting for the run before it to end"
    step = view.step
    training = step is not None and (
        view.stage is None or view.progress is None or view.stage.time <= step.time
    )
    if step is not None and training and step.total_steps:
        epochs = "" if short else f" · epoch {step.epoch} of {step.total_epochs}"
        text = f"Step {step.step:,} of {step.total_steps:,}{epochs}"
        return step.step / step.total_steps, f"{text} · {duration(remaining(view))} left"
    stage = view.stage.text if view.stage is not None else "Starting"
    done = view.progress
    if done is None or not done.total:
        return None, stage
    left = f" · {duration(done.eta)} left" if done.eta is not None else ""
    return done.done / done.total, f"{stage}: {done.done:,} of {done.total:,} {done.unit}{left}"


def remaining(view: RunView) -> float | None:
    """Seconds until the last step at the pace of the latest steps."""
    step = view.step
    if step is None:
        return None
    if view.state is not None and view.state.status.eta is not None:
        return view.state.status.eta
    return (step.total_steps - step.step) * step.seconds


def _numbers(view: RunView, state: RunState) -> str:
    step = view.step
    end = state.status.ended or (time.time() if not state.ended else None)
    pairs: list[tuple[str, str]] = []
    if step is not None:
        loss = step.loss_average
        pairs = [
            ("Step", f"{step.step:,} / {step.total_steps:,}"),
            ("Epoch", f"{step.epoch} / {step.total_epochs}"),
            ("Loss (mean)", number(loss)),
            ("Learning rate", number(step.lr)),
            ("Speed", pace(step.seconds)),
        ]
        if view.validations:
            pairs.insert(3, ("Held-out loss", number(view.validations[-1].loss)))
        if step.vram_gb is not None:
            pairs.append(("VRAM (peak)", f"{step.vram_gb:.1f} GB ({view.peak_vram_gb or step.vram_gb:.1f})"))
        elif step.ram_gb is not None:
            pairs.append(("RAM", f"{step.ram_gb:.1f} GB"))
    if end is not None:
        pairs.append(("Time", duration(end - state.status.begun)))
    return facts(pairs) if pairs else ""


def _actions(view: RunView, state: RunState, reuse: bool) -> str:
    """Buttons of the panel; a page sends them back as the event `act` with the run's folder name."""
    run = state.folder.name
    if state.state == "queued":
        return button("Remove from queue", "dequeue", run=run)
    if state.state in ("running", "stopping"):
        return stop_buttons(state)
    if not reuse:
        return ""
    shown = [button("Use these settings", "settings", run=run, title="Put this run's settings into the form")]
    if states := resume_points(view):
        step, place = states[-1]
        if state.state == "finished":
            words = "Its settings and its last state into the form, to train for more steps"
            shown.insert(0, button("Train on", "further", run=run, place=str(place), title=words))
        else:
            words = f"Resume from step {step:,}"
            shown.insert(0, button(words, "resume", run=run, place=str(place), tone="good"))
    if view.failed is not None and view.failed.settings:
        title = "This run's settings with " + ", ".join(f"{k} {v}" for k, v in view.failed.settings.items())
        shown.append(button("Use these with less memory", "less", run=run, title=title))
    return "".join(shown)


def stop_buttons(state: RunState) -> str:
    """Stop in three grades: save and stop, then leave now, then kill; each says what it costs."""
    run = state.folder.name
    if state.state == "running":
        saves = (
            "Finish this step, save, then stop"
            if state.status.command in ("train-lora", "train", "finetune")
            else "Stop after the current item"
        )
        label = "Stop and save" if state.status.command in ("train-lora", "train", "finetune") else "Stop"
        return button(label, "stop", run=run, tone="bad", title=saves)
    now = button(
        "Stop now, without saving", "terminate", run=run,
        confirm="The run leaves at once. Everything since its last saved checkpoint is lost. Stop it now?",
    )  # fmt: skip
    kill = button(
        "Kill", "kill", run=run,
        confirm="The process is killed, whatever it is doing. Use this only when it does not react. Kill it?",
    )  # fmt: skip
    return now + kill


def resume_points(view: RunView) -> list[tuple[int, Path]]:
    """Saved states that still exist, oldest first: (step, folder)."""
    found = [(point.step, view.folder / point.path) for point in view.checkpoints if point.what == "state"]
    return [(step, path) for step, path in dict.fromkeys(found) if path.exists()]


def _other_states(view: RunView) -> str:
    """All states but the newest, folded away."""
    older = resume_points(view)[:-1]
    if not older:
        return ""
    run = view.folder.name
    buttons = "".join(
        button(f"step {step:,}", "resume", run=run, place=str(path), title=str(path))
        for step, path in reversed(older)
    )
    return (
        f"<details><summary>Resume from an earlier state ({len(older)})</summary><div "
        f'class="zg-chips">{buttons}</div></details>'
    )


def _results(view: RunView, state: RunState) -> str:
    kept = [view.folder / point.path for point in view.checkpoints if point.what != "state"]
    named = [Path(result) for result in state.status.results]
    files = [
        path for path in dict.fromkeys([*kept, *named]) if path.is_file() and path.suffix == ".safetensors"
    ]
    if not files:
        return ""
    rows = "".join(_result_row(path, state) for path in reversed(files[-6:]))
    more = (
        f'<p class="zg-muted">and {len(files) - 6} earlier ones in the same folder</p>'
        if len(files) > 6
        else ""
    )
    return f'<table class="zg-table"><tr><th>Saved</th><th></th></tr>{rows}</table>{more}'


def _told(view: RunView, state: RunState, look: bool) -> str:
    """What a run without checkpoints said, and the files or folders it wrote."""
    said = bullet_list(view.notes[-MOST_NOTES:]) if view.notes else ""
    rows = "".join(
        f'<tr><td><span class="zg-code">{escape(path)}</span></td><td class="zg-num">'
        f"{button('Look into it', 'look', run=state.folder.name, place=path) if look else ''}</td></tr>"
        for path in state.status.results
        if Path(path).exists()
    )
    return (notice(said, "good", raw=True) if said else "") + (
        f'<table class="zg-table"><tr><th>Written</th><th></th></tr>{rows}</table>' if rows else ""
    )


def _result_row(path: Path, state: RunState) -> str:
    use = button("Use in Generate", "generate", run=state.folder.name, place=str(path))
    copy = button("Copy path", "copy", copy=str(path))
    return (
        f'<tr><td title="{escape(str(path))}">{escape(path.name)}</td><td '
        f'class="zg-num">{use} {copy}</td></tr>'
    )


def curves(view: RunView) -> str:
    """Loss (raw, smoothed, of held-out pictures) and learning rate over the steps."""
    thinned = view.curves.thinned(CURVE_POINTS)
    loss = [
        Line("each step", thinned.steps, thinned.loss, "raw"),
        Line("smoothed", thinned.steps, thinned.loss_average, "smooth"),
    ]
    if held_out := view.validations:
        steps, losses = [one.step for one in held_out], [one.loss for one in held_out]
        loss.append(Line("held-out pictures", steps, losses, "held"))
    rate = [Line("learning rate", thinned.steps, thinned.lr, "rate")]
    waiting = "Appears with the first step."
    return (
        f'<div class="zg-charts">{line_chart("Loss", loss, waiting)}'
        f"{line_chart('Learning rate', rate, waiting)}</div>"
    )


def samples(view: RunView, cache: PictureCache) -> str:
    """A grid: one row per step (newest first), one column per prompt; a click opens the picture."""
    if not view.samples:
        return NO_SAMPLES
    columns = sorted({sample.index for sample in view.samples})
    by_step: dict[int, dict[int, Sample]] = {}
    for sample in view.samples:
        by_step.setdefault(sample.step, {})[sample.index] = sample
    prompts = {sample.index: sample.prompt for sample in view.samples}
    heads = "".join(
        f'<span class="zg-prompt" title="{escape(prompts[i])}">{escape(prompts[i])}</span>' for i in columns
    )
    rows = []
    for step in sorted(by_step, reverse=True)[:MOST_SAMPLE_ROWS]:
        cells = "".join(_cell(by_step[step].get(index), view.folder, cache) for index in columns)
        rows.append(f'<span class="zg-step">{step:,}</span>{cells}')
    style = f"grid-template-columns: 52px repeat({len(columns)}, minmax(110px, 220px))"
    return (
        f'<div class="zg-samples" style="{style}"><span class="zg-corner">step</span>'
        f"{heads}{''.join(rows)}</div>"
    )


def _cell(sample: Sample | None, folder: Path, cache: PictureCache) -> str:
    if sample is None:
        return "<span></span>"
    path = folder / sample.path
    small, whole = cache.thumbnail(path), cache.published(path)
    if small is None or whole is None:
        return f'<span class="zg-muted" title="{escape(str(path))}">not readable</span>'
    adapter = f" · training adapter {sample.adapter}" if sample.adapter else ""
    words = f"step {sample.step:,} · seed {sample.seed}{adapter} · {sample.prompt}"
    return (
        f'<img class="zg-thumb" loading="lazy" src="{url(small)}" '
        f'data-full="{url(whole)}" alt="{escape(words)}" title="{escape(words)}">'
    )


def log(lines: list[str]) -> str:
    text = escape("\n".join(lines)) if lines else "Nothing has been printed yet."
    return f'<div class="zg-log" data-follow="1">{text}</div>'


def problems(sentences: list[str]) -> str:
    return notice(bullet_list(sentences), "bad", raw=True)
