"""Mutated headers are refused in words or read as they are; `python -m tests.fuzz` asks for an hour."""

import sys
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))

from header_fuzz import check, kept, mutations, seeds


def test_mutated_headers_are_refused_in_words_or_read_as_they_are(tmp_path):
    taken = sum(check(content, tmp_path) for content in islice(mutations(20261125), 1500))
    assert 100 < taken < 1400, "the mutations must leave some files whole and break others"


def test_every_seed_and_every_file_kept_from_a_fuzzing_run_is_answered(tmp_path):
    assert len(kept()) >= 1
    for content in seeds():
        check(content, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_half_a_million_mutated_headers(tmp_path):
    for content in islice(mutations(1), 500_000):
        check(content, tmp_path)
