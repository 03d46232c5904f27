"""A network with a linear layer on top, trained whole on labelled pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clipkit.errors import ClipkitError
from clipkit.evaluation.subsets import hold_out

_SHIFT = 8  # a view is moved by at most an eighth of its side

MakeTrunk = Callable[[], nn.Module]
ToPixels = Callable[[Tensor], Tensor]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Pictures(Protocol):
    """N pictures: a uint8 tensor (N, 3, H, W), or anything that decodes the rows that it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Tensor:
        """int64 (B,) -> uint8 (B, 3, H, W)."""
        ...


@dataclass(frozen=True)
class Budget:
    """How both networks are trained: AdamW (Loshchilov & Hutter 2019), warm-up over a twentieth, then a cosine to 0.

    Attributes:
        epochs: passes over the labelled samples.
        min_steps: steps that every fraction gets, however few labels it has.
        batch_size: samples of a step, and no more than there are labels.
        lr: peak learning rate, or several to choose from: each network then takes, at each fraction and seed, the one
            that is best on a fifth of its own labels, held out by class. Test samples choose nothing.
        wd: weight decay, not on gains and biases.
    """

    epochs: float = 20.0
    min_steps: int = 200
    batch_size: int = 64
    lr: tuple[float, ...] = (1e-3,)
    wd: float = 0.05

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.min_steps < 0 or not self.epochs + self.min_steps > 0 or self.batch_size < 2:
            raise ClipkitError(
                f"a budget of {self.epochs} epochs, {self.min_steps} steps, batches of {self.batch_size}: give at "
                "least one step, and batches of at least 2"
            )
        if not self.lr or not all(0 < lr < math.inf for lr in self.lr) or not 0 <= self.wd < math.inf:
            raise ClipkitError(f"lr {self.lr} and wd {self.wd}: give at least one learning rate above 0, and wd from 0")

    def steps(self, n: int) -> int:
        """Steps for n labelled samples."""
        return max(1, self.min_steps, math.ceil(self.epochs * n / min(self.batch_size, n) - 1e-9))


def shift_and_flip(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture moved by up to an eighth of its side, its border mirrored, and half of them flipped; the usual
    augmentation of small pictures (He et al. 2016, section 4.2). uint8 (B, 3, H, W) -> the same shape."""
    count, _, height, width = pictures.shape

    def places(side: int) -> Tensor:
        reach = side // _SHIFT
        moved = torch.randint(-reach, reach + 1, (count, 1), generator=generator) + torch.arange(side)
        return (side - 1) - ((side - 1) - moved.abs()).abs()  # mirrored at both ends

    rows, columns = places(height), places(width)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flipped, columns.flip(1), columns).to(pictures.device)
    each = torch.arange(count, device=pictures.device)[:, None, None]
    # (B, H, W, 3) by indexing around the channels
    return pictures[each, :, rows.to(pictures.device)[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass
class FineTuning:
    """What all trainings share, and how far they are.

    Attributes:
        pictures, label_N: the training samples; label_N are classes, int64 (N,).
        total, done: training steps of all trainings, and those that are behind.
        label: what is being trained, for messages.
    """

    pictures: Pictures
    label_N: np.ndarray
    n_classes: int
    to_pixels: ToPixels
    augment: Augmentation
    budget: Budget
    device: torch.device
    progress: Callable[[str, int, int], None] | None
    total: int
    done: int = 0
    label: str = ""

    def choose_lr(self, make: MakeTrunk, rows: np.ndarray, seed: int) -> float:
        """The learning rate that is best on a held-out fifth of the labelled samples ``rows``; of equals the first."""
        if len(self.budget.lr) == 1:
            return self.budget.lr[0]
        kept, held = hold_out(self.label_N[rows], 0.2, seed)
        kept, held = rows[kept], rows[held]
        if not len(held):  # a label or two of each class: nothing to choose by
            self._count(len(self.budget.lr) * self.budget.steps(len(rows)))
            return self.budget.lr[0]
        shares = []
        for lr in self.budget.lr:
            model = self.train(make, kept, lr, seed, steps=self.budget.steps(len(rows)))
            shares.append(self.accuracy(model, self.pictures, self.label_N[held], held))
        return self.budget.lr[int(np.argmax(shares))]

    def train(self, make: MakeTrunk, rows: np.ndarray, lr: float, seed: int, steps: int | None = None) -> nn.Module:
        """Trunk and linear layer, trained on the samples ``rows``."""
        steps = steps or self.budget.steps(len(rows))
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            trunk = make()
            torch.manual_seed(seed)  # the same linear layer and dropout, however many numbers the trunk has drawn
            model = nn.Sequential(trunk, nn.Linear(self._width(trunk), self.n_classes)).to(self.device)
            model.requires_grad_(True).train()
            optimizer = torch.optim.AdamW(_groups(model, self.budget.wd), lr=lr)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, steps))
            for chosen in _batches(rows, min(self.budget.batch_size, len(rows)), steps, generator):
                views = self.to_pixels(self.augment(self.pictures[chosen].to(self.device), generator))
                truth = torch.from_numpy(self.label_N[chosen.numpy()]).to(self.device)
                loss = nn.functional.cross_entropy(model(views), truth)
                if not torch.isfinite(loss):
                    raise ClipkitError(f"the loss is {loss.item()} with {self.label}: lower the learning rate ({lr:g})")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                self._count(1)
        return model.eval()

    @torch.no_grad()
    def accuracy(
        self, model: nn.Module, pictures: Pictures, label_M: np.ndarray, rows: np.ndarray | None = None
    ) -> float:
        """Share of the samples (of ``rows``, or all) whose class has the largest score."""
        right = 0
        every = torch.arange(len(label_M)) if rows is None else torch.from_numpy(rows)
        for chosen, truth in zip(every.split(256), torch.from_numpy(label_M).split(256), strict=True):
            scores = model(self.to_pixels(pictures[chosen].to(self.device)))
            right += int((scores.argmax(1).cpu() == truth).sum())
        return right / len(label_M)

    @torch.no_grad()
    def _width(self, trunk: nn.Module) -> int:
        trunk.to(self.device).eval()
        features = trunk(self.to_pixels(self.pictures[torch.tensor([0, 0])].to(self.device)))
        if features.ndim != 2:
            raise ClipkitError(
                f"the trunk returns {tuple(features.shape)}: it must return one row of features a picture"
            )
        return features.shape[1]

    def _count(self, steps: int) -> None:
        self.done += steps
        if self.progress is not None:
            self.progress(self.label, self.done, self.total)


def _batches(rows: np.ndarray, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``steps`` batches of ``size`` rows: one permutation after another, none cut short."""
    left = torch.zeros(0, dtype=torch.int64)
    for _ in range(steps):
        while len(left) < size:
            left = torch.cat([left, torch.from_numpy(rows)[torch.randperm(len(rows), generator=generator)]])
        yield left[:size]
        left = left[size:]


def _groups(model: nn.Module, wd: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": matrices, "weight_decay": wd}, {"params": [p for p in model.parameters() if p.ndim < 2],
                                                       "weight_decay": 0.0}]  # fmt: skip


def _cosine(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
