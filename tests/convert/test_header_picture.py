"""The picture in a LoRA's header: what is put in is shown, and no header can do harm."""

import base64
import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from zimage_gui.engine import header_picture
from zimage_gui.engine.inspect_file import inspect
from zimage_gui.ui.file_report import report_html


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")


def encoded(kind: str, size: tuple[int, int] = (400, 200)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, "green").save(data, kind)
    return data.getvalue()


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))


def huge_png() -> bytes:
    """A picture of 60,000 x 60,000 in its head, with nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_stored_picture_comes_out_small_and_made_anew(kind: str) -> None:
    shown = header_picture.of_header({header_picture.KEY: url(encoded(kind), kind.lower())})
    assert shown is not None and decoded(shown).size == (256, 128) and decoded(shown).format == "JPEG"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://example.com/tracker.png",
        'data:image/png;base64,"><script>alert(1)</script>',
        url(b"<svg onload='alert(1)'/>", "svg+xml"),
        url(encoded("PNG")[:60]),
        url(encoded("GIF"), "png"),
        url(huge_png()),
        url(b"a" * 9_000_000),
    ],
)
def test_what_is_no_such_picture_is_not_shown(text: str) -> None:
    assert header_picture.of_header({header_picture.KEY: text}) is None


def test_the_report_shows_the_picture(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "data" / "lora_dialects" / "main_kohya_split.safetensors"
    path = tmp_path / "lora.safetensors"
    picture = tmp_path / "p.png"
    picture.write_bytes(encoded("PNG"))
    save_file(load_file(source), path, {header_picture.KEY: header_picture.from_file(picture)})
    assert '<img class="zg-header-picture" src="data:image/jpeg;base64,' in report_html(inspect(path))
    assert "<img" not in report_html(inspect(source))
