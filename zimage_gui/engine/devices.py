"""Which device a run computes on and in which number format. Knows torch; must not know what is computed."""

import gc
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import psutil
import torch
from torch import Tensor

from zimage_gui.errors import UserError

_GIB = 1024**3
DTYPES = {
    "no": torch.float32, "fp32": torch.float32, "float": torch.float32, "bf16": torch.bfloat16,
    "fp16": torch.float16,
}  # fmt: skip
"""The number format behind each word that options have for one; "no" is that of `mixed_precision`."""


def pick_device(name: str) -> torch.device:
    """ "auto" is the first GPU when there is one, else the CPU. Raises UserError for a GPU that is not
    there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            rule = (
                f"is not there: this machine has {count} usable GPUs"
                if count
                else "needs a GPU that torch can use"
            )
            raise UserError.one("device", name, rule, "Use device = auto or cpu")
    return device


def number_format(device: torch.device, precision: str, weights: int) -> torch.dtype:
    """The format a model of so many weights computes in for `mixed_precision`'s value.

    bf16 becomes fp32 on a processor that has no bf16 arithmetic, as long as the memory takes it: there torch
    computes bf16 number by number, at a thirtieth of the speed and with more rounding.
    """
    wanted = DTYPES[precision]
    if device.type != "cpu" or wanted is not torch.bfloat16 or not _bf16_is_emulated():
        return wanted
    room = psutil.virtual_memory().available // 2
    return torch.float32 if weights * torch.float32.itemsize < room else wanted


def _bf16_is_emulated() -> bool:
    x86 = platform.machine().lower() in ("x86_64", "amd64", "x86")
    return x86 and torch.backends.cpu.get_cpu_capability() != "AVX512"


def format_note(device: torch.device, precision: str, used: torch.dtype) -> str:
    """What to tell when another format is used than `mixed_precision` names; empty when it is that one."""
    if used is DTYPES[precision]:
        return ""
    return f"This processor has no {precision} arithmetic: computing in fp32, which is faster and more exact"


def autocast(device: torch.device, precision: str | None) -> AbstractContextManager[object]:
    """Mixed precision for `mixed_precision`'s value; "no" leaves every operation in the format of its
    inputs.
    """
    if precision in (None, "no"):
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[str(precision)])


def computing_in(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Trained weights of another format computing in `dtype`, cast where they are used; None: in their own.

    Nothing is cached: a pass uses each weight once, and the cache would hold a second copy of the model.
    """
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=False)


@contextmanager
def cudnn(*, enabled: bool) -> Iterator[None]:
    """cuDNN on or off for a while; some AMD cards need it off."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = before and enabled
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def device_name(device: torch.device) -> str:
    """The card's own name; of a processor just that it is one."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had, counting what torch holds unused."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + idle


def release_memory() -> None:
    """Give back what nobody holds any more: models just let go of, and what torch keeps of a GPU's memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def to_host(value: Tensor) -> Callable[[], float]:
    """A copy of a scalar to the CPU that is under way; call the result to have the number."""
    if value.device.type != "cuda":
        return lambda: float(value)
    pinned = torch.empty((), pin_memory=True)
    pinned.copy_(value, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()

    def read() -> float:
        arrived.synchronize()
        return float(pinned)

    return read


def memory_used(device: torch.device, process: psutil.Process) -> tuple[float | None, float]:
    """GiB: the most the GPU had reserved in this phase (None on a CPU), and the process's memory now."""
    vram = torch.cuda.max_memory_reserved(device) / _GIB if device.type == "cuda" else None
    return vram, process.memory_info().rss / _GIB
