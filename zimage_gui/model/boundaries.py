"""Inputs of checkpointed blocks wait in pinned CPU memory until the backward pass recomputes their block.

Knows tensors, streams and the order of saving. Must not know what is recomputed. Copies run on a second
stream both ways; each input that comes back has the one before it fetched meanwhile. On a device other
than CUDA the same happens with plain copies.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Away:
    """One input: in CPU memory, or on its way back."""

    def __init__(self, away: BoundaryOffload, tensor: Tensor, before: _Away | None) -> None:
        self._away, self._device = away, tensor.device
        self._before = weakref.ref(before) if before is not None else None
        self._back: Tensor | None = None
        stream = away.stream(tensor.device)
        self._copy = torch.empty_like(tensor, device="cpu", pin_memory=stream is not None)
        if stream is None:
            self._copy.copy_(tensor)
        else:
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            with torch.cuda.stream(stream):
                self._copy.copy_(tensor, non_blocking=True)
            tensor.record_stream(stream)

    def fetch(self) -> None:
        """Begin to copy it back, unless that has begun."""
        if self._back is not None:
            return
        stream = self._away.stream(self._device)
        self._back = torch.empty_like(self._copy, device=self._device)
        if stream is None:
            self._back.copy_(self._copy)
        else:
            # allocated by the computing stream: what used this memory before must have ended
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                self._back.copy_(self._copy, non_blocking=True)
            self._back.record_stream(stream)
            self._arrived = stream.record_event()
        self._away.bytes_moved += self._copy.numel() * self._copy.element_size()

    def tensor(self) -> Tensor:
        self.fetch()
        back, self._back = self._back, None
        assert back is not None
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).wait_event(self._arrived)
        before = self._before() if self._before is not None else None
        if before is not None:
            before.fetch()
        return back


class BoundaryOffload:
    """Sends tensors away that autograd keeps while `sending` is on. bytes_moved counts both ways."""

    def __init__(self) -> None:
        self.bytes_moved = 0
        self._last: weakref.ref[_Away] | None = None
        self._streams: dict[torch.device, Any] = {}

    def stream(self, device: torch.device) -> Any:
        """The second stream of a CUDA device; None for any other."""
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[device]

    @contextmanager
    def sending(self, boundary: Tensor) -> Iterator[None]:
        """Inside, `boundary` is kept in CPU memory, everything else as it is. Not for what
        `torch.utils.checkpoint` runs: that has hooks of its own, which come before these."""
        # autograd keeps the hooks, which therefore must not refer to the tensor
        address, shape = boundary.data_ptr(), boundary.shape

        def pack(tensor: Tensor) -> Tensor | _Away:
            if tensor.data_ptr() != address or tensor.shape != shape:
                return tensor
            away = _Away(self, tensor.detach(), self._last() if self._last is not None else None)
            self.bytes_moved += tensor.numel() * tensor.element_size()
            self._last = weakref.ref(away)
            return away

        def unpack(kept: Tensor | _Away) -> Tensor:
            return kept if isinstance(kept, Tensor) else kept.tensor()

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
