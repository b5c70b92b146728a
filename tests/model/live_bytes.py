"""Counts what tensor operations make and what of it is alive, whatever holds it."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """`peak`: the most bytes of tensors made inside that were alive at once; `now()`: those alive now."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}  # a view makes nothing
        made = [storage for storage in _storages(result) if storage._cdata not in given]
        for storage in made:
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        if any(storage.nbytes() > 1024 for storage in made):
            self.peak = max(self.peak, self.now())
        return result

    def now(self) -> int:
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        return sum(size for _, size in self._alive.values())


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
