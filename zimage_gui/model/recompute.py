"""Keep matrix products for the backward pass, compute what is cheap to make from them again.

Knows how autograd keeps tensors. Must not know networks: a network names its cheap results by making them
with `cheap`, and whoever runs it chooses with `keeping_products` that they are not kept. Norms, rotations and
gates cost a few per cent of a block's time and a third of its memory.

Not to be used inside `torch.utils.checkpoint`: of nested hooks autograd asks the innermost only, so that what
these keep would stay alive in every checkpointed block.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor


class Elsewhere(Protocol):
    """Whoever moves a block's weights between its forward and its backward pass: it keeps its own tensors in
    its own way, and `arrive` comes before anything of the block is read."""

    def pack(self, tensor: Tensor) -> Any: ...

    def arrive(self) -> None: ...

    def unpack(self, kept: Any) -> Tensor: ...


Packed = tuple["_Recipe", torch.Size, tuple[int, ...], int]


class _Recipe:
    """How to make one tensor again. `users` counts the places in the graph that will ask for it: the first
    makes it, the last lets it go."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Any, ...], result: Tensor) -> None:
        self._function = function
        # without their history: a saved tensor that refers to its own graph would never be freed
        self._inputs = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
        self._result = weakref.ref(result)
        self._value: Tensor | None = None
        self._users = 0

    def pack(self, tensor: Tensor) -> Packed | Tensor:
        """A note in the place of `tensor`, if that is a view of the result. A storage's address identifies it
        only as long as the result lives."""
        if self._result() is None:
            return tensor
        self._users += 1
        return self, tensor.size(), tensor.stride(), int(tensor.storage_offset())

    @torch.no_grad()
    def value(self) -> Tensor:
        value = self._function(*self._inputs) if self._value is None else self._value
        self._users -= 1
        self._value = value if self._users > 0 else None
        return value


_recipes: ContextVar[dict[int, _Recipe] | None] = ContextVar("_recipes", default=None)


def cheap(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), a new dense tensor that may be made again instead of kept. `function` must not draw
    random numbers or depend on autocast, and every large tensor it reads must be among `inputs`. In compiled
    code it does nothing: there the compiler chooses what is kept."""
    result = function(*inputs)
    if torch.compiler.is_compiling():
        return result
    recipes = _recipes.get()
    if recipes is not None and result.requires_grad:
        recipes[_address(result)] = _Recipe(function, inputs, result)
    return result


@contextmanager
def keeping_products(elsewhere: Elsewhere | None = None) -> Iterator[None]:
    """Inside, results of `cheap` are not kept for the backward pass; `elsewhere` sees all other tensors."""
    recipes: dict[int, _Recipe] = {}

    def pack(tensor: Tensor) -> Any:
        recipe = recipes.get(_address(tensor))
        if recipe is not None:
            return recipe.pack(tensor)
        return tensor if elsewhere is None else elsewhere.pack(tensor)

    def unpack(packed: Any) -> Tensor:
        if elsewhere is None:
            return _unpack(packed)
        elsewhere.arrive()
        return _unpack(packed) if isinstance(packed, tuple) else elsewhere.unpack(packed)

    token = _recipes.set(recipes)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _recipes.reset(token)


def _unpack(packed: Packed | Tensor) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    recipe, size, stride, offset = packed
    return recipe.value().as_strided(size, stride, offset)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
