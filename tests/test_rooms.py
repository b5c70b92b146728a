"""The one rule between the rooms, read from the imports themselves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zimage_gui

ROOT = Path(zimage_gui.__file__).parent
BASE = {"errors", "events", "files", "cbor", "burnpack", "behind"}
LEVELS = {name: 0 for name in BASE} | {"config": 1, "model": 2, "engine": 3, "jobs": 4, "ui": 6}
"""A module may import modules of its own level's room and of lower levels. `demo` stands beside `jobs`,
`commands`, `terminal` and `cli` beside `ui`."""
LEVELS |= {"demo": 4, "terminal": 1, "commands": 5, "cli": 6, "__main__": 7, "__init__": 0}

MODULES = sorted(ROOT.rglob("*.py"))
HEAVY = {"torch", "transformers", "diffusers", "accelerate", "bitsandbytes", "peft"}


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Names of imported modules; at_import_time leaves out those inside functions and under TYPE_CHECKING."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        nodes += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path):
    own = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "zimage_gui" or len(parts) < 2 or parts[1] not in LEVELS:
            continue
        other = parts[1]
        assert own == other or LEVELS[other] < LEVELS[own] or {own, other} <= BASE, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_networks_stay_out_of_the_window_and_the_window_out_of_networks(path):
    own = room_of(path)
    names = {name.split(".")[0] for name in imports(path)}
    if own in {"config", "jobs", "ui", "cli", "commands", "terminal"} | BASE:
        assert not names & HEAVY
    if own in ("model", "engine"):
        assert not names & {"gradio", "subprocess", "multiprocessing"}


def test_no_room_is_forgotten():
    assert {room_of(path) for path in MODULES} <= set(LEVELS)
    assert all(
        not (ROOT / room / "__init__.py").read_text()
        for room in ("config", "model", "engine", "jobs", "ui", "demo")
    )


LIGHT = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in MODULES
    if room_of(path) in {"config", "jobs", "ui", "cli", "commands", "terminal"} | BASE
    and path.stem != "__init__"
)


def test_the_window_and_the_jobs_never_import_torch():
    """Really imported, all of them: what an import brings along counts too."""
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}: importlib.import_module(name)\n"
        f"found = sorted({HEAVY!r} & set(sys.modules))\n"
        "assert not found, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_weights_are_unpickled_and_no_shell_is_used():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        for word in ("torch.load(", "import pickle", "shell=True", "os.system(", "pickle.load"):
            assert word not in text, f"{path}: {word}"


def test_files_are_opened_in_utf_8_or_as_bytes():
    """`open`, `read_text` and `write_text` without an encoding read another one on Windows."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _needs_encoding(node):
                given = {keyword.arg for keyword in node.keywords}
                assert "encoding" in given or None in given, f"{path}:{node.lineno}"


def _needs_encoding(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)
    if name != "open" or not isinstance(call.func, ast.Name):
        return False
    modes = [
        arg.value
        for arg in (*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode"))
        if isinstance(arg, ast.Constant)
    ]
    return not any("b" in str(mode) for mode in modes)
