"""The network of ``methods.py``: a ResNet of three blocks for pictures of 32 pixels, known to timm by its name.

He et al. 2016, section 4.2, with one block for each size and 16, 32 and 64 channels, a first convolution that takes
every second place, and a mean over each quarter of the picture instead of all of it: 78,000 weights and 256 features,
small enough for minutes on a CPU.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


class SmallResNet(nn.Module):
    """(B, 3, 32, 32) -> (B, 256)."""

    pretrained_cfg: ClassVar[dict[str, Any]] = {
        "input_size": (3, 32, 32),
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "interpolation": "bicubic",
    }

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        sizes = zip((WIDTHS[0], *WIDTHS), WIDTHS, (1, 2, 2), strict=False)
        self.blocks = nn.Sequential(*(Block(width, out, stride) for width, out, stride in sizes))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # half the time of a step on a CPU
        return F.adaptive_avg_pool2d(self.blocks(F.relu(self.bn(self.stem(x)), inplace=True)), 2).flatten(1)


@register_model
def clipkit_small_resnet(pretrained: bool = False, **options: Any) -> SmallResNet:
    """Made by ``timm.create_model("clipkit_small_resnet")``; there are no trained weights."""
    assert not pretrained
    return SmallResNet()
