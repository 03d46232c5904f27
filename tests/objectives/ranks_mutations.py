"""Ways to break the backward pass, for the tests to notice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.objectives import exchange as exchange_module
from clipkit.objectives import tiled_infonce, tiled_sigmoid

MUTATIONS = ("the factor W", "the columns", "the temperature", "the sum of the keys' gradients")


class mutated:
    """Within it the backward pass lacks something."""

    def __init__(self, what: str) -> None:
        walk_gradients, scatter = tiled_infonce._walk_gradients, exchange_module.scatter_sum

        def without_columns(ctx: Any, *arguments: Any) -> Tensor:
            ctx.ratio = torch.zeros_like(ctx.ratio)
            return walk_gradients(ctx, *arguments)

        self.places: list[tuple[Any, str, Any]] = {
            "": [],
            "the factor W": [(module, "world_size", lambda: 1) for module in (tiled_infonce, tiled_sigmoid)],
            "the columns": [(tiled_infonce, "_walk_gradients", without_columns)],
            "the temperature": [(tiled_infonce, "_walk_gradients", lambda *a: 0 * walk_gradients(*a))],
            "the sum of the keys' gradients": [
                (exchange_module, "scatter_sum", lambda g, n: g.split(n)[exchange_module.rank()] + 0 * scatter(g, n))
            ],
        }[what]

    def __enter__(self) -> None:
        self.before = [getattr(module, name) for module, name, _ in self.places]
        for module, name, replacement in self.places:
            setattr(module, name, replacement)

    def __exit__(self, *_: object) -> None:
        for (module, name, _), value in zip(self.places, self.before, strict=True):
            setattr(module, name, value)
