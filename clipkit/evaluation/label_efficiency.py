"""What pretraining saves in labels: a network fine-tuned with few labels, beside the same one trained from scratch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clipkit.errors import ClipkitError
from clipkit.evaluation.arrays import label_codes
from clipkit.evaluation.finetune import (
    Augmentation,
    Budget,
    FineTuning,
    MakeTrunk,
    Pictures,
    ToPixels,
    shift_and_flip,
)
from clipkit.evaluation.intervals import Interval, seed_interval
from clipkit.evaluation.subsets import nested_subsets

FRACTIONS = (0.01, 0.05, 0.1, 1.0)


@dataclass(frozen=True)
class Point:
    """One fraction of the labels.

    Attributes:
        fraction, n_labels, steps: share and number of labelled samples, and the training steps of each network.
        pretrained, scratch: test accuracy, mean and 95 % interval over seeds; gain: of their difference, seed by seed.
        pretrained_seeds, scratch_seeds: test accuracy of each seed.
    """

    fraction: float
    n_labels: int
    steps: int
    pretrained: Interval
    scratch: Interval
    gain: Interval
    pretrained_seeds: tuple[float, ...]
    scratch_seeds: tuple[float, ...]


@dataclass(frozen=True)
class LabelEfficiency:
    """The curve of accuracy over labels, for a pretrained network and the same network from scratch."""

    points: tuple[Point, ...]
    class_names: tuple[str, ...]
    chance: float
    n_train: int
    n_test: int
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        points = []
        for point in self.points:
            intervals = {name: getattr(point, name).to_dict() for name in ("pretrained", "scratch", "gain")}
            seeds = {name: list(getattr(point, name)) for name in ("pretrained_seeds", "scratch_seeds")}
            points.append({**asdict(point), **intervals, **seeds})
        return {
            "kind": "label_efficiency",
            "points": points,
            "class_names": list(self.class_names),
            "chance": self.chance,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "protocol": self.protocol,
        }

    def __str__(self) -> str:
        lines = [f"{'labels':>18}{'pretrained':>24}{'from scratch':>24}{'difference':>24}"]
        for p in self.points:
            share = f"{p.n_labels:,} ({100 * p.fraction:g} %)"
            lines.append(f"{share:>18}{p.pretrained!s:>24}{p.scratch!s:>24}{p.gain!s:>24}")
        return "\n".join([*lines, f"chance {100 * self.chance:.1f} %", self.protocol])

    def plot(self, path: str | Path) -> None:
        """Draw the curve; the file's ending says how (.png, .svg, .pdf)."""
        from clipkit.evaluation.plots import draw_label_efficiency

        draw_label_efficiency(self, path)


def label_efficiency(
    make_pretrained: MakeTrunk,
    make_scratch: MakeTrunk,
    train: Pictures,
    train_labels: Any,
    test: Pictures,
    test_labels: Any,
    to_pixels: ToPixels,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seeds: int = 3,
    budget: Budget | None = None,
    augment: Augmentation = shift_and_flip,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> LabelEfficiency:
    """Fine-tune with a few labels, and train the same network with the same labels from scratch.

    Both get a linear layer on top and are trained whole, with the same labels, batches, views, steps and learning
    rates; only where they start differs (as in Chen et al. 2020, A Simple Framework for Contrastive Learning, section
    6, with a supervised network beside it at every fraction).

    Args:
        make_pretrained: a new copy of the pretrained picture trunk, float pixels -> (B, F).
        make_scratch: the same architecture with random weights, drawn from torch's generator, which is seeded before.
        train, test: uint8 pictures; see ``Pictures``.
        train_labels, test_labels: whole numbers or texts, one a picture.
        to_pixels: uint8 (B, 3, H, W) -> the float pixels that the trunk wants.
        fractions: shares of the training labels; every class keeps at least one, and smaller subsets lie in larger.
        seeds: repetitions, each with its own subset, weights of the linear layer and of the scratch network, batches
            and views. The pretrained weights are the same in all.
        progress: called with a label, steps done, and steps in all.

    Raises:
        ClipkitError: labels or pictures that do not fit, two different architectures, or a loss that is not finite.
    """
    budget = budget or Budget()
    if isinstance(seeds, bool) or seeds < 1:
        raise ClipkitError(f"seeds is {seeds}: ask for at least one; three or more give intervals")
    train_N, test_M, names = label_codes(
        "train_labels", train_labels, len(train), "test_labels", test_labels, len(test)
    )
    with torch.random.fork_rng(devices=[]):  # the caller's generator stays as it is
        _same_architecture(make_pretrained(), make_scratch())
    subsets = [nested_subsets(train_N, fractions, seed) for seed in range(seeds)]
    trials = len(budget.lr) + 1 if len(budget.lr) > 1 else 1
    total = sum(2 * trials * budget.steps(len(rows)) for by_seed in subsets for rows in by_seed.values())
    work = FineTuning(train, train_N, len(names), to_pixels, augment, budget, torch.device(device), progress, total)

    points = []
    for fraction in sorted(subsets[0]):
        accuracy: dict[str, list[float]] = {"pretrained": [], "scratch": []}
        for seed in range(seeds):
            rows = subsets[seed][fraction]
            for arm, make in (("pretrained", make_pretrained), ("scratch", make_scratch)):
                work.label = f"{100 * fraction:g} % of the labels, {arm}, seed {seed}"
                model = work.train(make, rows, work.choose_lr(make, rows, seed), seed)
                accuracy[arm].append(work.accuracy(model, test, test_M))
        pretrained, scratch = (np.array(accuracy[arm]) for arm in ("pretrained", "scratch"))
        points.append(
            Point(
                fraction=fraction,
                n_labels=len(subsets[0][fraction]),
                steps=budget.steps(len(subsets[0][fraction])),
                pretrained=seed_interval(pretrained, 0, 1),
                scratch=seed_interval(scratch, 0, 1),
                gain=seed_interval(pretrained - scratch, -1, 1),
                pretrained_seeds=tuple(pretrained.tolist()),
                scratch_seeds=tuple(scratch.tolist()),
            )
        )
    rates = " or ".join(f"{lr:g}" for lr in budget.lr)
    protocol = (
        f"whole network and a linear layer, AdamW, lr {rates}{' by a held-out fifth' if trials > 1 else ''}, cosine, "
        f"batches of {budget.batch_size}, {budget.epochs:g} epochs and at least {budget.min_steps:,} steps; "
        f"{len(test):,} test samples, which choose nothing; mean and 95 % t interval over {seeds} "
        f"seed{'s' if seeds > 1 else ''} (labels, order, views, random weights)"
    )
    return LabelEfficiency(tuple(points), tuple(names), 1 / len(names), len(train), len(test), protocol)


def _same_architecture(one: nn.Module, other: nn.Module) -> None:
    shapes, others = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (one, other))
    different = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
    if different:
        raise ClipkitError(
            f"the two networks differ in {different[0]} ({len(different)} such tensors): compare one architecture"
        )
