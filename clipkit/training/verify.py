"""Are the gradients of many processes those of one? Asked of the real towers, flags and launch.

The reference is the whole batch on one process, in one piece, in float64, with the dense objective. A gradient is
right if it is as close to that as the same precision on one process is, within a factor of two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor

from clipkit.config import OptimConfig
from clipkit.encoders import DualEncoder
from clipkit.objectives import (
    Compare,
    dense,
    dense_distances,
    infonce,
    margin,
    negative_cosine,
    sigmoid,
    triplet,
)
from clipkit.objectives.exchange import alone, world_size
from clipkit.pairs import PairBatch
from clipkit.training.step import Objective, step_loss
from clipkit.training.strategy import distribute, encode, whole

TOLERANCE = 5e-6  # of a gradient's norm, in float32
_NEGLIGIBLE = 1e-6  # of all gradients' norm: below it a gradient is compared with that norm and not with its own

_DENSE: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    infonce: dense.infonce,
    sigmoid: dense.sigmoid,
    margin: dense_distances.margin,
    triplet: dense_distances.triplet,
    negative_cosine: dense_distances.negative_cosine,
}


@dataclass(frozen=True)
class GradientCheck:
    """One parameter's gradient beside the reference.

    Attributes:
        name: of the parameter.
        error: norm of the difference, relative to the reference.
        alone: the same of one process with the whole batch in this precision: what rounding alone does.
        factor: the multiple of the reference that is closest to the gradient; 1 where it is right.
    """

    name: str
    error: float
    alone: float
    factor: float

    @property
    def right(self) -> bool:
        """Whether the error is one of rounding."""
        return self.error <= max(TOLERANCE, 2 * self.alone)


def check_gradients(
    model: DualEncoder,
    mine: PairBatch,
    everyone: PairBatch,
    compare: Compare,
    objective: Objective,
    accelerator: Accelerator,
    config: OptimConfig,
    autocast: torch.dtype | None = None,
) -> list[GradientCheck]:
    """Every trained parameter's gradient, checked on the first process; an empty list on the others.

    Dropout is off and BatchNorm frozen: what they do depends on how a batch is cut.

    Args:
        model: whole, equal on all processes.
        mine, everyone: this process's part of the batch, and all of it.
        compare, objective: the tables of a step, and the loss over them.
    """
    trained = distribute(copy.deepcopy(model).eval(), accelerator)
    embeddings = encode(trained, mine, config.micro_batch_size, autocast)
    loss = step_loss(embeddings, mine, compare, objective, config.exchange)
    accelerator.backward(loss)
    got = _gradients(accelerator.unwrap_model(trained))
    if not accelerator.is_main_process:
        return []
    with alone():
        same = _alone(model, everyone, compare, objective, autocast)
        reference = _alone(copy.deepcopy(model).double(), everyone, compare, _dense(objective), None)
    total = torch.stack([g.norm() for g in reference.values()]).norm()
    checks = []
    for name, wanted in reference.items():
        size = max(float(wanted.norm()), _NEGLIGIBLE * float(total))
        error, floor = (float((g[name].double() - wanted).norm()) / size for g in (got, same))
        factor = float((got[name].double() * wanted).sum() / wanted.square().sum().clamp(min=1e-300))
        checks.append(GradientCheck(name, error, floor, factor))
    return checks


def _dense(objective: Objective) -> Objective:
    """The readable form of ``objective``, or itself where there is no other."""
    function, settings = (objective.func, objective.keywords) if isinstance(objective, partial) else (objective, {})
    return partial(_DENSE[function], **settings) if function in _DENSE else objective


def advice(checks: list[GradientCheck], world: int | None = None) -> str | None:
    """What wrong gradients look like, in one sentence; None where all are right."""
    wrong = [c for c in checks if not c.right]
    if not wrong:
        return None
    world = world or world_size()
    factors = torch.tensor([c.factor for c in wrong]).median().item()
    for value, meaning in ((1 / world, "averaged twice"), (float(world), "summed where they should be averaged")):
        if world > 1 and abs(factors / value - 1) < 0.01:
            return f"they are {factors:.3g} times the reference on {world} processes: the shares are {meaning}"
    return f"the median of their factors is {factors:.3g}: the launch strategy or a tower changes the gradient"


def _alone(
    model: DualEncoder, batch: PairBatch, compare: Compare, objective: Objective, autocast: torch.dtype | None
) -> dict[str, Tensor]:
    model = copy.deepcopy(model).eval()
    images, texts = (
        x.to(model.log_scale.dtype) if x is not None and x.is_floating_point() else x
        for x in (batch.images, batch.texts)
    )
    step_loss(model(images, texts, None, autocast), batch, compare, objective).backward()
    return _gradients(model)


def _gradients(model: DualEncoder) -> dict[str, Tensor]:
    return {
        name: whole(p.grad if p.grad is not None else torch.zeros_like(p)).detach().cpu()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
