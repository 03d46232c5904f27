"""BatchNorm folded into convolutions is the same function, and what cannot be folded stays as it is."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from clipkit.encoders.folding import fold_batchnorm


def awake(module: nn.Module) -> nn.Module:
    """With statistics as after training: far from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.normal_(generator=generator)
            m.running_var.uniform_(0.3, 3, generator=generator)
            if m.weight is not None:
                nn.init.uniform_(m.weight, 0.5, 2, generator=generator)
                nn.init.normal_(m.bias, generator=generator)
    return module.eval()


def pictures(n: int = 3, side: int = 64) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050", "regnetx_002"])
def test_real_towers(name: str) -> None:
    trunk = awake(timm.create_model(name, pretrained=False, num_classes=0))
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    folded = fold_batchnorm(trunk, pictures(1))
    assert folded is not trunk
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules()), "all of these follow a convolution"
    with torch.no_grad():
        expected = trunk(pictures())
        torch.testing.assert_close(folded(pictures()), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items()), "a copy was folded"


class Odd(nn.Module):
    """What must not be folded: a convolution whose output is also used as it is, and one with two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.shared, self.one, self.two = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.norm(x) + x
        y = self.shared(x)
        return (self.one(y) + self.two(y)).mean((2, 3))


@pytest.mark.parametrize("module", [Odd(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()),
                                    nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))])  # fmt: skip
def test_what_cannot_be_folded_stays(module: nn.Module) -> None:
    assert fold_batchnorm(awake(module), pictures(1, 12)) is module


def test_without_weights_of_its_own_and_with_a_bias_before_it() -> None:
    module = awake(nn.Sequential(nn.Conv2d(3, 5, 3, bias=True), nn.BatchNorm2d(5, affine=False), nn.ReLU()))
    folded = fold_batchnorm(module, pictures(1, 12))
    assert folded is not module and not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(pictures(2, 12)), module(pictures(2, 12)), rtol=1e-5, atol=1e-5)
