"""The processes of one run: who is the first, what they tell each other, and their gradients added up.

Knows torch.distributed, numbers and tensors. Must not know models, options or files. Every method of
`Processes` that talks must be called by all of them in the same order.

Numbers and decisions go over gloo, from CPU to CPU, so that no GPU is waited for; gradients go over NCCL on
GPUs. The run of one process takes the same way, where nothing is sent.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zimage_gui.engine.objective import stream_seed
from zimage_gui.errors import Interrupted, ProcessLost, UserError

_PATIENCE = timedelta(days=7)  # the first process may cache, make pictures or save for hours
_BUCKET_BYTES = 64 * 2**20
_MADE, _STOPPED, _FAILED, _ASKED = range(4)

T = TypeVar("T")


@dataclass(frozen=True)
class _Groups:
    """patient: for what only the first process does; quick: for what all do; data: for tensors on a GPU."""

    patient: Any
    quick: Any
    data: Any
    minutes: int


class Processes:
    """This process among those of its run; without arguments the only one."""

    def __init__(self, rank: int = 0, count: int = 1, groups: _Groups | None = None) -> None:
        self.rank, self.count, self._groups = rank, count, groups

    @property
    def first(self) -> bool:
        """Whether this is the one that owns the run's folder and results."""
        return self.rank == 0

    def once(self, make: Callable[[], T], answer: Callable[[Any], object] | None = None) -> T:
        """What the first process makes, in all of them. When it fails the others raise `ProcessLost`, when it
        is stopped `Interrupted`. answer: what they do each time it asks meanwhile."""
        if self._groups is None:
            return make()
        if not self.first:
            heard: T = self._heard(answer)
            return heard
        try:
            made = make()
        except BaseException as error:
            with suppress(ProcessLost):
                self._tell((_STOPPED if isinstance(error, Interrupted) else _FAILED, None))
            raise
        self._tell((_MADE, made))
        return made

    def ask(self, question: object) -> None:
        """Within `once` by the first process: the others come to their `answer`."""
        if self._groups is not None:
            self._tell((_ASKED, question))

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process; the others wait for the first as long as it takes."""
        if self._groups is None:
            return flag
        return self._summed([float(flag)], self._groups.patient)[0] > 0

    def wait(self) -> None:
        """Until all have come here."""
        self.any(False)

    def add_up(self, parameters: Sequence[nn.Parameter], loss: float, samples: int) -> tuple[float, int]:
        """Make the gradients those of all processes' samples together, each weighted by its share. loss: the
        mean over this process's samples, of which it may have none. Returns the loss and number of all."""
        groups = self._groups
        if groups is None:
            return loss, samples
        # A weight that some samples never reach (dropout, padding) has a gradient in some processes only.
        has = [float(parameter.grad is not None) for parameter in parameters]
        loss_sum, total, *having = self._summed([loss * samples, samples, *has], groups.quick)
        gradients = []
        for parameter, processes in zip(parameters, having, strict=True):
            if processes:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            self._add_up_bucket(bucket, samples / total)
        return loss_sum / total, int(total)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the first one's numbers."""
        if self._groups is not None:
            for tensor in tensors:
                self._talk(partial(dist.broadcast, tensor.detach(), 0, group=self._group_of(tensor)))

    @property
    def data_group(self) -> Any:
        """For tensors on the device of this run."""
        return None if self._groups is None else self._groups.data or self._groups.quick

    def numbers(self, mine: Sequence[float]) -> list[list[float]]:
        """These numbers of every process."""
        if self._groups is None:
            return [list(mine)]
        row = [0.0] * (len(mine) * self.count)
        row[self.rank * len(mine) : (self.rank + 1) * len(mine)] = mine
        summed = self._summed(row, self._groups.quick)
        return [summed[first : first + len(mine)] for first in range(0, len(row), len(mine))]

    def sum_tensor(self, tensor: Tensor) -> None:
        if self._groups is not None:
            self._talk(lambda: dist.all_reduce(tensor, group=self._group_of(tensor)))

    def exchange(self, sent: Tensor, to: Sequence[int], come: Sequence[int]) -> Tensor:
        """Each process gives each a piece of its flat tensor, `to` numbers long, and gets one of `come`."""
        if self._groups is None:
            return sent
        received = sent.new_empty(sum(come))
        group = self._group_of(sent)
        self._talk(lambda: dist.all_to_all_single(received, sent, list(come), list(to), group=group))
        return received

    def give_first(self, tensor: Tensor) -> None:
        """To the first process, which takes it with `take_from`."""
        assert self._groups is not None
        sent, group = tensor.to("cpu").contiguous(), self._groups.patient
        if sent.numel():
            self._talk(lambda: dist.send(sent.view(torch.uint8), 0, group=group))

    def take_from(self, rank: int, into: Tensor) -> None:
        """Fill a contiguous CPU tensor with what that process gives."""
        assert self._groups is not None
        group = self._groups.patient
        if into.numel():
            self._talk(lambda: dist.recv(into.view(torch.uint8), rank, group=group))

    def thing_for_first(self, thing: Any, owner: int) -> Any:
        """What process `owner` has, in the first; called by these two."""
        assert self._groups is not None
        group, box = self._groups.patient, [thing]
        if self.rank == owner:
            self._talk(lambda: dist.send_object_list(box, 0, group=group))
        else:
            self._talk(lambda: dist.recv_object_list(box, owner, group=group))
        return box[0]

    def part_ways(self, seed: int, step: int) -> None:
        """Draw random numbers of this process's own, the same in a resumed run; the first goes on with
        those of a run of one process."""
        if self.rank:
            torch.manual_seed(stream_seed(seed, step, -1 - self.rank))

    def _add_up_bucket(self, gradients: list[Tensor], share: float) -> None:
        group = self._group_of(gradients[0])
        alone = len(gradients) == 1 and gradients[0].is_contiguous()
        flat = gradients[0] if alone else torch.cat([gradient.reshape(-1) for gradient in gradients])
        flat.mul_(share)
        self._talk(lambda: dist.all_reduce(flat, group=group))
        if not alone:
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def _group_of(self, tensor: Tensor) -> Any:
        assert self._groups is not None
        return self._groups.data if tensor.device.type == "cuda" else self._groups.quick

    def _summed(self, numbers: list[float], group: Any) -> list[float]:
        values = torch.tensor(numbers, dtype=torch.float64)
        self._talk(lambda: dist.all_reduce(values, group=group))
        found: list[float] = values.tolist()
        return found

    def _tell(self, message: tuple[int, object]) -> None:
        assert self._groups is not None
        group = self._groups.patient
        self._talk(lambda: dist.broadcast_object_list([message], 0, group=group))

    def _heard(self, answer: Callable[[Any], object] | None) -> Any:
        assert self._groups is not None
        group, box = self._groups.patient, list[Any]([None])
        outcome = _ASKED
        while outcome == _ASKED:
            self._talk(lambda: dist.broadcast_object_list(box, 0, group=group))
            outcome, made = box[0]
            if outcome == _ASKED and answer is not None:
                answer(made)
        if outcome == _STOPPED:
            raise Interrupted("the first process of this run was stopped")
        if outcome == _FAILED:
            raise ProcessLost("The first process of this run failed; its own message says why.")
        return made

    def _talk(self, call: Callable[[], object]) -> None:
        assert self._groups is not None
        try:
            call()
        except RuntimeError as error:
            raise ProcessLost(_sentence(str(error), self._groups.minutes)) from error


def _sentence(words: str, minutes: int) -> str:
    if "timed out" in words.lower() or "timeout" in words.lower():
        return f"Another process of this run gave no answer for {minutes} min (ddp_timeout)."
    return "Another process of this run has ended; its own message says why."


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one format and device, up to a size; a larger one by itself."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        fits = size + gradient.nbytes <= _BUCKET_BYTES
        if bucket and not (fits and _alike(bucket[0], gradient)):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and one.device == other.device


def device_of(name: str, local: int, gpus: Sequence[int] = (), *, must: bool = False) -> torch.device:
    """The device of process number `local` on this machine: a GPU of its own, or the CPU. gpus: which; must:
    whether GPUs were asked for, so that "auto" is none of the CPU. Raises UserError."""
    if name == "cpu" or (name == "auto" and not must and not torch.cuda.is_available()):
        return torch.device("cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = (gpus[local] if local < len(gpus) else -1) if gpus else local
    if not 0 <= number < there:
        which = f"GPU {number}" if number >= 0 else f"a GPU for process {local + 1}"
        known = f"GPU 0 to {there - 1}" if there else "none"
        rule = f"asks for {which}, and of this machine's torch can use {known}"
        raise UserError.one("gpus", ",".join(map(str, gpus)), rule, "Use fewer, or set device to cpu")
    return torch.device("cuda", number)


@contextmanager
def joined(rank: int, count: int, device: torch.device, minutes: int) -> Iterator[Processes]:
    """This process among `count`; where they meet is told by the launcher's variables. All leave together."""
    if count < 2:
        yield Processes()
        return
    wait = timedelta(minutes=minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=count, timeout=wait)
        # the others wait for what the first one does, which itself never waits for anything long
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE if rank else wait)
        data = dist.new_group(backend="nccl", timeout=wait) if device.type == "cuda" else None
    except (RuntimeError, ValueError) as error:
        raise ProcessLost(f"The {count} processes of this run could not meet: {error}") from error
    processes = Processes(rank, count, _Groups(patient, dist.group.WORLD, data, minutes))
    yield processes
    processes.wait()  # the first one may be saving yet
    dist.destroy_process_group()
