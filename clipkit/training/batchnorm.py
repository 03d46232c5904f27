"""BatchNorm over all processes' batches, on any device, with the gradient of one process that has the whole batch.

torch's own ``SyncBatchNorm`` refuses CPUs. This one is its formula with differentiable sums over the processes, whose
pieces of the batch may differ in length.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.objectives.exchange import sum_over_ranks, sum_plain


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """In place of BatchNorm1d, 2d or 3d, or of timm's with an activation; inputs (B, C, ...).

    Args:
        norm: what it replaces; parameters and statistics are shared.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop: nn.Module = getattr(norm, "drop", nn.Identity())
        self.act: nn.Module = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        self._check_input_dim(input)
        if not self.training:
            normed = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
            return self.act(self.drop(normed))
        x = input if input.dtype == torch.float64 else input.float()
        others = [0, *range(2, x.ndim)]
        count = sum_plain(x.new_tensor([x.numel() / x.shape[1]]))
        mean = sum_over_ranks(x.sum(others)) / count
        shape = [1, -1] + [1] * (x.ndim - 2)
        centred = x - mean.view(shape)
        variance = sum_over_ranks(centred.square().sum(others)) / count  # in a second pass: no cancellation
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        out = centred * scale.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        return self.act(self.drop(out.to(input.dtype)))

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronise(module: nn.Module, live: Collection[int]) -> None:
    """Replace the BatchNorms in ``module`` whose ``id`` is in ``live``; weights, statistics and names stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and id(child) in live:
            setattr(module, name, SyncedBatchNorm(child))
        else:
            synchronise(child, live)
