"""The picture in a LoRA's header (`modelspec.thumbnail`): made of a file, and taken out again to be shown.

Knows pictures and data URLs. Must not know LoRAs. What stands in a downloaded header is hostile: it is
decoded within bounds and only ever handed on as a picture made anew.
"""

import base64
import binascii
import io
import re
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageOps

from zimage_gui.engine.dataset.images import PictureProblem, read_pixels
from zimage_gui.engine.inspect_training import PICTURE_KEY
from zimage_gui.errors import UserError

KEY = PICTURE_KEY
_EDGE = 256  # pixels of the longer side
_MOST_STORED_PIXELS = 20_000_000
_LONGEST = 8 * 1024 * 1024  # characters
_FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/(?:png|jpe?g|webp);base64,", re.IGNORECASE)
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def from_file(path: Path) -> str:
    """A picture as the data URL that model pages show, at most 256 pixels wide and high. Raises UserError."""
    try:
        return _data_url(Image.fromarray(read_pixels(path)[1]))
    except PictureProblem as problem:
        raise UserError.one("thumbnail", path, str(problem), "Give a PNG, JPEG or WebP") from problem


def of_header(metadata: Mapping[str, str]) -> str | None:
    """The header's picture as such a data URL; None when there is none that can be shown."""
    text = metadata.get(KEY, "")
    found = _DATA_URL.match(text[:64])
    if found is None or len(text) > _LONGEST:
        return None
    try:
        data = base64.b64decode(text[found.end() :], validate=True)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _data_url(image) if image.width * image.height <= _MOST_STORED_PIXELS else None
    except (*_UNREADABLE, binascii.Error):
        return None


def _data_url(image: Image.Image) -> str:
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    upright.thumbnail((_EDGE, _EDGE))
    flat = Image.new("RGB", upright.size, "white")
    flat.paste(upright, mask=upright.getchannel("A"))
    data = io.BytesIO()
    flat.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
