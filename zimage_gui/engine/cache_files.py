"""Cache files on disk: their names, keys and fingerprints, which of them still hold, and which are left over.

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
from dataclasses import dataclass
from pathlib import Path

from zimage_gui.engine.dataset.buckets import Size
from zimage_gui.engine.dataset.discover import folded_name
from zimage_gui.engine.dataset.scan import Picture
from zimage_gui.errors import UserError
from zimage_gui.files import Header, TensorInfo, atomic_write, read_header
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

_LATENT_NAME = re.compile(r"^(?P<key>.+)_(?P<width>\d{4,})x(?P<height>\d{4,})_zi\.safetensors$")
_TEXT_NAME = re.compile(r"^(?P<key>.+)_zi_te\.safetensors$")
_LATENT_KEY = re.compile(r"^latents_1x(\d+)x(\d+)_(float32|float16|bfloat16)$")
_TEXT_KEY = re.compile(r"^varlen_llm_embed_(float32|float16|bfloat16)$")
_FLOATS = ("F32", "F16", "BF16")


class Kind(enum.Enum):
    LATENT = "latent"
    TEXT = "text"


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
    """A picture with the unique key of its two cache files inside its cache directory."""

    picture: Picture
    key: str

    @property
    def latent_path(self) -> Path:
        width, height = self.picture.original
        return self.picture.source.cache_directory / f"{self.key}_{width:04d}x{height:04d}_zi.safetensors"

    @property
    def text_path(self) -> Path:
        return self.picture.source.cache_directory / f"{self.key}_zi_te.safetensors"

    def path(self, kind: Kind) -> Path:
        return self.latent_path if kind is Kind.LATENT else self.text_path

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
        "caption1": item.picture.caption,
        "format_version": FORMAT_VERSION,
        CAPTION_HASH: caption_hash(item.picture.caption),
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
    atomic_write(path, struct.pack("<Q", len(header)) + header + data)


def latent_key(shape: tuple[int, int, int]) -> str:
    return f"latents_1x{shape[1]}x{shape[2]}_float32"


TEXT_KEY = "varlen_llm_embed_bfloat16"


def judge_latent(item: CacheItem, maker: Maker, *, trust: bool = False) -> Verdict:
    """Whether the latent of `item` can be used as it is.

    trust: take an existing, readable file of the right bucket without comparing fingerprints
    (`--skip_existing`).
    """
    found = _open_cache(item.latent_path, _LATENT_KEY)
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
    return _judge_data(item.latent_path, found)


def judge_text(item: CacheItem, maker: Maker, *, trust: bool = False) -> Verdict:
    """Whether the text features of `item` can be used as they are; arguments as in `judge_latent`."""
    found = _open_cache(item.text_path, _TEXT_KEY)
    if isinstance(found, Verdict):
        return found
    metadata = found.metadata
    if len(found.tensor.shape) != 2 or 0 in found.tensor.shape:
        return Verdict(State.CORRUPT, "its tensor has no tokens")
    if trust:
        return Verdict(State.READY)
    if metadata.get("caption1") != item.picture.caption:
        return Verdict(State.STALE, "the caption has changed")
    if CAPTION_HASH not in metadata:
        return Verdict(State.UNVERIFIED)
    if difference := maker.differs_from(metadata.get(TEXT_ENCODER), metadata.get(PRECISION)):
        return Verdict(State.STALE, difference)
    return _judge_data(item.text_path, found)


@dataclass(frozen=True)
class OpenedCache:
    """The one tensor of a cache file and where it lies."""

    key: str
    tensor: TensorInfo
    metadata: dict[str, str]


def open_cache(path: Path, kind: Kind) -> OpenedCache:
    """Header of a cache file of the given kind. Raises UserError when it is missing or no such file."""
    found = _open_cache(path, _LATENT_KEY if kind is Kind.LATENT else _TEXT_KEY)
    if isinstance(found, Verdict):
        raise UserError.one("cache", path, found.reason or "does not exist", "Run the cache command again")
    return found


def _open_cache(path: Path, pattern: re.Pattern[str]) -> OpenedCache | Verdict:
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


def _judge_data(path: Path, found: OpenedCache) -> Verdict:
    try:
        intact = f"{zlib.crc32(_read_data(path, found)):08x}" == found.metadata.get(CHECKSUM)
    except OSError:
        intact = False
    return Verdict(State.READY) if intact else Verdict(State.CORRUPT, "its data do not match their checksum")


def _read_data(path: Path, found: OpenedCache) -> bytes:
    with path.open("rb") as file:
        file.seek(found.tensor.start)
        return file.read(found.tensor.end - found.tensor.start)


@dataclass(frozen=True)
class Leftovers:
    """Cache files that belong to no picture of the dataset: to be removed, and to be kept because another
    dataset may own them."""

    removable: tuple[Path, ...]
    kept: tuple[Path, ...]


def find_leftovers(items: list[CacheItem], refused: Iterable[Path], kind: Kind) -> Leftovers:
    """Cache files of this kind beside the current ones that no current picture owns.

    Only files with a cache file's name, our architecture and the right tensor key count. Of our own, those
    stay whose picture still exists outside this dataset. Of other programs' files, those stay whose stem a
    refused picture has, and all of them where none belongs to this dataset: the folder may have been named
    by mistake.
    """
    removable: list[Path] = []
    kept: list[Path] = []
    spared = {folded_name(path.stem) for path in refused}
    for folder in sorted({item.picture.source.cache_directory for item in items}):
        mine = [item for item in items if item.picture.source.cache_directory == folder]
        owned = {item.path(kind).name for item in mine}
        sources = {relative_source(item.picture.path, folder) for item in mine}
        candidates = _caches_in(folder, kind)
        at_home = any(path.name in owned and SOURCE not in metadata for path, _, metadata in candidates)
        for path, key, metadata in candidates:
            if path.name in owned:
                continue
            origin = metadata.get(SOURCE)
            if origin is not None:
                gone = origin in sources or not (folder / origin).exists()
            else:
                gone = at_home and folded_name(key) not in spared
            (removable if gone else kept).append(path)
    return Leftovers(tuple(removable), tuple(kept))


def _caches_in(folder: Path, kind: Kind) -> list[tuple[Path, str, dict[str, str]]]:
    name, tensor = (_LATENT_NAME, _LATENT_KEY) if kind is Kind.LATENT else (_TEXT_NAME, _TEXT_KEY)
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = name.match(path.name)
        if match is None or path.is_symlink() or not path.is_file():
            continue
        opened = _open_cache(path, tensor)
        if isinstance(opened, OpenedCache) and opened.metadata.get("architecture") == ARCHITECTURE:
            found.append((path, match["key"], opened.metadata))
    return found
