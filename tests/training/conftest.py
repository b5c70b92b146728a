"""The tiny project, its caches filled once."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tiny_project import lora_config, write_models, write_pictures

from zimage_gui.engine.caches import ensure_caches
from zimage_gui.events import NullRun


@pytest.fixture(scope="session")
def made_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_models(folder / "models")
    write_pictures(folder / "pictures")
    ensure_caches(lora_config(folder), NullRun(folder))
    return folder


@pytest.fixture
def project(made_project: Path, tmp_path: Path) -> Path:
    """A copy of the project, cached, without results."""
    return Path(shutil.copytree(made_project, tmp_path / "a project"))
