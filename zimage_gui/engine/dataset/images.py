"""Reading of picture files: size and kind from the header, upright RGB pixels from the whole file.

Knows Pillow and picture files. Must not know buckets, captions or caches. Pictures come from anywhere, so
whatever goes wrong inside a decoder becomes a `PictureProblem` with a sentence, never a crash.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from zimage_gui.engine.dataset.buckets import Size
from zimage_gui.engine.dataset.resize import Pixels

MAX_PIXELS = 178_956_970
"""Pillow refuses larger pictures as decompression bombs; one of this size needs about 0.7 GB while it is
read.
"""

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "AVIF", "GIF", "TIFF")
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND\xaeB`\x82"}
_TAIL = 64
"""Bytes; more zeros than that at the end of a file come from a copy that was broken off."""
_TURNED_SIDEWAYS = (5, 6, 7, 8)

# Pillow warns from half of MAX_PIXELS on; a 100-megapixel photograph is nothing to warn about here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureProblem(Exception):
    """A picture that cannot be used; the text is a sentence part that follows the file's name."""


@dataclass(frozen=True)
class PictureInfo:
    """Facts of a picture from its header. `size` is (width, height) after the EXIF turn, in pixels."""

    size: Size
    mode: str
    orientation: int = 1
    transparent: bool = False
    animated: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to make plain RGB of it, in words for the report."""
        said = {
            "turned by its EXIF orientation": self.orientation != 1,
            "transparency put on white": self.transparent,
            "animated: first frame used": self.animated,
            "16 bits reduced to 8": self.mode.startswith("I"),
            "CMYK converted to RGB": self.mode == "CMYK",
        }
        return tuple(text for text, holds in said.items() if holds)


def extensions() -> tuple[str, ...]:
    """File endings that count as pictures here, lower case; `.jxl` when a Pillow plugin for it is
    installed.
    """
    return (*EXTENSIONS, ".jxl") if _jxl_plugin() else EXTENSIONS


def _jxl_plugin() -> bool:
    for name in ("pillow_jxl", "jxlpy.JXLImagePlugin"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return True
    return False


def read_info(path: Path) -> PictureInfo:
    """Size and kind from the header, without decoding. Raises PictureProblem."""
    with _opened(path) as image:
        return _info(image)


def read_texts(path: Path) -> dict[str, object]:
    """What a file says beside its pixels, before and behind them, by key. Raises PictureProblem."""
    with _opened(path) as image:
        image.load()
        return {str(key): value for key, value in image.info.items()}


def seems_whole(path: Path) -> bool:
    """Whether the file ends as its kind does; of one that does not, only decoding tells. Some cameras write
    more behind the end of a JPEG.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(12)
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            tail = file.read().rstrip(b"\0")
    except OSError:
        return False
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if head.startswith(b"BM"):
        return int.from_bytes(head[2:6], "little") <= size
    return next((tail.endswith(end) for start, end in _ENDS.items() if head.startswith(start)), True)


def read_pixels(path: Path) -> tuple[PictureInfo, Pixels]:
    """Decode to upright RGB, (height, width, 3) uint8; transparency lies on white. Raises PictureProblem."""
    _check_sums(path)
    with _opened(path) as image:
        _scale_colour_key(image)
        info = _info(image)
        pixels = np.array(_to_rgb(_upright(image, info), info), dtype=np.uint8)
    if pixels.shape != (info.size[1], info.size[0], 3):
        raise PictureProblem("decodes to another size than its header says")
    return info, pixels


def read_alpha(path: Path) -> Pixels | None:
    """How opaque each pixel of the upright picture is, (height, width) uint8; None when all are. Raises
    PictureProblem.
    """
    _check_sums(path)
    with _opened(path) as image:
        _scale_colour_key(image)
        info = _info(image)
        if not info.transparent or image.mode.startswith("I"):
            return None
        return np.array(_upright(image, info).convert("RGBA").getchannel("A"), dtype=np.uint8)


def _upright(image: Image.Image, info: PictureInfo) -> Image.Image:
    image.load()
    return ImageOps.exif_transpose(image) if info.orientation != 1 else image


def _check_sums(path: Path) -> None:
    """PNG keeps a checksum of every chunk, which Pillow compares only when asked: without it a damaged file
    decodes to a picture whose lower part is black.
    """
    with _opened(path) as image:
        if image.format == "PNG":
            image.verify()


def _scale_colour_key(image: Image.Image) -> None:
    """Pillow spreads 2 and 4-bit grays over 0 to 255, but not the gray that a PNG declares transparent."""
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int) and tiles:
        factor = {"L;2": 85, "L;4": 17}.get(str(tiles[0].args), 1)
        image.info["transparency"] = key * factor


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture of a file. Whatever goes wrong inside becomes a PictureProblem: decoders raise anything."""
    try:
        with _open(path) as image:
            yield image
    except PictureProblem:
        raise
    except Exception as error:
        raise PictureProblem(_sentence(error, path)) from error


def _open(path: Path) -> Image.Image:
    formats = (*_FORMATS, "JXL") if path.suffix.lower() == ".jxl" and _jxl_plugin() else _FORMATS
    if not path.is_file():  # opening a pipe would wait for ever
        raise PictureProblem("is not a file" if path.exists() else "does not exist")
    image = Image.open(path, formats=formats)
    if image.width * image.height > MAX_PIXELS:
        raise PictureProblem(_too_large(image.width, image.height))
    return image


def _info(image: Image.Image) -> PictureInfo:
    if image.width < 1 or image.height < 1:
        raise PictureProblem("has no pixels")
    orientation = _orientation(image)
    size = (image.height, image.width) if orientation in _TURNED_SIDEWAYS else (image.width, image.height)
    return PictureInfo(
        size=size,
        mode=image.mode,
        orientation=orientation,
        transparent=image.has_transparency_data,
        animated=image.format != "MPO" and bool(getattr(image, "is_animated", False)),
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; unreadable EXIF data counts as upright, as in every viewer."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image, info: PictureInfo) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_high_byte(image)).convert("RGB")
    if info.transparent:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode == "F":
        raise PictureProblem("holds floating point values, whose white is unknown: save it as PNG or JPEG")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image) -> Pixels:
    """Grays of 16 bits to 8: the high byte, as Pillow does for 16-bit colour. Its own conversion clips at
    255, also of the gray that a PNG declares transparent, which becomes white here.
    """
    values = np.asarray(image).astype(np.int64)
    high: Pixels = np.clip(values >> 8, 0, 255).astype(np.uint8)
    high[values == image.info.get("transparency", -1)] = 255
    return high


def _too_large(width: int, height: int) -> str:
    return (
        f"has {width}x{height} pixels; more than {MAX_PIXELS // 10**6} million are refused: make it smaller"
    )


def _sentence(error: Exception, path: Path) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"claims more than {MAX_PIXELS // 10**6} million pixels, which is refused: make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return "is damaged, or no picture of a kind that can be read (png, jpeg, webp, bmp, avif)"
    if isinstance(error, PermissionError):
        return "may not be read by this user"
    if isinstance(error, MemoryError):
        return "needs more memory than there is to be decoded"
    reason = str(error).replace(str(path), "").strip(" .:'") or type(error).__name__
    return f"is damaged or cut short ({reason[:120]})"
