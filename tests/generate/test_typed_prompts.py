"""Prompts typed into a stream, however it ends."""

import io

import pytest

from zimage_gui.engine.interactive import typed_prompts


def typed(data: bytes) -> tuple[list[str], list[str]]:
    """The prompts and the complaints."""
    complaints: list[str] = []
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8")
    prompts = [line.prompt for line in typed_prompts(stream, lambda: False, complaints.append)]
    return prompts, complaints


def test_each_line_is_a_prompt_and_a_wrong_one_is_told():
    prompts, complaints = typed("# none\n\na cat\na dog --w nine\n狐".encode())
    assert prompts == ["a cat", "狐"]
    assert len(complaints) == 1 and "--w" in complaints[0]


@pytest.mark.timeout(20)
def test_bytes_that_are_no_text_end_the_prompts():
    prompts, complaints = typed(b"a cat\n" + b"a dog\n" * 2000 + b"\xff\nfox\n")
    assert prompts[0] == "a cat" and "fox" not in prompts
    assert "cannot be read" in complaints[-1]
