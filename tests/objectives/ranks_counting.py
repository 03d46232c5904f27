"""What a loss sends: every collective and every message that goes through torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from clipkit.encoders import Embeddings
from clipkit.objectives import compare
from clipkit.objectives import exchange as exchange_module

DIM = 5
KINDS = {
    "gather": ("all_gather", "all_gather_into_tensor", "all_gather_single"),
    "scatter": ("reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single"),
    "reduce": ("all_reduce",),
    "messages": ("batch_isend_irecv",),
    "other": ("all_gather_object", "broadcast", "all_to_all", "all_to_all_single", "reduce", "gather", "scatter"),
}


def collectives(loss: Callable[..., Tensor], pairs: int, way: Any) -> dict[str, list[tuple[str, str, int]]]:
    """``pairs`` on each rank, features (pairs, DIM): (kind, dtype, elements of its largest tensor) of each call."""
    calls: list[tuple[str, str, int]] = []
    known = {getattr(dist, n): kind for kind, names in KINDS.items() for n in names if hasattr(dist, n)}

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            tensors = [a for a in arguments if isinstance(a, Tensor)]
            if known[function] == "messages":
                tensors = [operation.tensor for operation in arguments[0]]
            largest = max(tensors, key=lambda x: x.numel())
            calls.append((known[function], str(largest.dtype).removeprefix("torch."), largest.numel()))
            return function(*arguments, **options)

        return call

    # where torch keeps them, and where clipkit may have bound them to a name of its own
    places = [(m, n, f) for m in (dist, exchange_module) for n, f in vars(m).items() if _is_one_of(f, known)]
    for module, name, function in places:
        setattr(module, name, counted(function))
    try:
        ids = torch.arange(pairs) + pairs * dist.get_rank()
        features = [
            F.normalize(torch.randn(pairs, DIM, dtype=torch.float64), dim=-1).requires_grad_() for _ in range(2)
        ]
        scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
        value = loss(compare(Embeddings(*features, scale, None), ids, ids, way))
        forward = list(calls)
        calls.clear()
        value.backward()
    finally:
        for module, name, function in places:
            setattr(module, name, function)
    return {"forward": forward, "backward": list(calls)}


def _is_one_of(value: Any, known: dict[Any, str]) -> bool:
    return callable(value) and value.__hash__ is not None and value in known
