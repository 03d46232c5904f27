"""Fine-tuning with few labels: subsets, fairness, seeds, and that the test set chooses nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from clipkit.errors import ClipkitError
from clipkit.evaluation import Budget, label_efficiency, seed_interval
from clipkit.evaluation.finetune import FineTuning, shift_and_flip

SIDE = 8


class Small(nn.Module):
    """Two convolutions and a mean: pixels -> (B, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu()).mean((2, 3))


def stripes(n: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Pictures of vertical or horizontal stripes in noise: no colour gives the class away."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    wave = 16 * np.sign(np.sin(np.arange(SIDE) * math.pi / 2 + 0.1))
    pictures = rng.normal(128, 40, (n, 3, SIDE, SIDE))
    pictures[label == 0] += wave[None, None, None, :]
    pictures[label == 1] += wave[None, None, :, None]
    return torch.from_numpy(pictures.clip(0, 255).astype(np.uint8)), label


def to_pixels(pictures: Tensor) -> Tensor:
    return pictures.float() / 128 - 1


BUDGET = Budget(epochs=2, min_steps=20, batch_size=16, lr=(1e-2,))


def trained() -> dict[str, Tensor]:
    """A trunk that has learned the stripes from other pictures."""
    pictures, label = stripes(200, 9)
    budget = Budget(epochs=20, min_steps=1, batch_size=20, lr=(1e-2,))
    work = FineTuning(pictures, label, 2, to_pixels, shift_and_flip, budget, torch.device("cpu"), None, 0)
    return work.train(Small, np.arange(200), 1e-2, 0)[0].state_dict()


@pytest.fixture(scope="module")
def make_pretrained() -> Callable[[], nn.Module]:
    state = trained()

    def make() -> nn.Module:
        model = Small()
        model.load_state_dict(state)
        return model.requires_grad_(False)  # as a locked trunk comes

    return make


def test_pretraining_on_the_same_kind_of_picture_saves_labels(make_pretrained: Callable[[], nn.Module]) -> None:
    (train, label), (test, truth) = stripes(200, 0), stripes(100, 1)
    said: list[tuple[str, int, int]] = []
    curve = label_efficiency(
        make_pretrained, Small, train, label, test, truth, to_pixels,
        fractions=(1.0, 0.02), seeds=3, budget=BUDGET, progress=lambda *line: said.append(line),
    )  # fmt: skip
    few, every = curve.points
    assert (few.fraction, few.n_labels, few.steps) == (0.02, 4, 20) and (every.n_labels, every.steps) == (200, 25)
    assert few.pretrained.value > few.scratch.value + 0.1 and few.pretrained.value > 0.85
    for point in curve.points:
        assert point.pretrained.value == pytest.approx(np.mean(point.pretrained_seeds))
        assert point.scratch.value == pytest.approx(np.mean(point.scratch_seeds))
        gains = np.subtract(point.pretrained_seeds, point.scratch_seeds)
        assert point.gain == seed_interval(gains, -1, 1)
        assert len(point.pretrained_seeds) == len(point.scratch_seeds) == 3
    assert (curve.n_train, curve.n_test, curve.chance, curve.class_names) == (200, 100, 0.5, ("0", "1"))
    assert [done for _, done, _ in said] == list(range(1, 271)) and said[-1][2] == 270 == 2 * 3 * (20 + 25)
    assert "from scratch" in str(curve) and "4 (2 %)" in str(curve) and "choose nothing" in curve.protocol
    figures = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert figures["points"][0]["pretrained"]["value"] == few.pretrained.value


def test_the_seed_decides_and_the_caller_s_generator_is_left_alone() -> None:
    (train, label), (test, truth) = stripes(40, 0), stripes(40, 1)

    def run() -> dict:
        return label_efficiency(
            Small, Small, train, label, test, truth, to_pixels, fractions=(0.2,), seeds=2, budget=BUDGET
        ).to_dict()

    torch.manual_seed(1)
    first = run()
    following = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), following)
    assert run() == first
    point = first["points"][0]
    assert point["pretrained_seeds"] == point["scratch_seeds"], "the same start, so the same end: all else is equal"
    assert point["pretrained_seeds"][0] != point["pretrained_seeds"][1]


def test_test_labels_change_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, label), (test, truth) = stripes(60, 0), stripes(40, 1)
    weights: list[Tensor] = []
    real = FineTuning.train

    def spy(self: FineTuning, *arguments: object, **named: object) -> nn.Module:
        model = real(self, *arguments, **named)  # type: ignore[arg-type]
        weights.append(model[1].weight.detach().clone())  # type: ignore[index]
        return model

    monkeypatch.setattr(FineTuning, "train", spy)
    budget = Budget(epochs=1, min_steps=5, batch_size=16, lr=(1e-2, 1e-4))
    for labels in (truth, 1 - truth):
        label_efficiency(Small, Small, train, label, test, labels, to_pixels, fractions=(1.0,), seeds=1, budget=budget)
    half = len(weights) // 2
    assert half == 2 * 3 and all(torch.equal(a, b) for a, b in zip(weights[:half], weights[half:], strict=True))


def test_the_learning_rate_is_the_best_on_a_held_out_fifth() -> None:
    pictures, label = stripes(100, 0)
    for lr in ((1e-9, 1e-2), (1e-2, 1e-9)):
        budget = Budget(epochs=5, min_steps=40, batch_size=16, lr=lr)
        work = FineTuning(pictures, label, 2, to_pixels, shift_and_flip, budget, torch.device("cpu"), None, 0)
        seen: list[np.ndarray] = []
        real = work.accuracy

        def accuracy(model: nn.Module, pictures: Tensor, label_M: np.ndarray, rows: np.ndarray) -> float:
            seen.append(rows)  # noqa: B023
            assert (label_M == label[rows]).all()
            return real(model, pictures, label_M, rows)  # noqa: B023

        trained: list[np.ndarray] = []
        train = work.train

        def spy(make: Callable[[], nn.Module], rows: np.ndarray, *rest: int, **named: int) -> nn.Module:
            trained.append(rows)  # noqa: B023
            return train(make, rows, *rest, **named)  # type: ignore[arg-type]  # noqa: B023

        work.accuracy, work.train = accuracy, spy  # type: ignore[method-assign, assignment]
        subset = np.arange(10, 60)
        assert work.choose_lr(Small, subset, 0) == 1e-2
        assert len(seen) == 2 and all(len(rows) == 10 and set(rows) <= set(subset.tolist()) for rows in seen)
        assert all(set(rows) == set(subset.tolist()) - set(seen[0]) for rows in trained), (
            "never on what it is judged by"
        )
    few = FineTuning(pictures, label, 2, to_pixels, shift_and_flip, budget, torch.device("cpu"), None, 0)
    assert few.choose_lr(Small, np.array([0, 1]), 0) == 1e-2, "one label a class: the first, and no training"


def test_both_networks_learn_as_a_whole_and_end_in_evaluation_mode(make_pretrained: Callable[[], nn.Module]) -> None:
    pictures, label = stripes(40, 0)
    work = FineTuning(pictures, label, 2, to_pixels, shift_and_flip, BUDGET, torch.device("cpu"), None, 0)
    start = make_pretrained().state_dict()
    model = work.train(make_pretrained, np.arange(40), 1e-2, 0)
    assert not any(part.training for part in model.modules())
    moved = {name for name, tensor in model[0].state_dict().items() if not torch.equal(tensor, start[name])}  # type: ignore[index]
    assert moved == set(start), "weights and statistics"
    assert work.accuracy(model, pictures, label) == work.accuracy(model, pictures, label)
    one_by_one = [work.accuracy(model, pictures, label[[i]], np.array([i])) for i in range(40)]
    assert work.accuracy(model, pictures, label) == pytest.approx(np.mean(one_by_one))


def test_the_linear_layer_is_the_same_however_a_trunk_is_made(make_pretrained: Callable[[], nn.Module]) -> None:
    """A pretrained trunk draws other random numbers while it is made than one from scratch."""
    pictures, label = stripes(40, 0)
    work = FineTuning(pictures, label, 2, to_pixels, shift_and_flip, BUDGET, torch.device("cpu"), None, 0)

    def wasteful() -> nn.Module:
        trunk = make_pretrained()
        torch.rand(5)
        return trunk

    ends = [work.train(make, np.arange(40), 1e-2, 0).state_dict() for make in (make_pretrained, wasteful)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_decoder_in_place_of_a_tensor() -> None:
    (train, label), (test, truth) = stripes(40, 0), stripes(30, 1)

    class Decoder:
        def __init__(self, pictures: Tensor) -> None:
            self.pictures = pictures

        def __len__(self) -> int:
            return len(self.pictures)

        def __getitem__(self, rows: Tensor) -> Tensor:
            return torch.stack([self.pictures[i] for i in rows.tolist()])

    arguments = {"fractions": (0.5,), "seeds": 1, "budget": BUDGET}
    whole = label_efficiency(Small, Small, train, label, test, truth, to_pixels, **arguments)  # type: ignore[arg-type]
    lazy = label_efficiency(Small, Small, Decoder(train), label, Decoder(test), truth, to_pixels, **arguments)  # type: ignore[arg-type]
    assert lazy.to_dict() == whole.to_dict()
    assert whole.to_dict()["points"][0]["gain"]["low"] is None, "one seed has no interval"


def test_views_are_moved_and_flipped_and_nothing_else() -> None:
    picture = torch.arange(16 * 24, dtype=torch.int64).reshape(1, 1, 16, 24).expand(200, 3, 16, 24).to(torch.uint8)
    picture = picture + torch.tensor([0, 1, 2], dtype=torch.uint8)[:, None, None]
    views = shift_and_flip(picture, torch.Generator().manual_seed(0))
    assert views.shape == picture.shape and views.dtype == torch.uint8
    mirrored = nn.functional.pad(picture[:1].float(), (3, 3, 2, 2), mode="reflect")[0].to(torch.uint8)
    possible = [mirrored[:, y : y + 16, x : x + 24] for y in range(5) for x in range(7)]
    possible += [view.flip(2) for view in possible]
    which = [next(i for i, p in enumerate(possible) if torch.equal(p, view)) for view in views]
    assert len(set(which)) > 55, "of 70, nearly all in 200 draws"
    assert 70 < sum(i >= 35 for i in which) < 130
    assert torch.equal(views, shift_and_flip(picture, torch.Generator().manual_seed(0)))


def test_the_learning_rate_warms_up_and_falls_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        assert self.param_groups[1]["lr"] == rates[-1]
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    pictures, label = stripes(40, 0)
    work = FineTuning(pictures, label, 2, to_pixels, shift_and_flip, BUDGET, torch.device("cpu"), None, 0)
    work.train(Small, np.arange(40), 0.01, 0, steps=60)
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    expected = [0.005 * (1 + math.cos(math.pi * i / 57)) for i in range(57)]
    assert rates[3:] == pytest.approx(expected)


def test_steps_of_a_budget() -> None:
    budget = Budget(epochs=3, min_steps=10, batch_size=32)
    assert [budget.steps(n) for n in (2, 32, 320, 321)] == [10, 10, 30, 31]
    assert Budget(epochs=0.5, min_steps=0, batch_size=32).steps(64) == 1
    for wrong in ({"epochs": -1}, {"epochs": 0, "min_steps": 0}, {"batch_size": 1}, {"lr": ()}, {"lr": (0.0,)}):
        with pytest.raises(ClipkitError, match="give"):
            Budget(**wrong)  # type: ignore[arg-type]


def test_the_interval_over_seeds_is_student_s() -> None:
    values = [0.7, 0.74, 0.72]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    interval = seed_interval(values)
    assert (interval.low, interval.high) == pytest.approx(expected) and interval.value == pytest.approx(0.72)
    assert seed_interval([0.9, 1.0], 0, 1).high == 1 and seed_interval([0.0, 0.1], 0, 1).low == 0
    assert math.isnan(seed_interval([0.5]).low)


def test_the_plot(tmp_path: Path) -> None:
    (train, label), (test, truth) = stripes(40, 0), stripes(30, 1)
    quick = Budget(epochs=0, min_steps=1)
    for seeds in (1, 2):
        curve = label_efficiency(
            Small, Small, train, label, test, truth, to_pixels, fractions=(0.1, 1), seeds=seeds, budget=quick
        )
        curve.plot(tmp_path / "curve.svg")
        drawn = (tmp_path / "curve.svg").read_text()
        assert "from scratch" in drawn
    with pytest.raises(ClipkitError, match=r"curve\.xyz"):
        curve.plot(tmp_path / "curve.xyz")
    with pytest.raises(ClipkitError, match="gone"):
        curve.plot(tmp_path / "gone" / "curve.png")


class Wide(Small):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(6, 7, 3)


class Map(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


def test_mistakes_are_named() -> None:
    (train, label), (test, truth) = stripes(40, 0), stripes(30, 1)
    data = (train, label, test, truth, to_pixels)
    with pytest.raises(ClipkitError, match=r"differ in second\.bias"):
        label_efficiency(Small, Wide, *data)
    with pytest.raises(ClipkitError, match="one row of features"):
        label_efficiency(Map, Map, *data)
    with pytest.raises(ClipkitError, match="seeds is 0"):
        label_efficiency(Small, Small, *data, seeds=0)
    with pytest.raises(ClipkitError, match="train_labels has shape"):
        label_efficiency(Small, Small, train, label[:9], test, truth, to_pixels)
    with pytest.raises(ClipkitError, match="lower the learning rate"):
        label_efficiency(Small, Small, train, label, test, truth, lambda x: x.float() * math.inf)
