"""Cache files on disk: their names, keys and fingerprints, and which of them still hold.

Names and tensor keys are musubi-tuner's, so each program reads the other's files; our fingerprint is
metadata that musubi ignores. Knows safetensors headers and hashes. Must not know networks: it never imports
torch, because the window asks it how much of a dataset is cached.
"""

import enum
import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from zimage_gui.engine.dataset.buckets import Size
from zimage_gui.engine.dataset.discover import folded_name
from zimage_gui.engine.dataset.scan import Picture
from zimage_gui.errors import UserError
from zimage_gui.files import Header, TensorInfo, atomic_write, read_header, unwritten
from zimage_gui.model.checkpoint import open_checkpoint, part_folder

ARCHITECTURE = "z_image"
FORMAT_VERSION = "1.0.1"
_LONGEST_KEY = 200
"""Bytes; file systems allow 255 for a name, of which the endings take up to 32."""

LATENT_CHANNELS = 16
DOWNSCALE = 8
"""Pixels per latent along one side."""

IMAGE_HASH, BUCKET, VAE = "zimage_gui_image_sha256", "zimage_gui_bucket", "zimage_gui_vae"
CAPTION_HASH, TEXT_ENCODER = "zimage_gui_caption_sha256", "zimage_gui_text_encoder"
PRECISION = "zimage_gui_precision"
SOURCE, CHECKSUM = "zimage_gui_source", "zimage_gui_crc32"

_LATENT_KEY = re.compile(r"^latents_1x(\d+)x(\d+)_(float32|float16|bfloat16)$")
MASK_KEY = re.compile(r"^mask_(\d+)x(\d+)_(float32)$")
_TEXT_KEY = re.compile(r"^varlen_llm_embed_(float32|float16|bfloat16)$")
_FLOATS = ("F32", "F16", "BF16")


class Kind(enum.Enum):
    LATENT = "latent"
    TEXT = "text"
    MASK = "mask"


TENSOR_KEYS = {Kind.LATENT: _LATENT_KEY, Kind.TEXT: _TEXT_KEY, Kind.MASK: MASK_KEY}


class State(enum.Enum):
    """Whether a cache file can be used. UNVERIFIED: another program made it, all that can be compared
    agrees.
    """

    READY = "ready"
    UNVERIFIED = "unverified"
    MISSING = "missing"
    STALE = "stale"
    CORRUPT = "corrupt"

    @property
    def usable(self) -> bool:
        return self in (State.READY, State.UNVERIFIED)


@dataclass(frozen=True)
class Verdict:
    state: State
    reason: str = ""


@dataclass(frozen=True)
class Maker:
    """What encodes now, to be compared with what encoded then. identity: of the weights, None when no
    encoder was named (then it is not compared); precision: "no", "bf16" or "fp16", None when any will do.
    """

    identity: str | None
    precision: str | None = None

    def differs_from(self, identity: str | None, precision: str | None) -> str | None:
        """What differs, in words."""
        if self.identity is not None and self.identity != identity:
            return "another encoder made it"
        if self.identity is not None and self.precision is not None and self.precision != precision:
            return "it was made in another precision"
        return None


@dataclass(frozen=True)
class CacheItem:
    """A picture with the unique key of its cache files inside its cache directory; `flipped` and a `number`
    of its captions above 0 make it one of its variants, whose files have names of our own."""

    picture: Picture
    key: str
    flipped: bool = False
    number: int = 0

    @property
    def plain(self) -> "CacheItem":
        return self if not self.flipped and not self.number else CacheItem(self.picture, self.key)

    @property
    def caption(self) -> str:
        return self.picture.captions[self.number]

    @property
    def latent_path(self) -> Path:
        return self._latent("_flip" if self.flipped else "")

    @property
    def mask_path(self) -> Path:
        return self._latent("_mask")

    def _latent(self, variant: str) -> Path:
        width, height = self.picture.original
        name = f"{self.key}_{width:04d}x{height:04d}_zi{variant}.safetensors"
        return self.picture.source.cache_directory / name

    @property
    def text_path(self) -> Path:
        # Named by what it says: another number of variants changes no file.
        variant = f"_{caption_hash(self.caption)[:12]}" if self.number else ""
        return self.picture.source.cache_directory / f"{self.key}_zi_te{variant}.safetensors"

    def path(self, kind: Kind) -> Path:
        return {Kind.LATENT: self.latent_path, Kind.TEXT: self.text_path, Kind.MASK: self.mask_path}[kind]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        width, height = self.picture.bucket
        return LATENT_CHANNELS, height // DOWNSCALE, width // DOWNSCALE


def cache_items(pictures: Iterable[Picture]) -> list[CacheItem]:
    """Give every picture its key: the file's stem, as in musubi-tuner, for the first picture of that stem
    in a cache directory. Further ones (a.jpg beside a.png, JSONL from two folders, two entries with one
    cache directory) get `stem-` and eight hexadecimal digits that depend on their path, so that nothing is
    overwritten.
    """
    taken: set[tuple[Path, str]] = set()
    seen: dict[tuple[Path, str], int] = {}
    items = []
    for picture in pictures:
        folder = picture.source.cache_directory
        origin = relative_source(picture.path, folder)
        count = seen[folder, origin] = seen.get((folder, origin), 0) + 1
        key = stem = picture.path.stem
        attempt = 0
        while _too_long(key) or (folder, folded_name(key)) in taken:
            digest = hashlib.sha256(f"{origin}\n{count}\n{attempt}".encode()).hexdigest()
            key = f"{_first_bytes(stem)}-{digest[:8]}"
            attempt += 1
        taken.add((folder, folded_name(key)))
        items.append(CacheItem(picture, key))
    return items


def with_flips(items: Iterable[CacheItem]) -> list[CacheItem]:
    """Every latent of these pictures, the mirrored ones too."""
    return [
        replace(item, flipped=flipped)
        for item in items
        for flipped in ((False, True) if item.picture.source.flip_aug else (False,))
    ]


def with_captions(items: Iterable[CacheItem]) -> list[CacheItem]:
    """Every caption of these pictures."""
    return [replace(item, number=number) for item in items for number in range(len(item.picture.captions))]


def _too_long(key: str) -> bool:
    return len(os.fsencode(key)) > _LONGEST_KEY


def _first_bytes(stem: str) -> str:
    """As much of a stem as leaves room for the suffix; a character is never cut in two."""
    return os.fsencode(stem)[: _LONGEST_KEY - 9].decode("utf-8", "ignore")


def relative_source(picture: Path, cache_directory: Path) -> str:
    """The picture's path from its cache directory, with `/`; absolute when it lies on another drive."""
    try:
        path = Path(os.path.relpath(picture.absolute(), cache_directory.absolute())).as_posix()
    except ValueError:
        path = picture.absolute().as_posix()
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def image_hash(path: Path) -> str:
    """sha256 of the picture file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def caption_hash(caption: str) -> str:
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()


def model_identity(path: Path, option: str) -> str:
    """A hash that tells model files apart without reading gigabytes: every header byte, the files' sizes,
    256 bytes at the start, middle and end of each tensor, and the config.json. Names and folders of the
    files do not count.
    """
    digest = hashlib.sha256()
    checkpoint = open_checkpoint(part_folder(path, option), option)
    for file in checkpoint.files:
        tensors = [place.info for place in checkpoint.places.values() if place.file == file]
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            digest.update(
                struct.pack("<Q", size) + stream.read(min((info.start for info in tensors), default=size))
            )
            for info in sorted(tensors, key=lambda info: info.start):
                for start in (info.start, (info.start + info.end) // 2, max(info.start, info.end - 256)):
                    stream.seek(start)
                    digest.update(stream.read(min(256, info.end - start)))
    settings = {key: value for key, value in checkpoint.settings.items() if not key.startswith("_")}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def latent_metadata(item: CacheItem, image_sha256: str, maker: Maker) -> dict[str, str]:
    width, height = item.picture.original
    return {
        "architecture": ARCHITECTURE,
        "width": str(width),
        "height": str(height),
        "format_version": FORMAT_VERSION,
        IMAGE_HASH: image_sha256,
        BUCKET: bucket_text(item.picture.bucket),
        VAE: maker.identity or "",
        PRECISION: maker.precision or "no",
        SOURCE: relative_source(item.picture.path, item.picture.source.cache_directory),
    }


def text_metadata(item: CacheItem, maker: Maker) -> dict[str, str]:
    return {
        "architecture": ARCHITECTURE,
        "caption1": item.caption,
        "format_version": FORMAT_VERSION,
        CAPTION_HASH: caption_hash(item.caption),
        TEXT_ENCODER: maker.identity or "",
        PRECISION: maker.precision or "bf16",
        SOURCE: relative_source(item.picture.path, item.picture.source.cache_directory),
    }


def bucket_text(bucket: Size) -> str:
    return f"{bucket[0]}x{bucket[1]}"


def write_cache(
    path: Path, key: str, dtype: str, shape: tuple[int, ...], data: bytes, metadata: dict[str, str]
) -> None:
    """One tensor as a safetensors file, whole or not at all. `dtype` as safetensors spells it (F32, BF16)."""
    noted = metadata | {CHECKSUM: f"{zlib.crc32(data):08x}"}
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": noted, key: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    try:
        atomic_write(path, struct.pack("<Q", len(header)) + header + data)
    except PermissionError as error:  # Windows and network drives tell their rights only now
        raise unwritten(error, path.parent, "cache_directory") from error


def latent_key(shape: tuple[int, int, int]) -> str:
    return f"latents_1x{shape[1]}x{shape[2]}_float32"


TEXT_KEY = "varlen_llm_embed_bfloat16"


def judge_latent(item: CacheItem, maker: Maker, *, trust: bool = False) -> Verdict:
    """Whether the latent of `item` can be used as it is.

    trust: take an existing, readable file of the right bucket without comparing fingerprints
    (`--skip_existing`).
    """
    found = opened_cache(item.latent_path, _LATENT_KEY)
    if isinstance(found, Verdict):
        return found
    metadata, info = found.metadata, found.tensor
    size = tuple(str(side) for side in item.picture.original)
    if info.shape != item.latent_shape or metadata.get(
        BUCKET, bucket_text(item.picture.bucket)
    ) != bucket_text(item.picture.bucket):
        return Verdict(State.STALE, "its bucket has changed")
    if trust:
        return Verdict(State.READY)
    if IMAGE_HASH not in metadata:
        agrees = (metadata.get("width"), metadata.get("height")) == size
        return (
            Verdict(State.UNVERIFIED)
            if agrees
            else Verdict(State.STALE, "it is of a picture of another size")
        )
    try:
        unchanged = metadata[IMAGE_HASH] == image_hash(item.picture.path)
    except OSError:
        unchanged = False
    if not unchanged:
        return Verdict(State.STALE, "the picture has changed")
    if difference := maker.differs_from(metadata.get(VAE), metadata.get(PRECISION)):
        return Verdict(State.STALE, difference)
    return judge_data(item.latent_path, found)


def judge_text(item: CacheItem, maker: Maker, *, trust: bool = False) -> Verdict:
    """Whether the text features of `item` can be used as they are; arguments as in `judge_latent`."""
    found = opened_cache(item.text_path, _TEXT_KEY)
    if isinstance(found, Verdict):
        return found
    metadata = found.metadata
    if len(found.tensor.shape) != 2 or 0 in found.tensor.shape:
        return Verdict(State.CORRUPT, "its tensor has no tokens")
    if trust:
        return Verdict(State.READY)
    if metadata.get("caption1") != item.caption:
        return Verdict(State.STALE, "the caption has changed")
    if CAPTION_HASH not in metadata:
        return Verdict(State.UNVERIFIED)
    if difference := maker.differs_from(metadata.get(TEXT_ENCODER), metadata.get(PRECISION)):
        return Verdict(State.STALE, difference)
    return judge_data(item.text_path, found)


@dataclass(frozen=True)
class OpenedCache:
    """The one tensor of a cache file and where it lies."""

    key: str
    tensor: TensorInfo
    metadata: dict[str, str]


def open_cache(path: Path, kind: Kind) -> OpenedCache:
    """Header of a cache file of the given kind. Raises UserError when it is missing or no such file."""
    found = opened_cache(path, TENSOR_KEYS[kind])
    if isinstance(found, Verdict):
        raise UserError.one("cache", path, found.reason or "does not exist", "Run the cache command again")
    return found


def opened_cache(path: Path, pattern: re.Pattern[str]) -> OpenedCache | Verdict:
    """The same for the kind that `pattern` names, or what is wrong with it."""
    if not path.is_file():
        return Verdict(State.MISSING)
    try:
        header = read_header(path, "cache")
    except UserError as error:
        return Verdict(State.CORRUPT, error.problems[0].rule)
    found = _the_tensor(header, pattern)
    if found is None:
        return Verdict(State.CORRUPT, "it holds something else than this cache")
    return found


def _the_tensor(header: Header, pattern: re.Pattern[str]) -> OpenedCache | None:
    if header.metadata.get("architecture", ARCHITECTURE) != ARCHITECTURE:
        return None
    matching = [
        (key, info) for key, info in header.tensors.items() if pattern.match(key) and info.dtype in _FLOATS
    ]
    return OpenedCache(*matching[0], header.metadata) if len(matching) == 1 else None


def judge_data(path: Path, found: OpenedCache) -> Verdict:
    try:
        intact = f"{zlib.crc32(_read_data(path, found)):08x}" == found.metadata.get(CHECKSUM)
    except OSError:
        intact = False
    return Verdict(State.READY) if intact else Verdict(State.CORRUPT, "its data do not match their checksum")


def _read_data(path: Path, found: OpenedCache) -> bytes:
    with path.open("rb") as file:
        file.seek(found.tensor.start)
        return file.read(found.tensor.end - found.tensor.start)
