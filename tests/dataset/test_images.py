"""Pictures of every kind become upright RGB on white; bad ones are refused with a sentence and never
crash.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from zimage_gui.engine.dataset.images import PictureProblem, extensions, read_info, read_pixels


def noise(mode="RGB", size=(20, 12)):
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = np.random.default_rng(3).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return (
        Image.fromarray(values.squeeze(), mode="L")
        if bands == 1
        else Image.frombytes(mode, size, values.tobytes())
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_before_the_size_is_measured(tmp_path, orientation):
    picture = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    info, pixels = read_pixels(tmp_path / "a.png")
    assert info.size == ((12, 20) if orientation > 4 else (20, 12))
    assert read_info(tmp_path / "a.png") == info
    np.testing.assert_array_equal(pixels, upright)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    layer = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    layer.paste((0, 0, 255, 255), (0, 0, 4, 8))
    if mode == "P":
        layer.quantize(4).save(tmp_path / "a.png")
    else:
        layer.convert(mode).save(tmp_path / "a.png")
    info, pixels = read_pixels(tmp_path / "a.png")
    assert info.transparent and "transparency put on white" in info.notes
    assert pixels[0, 7].tolist() == [255, 255, 255] and pixels[0, 0].tolist() != [255, 255, 255]


def test_half_transparent_red_is_pink(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png")[1][0, 0].tolist() == [255, 127, 127]


def test_a_transparent_colour_of_an_rgb_png_counts_as_transparency(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert read_pixels(tmp_path / "a.png")[1][0, 0].tolist() == [255, 255, 255]


def test_16_bit_grays_keep_their_tones(tmp_path):
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    info, pixels = read_pixels(tmp_path / "a.png")
    assert pixels[0, :, 0].tolist() == [0, 128, 255] and "16 bits reduced to 8" in info.notes


def png(width, height, bits, colour_type, rows, extra=b""):
    """A PNG of raw rows, each without its filter byte; `extra` is a (kind, data) chunk before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = b""
    for kind, data in ((b"IHDR", header), *([extra] if extra else []), (b"IDAT", body), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("bits", "row", "key", "expected"),
    [
        (16, struct.pack(">4H", 0, 0x5500, 0xAA00, 0xFFFF), 0x5500, [0, 255, 170, 255]),
        (4, bytes([0x01, 0x23]), 1, [0, 255, 34, 51]),
        (2, bytes([0b00011011]), 1, [0, 255, 170, 255]),
    ],
)
def test_a_transparent_gray_becomes_white_at_every_depth(tmp_path, bits, row, key, expected):
    (tmp_path / "a.png").write_bytes(png(4, 1, bits, 0, [row], (b"tRNS", struct.pack(">H", key))))
    assert read_pixels(tmp_path / "a.png")[1][0, :, 0].tolist() == expected


def test_a_png_with_one_wrong_byte_is_refused(tmp_path):
    noise(size=(64, 64)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureProblem, match="damaged"):
        read_pixels(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.png"),
        ("CMYK", "a.jpg"),
        ("RGB", "a.BMP"),
        ("RGB", "a.webp"),
        ("RGB", "a.AVIF"),
        ("RGB", "a.jpeg"),
    ],
)
def test_modes_and_formats_become_rgb(tmp_path, mode, name):
    noise(mode).save(tmp_path / name)
    info, pixels = read_pixels(tmp_path / name)
    assert pixels.shape == (12, 20, 3) and info.size == (20, 12)
    if name.endswith(("png", "BMP")):
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(tmp_path / name).convert("RGB")))


def test_a_bilevel_picture_is_black_and_white(tmp_path):
    Image.new("1", (3, 3), 1).save(tmp_path / "a.png")
    assert read_pixels(tmp_path / "a.png")[1].min() == 255


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_the_first_frame_of_an_animation_is_used(tmp_path, ending):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    red.save(tmp_path / f"a.{ending}", save_all=True, append_images=[blue], lossless=True)
    info, pixels = read_pixels(tmp_path / f"a.{ending}")
    assert info.animated and pixels[4, 4, 0] > 250 and pixels[4, 4, 2] < 5


def test_the_content_decides_not_the_ending(tmp_path):
    noise().save(tmp_path / "a.png", format="JPEG")
    assert read_info(tmp_path / "a.png").size == (20, 12)


def png_claiming(width, height):
    """A well-formed PNG whose header claims a huge size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png_claiming(60000, 60000))
    for read in (read_info, read_pixels):
        with pytest.raises(PictureProblem, match="million pixels"):
            read(tmp_path / "a.png")


def test_a_hundred_megapixel_photograph_is_no_bomb(tmp_path):
    (tmp_path / "a.png").write_bytes(png_claiming(11656, 8742))
    with pytest.warns(Image.DecompressionBombWarning):  # pytest's own filter; ours silences it in programs
        assert read_info(tmp_path / "a.png").size == (11656, 8742)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "avif"])
def test_a_picture_that_is_cut_short_is_refused(tmp_path, ending):
    buffer = io.BytesIO()
    noise(size=(64, 64)).save(buffer, format="JPEG" if ending == "jpg" else ending.upper())
    (tmp_path / f"a.{ending}").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(PictureProblem, match="damaged"):
        read_pixels(tmp_path / f"a.{ending}")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureProblem, match="damaged"):
        read_info(tmp_path / "a.png")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(PictureProblem, match="does not exist"):
        read_pixels(tmp_path / "a.png")
    with pytest.raises(PictureProblem):
        read_pixels(tmp_path)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_damage_ends_in_a_picture_or_a_sentence(tmp_path_factory, data):
    buffer = io.BytesIO()
    noise(size=(24, 16)).save(
        buffer, format=data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "AVIF"]))
    )
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "a.png"
    path.write_bytes(content)
    try:
        info, pixels = read_pixels(path)
    except PictureProblem as problem:
        assert str(problem)
    else:
        assert pixels.shape == (info.size[1], info.size[0], 3)


def test_all_endings_of_the_first_seed_count_as_pictures():
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif"} <= set(extensions())
