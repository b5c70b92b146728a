"""A transformer whose weights are shared out over processes: of each, a process keeps some rows.

Knows torch's `fully_shard` and blocks. Must not know files, optimizers or what is trained. A block's weights
are whole only while it computes; its gradients are averaged over the processes and cut into rows as soon as
they are there. torch's hooks do this where a module is called: what runs must be called as one.
"""

from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from zimage_gui.model.transformer import ZImageTransformer


def shard(
    model: ZImageTransformer, group: Any, device: torch.device, dtype: torch.dtype
) -> ZImageTransformer:
    """`model`, which has no memory yet, with empty rows on `device`. group: the processes, where tensors of
    that device can be sent."""
    mesh = DeviceMesh.from_group(group, device.type)
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32)  # gradients of bf16 too are added up in fp32
    model.to(dtype)
    for part in (*model.noise_refiner, *model.context_refiner, *model.layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=exact)
    return model.to_empty(device=device)
