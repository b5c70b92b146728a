"""Captions are read as UTF-8 and anything else is named, not guessed."""

import pytest

from zimage_gui.engine.dataset.captions import MAX_CAPTION_BYTES, decode_caption, read_caption


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"  a cat\n", "a cat"),
        (b"\xef\xbb\xbfa cat", "a cat"),
        ("一只猫".encode(), "一只猫"),
        ("a cat".encode("utf-16"), "a cat"),
        (b"a\r\nb\rc", "a\nb\nc"),
        (b"", ""),
        (b" \n ", ""),
    ],
)
def test_captions_are_the_stripped_text(data, text):
    assert decode_caption(data) == decode_caption(text.encode()) and decode_caption(data).text == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("猫が窓辺で眠る", "cp932"), ("一只红色的猫坐在窗边", "gbk"), ("café au lait", "cp1252")],
)
def test_a_foreign_encoding_is_named_with_the_way_out(text, encoding):
    problem = decode_caption(text.encode(encoding)).problem
    assert "not UTF-8" in problem and encoding in problem and "save it again as UTF-8" in problem


def test_bytes_that_are_no_text_are_refused(tmp_path):
    assert "no text file" in decode_caption(b"a\0b").problem
    (tmp_path / "a.txt").write_bytes(b"x" * (MAX_CAPTION_BYTES + 1))
    assert "larger" in read_caption(tmp_path / "a.txt").problem
    assert "cannot be read" in read_caption(tmp_path / "none.txt").problem
