"""Encoders that cheat while they are frozen, each in its own way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipkit.errors import ClipkitError
from clipkit.evaluation import frozen, frozen_features


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 5))


PIXELS = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_an_honest_encoder_is_left_as_it_was() -> None:
    model = encoder()
    model[2].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with frozen(model) as inside:
        assert inside is model and not any(part.training for part in model.modules())
        output = model(PIXELS)
        assert not output.requires_grad
        assert torch.equal(model(PIXELS), output), "no dropout"
    assert model.training and not model[2].training, "modes are put back, each its own"
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def _learn(model: nn.Sequential) -> None:
    model[4].weight[0, 0] += 1e-7


def _track(model: nn.Sequential) -> None:
    model.train()(PIXELS)
    model.eval()


def _nudge(model: nn.Sequential) -> None:
    model[1].running_var.mul_(1 + 1e-6)


def _replace(model: nn.Sequential) -> None:
    model[4].bias = None


def _round(model: nn.Sequential) -> None:
    model[3].seen = torch.zeros(1, dtype=torch.int32)


def _hidden(model: nn.Sequential) -> None:
    model[3].seen.add_(1)


@pytest.mark.parametrize(
    "cheat, named",
    [
        (_learn, "4.weight"),
        (_track, "1.num_batches_tracked and 2 more"),
        (_nudge, "1.running_var"),
        (_replace, "4.bias"),
        (_round, "3.seen"),
        (_hidden, "3.seen"),
    ],
)
def test_a_change_is_named(cheat: Callable[[nn.Sequential], None], named: str) -> None:
    model = encoder()
    model[3].register_buffer("seen", torch.zeros(1), persistent=False)
    with pytest.raises(ClipkitError, match=named), frozen(model):
        cheat(model)
    assert model.training


class Awake(nn.Module):
    """Switches its dropout on in its forward pass, and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        return self.drop(x.flatten(1))


def test_training_mode_inside_is_named() -> None:
    model = Awake()
    with pytest.raises(ClipkitError, match="training mode \\(drop\\)"):
        frozen_features(model, model, PIXELS)


def test_nan_weights_have_not_changed() -> None:
    model = encoder()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with frozen(model):
        model(PIXELS)


def test_an_error_inside_is_not_hidden() -> None:
    model = encoder()
    with pytest.raises(ZeroDivisionError), frozen(model):
        _learn(model)
        _ = 1 / 0
    assert model.training


def test_features_do_not_depend_on_the_batch() -> None:
    model = encoder()
    whole = frozen_features(model, model, PIXELS)
    assert whole.dtype == np.float32 and whole.shape == (6, 5)
    np.testing.assert_allclose(frozen_features(model, model, PIXELS, batch_size=4), whole, atol=1e-6)
    with pytest.raises(ClipkitError, match="no inputs"):
        frozen_features(model, model, PIXELS[:0])
