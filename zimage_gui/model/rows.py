"""The rows of a weight that one of several processes keeps, where weights are shared out.

Knows tensors and how rows are counted. Must not know what shares them out (`sharding` does, whose imports
take seconds that a run of one process need not wait for).
"""

from typing import Any

import torch
from torch import Tensor, nn


def rows_of(rows: int, rank: int, count: int) -> tuple[int, int]:
    """[first, last) of the rows that process `rank` of `count` keeps, as torch's `fully_shard` cuts them."""
    each = -(-rows // count)
    return min(rank * each, rows), min((rank + 1) * each, rows)


def kept(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: its rows, or all of one that is not shared out."""
    shared: Any = tensor.detach()
    local: Tensor = shared.to_local() if hasattr(shared, "device_mesh") else shared
    return local


@torch.no_grad()
def fill(parameter: nn.Parameter, whole: Tensor) -> None:
    """Give a parameter its values: one that is shared out, this process's rows of them."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is not None:
        first, last = rows_of(len(whole), mesh.get_local_rank(), mesh.size())
        whole = whole[first:last]
    kept(parameter).copy_(whole)
