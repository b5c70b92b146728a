"""The weights of a run whose processes share them out: updated, added up, clipped and read although no
process has any of them whole.

Knows rows, processes and how one weight is updated. Must not know the model's parts, the loop, options or
files.

A gradient is averaged over the processes and cut into rows within the backward pass. An optimizer that looks
at a whole tensor (Adafactor, Muon, one with blocks of 8 bits) could not be told from rows what to do, so each
weight has an owner: it gets the rows of weight and gradient, keeps the optimizer's state, updates and gives
the rows back. The processes do this for as many weights at once as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zimage_gui.engine.methods import Method
from zimage_gui.engine.processes import Processes
from zimage_gui.engine.updates import SingleUpdates
from zimage_gui.model.rows import kept, rows_of


class Shards:
    """The weights of a method's model, of each of which this process has its rows. All processes call the
    same methods in one order; those with "first" in their name the first one does, within `Processes.once`.

    stand_ins: what the optimizer is made of: parameters of whole shapes without memory. answers: what this
    process gives of what it alone has, when the first asks; every user of `Shards` adds its own.
    """

    def __init__(self, method: Method, processes: Processes) -> None:
        self._processes = processes
        self._weights = dict(method.model.named_parameters())
        self._trained = method.parameters()
        self.stand_ins = [_without_memory(parameter) for parameter in self._trained]
        self.answers: dict[str, Callable[[Any], object]] = {"weight": self._give_weight}
        self._optimizer: Optimizer | None = None
        self._updates: SingleUpdates | None = None
        self._rounds = turns([one.numel() for one in self.stand_ins], processes.count)

    def answer(self, question: tuple[str, Any]) -> None:
        kind, about = question
        self.answers[kind](about)

    # Updates

    def updating_with(self, optimizer: Optimizer, updates: SingleUpdates) -> None:
        """The optimizer of `stand_ins`, and how it updates one of them."""
        self._optimizer, self._updates = optimizer, updates
        self.answers["state"] = self._give_state

    def begin(self, samples: int, passes: int) -> tuple[float, int]:
        """Before the backward passes of an update: what this process's mean loss is to be multiplied with,
        since gradients are averaged over processes, and the passes that all have to make."""
        all_numbers = self._processes.numbers([samples, passes])
        total = sum(one for one, _ in all_numbers)
        return samples * self._processes.count / total, int(max(one for _, one in all_numbers))

    def gradient_norm(self) -> Tensor:
        """Length of the whole gradient."""
        norms = torch._foreach_norm(self._gradients(), 2, dtype=torch.float32)
        square = torch.stack(norms).square().sum()
        self._processes.sum_tensor(square)
        return square.sqrt()

    def shorten(self, norm: Tensor, longest: float) -> None:
        """Clip the gradient, whose length is `norm`, as torch does."""
        torch._foreach_mul_(self._gradients(), (longest / (norm + 1e-6)).clamp_(max=1.0))

    def forget_gradients(self) -> None:
        for parameter in self._trained:
            parameter.grad = None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Apply the gradients to the weights, after `step` other updates."""
        assert self._updates is not None
        self._updates.begin(step)
        for members in self._rounds:
            self._update_round([self._trained[number] for number in members], members)

    def _update_round(self, parameters: list[nn.Parameter], members: Sequence[int]) -> None:
        assert self._updates is not None
        rows = [kept(parameter) for parameter in parameters]
        gradients = [_gradient(parameter, own) for parameter, own in zip(parameters, rows, strict=True)]
        to = [own.numel() for own in rows] + [0] * (self._processes.count - len(rows))
        mine = self.stand_ins[members[self._processes.rank]] if self._processes.rank < len(members) else None
        come = [0] * self._processes.count if mine is None else self._pieces(mine)
        gradient = self._processes.exchange(_flat(gradients), to, come)
        for parameter in parameters:
            parameter.grad = None
        del gradients
        weight = self._processes.exchange(_flat(rows), to, come)
        if mine is not None:
            empty, mine.data = mine.data, weight.view(mine.shape)
            mine.grad = gradient.view(mine.shape)
            self._updates.update(mine)
            weight, mine.data = mine.data.reshape(-1), empty
        changed = self._processes.exchange(weight, come, to)
        for own, part in zip(rows, torch.split(changed, to[: len(rows)]), strict=True):
            own.copy_(part.view(own.shape))

    def _pieces(self, whole: Tensor) -> list[int]:
        """Numbers of a tensor that each process has."""
        row = whole.numel() // max(len(whole), 1)
        bounds = (rows_of(len(whole), rank, self._processes.count) for rank in range(self._processes.count))
        return [(last - first) * row for first, last in bounds]

    def _gradients(self) -> list[Tensor]:
        return [kept(one.grad) for one in self._trained if one.grad is not None]

    # Reading: the first process asks, the others give

    def first_weight(self, name: str) -> Tensor:
        """A whole weight in CPU memory."""
        return self._first_whole(("weight", name), kept(self._weights[name]), self._weights[name].shape)

    def first_rows(self, kind: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors with the shapes of the weights, of each of which every process has its rows."""
        return {
            name: self._first_whole((kind, name), rows, self._weights[name].shape)
            for name, rows in own.items()
        }

    def _first_whole(self, question: tuple[str, str], own: Tensor, shape: torch.Size) -> Tensor:
        self._processes.ask(question)
        whole = torch.empty(shape, dtype=own.dtype)
        for rank in range(self._processes.count):
            first, last = rows_of(len(whole), rank, self._processes.count)
            if rank == 0:
                whole[first:last] = own
            else:
                self._processes.take_from(rank, whole[first:last])
        return whole

    def _give_weight(self, name: str) -> None:
        self._processes.give_first(kept(self._weights[name]))

    def give_rows(self, kind: str, own: Callable[[], Mapping[str, Tensor]]) -> None:
        """Answer for tensors that `first_rows` reads."""
        self.answers[kind] = lambda name: self._processes.give_first(own()[name])

    def first_optimizer_state(self) -> dict[str, Any]:
        """What the optimizer's `state_dict` of one process would be."""
        assert self._optimizer is not None
        values = self._optimizer.state_dict()
        states = values["state"]
        for number, owner in enumerate(self._owners()):
            if owner:
                self._processes.ask(("state", number))
                found = self._processes.thing_for_first(None, owner)
                if found is not None:
                    states[number] = found
        values["state"] = dict(sorted(states.items()))
        return values

    def _give_state(self, number: int) -> None:
        assert self._optimizer is not None
        if self._owners()[number] == self._processes.rank:
            found = self._optimizer.state_dict()["state"].get(number)
            moved = found and {name: _on_cpu(value) for name, value in found.items()}
            self._processes.thing_for_first(moved, self._processes.rank)

    def owned(self, values: dict[str, Any]) -> dict[str, Any]:
        """Of an optimizer's whole state what belongs to the weights that this process updates."""
        owners = self._owners()
        rank = self._processes.rank
        return values | {
            "state": {number: one for number, one in values["state"].items() if owners[number] == rank}
        }

    def _owners(self) -> list[int]:
        """Of the optimizer's parameters, by their number in its state."""
        assert self._optimizer is not None
        owner = {self.stand_ins[number]: place for one in self._rounds for place, number in enumerate(one)}
        return [owner[one] for group in self._optimizer.param_groups for one in group["params"]]

    def rows(self, name: str, whole: Tensor) -> Tensor:
        """This process's rows of a tensor with that weight's shape."""
        first, last = rows_of(len(whole), self._processes.rank, self._processes.count)
        return whole[first:last]


def _without_memory(parameter: nn.Parameter) -> nn.Parameter:
    own = kept(parameter)
    one = torch.zeros((), dtype=own.dtype, device=own.device)
    return nn.Parameter(one.expand(parameter.shape))


def turns(sizes: Sequence[int], processes: int) -> list[list[int]]:
    """Weights by size, as many at a time as there are processes: the one at place p is updated by process p.
    Every other round is turned, so that each process gets as much."""
    order = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    cuts = range(0, len(order) + processes, processes)
    rounds = [order[first:last] for first, last in pairwise(cuts) if order[first:last]]
    return [one[::-1] if turn % 2 and len(one) == processes else one for turn, one in enumerate(rounds)]


def _gradient(parameter: nn.Parameter, own: Tensor) -> Tensor:
    return torch.zeros_like(own) if parameter.grad is None else kept(parameter.grad)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu") if isinstance(value, Tensor) else value
