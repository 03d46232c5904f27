"""Step 4, update: one step of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipkit.config import OptimConfig
from clipkit.encoders import DualEncoder
from clipkit.errors import ClipkitError
from clipkit.objectives import Comparison, compare
from clipkit.objectives.exchange import world_size
from clipkit.pairs import PairBatch
from clipkit.training.strategy import whole

Objective = Callable[[Comparison], Tensor]
"""A comparison to the loss of the global batch, () float; see ``clipkit.objectives.dense``."""


@dataclass(frozen=True)
class StepResult:
    """Loss of the global batch before the update, and the norm of its gradient before clipping."""

    loss: float
    grad_norm: float


def train_step(
    model: nn.Module,
    batch: PairBatch,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    config: OptimConfig,
    autocast: torch.dtype | None = None,
) -> StepResult:
    """Encode, compare, update.

    Args:
        model: a ``DualEncoder``, wrapped by the accelerator or not.
        batch: this process's part of the global batch.
        objective: the loss over the comparison.

    Raises:
        ClipkitError: the loss or the gradient is not finite; the weights are those of before the step.
    """
    embeddings = model(batch.images, batch.texts, config.micro_batch_size, autocast)
    loss = objective(compare(embeddings, batch.image_ids, batch.text_ids, config.exchange))
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    limit = config.grad_clip if config.grad_clip > 0 else math.inf
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(whole(torch.nn.utils.clip_grad_norm_(trained, limit)))
    value = float(loss.detach())
    if not math.isfinite(value) or not math.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        raise ClipkitError(
            f"loss {value}, gradient norm {norm}: lower --lr (now {optimizer.param_groups[0]['lr']:g}), "
            f"or use --precision float32"
        )
    optimizer.step()
    dual: DualEncoder = accelerator.unwrap_model(model)
    with torch.no_grad():
        dual.log_scale.clamp_(max=math.log(config.scale_max))
    return StepResult(value, norm)


def settle_batchnorm(
    model: DualEncoder, micro_batch_size: int | None, local_batch: int
) -> tuple[DualEncoder, str | None]:
    """Live BatchNorm only where its statistics are those of the whole batch; elsewhere frozen, with a message.

    With pieces of a batch, or several processes that cannot synchronise, the statistics would depend on how the
    batch was cut, and so would the gradient.
    """
    towers = [t for t in (model.image, model.text) if not t.locked]
    live = [m for tower in towers for m in tower.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not live:
        return model, None
    pieces = micro_batch_size is not None and micro_batch_size < local_batch
    if not pieces and world_size() == 1:
        return model, None
    if not pieces and model.device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model), None
    for module in live:
        module.eval()
        module.train = _stay_frozen.__get__(module)  # type: ignore[method-assign]
    why = "--micro-batch-size cuts the batch" if pieces else "processes on CPUs cannot synchronise them"
    return model, f"{len(live)} BatchNorm layers are frozen at their stored statistics, because {why}"


def _stay_frozen(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
