"""The training loop. Knows steps, epochs, gradients and when to save, sample or stop; must not know what is
trained (a `Method` does), how a loss is made (the `Passes` do), where batches come from (a `Feed` does) or
what is written (the `Keeper` does).
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Protocol

import psutil
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from zimage_gui.config.watch_parts import AVERAGED_STEPS
from zimage_gui.engine.averages import WeightAverage
from zimage_gui.engine.devices import memory_used, to_host
from zimage_gui.engine.loader import Batch
from zimage_gui.engine.methods import Method
from zimage_gui.engine.objective import Objective
from zimage_gui.engine.optimizer_extras import effective_rate, meant_weights, set_training
from zimage_gui.engine.passes import Passes
from zimage_gui.engine.processes import Processes
from zimage_gui.engine.shards import Shards
from zimage_gui.engine.updates import SingleUpdates
from zimage_gui.engine.validation import Patience, Validation
from zimage_gui.errors import Interrupted
from zimage_gui.events import STOP_FILE, Run, Step
from zimage_gui.model.boundaries import BoundaryOffload
from zimage_gui.model.offload import BlockSwap


class NonFiniteLoss(Exception):
    """The loss or its gradient is no number any more. Nothing was saved from this step."""


@dataclass(frozen=True)
class LoopSettings:
    """What the loop itself needs to know; the options' names and meanings."""

    seed: int
    total_steps: int
    total_epochs: int
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    gradient_checkpointing_cpu_offload: bool = False
    recomputed_blocks: int | None = None
    mixed_precision: str = "no"
    epoch_samples: int | None = None


@dataclass
class Progress:
    """How far a run is: updates done, finished epochs, updates done in the epoch at hand; all a resume has to
    know."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=AVERAGED_STEPS))


class Feed(Protocol):
    """The data of a run. A group is the batches of one optimizer update."""

    def updates(self, epoch: int) -> int: ...

    def groups(self, epoch: int, start: int) -> Generator[list[Batch], None, None]: ...


class Keeper(Protocol):
    """What happens between updates: previews, checkpoints, states."""

    def at_start(self, progress: Progress) -> None: ...

    def after_step(self, progress: Progress) -> None: ...

    def after_epoch(self, progress: Progress) -> None: ...

    def at_stop(self, progress: Progress) -> None: ...

    def at_failure(self, progress: Progress) -> None: ...


@dataclass
class _Pending:
    """A finished update whose numbers are still on the device: they are read one update later, so that
    nothing waits."""

    event: Callable[[float, float | None], Step]
    loss: float
    grad_norm: Tensor


class Trainer:
    """One run's optimizer updates. `restore` first when resuming, then `run`."""

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        schedule: LRScheduler,
        objective: Objective,
        settings: LoopSettings,
        run: Run,
        updates: SingleUpdates | None = None,
        processes: Processes | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.method, self.optimizer, self.schedule = method, optimizer, schedule
        self.updates = updates
        self.settings, self.reporter = settings, run
        self.progress = Progress()
        self.processes = Processes() if processes is None else processes
        self.shards = shards
        """Where the processes share out the weights."""
        self.passes = _passes(method, objective, settings, whole=shards is None)
        self.device = method.model.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.mixed_precision == "fp16")
        self.swap: BlockSwap | None = None
        """Where trained weights are swapped: they are home between two updates."""
        self.limit: Callable[[], Tensor] | None = None
        """Called after each update: holds the weights to a bound and gives the number it held."""
        self.average: WeightAverage | None = None
        self.patience: Patience | None = None
        self.patience_watches_loss = False
        self._parameters = method.parameters()
        self._pending: _Pending | None = None
        self._whole = True  # whether the weights are those of a step
        self._process = psutil.Process()
        self._clock = time.perf_counter()

    def run(self, feed: Feed, keeper: Keeper) -> bool:
        """Train to the end, or until the run asks to stop; True when it came to the end. Raises
        `NonFiniteLoss`. What ends it otherwise (pictures that vanish, memory that runs out) finds the updates
        made until then saved."""
        try:
            return self._run(feed, keeper)
        except (NonFiniteLoss, Interrupted):
            raise
        except Exception:
            if self._whole and self.shards is None:  # shared-out weights need all processes
                self.optimizer.zero_grad(set_to_none=True)  # their memory may be what is missing
                keeper.at_failure(self.progress)
            raise

    def _run(self, feed: Feed, keeper: Keeper) -> bool:
        progress, settings = self.progress, self.settings
        self.method.model.train()
        set_training(self.optimizer)
        keeper.at_start(progress)
        self._clock = time.perf_counter()
        while progress.step < settings.total_steps:
            with closing(feed.groups(progress.epoch, progress.position)) as groups:
                for group in groups:
                    self.update(group)
                    keeper.after_step(progress)
                    if progress.step >= settings.total_steps or self._patience_is_over():
                        break
                    if self._should_stop():
                        self.flush()
                        keeper.at_stop(progress)
                        return False
            if progress.position >= feed.updates(progress.epoch):
                progress.epoch, progress.position = progress.epoch + 1, 0
                keeper.after_epoch(progress)
            if self._patience_is_over():
                break
        self.flush()
        return True

    def update(self, group: list[Batch]) -> None:
        """One optimizer update from the batches of `group`, each weighted by its share of the samples, and
        from those of the other processes."""
        self._whole = self.swap is None and not (self.updates is not None and self.updates.in_backward)
        value, samples = self._backward(group)
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss of step {self.progress.step + 1} is {value}")
        self.flush()
        changed = any(parameter.grad is not None for parameter in self._parameters)
        if changed:  # the scaler refuses an update without any gradient
            self.scaler.unscale_(self.optimizer)
        grad_norm = self._clip()
        if self.device.type == "cpu":  # reading it costs nothing here, and the next step does not begin
            self._check(grad_norm)
        rate = effective_rate(self.optimizer)
        if rate is None:  # Adafactor works it out itself, and its schedule reports it
            rate = float(self.schedule.get_last_lr()[0])
        self._whole = False
        if self._stepped(changed):
            self.schedule.step()
        held = self.limit() if self.limit else None
        if self.average is not None:
            self.average.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.shards is not None:
            self.shards.forget_gradients()
        self._count(value, grad_norm, rate, samples, held)
        self._whole = True

    def _backward(self, group: list[Batch]) -> tuple[float, int]:
        """Make the gradients of `group`; its loss and its samples. All are added up over the processes."""
        samples = sum(len(batch.indices) for batch in group)
        total = torch.zeros((), device=self.device)
        on_host: Callable[[], float] = float  # 0 where a process got no batch of this update
        self.processes.part_ways(self.settings.seed, self.progress.step)
        if self.updates is not None:
            self.updates.begin(self.progress.step)
        weight, passes = (1.0, 0) if self.shards is None else self.shards.begin(samples, len(group))
        for batch in group:
            share = len(batch.indices) / samples
            loss = self.passes.loss(batch, self.progress.epoch) * share
            total += loss.detach()
            on_host = to_host(total)  # queued before the backward pass: read below without waiting for it
            if loss.requires_grad:  # not when module_dropout left every adapter out
                self.scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
        for _ in range(len(group), passes):  # the weights come only if all processes call for them
            (self.passes.smallest().sum() * 0).backward()  # type: ignore[no-untyped-call]
        if self.swap is not None:
            self.swap.bring_home()
        added = self._parameters if self.shards is None else []  # else the backward passes have done it
        return self.processes.add_up(added, on_host(), samples)

    def _look_at_losses(self, patience: Patience) -> None:
        """A mean over fewer losses than usual is too noisy to be anyone's lowest."""
        losses = self.progress.losses
        if len(losses) == losses.maxlen:
            patience.look(self.progress.step, sum(losses) / len(losses))

    def _should_stop(self) -> bool:
        """Whether any process was asked; the first one's run then notices too."""
        asked = self.reporter.stop_requested()
        if not self.processes.any(asked):
            return False
        if self.processes.first and not asked:
            (self.reporter.folder / STOP_FILE).touch()
            self.reporter.stop_requested()
        return True

    def _patience_is_over(self) -> bool:
        return self.patience is not None and self.patience.over

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are those that are saved, shown and validated."""
        return meant_weights(self.optimizer) if self.average is None else self.average.in_place()

    def validation_loss(self, validation: Validation) -> float:
        """Of the averaged weights."""
        with self.averaged():
            return self.passes.validation_loss(validation)

    def _clip(self) -> Tensor:
        if self.shards is not None:
            norm = self.shards.gradient_norm()
            if self.settings.max_grad_norm > 0:
                self.shards.shorten(norm, self.settings.max_grad_norm)
            return norm
        if self.updates is not None and self.updates.in_backward:
            return self.updates.gradient_norm()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.settings.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.settings.max_grad_norm, norm)
        return norm

    def _stepped(self, changed: bool) -> bool:
        """Update the weights; False when fp16 gradients overflowed and the scaler left the update out, or had
        none."""
        if self.shards is not None:
            self.shards.update(self.progress.step)
            return True
        if not self.scaler.is_enabled():
            (self.optimizer.step if self.updates is None else self.updates.finish)()
            return True
        if not changed:
            return False
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def _count(self, loss: float, grad_norm: Tensor, rate: float, samples: int, held: Tensor | None) -> None:
        progress = self.progress
        progress.step += 1
        progress.position += 1
        progress.losses.append(loss)
        if self.patience is not None and self.patience_watches_loss:
            self._look_at_losses(self.patience)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        step, epoch, average = progress.step, progress.epoch + 1, sum(progress.losses) / len(progress.losses)

        def event(loss: float, norm: float | None) -> Step:
            vram, ram = memory_used(self.device, self._process)
            return Step(
                step=step, total_steps=self.settings.total_steps, loss=loss, loss_average=average,
                epoch=epoch, total_epochs=self.settings.total_epochs, lr=rate, grad_norm=norm,
                seconds=seconds, samples_per_second=samples / max(seconds, 1e-9), vram_gb=vram, ram_gb=ram,
                layers_held=None if held is None else int(held),
            )  # fmt: skip

        self._pending = _Pending(event, loss, grad_norm)
        if self.device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Report the last update. Raises `NonFiniteLoss` when its gradient was no number, so call it before
        every save."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self.reporter.emit(pending.event(pending.loss, float(pending.grad_norm)))
        self._check(pending.grad_norm)

    def _check(self, grad_norm: Tensor) -> None:
        # a fp16 gradient may overflow: the scaler leaves such an update out and goes on with a smaller scale
        if not math.isfinite(float(grad_norm)) and not self.scaler.is_enabled():
            raise NonFiniteLoss(f"the gradient near step {self.progress.step} is {float(grad_norm)}")


def _passes(method: Method, objective: Objective, settings: LoopSettings, *, whole: bool) -> Passes:
    layers = len(method.model.layers)
    count = layers if settings.recomputed_blocks is None else settings.recomputed_blocks
    return Passes(
        method,
        objective,
        settings.seed,
        epoch_samples=settings.epoch_samples,
        recomputed=count if settings.gradient_checkpointing else None,
        boundaries=BoundaryOffload() if settings.gradient_checkpointing_cpu_offload else None,
        whole=whole,
    )
