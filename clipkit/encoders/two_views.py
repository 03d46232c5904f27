"""What methods of two views train beside the tower: projection and prediction heads, the momentum encoder, the queue.

None of it is part of the model that comes out: SimCLR, MoCo and BYOL keep the trunk and throw the heads away. It is
saved with the checkpoints, so that a run can be resumed.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from clipkit.encoders.dual import Tower


@dataclass(frozen=True)
class TwoViewsSettings:
    """Which pieces there are.

    Attributes:
        hidden, out: widths of the projection head, a network of one hidden layer (Chen et al. 2020).
        temperature: of the comparison of views; constant.
        predictor: hidden width of the head that predicts the other view's projection (BYOL), or None.
        momentum: share of the momentum encoder that stays in a step, or None for no momentum encoder: the second view
            goes through the same weights, with a gradient.
        rising: let the share rise to 1 along a half cosine (BYOL) instead of keeping it (MoCo).
        queue: past keys that are negatives as well (MoCo); 0 for none.
        symmetric: both views are queries, each once; otherwise the first only.
        normalised: end the projection head, too, with a BatchNorm, without gain and bias (Chen & He 2021, SimSiam,
            section 4.4; MoCo v3), which takes out of the projections what all pictures share.
    """

    hidden: int = 512
    out: int = 128
    temperature: float = 0.1
    predictor: int | None = None
    momentum: float | None = None
    rising: bool = False
    queue: int = 0
    symmetric: bool = True
    normalised: bool = False


class TwoViews(nn.Module):
    """The pieces that ``settings`` name, on top of ``tower``'s trunk.

    Args:
        tower: whose trunk sees the views.
        width: of the trunk's output.
        settings: which pieces.
    """

    log_scale: Tensor
    queue: Tensor
    queue_at: Tensor

    def __init__(self, tower: Tower, width: int, settings: TwoViewsSettings) -> None:
        super().__init__()
        self.settings = settings
        self.width = width
        self.projector = _mlp(width, settings.hidden, settings.out, settings.normalised)
        self.predictor = _mlp(settings.out, settings.predictor, settings.out) if settings.predictor else None
        self.momentum: nn.ModuleList | None = None
        if settings.momentum is not None:
            self.momentum = nn.ModuleList([copy.deepcopy(tower.trunk), copy.deepcopy(self.projector)])
            self.momentum.requires_grad_(False)
        self.register_buffer("log_scale", torch.tensor([-math.log(settings.temperature)]))
        if settings.queue:
            self.register_buffer("queue", F.normalize(torch.randn(settings.queue, settings.out), dim=1))
            self.register_buffer("queue_at", torch.zeros((), dtype=torch.int64))

    def describe(self) -> dict[str, Any]:
        """Plain data from which the same pieces are made again."""
        return {"width": self.width, **asdict(self.settings)}

    @classmethod
    def from_description(cls, tower: Tower, described: dict[str, Any]) -> TwoViews:
        """The inverse of ``describe``, with fresh weights."""
        settings = {name: value for name, value in described.items() if name != "width"}
        return cls(tower, described["width"], TwoViewsSettings(**settings))

    def project(self, features: Tensor) -> Tensor:
        """(B, width) of the trunk -> (B, out) queries, unit norm."""
        projected = self.projector(features)
        return unit_rows(projected if self.predictor is None else self.predictor(projected))

    @torch.no_grad()
    def target(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) pixels -> (B, out) keys of the momentum encoder, unit norm, without a gradient."""
        assert self.momentum is not None
        trunk, projector = self.momentum
        return unit_rows(projector(trunk(pixels)))

    @torch.no_grad()
    def follow(self, tower: Tower, progress: float) -> None:
        """Move the momentum encoder towards the tower and the projector, after they were updated.

        Args:
            progress: share of the run that is done, from 0 to 1.
        """
        if self.momentum is None or self.settings.momentum is None:
            return
        stays = self.settings.momentum
        if self.settings.rising:  # Grill et al. 2020, section 3.3
            stays = 1 - (1 - stays) * (math.cos(math.pi * progress) + 1) / 2
        for mine, theirs in zip(self.momentum, (tower.trunk, self.projector), strict=True):
            for slow, fast in zip(mine.parameters(), theirs.parameters(), strict=True):
                _local(slow).lerp_(_local(fast), 1 - stays)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Put ``keys`` (B, out), all processes', in the place of the oldest of the queue."""
        size = self.settings.queue
        if not size:
            return
        keys = keys[-size:]
        at = (int(self.queue_at) + torch.arange(len(keys), device=keys.device)) % size
        self.queue[at] = keys.to(self.queue.dtype)
        self.queue_at.add_(len(keys)).remainder_(size)


def _mlp(width: int, hidden: int, out: int, normalised: bool = False) -> nn.Sequential:
    """One hidden layer, normalised as in the papers by BatchNorm, which makes a bias before it needless; and the output
    if so wanted."""
    layers = [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(hidden, out, bias=not normalised))
    return nn.Sequential(*layers, *([nn.BatchNorm1d(out, affine=False)] if normalised else []))


def unit_rows(features: Tensor) -> Tensor:
    """(B, D) with rows of norm 1, float32, or float64 for float64."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)


def _local(parameter: Tensor) -> Tensor:
    """This process's part of a parameter that may be sharded."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
