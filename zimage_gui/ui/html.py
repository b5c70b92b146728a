"""Small pieces of HTML for the window: escaped text, meters, badges, durations.

Knows how a number becomes words and a bar. Knows nothing of gradio, of runs or of models. Every text that
comes from a file, a caption or a person passes through `escape` here before it reaches a page.
"""

from __future__ import annotations

import html
import math

escape = html.escape


def tag(name: str, content: str = "", **attributes: str | None) -> str:
    """One element; `content` is HTML already, attribute values are escaped (`class_` becomes `class`)."""
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{parts}>{content}</{name}>"


def badge(text: str, tone: str = "plain") -> str:
    """A short coloured word; tones: plain, good, warn, bad, busy."""
    return tag("span", escape(text), class_=f"zg-badge zg-{tone}")


def button(
    text: str, action: str, *, confirm: str = "", tone: str = "plain", title: str = "", **data: str
) -> str:
    """A button that the script in `window.js` turns into a gradio event named `act` with these data."""
    attributes = {f"data_{key}": value for key, value in data.items()}
    return tag(
        "button", escape(text), type="button", class_=f"zg-button zg-{tone}", data_action=action,
        data_confirm=confirm or None, title=title or None, **attributes,
    )  # fmt: skip


def meter(label: str, text: str, share: float | None, title: str = "", *, full_is_bad: bool = True) -> str:
    """A labelled bar; `share` in 0..1 fills it (over 0.92 it warns, where full is bad), None draws no bar."""
    bar = ""
    if share is not None:
        width = min(max(share, 0.0), 1.0) * 100
        tone = "zg-full" if full_is_bad and share > 0.92 else ""
        bar = f'<span class="zg-bar {tone}"><i style="width:{width:.1f}%"></i></span>'
    head = f'<span class="zg-meter-label">{escape(label)}</span>'
    value = f'<span class="zg-meter-text">{escape(text)}</span>'
    return tag("span", head + bar + value, class_="zg-meter", title=title or None)


def progress_bar(share: float | None, text: str) -> str:
    """The wide bar of a job; an unknown share shows a moving stripe."""
    words = f'<span class="zg-progress-text">{escape(text)}</span>'
    if share is None:
        return f'<div class="zg-progress zg-moving" role="progressbar"><i></i>{words}</div>'
    percent = min(max(share, 0.0), 1.0) * 100
    fill = f'<i style="width:{percent:.1f}%"></i>'
    return f'<div class="zg-progress" role="progressbar" aria-valuenow="{percent:.0f}">{fill}{words}</div>'


def facts(pairs: list[tuple[str, str]]) -> str:
    """A row of small label/value tiles."""
    cells = "".join(
        f'<div class="zg-fact"><span>{escape(name)}</span><b>{escape(value)}</b></div>'
        for name, value in pairs
    )
    return f'<div class="zg-facts">{cells}</div>'


def notice(text: str, tone: str = "plain", *, raw: bool = False) -> str:
    """One paragraph in a tinted box; `raw` says that the text is HTML of ours."""
    return f'<div class="zg-notice zg-{tone}">{text if raw else escape(text)}</div>'


def bullet_list(sentences: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in sentences) + "</ul>"


def duration(seconds: float | None) -> str:
    """`12 s`, `3 min 05 s`, `2 h 14 min`, `3 d 2 h`; unknown, negative and not-a-number give a dash."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def pace(seconds_per_step: float | None) -> str:
    """Trainers' habit: seconds per step when slower than one a second, steps per second otherwise."""
    if seconds_per_step is None or not math.isfinite(seconds_per_step) or seconds_per_step <= 0:
        return "–"
    return (
        f"{seconds_per_step:.2f} s/step" if seconds_per_step >= 1 else f"{1 / seconds_per_step:.1f} steps/s"
    )


def file_size(count: float) -> str:
    """Bytes in the unit that leaves one to four digits."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def number(value: float) -> str:
    """A learning rate or a loss as people write it: 0.0001 is 1e-4, NaN stays visible."""
    if math.isnan(value):
        return "NaN"
    if value == 0 or math.isinf(value):
        return str(value) if math.isinf(value) else "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
