"""Write drawn pictures with their captions as plain dataset folders: the training set and the zorbs.

Knows folders, file names and which subject goes where. Must not know models or torch.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from zimage_gui.demo.draw import (
    BACKGROUNDS,
    COLOURS,
    NEW_SHAPE,
    SHAPES,
    Subject,
    draw,
    extra_subjects,
    held_out_subjects,
    trained_subjects,
)
from zimage_gui.files import atomic_write

ZORB_PICTURES = 16
ZORB_PROMPT = Subject(NEW_SHAPE, "red", "white")
FIRST_ZORB_SEED = 500_000
FIRST_KNOWN_SEED = 600_000


def zorb_subjects() -> list[Subject]:
    """Sixteen zorbs, each colour twice, on grounds in turn; red on white is kept for the proof."""
    subjects: list[Subject] = []
    grounds = list(BACKGROUNDS)
    for turn in range(ZORB_PICTURES // len(COLOURS)):
        for index, colour in enumerate(COLOURS):
            choice = [g for g in grounds if g != colour and Subject(NEW_SHAPE, colour, g) != ZORB_PROMPT]
            subjects.append(Subject(NEW_SHAPE, colour, choice[(index + 2 * turn) % len(choice)]))
    return subjects


def known_subjects() -> list[Subject]:
    """Each colour with each shape the model knows, on grounds in turn; none is a held-out combination.

    Trained beside the zorbs they keep a circle a circle: pictures of zorbs alone teach that all is zorb.
    """
    held_out = set(held_out_subjects())
    subjects: list[Subject] = []
    for index, colour in enumerate(COLOURS):
        for turn, shape in enumerate(SHAPES):
            every = [Subject(shape, colour, ground) for ground in BACKGROUNDS if ground != colour]
            choice = [subject for subject in every if subject not in held_out]
            subjects.append(choice[(index + 2 * turn) % len(choice)])
    return subjects


def write_picture(folder: Path, stem: str, picture: Image.Image, caption: str) -> None:
    """`stem.png` and `stem.txt`, each written whole or not at all."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    atomic_write(folder / f"{stem}.png", file.getvalue())
    atomic_write(folder / f"{stem}.txt", (caption + "\n").encode("utf-8"))


def write_zorbs(folder: Path) -> int:
    """The demo's dataset of the new shape; returns the number of pictures."""
    for index, subject in enumerate(zorb_subjects()):
        stem = f"{index + 1:02}_{subject.colour}_on_{subject.background}"
        write_picture(folder, stem, draw(subject, FIRST_ZORB_SEED + index), subject.caption)
    return ZORB_PICTURES


def write_known(folder: Path) -> int:
    """Pictures of what the model knows already (regularisation); returns their number."""
    for index, subject in enumerate(known_subjects()):
        stem = f"{index + 1:02}_{subject.colour}_{subject.shape}_on_{subject.background}"
        write_picture(folder, stem, draw(subject, FIRST_KNOWN_SEED + index), subject.caption)
    return len(known_subjects())


def write_training_set(folder: Path, copies: int, extra_copies: int) -> int:
    """`copies` pictures of each trained combination, `extra_copies` of each extra one; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(s, copies) for s in trained_subjects()] + [(s, extra_copies) for s in extra_subjects()]
    for subject, count in wanted:
        for seed in range(count):
            stem = f"{subject.colour}_{subject.shape}_{subject.background}_{seed:03}"
            draw(subject, seed).save(folder / f"{stem}.png")
            (folder / f"{stem}.txt").write_text(subject.caption + "\n", encoding="utf-8")
    return sum(count for _, count in wanted)
