"""How an optimizer's update reaches the weights where each is updated by itself: within the backward pass, as
soon as its gradient is whole, or after it; bf16 weights from fp32 maths, rounded by chance.

Knows an optimizer and its parameters. Must not know the model, the loop or the options.

Rounded to the nearest, a bf16 weight ignores every change below 1/512 of itself, which is most of them at the
rates of finetuning. Rounded up or down with the chances of both neighbours, the mean keeps each change.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zimage_gui.engine.objective import stream_seed
from zimage_gui.engine.optimizer_extras import set_training

_ROUNDED_BITS = 16  # what fp32 has below bf16
_TRIAL_STEPS = 3
_FAILURES = (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError, KeyError)

Factory = Callable[[Iterable[nn.Parameter]], Optimizer]


class SingleUpdates:
    """Applies `optimizer` to one parameter at a time, under its own state: a state of a run without it fits.

    in_backward: each parameter is updated and its gradient freed when that is whole; a gradient longer than
    `max_norm` (0: any) is shortened by itself, since the length of all together is not known yet.
    rounding: bf16 parameters are updated in fp32, with the optimizer's averages in fp32, and rounded by
    chance, a pure function of seed, step and the parameter's place, so that no state has to hold it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        seed: int,
        *,
        in_backward: bool = False,
        rounding: bool = False,
        max_norm: float = 0.0,
    ) -> None:
        self.in_backward = in_backward
        self._optimizer, self._seed = optimizer, seed
        self._rounding, self._max_norm = rounding, max_norm
        groups = [group["params"] for group in optimizer.param_groups]
        self._group_of = {parameter: at for at, group in enumerate(groups) for parameter in group}
        self._number_of = {parameter: number for number, parameter in enumerate(self._group_of)}
        self._generators: dict[torch.device, torch.Generator] = {}
        self._norms: list[Tensor] = []
        self._step = 0
        if in_backward:
            for parameter in self._group_of:
                parameter.register_post_accumulate_grad_hook(self._in_backward)

    def begin(self, step: int) -> None:
        """Before the backward pass of the update after `step` others."""
        self._step = step
        self._norms.clear()

    def gradient_norm(self) -> Tensor:
        """Length of the gradients that this backward pass has used up, before they were shortened."""
        return torch.nn.utils.get_total_norm(self._norms)

    @torch.no_grad()
    def finish(self) -> None:
        """Update what still has a gradient: nothing after a backward pass that updates."""
        for parameter in self._group_of:
            if parameter.grad is not None:
                self.update(parameter)

    @torch.no_grad()
    def _in_backward(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None  # this is called when it has just been added up
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        self._norms.append(norm)
        if self._max_norm > 0:
            gradient.mul_((self._max_norm / (norm + 1e-6)).clamp_(max=1.0))
        self.update(parameter)

    def update(self, parameter: Tensor) -> None:
        """Update one parameter that has its gradient, and free that."""
        if self._rounding and parameter.dtype is torch.bfloat16:
            self._update_rounded(parameter)
        else:
            self._step_alone(parameter)
        parameter.grad = None

    def _update_rounded(self, parameter: Tensor) -> None:
        stored, gradient = parameter.data, parameter.grad
        assert gradient is not None
        parameter.grad = None  # a gradient has the type of its parameter at every moment
        parameter.data = stored.float()
        parameter.grad = gradient.float()
        try:
            self._step_alone(parameter)
            stored.copy_(rounded_by_chance(parameter.data, self._generator(parameter)))
        finally:
            parameter.grad = None
            parameter.data = stored

    def _generator(self, parameter: Tensor) -> torch.Generator:
        device = parameter.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        seed = stream_seed(self._seed, self._step, self._number_of[parameter])
        return self._generators[device].manual_seed(seed)

    def _step_alone(self, parameter: Tensor) -> None:
        with _only(self._optimizer, self._group_of[parameter], parameter):
            self._optimizer.step()


@contextmanager
def _only(optimizer: Optimizer, group: int, parameter: Tensor) -> Iterator[None]:
    """Inside, the optimizer has this parameter only: each of its steps loops over all it has. Its groups are
    looked up anew, as loading a state replaces them."""
    kept = [one["params"] for one in optimizer.param_groups]
    for number, one in enumerate(optimizer.param_groups):
        one["params"] = [parameter] if number == group else []
    try:
        yield
    finally:
        for one, parameters in zip(optimizer.param_groups, kept, strict=True):
            one["params"] = parameters


def rounded_by_chance(value: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 in bf16: one of both neighbours, each with the chance of its nearness; what bf16 holds stays."""
    bits = value.view(torch.int32)
    drawn = torch.empty_like(bits).random_(0, 1 << _ROUNDED_BITS, generator=generator)
    cut = drawn.add_(bits).bitwise_and_(-(1 << _ROUNDED_BITS))
    return cut.view(torch.float32).to(torch.bfloat16)


def why_not_alone(factory: Factory, *, rounding: bool) -> str | None:
    """Why the optimizers of `factory` cannot update one parameter at a time, found by trying it on two small
    ones; None when they can. What cannot be tried here (kernels for a GPU only) is left to the run."""
    try:
        together, noted_together = _trial(factory, alone=False)
    except _FAILURES:
        return None
    try:
        alone, noted_alone = _trial(factory, alone=True)
        if rounding:
            _trial(factory, alone=True, dtype=torch.bfloat16)
    except _FAILURES as error:
        return f"fails when it updates one tensor at a time ({error})"
    pairs = zip(together, alone, strict=True)
    if noted_together == noted_alone and all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in pairs):
        return None
    return "works out its updates from all gradients together, not one tensor at a time"


def _trial(factory: Factory, *, alone: bool, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], str]:
    """Two parameters after a few updates, and what the optimizer has noted beside their states."""
    start = (torch.linspace(-1, 1, 12).view(4, 3), torch.linspace(0.5, 1, 3))
    parameters = [nn.Parameter(value.to(dtype)) for value in start]
    optimizer = factory(parameters)
    set_training(optimizer)
    updates = SingleUpdates(optimizer, 0, rounding=dtype is torch.bfloat16)
    for step in range(_TRIAL_STEPS):
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.cos(start[number] * (step + 1) + number).to(dtype)
        updates.begin(step)
        if alone:
            updates.finish()
        else:
            optimizer.step()
    noted = [{name: group[name] for name in group if name != "params"} for group in optimizer.param_groups]
    return [parameter.detach() for parameter in parameters], repr(noted)
