"""Forward passes of one shape recorded once and replayed: a CUDA graph starts a thousand kernels at once,
where each would wait for Python.

Knows the network's inputs, what a recording depends on, and how many are kept. Must not know samplers, LoRAs
or options: whoever changes weights or kernels says so by `forget` or by `surroundings`.

A recording reads fixed addresses. Inputs are therefore copied into tensors of its own, weights must stay
where they are (no block swapping), and the rotary table, which lives in a cache, is held on to.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from zimage_gui.model.transformer import Factors, FinalScale, Modulation, ZImageTransformer, padded

Work = Callable[[], Tensor]
Record = Callable[[Work], Work]
"""Makes of some work a function that does it again with what then stands in the same tensors."""
Key = tuple[Hashable, ...]

_KEPT = 2
"""Recordings; each holds the memory of a pass. Two serve guidance that ends on the way."""
_FARTHEST = 0.02
"""Of the largest output: how far a first replay may be from the plain pass, whose kernels may be others."""


def record_on_cuda(work: Work) -> Work:
    """`work` must have run before, so that nothing is set up for the first time while it is recorded."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = work()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def key_of(latents: Tensor, time: Modulation, captions: Tensor, surroundings: Hashable) -> Key | None:
    """What a recording depends on; None where a pass cannot be recorded: a part is given the time itself,
    because someone moves its weights."""
    if not all(isinstance(factors, Factors) for factors in (*time.refiners, *time.layers)):
        return None
    if not isinstance(time.final, FinalScale):
        return None
    inputs = (latents, captions, *tensors_of(time))
    return (surroundings, *((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs))


def tensors_of(time: Modulation) -> list[Tensor]:
    """All tensors of a modulation, in an order that `rebuilt` knows."""
    parts = (*time.refiners, *time.layers, time.final)
    return [tensor for part in parts for tensor in part if tensor is not None]


def rebuilt(time: Modulation, tensors: list[Tensor]) -> Modulation:
    """The same modulation with other tensors in the places of its own."""
    rest = iter(tensors)

    def other(factors: Tensor | Factors) -> Factors:
        return Factors(*(None if one is None else next(rest) for one in factors))

    refiners, layers = tuple(map(other, time.refiners)), tuple(map(other, time.layers))
    return Modulation(refiners, layers, FinalScale(next(rest)))


@dataclass(frozen=True)
class _Recording:
    inputs: list[Tensor]
    replay: Work
    held: Tensor

    def output(self, inputs: list[Tensor]) -> Tensor:
        torch._foreach_copy_(self.inputs, inputs)
        return self.replay().clone()


class GraphedNetwork:
    """Called like the network. The first pass of a shape runs plainly, the second is recorded beside a plain
    one and compared with it, the others are replayed. A failure is told once and ends the recording."""

    def __init__(
        self, network: ZImageTransformer, say: Callable[[str], None], record: Record = record_on_cuda
    ) -> None:
        self.network = network
        self.surroundings: Hashable = None
        self.works = True
        self._say = say
        self._record = record
        self._seen: Key | None = None
        self._recordings: OrderedDict[Key, _Recording] = OrderedDict()

    def __call__(self, latents: Tensor, time: Modulation, captions: Tensor) -> Tensor:
        key = key_of(latents, time, captions, self.surroundings) if self.works else None
        if key is not None and (recording := self._recordings.get(key)) is not None:
            self._recordings.move_to_end(key)
            return recording.output([latents, captions, *tensors_of(time)])
        output = self._plain(latents, time, captions)
        if key is not None and key == self._seen:
            self._try_to_record(key, latents, time, captions, output)
        self._seen = key
        return output

    def _plain(self, latents: Tensor, time: Modulation, captions: Tensor) -> Tensor:
        """Where memory is short, the recordings give theirs before the pass fails."""
        try:
            output: Tensor = self.network(latents, time, captions)
            return output
        except torch.OutOfMemoryError:
            if not self._recordings:
                raise
        # Outside the handler: its traceback would keep the failed attempt's memory.
        self.forget()
        torch.cuda.empty_cache()
        again: Tensor = self.network(latents, time, captions)
        return again

    def forget(self) -> None:
        """Weights or what acts on them have changed, or their memory is wanted."""
        self._recordings.clear()
        self._seen = None

    def _try_to_record(
        self, key: Key, latents: Tensor, time: Modulation, captions: Tensor, expected: Tensor
    ) -> None:
        while len(self._recordings) >= _KEPT:
            self._recordings.popitem(last=False)
        try:
            recording = self._recorded(latents, time, captions)
            found = recording.output([latents, captions, *tensors_of(time)])
            farthest = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
            trouble = "" if farthest <= _FARTHEST else f"a replay was {farthest:.2g} off"
        except RuntimeError as error:
            trouble = str(error).partition("\n")[0] or type(error).__name__
        if trouble:
            self.works = False
            self.forget()
            self._say(f"CUDA graphs are off: {trouble}")
        else:
            self._recordings[key] = recording

    def _recorded(self, latents: Tensor, time: Modulation, captions: Tensor) -> _Recording:
        inputs = [tensor.clone() for tensor in (latents, captions, *tensors_of(time))]
        own, own_captions, *factors = inputs
        own_time = rebuilt(time, factors)
        rows, columns = (size // self.network.config.patch_size for size in latents.shape[-2:])
        rope = self.network.rope(rows, columns, padded(rows * columns), captions.shape[1])
        return _Recording(inputs, self._record(lambda: self.network(own, own_time, own_captions)), rope)
