"""A dataset of one's own, and musubi's golden pictures."""

import shutil

import pytest
from cache_project import MUSUBI, Project


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


@pytest.fixture
def golden(tmp_path):
    shutil.copytree(MUSUBI / "images", tmp_path / "images")
    return Project(tmp_path)
