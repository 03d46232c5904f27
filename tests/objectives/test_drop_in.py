"""ClipLoss and SigLipLoss, called as open_clip's are; across processes they are tested in test_ranks.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.errors import ClipkitError
from clipkit.objectives import ClipLoss, SigLipLoss
from clipkit.objectives import drop_in as module

PAIRS = {"clip": ClipLoss, "siglip": SigLipLoss}


@pytest.fixture(scope="module")
def theirs() -> dict[str, type[nn.Module]]:
    from open_clip import loss

    return {"clip": loss.ClipLoss, "siglip": loss.SigLipLoss}


def features(n: int = 9, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n)
    return [F.normalize(torch.randn(n, 6, generator=generator, dtype=torch.float64), dim=1).to(dtype) for _ in range(2)]


def run(
    loss: nn.Module, inputs: list[Tensor], scale: float, bias: float | None, shape: tuple[int, ...]
) -> list[Tensor]:
    """Value and gradients of features, scale and bias."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    leaves += [torch.full(shape, x, dtype=inputs[0].dtype, requires_grad=True) for x in (scale, bias) if x is not None]
    value = loss(*leaves)
    value.backward()
    return [value.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("bias", [None, -10.0, 2.0])
@pytest.mark.parametrize("n", [1, 2, 9, 400])
def test_value_and_gradients_are_open_clips(
    theirs: dict[str, Any], name: str, shape: tuple[int, ...], scale: float, bias: float | None, n: int
) -> None:
    if name == "siglip" and bias is None:
        bias = 0.0
    inputs = features(n)
    got, expected = (run(loss, inputs, scale, bias, shape) for loss in (PAIRS[name](), theirs[name]()))
    assert [g.shape for g in got] == [e.shape for e in expected] and got[0].shape == ()
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_the_interface_is_open_clips(theirs: dict[str, Any], name: str) -> None:
    """Same arguments in the same places with the same defaults, so that changing one import is enough."""
    import inspect

    for method in ("__init__", "forward"):
        ours, other = (
            [(p.name, p.default) for p in inspect.signature(getattr(c[name], method)).parameters.values()]
            for c in (PAIRS, theirs)
        )
        assert ours == other
    images, texts = features()
    scale, bias = torch.tensor(10.0), torch.tensor(-3.0)
    loss = PAIRS[name]()
    as_dict = loss(image_features=images, text_features=texts, logit_scale=scale, logit_bias=bias, output_dict=True)
    assert list(as_dict) == ["contrastive_loss"]
    assert torch.equal(as_dict["contrastive_loss"], loss(images, texts, scale, bias))
    assert not list(loss.parameters()) and not loss.state_dict()


def test_open_clips_arguments_do_not_change_the_loss() -> None:
    images, texts = features()
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    expected = ClipLoss()(images, texts, scale)
    for local, with_gradient, cached in ((True, True, False), (False, True, True), (True, False, True)):
        loss = ClipLoss(local, with_gradient, cache_labels=cached, rank=0, world_size=1, use_horovod=False)
        assert torch.equal(loss(images, texts, scale), expected)
    for implementation in (None, "bidir", "shift", "reduce", "gather"):
        loss_fn = SigLipLoss(True, rank=0, world_size=1, dist_impl=implementation)
        assert torch.equal(loss_fn(images, texts, scale, bias), SigLipLoss()(images, texts, scale, bias))
    torch.testing.assert_close(SigLipLoss()(images, texts, scale, None), SigLipLoss()(images, texts, scale, 0 * bias))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_scores_are_float32_and_the_temperature_may_be(name: str, given: torch.dtype) -> None:
    images, texts = features(dtype=given)
    scale, bias = torch.tensor(100.0), torch.tensor(-3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = PAIRS[name]()(images, texts, scale, bias)
    exact = PAIRS[name]()(images.double(), texts.double(), scale.double(), bias.double())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=5e-6, atol=0)
    if given == torch.float32:  # its logarithm in float32 would move a score of 100 by 2e-5
        for value in (5.7, 37.0, 91.3):
            scale = torch.tensor(value)
            got, exact = (PAIRS[name]()(images.double(), texts.double(), s, bias) for s in (scale, scale.double()))
            torch.testing.assert_close(got, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_what_does_not_fit_is_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = features()
    scale, bias = torch.tensor(10.0), torch.tensor(-3.0)
    for a, b in ((images, texts[:5]), (images[:, :3], texts), (images[0], texts[0]), (images[None], texts[None])):
        with pytest.raises(ClipkitError, match=r"image_features .* text_features .*") as caught:
            PAIRS[name]()(a, b, scale, bias)
        assert "\n" not in str(caught.value) and str(tuple(a.shape)) in str(caught.value)
    with pytest.raises(ClipkitError, match=r"world_size=3.* 1 process"):
        PAIRS[name](rank=0, world_size=3)(images, texts, scale, bias)
    monkeypatch.setattr(module, "world_size", lambda: 2)
    with pytest.raises(ClipkitError, match=r"world_size=3.* 2 process"):
        PAIRS[name](rank=0, world_size=3)(images, texts, scale, bias)


def test_horovod_is_refused() -> None:
    with pytest.raises(ClipkitError, match="use_horovod"):
        ClipLoss(use_horovod=True)
