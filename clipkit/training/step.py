"""Step 4, update: one step of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipkit.config import OptimConfig
from clipkit.encoders import DualEncoder, Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives import Compare, Comparison, GlobalContrastive
from clipkit.objectives.comparison import Exchange
from clipkit.objectives.exchange import gather_plain, row_counts, world_size
from clipkit.pairs import PairBatch, PipeSet, ShardSet
from clipkit.training.batchnorm import synchronise
from clipkit.training.strategy import encode, whole

Objective = Callable[[Comparison], Tensor]
"""A comparison to the loss of the global batch, () float; see ``clipkit.objectives.dense``."""


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: of the global batch, before the update.
        grad_norm: of the whole gradient, before clipping.
        embeddings: that it compared, before the update.
        log_scale, bias: of the first table that it compared; a table may have no bias.
        cleared: cells that the false-negative guard took out, if they were counted.
    """

    loss: float
    grad_norm: float
    embeddings: Embeddings
    log_scale: float
    bias: float | None = None
    cleared: int | None = None


def train_step(
    model: nn.Module,
    batch: PairBatch,
    compare: Compare,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    config: OptimConfig,
    autocast: torch.dtype | None = None,
    progress: float = 0.0,
    count_cleared: bool = False,
) -> StepResult:
    """Encode, compare, update.

    Args:
        model: a ``DualEncoder``, wrapped by the accelerator or not.
        batch: this process's part of the global batch.
        compare: the tables of a step.
        objective: the loss over a table; those of several are added up.
        progress: share of the run that is done after this step.
        count_cleared: count the cells that groups take out, which are those of the false-negative guard; all processes
            have to ask alike.

    Raises:
        ClipkitError: the loss or the gradient is not finite; the weights are those of before the step.
    """
    embeddings = encode(model, batch, config.micro_batch_size, autocast)
    tables = compare(embeddings, batch, config.exchange)
    loss = tables_loss(tables, objective)
    # The first table that has groups: another one would be the same, turned.
    guarded = next((table for table in tables if table.query_groups is not None), None) if count_cleared else None
    cleared = guarded.cleared() if guarded is not None else None
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
        if dual.log_scale.requires_grad:
            dual.log_scale.clamp_(max=math.log(config.scale_max))
        dual.after_step(_with_all_targets(embeddings), progress)
    bias = None if tables[0].bias is None else float(tables[0].bias.detach())
    return StepResult(value, norm, embeddings, float(tables[0].log_scale.detach()), bias, cleared)


def step_loss(
    embeddings: Embeddings, batch: PairBatch, compare: Compare, objective: Objective, exchange: Exchange = "gather"
) -> Tensor:
    """The loss () of the global batch."""
    return tables_loss(compare(embeddings, batch, exchange), objective)


def tables_loss(tables: Sequence[Comparison], objective: Objective) -> Tensor:
    """The loss () of several tables together."""
    losses = [objective(table) for table in tables]
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def _with_all_targets(embeddings: Embeddings) -> Embeddings:
    """``embeddings`` with the targets of all processes, in rank order, where a queue will take them."""
    if embeddings.targets is None or embeddings.queue is None or world_size() == 1:
        return embeddings
    counts = row_counts(embeddings.targets.shape[1], embeddings.targets.device)
    everyone = gather_plain(embeddings.targets.transpose(0, 1).contiguous(), counts)
    return embeddings._replace(targets=everyone.transpose(0, 1))


def bounded_scale(model: DualEncoder, limit: float) -> str | None:
    """A line about a learned temperature whose inverse starts above its limit, as that of public SigLIP weights does:
    the first step cuts it, as open_clip's training does."""
    scale = float(model.log_scale.detach().exp())
    if not model.log_scale.requires_grad or scale <= limit * (1 + 1e-6):
        return None
    return (
        f"the temperature's inverse starts at {scale:.4g} and is cut to --scale-max {limit:g} in the first step; to "
        f"keep it, pass --scale-max {math.ceil(scale)}"
    )


def settle_objective(objective: Objective, shards: ShardSet, device: torch.device) -> Objective:
    """``objective`` on ``device``. One that remembers something of each sample learns how many there are.

    Raises:
        ClipkitError: it remembers samples, and they come from a pipe, which numbers them anew each time.
    """
    if isinstance(objective, GlobalContrastive):
        if isinstance(shards, PipeSet):
            raise ClipkitError(
                f"{shards.name}: --objective global remembers samples, and those of a pipe are not known again; make "
                f"shards of it"
            )
        if objective.log_u_rows is None:
            objective.remember(len(shards), device)
    return objective.to(device) if isinstance(objective, nn.Module) else objective


def settle_batchnorm(
    model: DualEncoder, micro_batch_size: int | None, local_batch: int
) -> tuple[DualEncoder, str | None]:
    """Live BatchNorm only where its statistics are those of the whole batch; elsewhere frozen, with a message.

    With pieces of a batch the statistics would depend on how it was cut, and so would the gradient. Several processes
    put theirs together.
    """
    locked = {id(m) for tower in model.towers.values() if tower.locked for m in tower.trunk.modules()}
    live = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and id(m) not in locked]
    if not live:
        return model, None
    pieces = micro_batch_size is not None and micro_batch_size < local_batch
    if not pieces:
        if world_size() > 1:
            synchronise(model, {id(m) for m in live})
        return model, None
    for module in live:
        module.eval()
        module.train = _stay_frozen.__get__(module)  # type: ignore[method-assign]
    return model, (
        f"{len(live)} BatchNorm layers are frozen at their stored statistics, because --micro-batch-size cuts the batch"
    )


def _stay_frozen(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
