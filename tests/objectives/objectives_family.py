"""Every objective with its dense form, and what its value and gradients are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from clipkit.objectives import (
    Comparison,
    GlobalContrastive,
    Tiling,
    dense,
    dense_distances,
    hard_infonce,
    infonce,
    margin,
    negative_cosine,
    sigmoid,
    triplet,
)
from clipkit.objectives.hard import hard_infonce_of
from clipkit.objectives.log_sums import log_sums

Tiled = Callable[..., Tensor]
Dense = Callable[[Comparison], Tensor]


def dense_hard(c: Comparison, beta: float, tau_plus: float = 0.0, directions: dense.Directions = "both") -> Tensor:
    return hard_infonce_of(c, log_sums(c, (1 + beta, beta)), tau_plus, directions)


def global_twice(c: Comparison, tiling: Tiling | None = None) -> Tensor:
    """What a second batch finds: the first had other keys."""
    loss = GlobalContrastive(1 << 10, gamma=0.4, eps=0.01)
    loss(replace(c, keys=c.keys.detach().roll(1, 1)), tiling)
    return loss(c, tiling)


LOSSES: dict[str, tuple[Tiled, Dense]] = {
    "infonce": (infonce, dense.infonce),
    "infonce rows": (partial(infonce, directions="rows"), partial(dense.infonce, directions="rows")),
    "sigmoid": (sigmoid, dense.sigmoid),
    "negative cosine": (negative_cosine, dense_distances.negative_cosine),
    "margin": (partial(margin, margin=1.3), partial(dense_distances.margin, margin=1.3)),
    **{
        f"triplet {mining}": (
            partial(triplet, margin=0.4, mining=mining),
            partial(dense_distances.triplet, margin=0.4, mining=mining),
        )
        for mining in ("all", "hardest", "semihard")
    },
    "hard": (partial(hard_infonce, beta=0.8), partial(dense_hard, beta=0.8)),
    "hard debiased": (
        partial(hard_infonce, beta=0.5, tau_plus=0.1, directions="rows"),
        partial(dense_hard, beta=0.5, tau_plus=0.1, directions="rows"),
    ),
    "hard floored": (partial(hard_infonce, beta=0.5, tau_plus=0.6), partial(dense_hard, beta=0.5, tau_plus=0.6)),
    "global": (global_twice, global_twice),
}
TILINGS = [Tiling(3, 2, 0), Tiling(2, 100, 1 << 20), Tiling(512, 512, 0)]


def gradients(loss: Dense, c: Comparison) -> dict[str, Tensor]:
    """Value and gradients."""
    names = [n for n in ("queries", "keys", "log_scale", "bias") if getattr(c, n) is not None]
    leaves = {n: getattr(c, n).clone().requires_grad_() for n in names}
    value = loss(replace(c, **leaves))
    value.backward()
    assert all(x.grad is not None for x in leaves.values()), "DDP waits for every parameter"
    return {"value": value.detach()} | {n: x.grad for n, x in leaves.items()}  # type: ignore[misc]


def apart(got: dict[str, Tensor], true: dict[str, Tensor]) -> float:
    """The largest error in norm, of numbers around 1 or smaller."""
    return max(float((got[n].double() - t).norm() / t.norm().clamp(min=1)) for n, t in true.items())
