"""Knows what an exception means to a person and what to try next. Knows nothing of runs; imports no library
it names.
"""

from __future__ import annotations

import errno
import re

from zimage_gui.events import Failed

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REFUSED = {errno.EROFS, errno.ENAMETOOLONG, errno.EIO, errno.ENOTDIR, errno.ELOOP}
_LONGEST_MESSAGE = 2000

OUT_OF_VRAM = (
    "The graphics card's memory is full. Close other programs that use the card and keep gradient "
    "checkpointing on; then set base_quant to fp8 and raise blocks_to_swap, where the command has them, or "
    "lower the batch size or the resolution."
)
OUT_OF_RAM = (
    "The computer's memory is full. Close other programs, lower the number of loader workers or the batch "
    "size, or make the swap or page file larger."
)
RESUME = "What was saved before is whole; a training whose state was saved (save_state) can be resumed."
DISK_FULL = f"The disk is full. Make room or choose another output folder. {RESUME}"
CUDA_BROKEN = (
    "The graphics card or its driver gave up. Restart the program; if it comes again, update the driver and "
    "run without overclocking."
)
MISSING_MODULE = "A package is missing. Install it into the same Python environment: pip install {name}"
CRASH = (
    "This is a defect of the program. The last lines of console.log say where; please report it with them."
)

_OUT_OF_MEMORY = re.compile(
    r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|hipErrorOutOfMemory", re.I
)
_NO_RAM = re.compile(
    r"not enough memory|DefaultCPUAllocator|can't allocate memory|paging file is too small", re.I
)
_NO_SPACE = re.compile(
    r"no space left on device|disk quota exceeded|not enough space on the disk|os error 28\b", re.I
)
_CUDA = re.compile(
    r"\bCUDA error\b|\bCUDNN_STATUS|\bCUBLAS_STATUS|device-side assert|driver shutting down", re.I
)


def explain(error: BaseException) -> Failed:
    """The Failed event for an exception that no one expected: its class, its message and a way out."""
    kind = type(error).__name__
    message = (str(error) or kind)[:_LONGEST_MESSAGE]
    return Failed(
        error_kind=_kind(error, message),
        message=f"{kind}: {message}" if message != kind else kind,
        hint=_hint(error, message),
    )


def _kind(error: BaseException, message: str) -> str:
    hint = _hint(error, message)
    return {OUT_OF_VRAM: "out_of_memory", OUT_OF_RAM: "out_of_memory", DISK_FULL: "disk_full"}.get(
        hint, type(error).__name__
    )


def _hint(error: BaseException, message: str) -> str:
    if (isinstance(error, OSError) and error.errno in _FULL) or _NO_SPACE.search(message):
        return DISK_FULL
    # Names, not classes: torch must not be imported here.
    if (
        isinstance(error, MemoryError)
        or _NO_RAM.search(message)
        or getattr(error, "errno", None) == errno.ENOMEM
    ):
        return OUT_OF_RAM
    if type(error).__name__ == "OutOfMemoryError" or _OUT_OF_MEMORY.search(message):
        return OUT_OF_VRAM
    if _CUDA.search(message):
        return CUDA_BROKEN
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("zimage_gui"):
        return MISSING_MODULE.format(name=error.name.split(".")[0])
    if isinstance(error, PermissionError):
        what = f"The program may not write or read {error.filename}."
        return f"{what} Check who owns it, or choose another folder."
    if isinstance(error, FileNotFoundError) and error.filename:
        return f"Was {error.filename} moved or deleted, or its drive taken away? Put it back. If not: {CRASH}"
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        return f"The disk refuses {error.filename}. Check the path and the drive, or choose another folder."
    return CRASH
