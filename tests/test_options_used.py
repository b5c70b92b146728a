"""An option that nothing reads is a defect: every one is named somewhere outside the schema."""

import ast
from pathlib import Path

import pytest

import zimage_gui
from zimage_gui.config.registry import COMMANDS
from zimage_gui.config.schema import options_of

ROOT = Path(zimage_gui.__file__).parent
ROOMS = {
    "gui": ("ui", "cli.py", "config/app.py"),
    "demo": ("demo",),
    "dataset": ("engine",),
    "cache-latents": ("engine", "cli.py"),
    "cache-text": ("engine", "cli.py"),
    "train-lora": ("engine", "cli.py"),
    "train": ("engine", "cli.py"),
    "finetune": ("engine", "cli.py"),
    "generate": ("engine", "cli.py"),
    "convert-lora": ("engine",),
    "convert": ("engine",),
    "merge": ("engine",),
    "resize-lora": ("engine",),
    "extract-lora": ("engine",),
    "edit-lora": ("engine", "config/lora_tools.py"),
    "verify-lora": ("engine",),
    "ema-lora": ("engine",),
    "inspect": ("engine",),
}
ELSEWHERE = {
    "network_alpha": "read as `alpha`, which is the rank when it is empty",
    "network_reg_dims": "read as `reg_dims`",
    "compile_backend": "read as `compiled_with`",
    "dynamo_backend": "read as `compiled_with`",
    "resume_from_huggingface": "becomes huggingface_resume",
    "network_args": "replaced by the options it stands for",
    "energy": "read by lora_merge_files, the half of merge without a base model",
    "width": "becomes image_size",
    "height": "becomes image_size",
}
PREFIXES = {"metadata_": 'read as f"metadata_{name}"'}


def names_read(rooms: tuple[str, ...]) -> set[str]:
    """Attributes and words in the code of these rooms."""
    names: set[str] = set()
    for room in rooms:
        path = ROOT / room
        for file in [path] if path.is_file() else path.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute):
                    names.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names.add(node.value)
    return names


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_read_by_its_command(command):
    read = names_read(ROOMS[command])
    unread = [
        name
        for name in options_of(COMMANDS[command])
        if name not in read
        and name not in ELSEWHERE
        and not any(name.startswith(start) and start in read for start in PREFIXES)
    ]
    assert not unread
