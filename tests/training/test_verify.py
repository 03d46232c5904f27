"""clipkit verify-gradients tells right gradients from wrong ones, and what the wrong ones look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from training_helpers import flags

from clipkit.config import ModelConfig, OptimConfig
from clipkit.encoders import DualEncoder, build
from clipkit.objectives import infonce, pairs_table, sigmoid
from clipkit.pairs import PairBatch
from clipkit.training.verify import GradientCheck, advice, check_gradients


@pytest.fixture
def model(tiny: Path) -> DualEncoder:
    return build(ModelConfig(str(tiny)), sigmoid=True)


def batch(n: int = 9) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    texts = torch.randint(1, 400, (n, 24), generator=generator)
    texts[:, 8:] = 0
    texts[:, 8] = 49407  # end of text
    return PairBatch(images, texts, torch.arange(n), torch.arange(n))


def check(model: DualEncoder, objective: Any, **options: Any) -> list[GradientCheck]:
    config = OptimConfig(**{"micro_batch_size": 2, **options})
    return check_gradients(model, batch(), batch(), pairs_table, objective, Accelerator(cpu=True), config)


@pytest.mark.parametrize("objective", [infonce, sigmoid])
def test_one_process_in_pieces_is_right(model: DualEncoder, objective: Any) -> None:
    checks = check(model, objective)
    assert {c.name for c in checks} == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(c.right for c in checks) and advice(checks) is None
    assert all(abs(c.factor - 1) < 1e-4 for c in checks if c.name.endswith("in_proj_weight"))


def test_the_model_is_left_as_it_was(model: DualEncoder) -> None:
    before = {n: p.clone() for n, p in model.named_parameters()}
    check(model.train(), infonce)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


class Times(torch.autograd.Function):
    """x forward, ``factor`` times the gradient backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


@pytest.mark.parametrize(("factor", "words"), [(0.5, "averaged twice"), (2.0, "summed where"), (1.001, "factors")])
def test_a_wrong_share_is_seen_and_named(
    model: DualEncoder, monkeypatch: pytest.MonkeyPatch, factor: float, words: str
) -> None:
    import clipkit.training.verify as module

    real = module.step_loss

    def broken(embeddings: Any, *rest: Any) -> Tensor:
        if embeddings.images.dtype == torch.float32 and broken.first:  # type: ignore[attr-defined]
            broken.first = False  # type: ignore[attr-defined]
            embeddings = embeddings._replace(images=Times.apply(embeddings.images, factor))
        return real(embeddings, *rest)

    broken.first = True  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "step_loss", broken)
    checks = check(model, infonce)
    wrong = {c.name for c in checks if not c.right}
    assert {n for n in wrong if n.startswith("image.")} and not {n for n in wrong if n.startswith("text.")}
    assert words in str(advice(checks, world=2))


@pytest.mark.slow
def test_the_command_prints_a_table_and_ends_with_0_or_1(
    basics: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipkit.cli import main

    wanted = {**basics, "micro_batch_size": 5}
    for name in ("epochs", "log_every"):
        wanted.pop(name)
    assert main(["verify-gradients", *flags(wanted)]) == 0
    out = capsys.readouterr().out
    assert "20 pictures, 20 captions on 1 process(es), 5 at a time, float32" in out
    assert "log_scale" in out and "WRONG" not in out

    import clipkit.training.verify as module

    real = module._gradients
    calls = []

    def doubled(model: DualEncoder) -> dict[str, Tensor]:
        calls.append(1)
        return {n: 2 * g if n == "log_scale" and len(calls) == 1 else g for n, g in real(model).items()}

    monkeypatch.setattr(module, "_gradients", doubled)
    assert main(["verify-gradients", *flags(wanted)]) == 1
    captured = capsys.readouterr()
    line = next(line for line in captured.out.splitlines() if line.startswith("log_scale"))
    assert "WRONG" in line and "about 2 times" in line and "1 gradients are wrong" in captured.err
