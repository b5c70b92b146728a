"""Blocks that wait in pinned CPU memory and pass through a small ring of device buffers.

Knows blocks, the order in which they run and where their weights are. Must not know what the blocks compute
or how weights are updated. Frozen weights go one way: the copies in CPU memory are the truth, what is in the
ring is overwritten. Trained ones go both ways where the backward pass updates them: a block that has changed
is copied back before its buffer is taken. Where it does not, their gradients go to CPU memory, to be applied
there. On a device other than CUDA the same happens with plain copies.

A block comes into the ring when it is called or when the backward pass asks for a tensor it kept; the next
ones in that direction are fetched meanwhile on a second stream. The ring holds the last blocks at the turn
from the forward to the backward pass, so that a step moves 2 · (blocks - ring) blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Trained = Literal["updated", "gathered"]

_ALIGNMENT = 256
"""Bytes; the beginnings of tensors in a buffer, as torch's own allocator has them."""


def swapped_positions(blocks: int, count: int) -> list[int]:
    """Which of so many blocks are swapped: evenly spread, so that compute lies between two loads."""
    count = min(count, blocks)
    return [(2 * index + 1) * blocks // (2 * count) for index in range(count)]


@dataclass(frozen=True)
class _Member:
    """A tensor of a block and its place in the block's buffer."""

    owner: nn.Module
    name: str
    offset: int
    like: Tensor

    def view(self, buffer: Tensor) -> Tensor:
        size = self.like.numel() * self.like.element_size()
        return buffer[self.offset : self.offset + size].view(self.like.dtype).view(self.like.shape)

    def point_to(self, tensor: Tensor) -> None:
        parameter = self.owner._parameters.get(self.name)
        if parameter is not None:
            parameter.data = tensor
        else:
            self.owner._buffers[self.name] = tensor


class _Swapped:
    """One block's tensors: their copy in CPU memory and a view of each in every ring buffer. Trained ones are
    among them only with `trained`."""

    def __init__(self, block: nn.Module, device: torch.device, trained: bool) -> None:
        self.trained = [parameter for parameter in block.parameters() if trained and parameter.requires_grad]
        self.members: list[_Member] = []
        self.size = 0
        for owner in block.modules():
            for name, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
                if tensor is None:
                    continue
                if tensor.requires_grad and not trained:  # stays on the device
                    tensor.data = tensor.data.to(device)
                    continue
                self.members.append(_Member(owner, name, self.size, tensor.detach().to("meta")))
                size = tensor.numel() * tensor.element_size()
                self.size += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.master = _host_buffer(self.size, device)
        self.at_home = [member.view(self.master) for member in self.members]
        for member, view in zip(self.members, self.at_home, strict=True):
            view.copy_(getattr(member.owner, member.name).detach())
        self.point_to(self.at_home)  # at once: what was there before is freed before the next block's copy
        self.in_slot: list[list[Tensor]] = []

    def point_to(self, tensors: Sequence[Tensor]) -> None:
        for member, tensor in zip(self.members, tensors, strict=True):
            member.point_to(tensor)


class _Slot:
    """A ring buffer, the block that is in it (-1: none) and, on CUDA, the end of its copy. changed: an update
    has been made in it that its block's copy lacks."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.block = -1
        self.changed = False
        self.arrived = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Note:
    """In the place of a tensor that autograd keeps and that lies in the ring."""

    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Visit:
    """What autograd does with tensors of one swapped block: it keeps notes of what lies in the ring, and has
    the block come back before it reads."""

    def __init__(self, swap: BlockSwap, index: int) -> None:
        self._swap, self._index = swap, index

    def pack(self, tensor: Tensor) -> Any:
        if self._swap.slot_of(tensor) is None:
            return tensor
        return _Note(tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def arrive(self) -> None:
        self._swap.enter(self._index, downward=True)

    def unpack(self, kept: Any) -> Tensor:
        if not isinstance(kept, _Note):
            tensor: Tensor = kept
            return tensor
        buffer = self._swap.buffer_with(self._index).view(kept.dtype)
        return buffer.as_strided(kept.size, kept.stride, kept.offset)


class BlockSwap:
    """Swaps `count` of `blocks` to and from `device` through `ring` buffers. To be made when all that is
    trained has been marked so.

    trained: what happens to tensors that are. None: they stay on the device. "updated": they are swapped, and
    updated in the backward pass as soon as they have their gradient. "gathered": they are swapped, and their
    gradients wait in CPU memory for `bring_home`.
    loads: which block was copied, in order, of the `count` ones; bytes_moved: what that came to;
    bytes_returned: of changed blocks and gradients.
    """

    def __init__(
        self,
        blocks: Sequence[Any],
        count: int,
        device: torch.device,
        ring: int = 2,
        trained: Trained | None = None,
    ) -> None:
        chosen = [blocks[position] for position in swapped_positions(len(blocks), count)]
        count = len(chosen)
        self.device = device
        self.loads: list[int] = []
        self.bytes_moved = 0
        self.bytes_returned = 0
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._blocks = [_Swapped(block, device, trained is not None) for block in chosen]
        size = max(block.size for block in self._blocks)
        self._slots = [_Slot(size, device) for _ in range(min(ring, count))]
        self._by_address = {slot.buffer.untyped_storage().data_ptr(): slot for slot in self._slots}
        self._stream = (
            torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        )
        self._last = -1
        for index, (swapped, block) in enumerate(zip(self._blocks, chosen, strict=True)):
            swapped.in_slot = [
                [member.view(slot.buffer) for member in swapped.members] for slot in self._slots
            ]
            block.register_forward_pre_hook(partial(_enter, self, index))
            block.visit = Visit(self, index)
            for parameter in swapped.trained:
                taken = partial(_changed, self, index) if trained == "updated" else self._gather
                parameter.register_post_accumulate_grad_hook(taken)  # type: ignore[no-untyped-call]

    @property
    def host_bytes(self) -> int:
        """Of the weights that wait in CPU memory."""
        return sum(block.size for block in self._blocks)

    @property
    def ring_bytes(self) -> int:
        return sum(slot.buffer.numel() for slot in self._slots)

    def enter(self, index: int, *, downward: bool) -> None:
        """Have block `index` in the ring for what is queued from now on, and fetch what comes after it.

        downward: the backward pass asks."""
        if index == self._last:
            return
        downward = downward or (torch.is_grad_enabled() and index < self._last)
        slot = self._slot_with(index) or self._load(index, keep={index})
        if slot.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        self._last = index
        ahead = self._ahead(index, downward)
        for following in ahead:
            if self._slot_with(following) is None:
                self._load(following, keep={index, *ahead})

    def home(self) -> None:
        """Empty the ring: every weight is read from, and may be changed in, CPU memory again."""
        for slot in self._slots:
            self._evict(slot)
        if self._stream is not None:
            torch.cuda.synchronize(self.device)
        self._last = -1

    def bring_home(self) -> None:
        """After the backward passes of an update: every weight is in CPU memory, and beside it the gradient
        that was gathered."""
        self.home()
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        self._gradients.clear()

    def mark_changed(self, index: int) -> None:
        slot = self._slot_with(index)
        assert slot is not None  # its backward pass is under way
        slot.changed = True

    def _gather(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None and isinstance(parameter, nn.Parameter)
        parameter.grad = None
        there = gradient.to("cpu")
        self.bytes_returned += there.numel() * there.element_size()
        before = self._gradients.get(parameter)
        self._gradients[parameter] = there if before is None else before.add_(there)

    def slot_of(self, tensor: Tensor) -> _Slot | None:
        return self._by_address.get(tensor.untyped_storage().data_ptr())

    def buffer_with(self, index: int) -> Tensor:
        slot = self._slot_with(index)
        assert slot is not None  # it has entered
        return slot.buffer

    def _ahead(self, index: int, downward: bool) -> list[int]:
        """The blocks that run after `index`, as many as the ring takes beside it. Without gradients the
        model begins again after its last block."""
        room, count = len(self._slots) - 1, len(self._blocks)
        if not downward and not torch.is_grad_enabled():
            return [(index + step) % count for step in range(1, room + 1)]
        following = [index - step if downward else index + step for step in range(1, room + 1)]
        return [block for block in following if 0 <= block < count]

    def _slot_with(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.block == index), None)

    def _load(self, index: int, keep: set[int]) -> _Slot:
        """Begin to copy a block into a buffer whose block is not to be kept. What has been queued by now is
        waited for, so that nothing is overwritten that is still read."""
        slot = next(slot for slot in self._slots if slot.block not in keep)
        self._evict(slot)
        block = self._blocks[index]
        target = slot.buffer[: block.size]
        if self._stream is None:
            target.copy_(block.master)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                target.copy_(block.master, non_blocking=True)
                assert slot.arrived is not None
                slot.arrived.record(self._stream)
        slot.block = index
        block.point_to(block.in_slot[self._slots.index(slot)])
        self.loads.append(index)
        self.bytes_moved += block.size
        return slot

    def _evict(self, slot: _Slot) -> None:
        if slot.block >= 0:
            block = self._blocks[slot.block]
            if slot.changed:
                self._return(slot, block)
            block.point_to(block.at_home)
        slot.block, slot.changed = -1, False

    def _return(self, slot: _Slot, block: _Swapped) -> None:
        """On CUDA on the stream of the loads: the next load, of this block or into this buffer, waits."""
        changed = slot.buffer[: block.size]
        self.bytes_returned += block.size
        if self._stream is None:
            block.master.copy_(changed)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            block.master.copy_(changed, non_blocking=True)


def _enter(swap: BlockSwap, index: int, block: nn.Module, inputs: Any) -> None:
    swap.enter(index, downward=False)


def _changed(swap: BlockSwap, index: int, parameter: Tensor) -> None:
    swap.mark_changed(index)


def _host_buffer(size: int, device: torch.device) -> Tensor:
    """Pinned for CUDA, unless the system grants no more of it: copies from it only wait then."""
    if device.type == "cuda":
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            pass
    return torch.empty(size, dtype=torch.uint8)
