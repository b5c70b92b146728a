"""How the window looks: a gradio theme of system fonts and one accent colour, and where its CSS and script
lie.

Knows colours and fonts only. No font or script is ever fetched from a network.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent
CSS_FILE = HERE / "style.css"
SCRIPT_FILE = HERE / "window.js"

SANS = [
    "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP",
    "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic UI", "WenQuanYi Micro Hei", "sans-serif",
]  # fmt: skip
MONO = [
    "ui-monospace",
    "SFMono-Regular",
    "Consolas",
    "DejaVu Sans Mono",
    "WenQuanYi Micro Hei Mono",
    "monospace",
]

ACCENT = gr.themes.Color(
    c50="#effaf8", c100="#d5f3ee", c200="#aee6de", c300="#7bd2c7", c400="#46b7ab", c500="#229a8f",
    c600="#177b73", c700="#16635e", c800="#164f4c", c900="#164240", c950="#062726",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """Compact spacing, because a training form has many fields; light and dark from the same palette."""
    return gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=gr.themes.colors.slate,
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_md,
        font=SANS,
        font_mono=MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",  # gradio's 400 is too pale to read on a tinted box
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_label_text_weight="600",
        block_title_text_weight="600",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        button_large_padding="7px 12px",
        button_large_text_size="*text_md",
        button_large_text_weight="600",
        button_small_padding="4px 10px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
    )
