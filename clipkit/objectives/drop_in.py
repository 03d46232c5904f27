"""Losses with open_clip's interface, for people who keep their own training loop.

Changing ``from open_clip import ClipLoss`` to ``from clipkit.objectives import ClipLoss`` gives that loop the tiled,
exact, cross-device loss. The constructors take open_clip 3's arguments, the calls are its calls.

Under DistributedDataParallel, FSDP or anything else that averages gradients over processes, every gradient is that of
one process with the whole batch; the value is the mean over the global batch, the same on every process.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipkit.errors import ClipkitError
from clipkit.objectives.comparison import Comparison
from clipkit.objectives.exchange import rank, row_counts, world_size
from clipkit.objectives.tile import wide
from clipkit.objectives.tiled import infonce, sigmoid


class ClipLoss(nn.Module):
    """Symmetric InfoNCE in place of ``open_clip.ClipLoss``.

    Args:
        local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod: open_clip's. The first three choose
            there between a 1/W gradient, a wrong one and a B x B table; here the loss is exact and tiled whatever
            they say. Processes are those of ``torch.distributed``'s default group.

    Raises:
        ClipkitError: Horovod is asked for, or ``world_size`` processes that are not there.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ClipkitError("use_horovod=True: clipkit's losses exchange through torch.distributed only")
        self.world_size = world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Loss () of the global batch; with ``output_dict`` as ``{"contrastive_loss": loss}``.

        Args:
            image_features, text_features: (b, D) float, this process's; row i of one belongs to row i of the other.
            logit_scale: () or (1,), the inverse temperature itself, not its logarithm.
            logit_bias: () or (1,); changes nothing here, as all scores move alike.
        """
        loss = infonce(_pairs(image_features, text_features, logit_scale, logit_bias, self.world_size))
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """The pairwise sigmoid loss in place of ``open_clip.SigLipLoss``.

    The value is the mean over the global batch on every process; open_clip's is over the process's own pictures.

    Args:
        cache_labels, rank, world_size, dist_impl: open_clip's; see ``ClipLoss``.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ) -> None:
        super().__init__()
        self.world_size = world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """As ``ClipLoss.forward``; ``logit_bias`` () or (1,) is added to every score."""
        loss = sigmoid(_pairs(image_features, text_features, logit_scale, logit_bias, self.world_size))
        return {"contrastive_loss": loss} if output_dict else loss


def _pairs(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None, expected: int) -> Comparison:
    if images.ndim != 2 or images.shape != texts.shape:
        raise ClipkitError(
            f"image_features {tuple(images.shape)} and text_features {tuple(texts.shape)}: expected two (b, D) tensors "
            f"of the same shape"
        )
    if expected > 1 and expected != world_size():
        raise ClipkitError(
            f"world_size={expected}, but torch.distributed has {world_size()} process(es): initialise it first"
        )
    first = sum(row_counts(len(images), images.device)[: rank()])
    ids = torch.arange(first, first + len(images), device=images.device)
    log_scale = torch.as_tensor(scale, device=images.device).to(wide(images.device)).log().reshape(1)
    return Comparison(images, texts, ids, ids, log_scale, None if bias is None else bias.reshape(1))
