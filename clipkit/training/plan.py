"""``--dry-run``: what a run would cost, measured on a few pairs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from clipkit.config import Config
from clipkit.encoders import DualEncoder
from clipkit.objectives import Compare, Tiling
from clipkit.pairs import PairReader, ShardSet
from clipkit.training.console import Console
from clipkit.training.data import training_reader
from clipkit.training.optim import total_steps, warmup_steps
from clipkit.training.precision import Arithmetic
from clipkit.training.step import Objective, step_loss

_PROBE = 16  # pairs that are encoded to measure time and memory
_GIB = 1 << 30


def show_plan(
    config: Config,
    model: DualEncoder,
    train: ShardSet,
    held_out: Mapping[str, ShardSet],
    compare: Compare,
    objective: Objective,
    arithmetic: Arithmetic,
    world: int,
    console: Console,
) -> None:
    """Print data, model, steps, memory and time of the run that ``config`` describes, and train nothing.

    Called by all processes: the loss that is measured compares across them.
    """
    steps = total_steps(config.optim, len(train))
    local = -(-config.optim.batch_size // world)
    kept = min(config.optim.micro_batch_size or local, local)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    read_seconds, step_seconds, activation_bytes = _probe(
        training_reader(model, train, config), model, compare, objective, arithmetic
    )
    weights = 4 * total + 12 * trained  # weight; gradient and Adam's two moments
    embeddings = 4 * 4 * model.embed_dim * (local + config.optim.batch_size)
    table = 4 * local * config.optim.batch_size
    tiling = Tiling.of(model.device, table)
    scores = min(table, tiling.keep_bytes) + 3 * 4 * min(local * config.optim.batch_size, tiling.rows * tiling.columns)
    memory = weights + activation_bytes * kept + embeddings + scores
    per_step = local * (step_seconds * (4 / 3 if kept < local else 1) + read_seconds / max(1, config.data.workers))
    splits = "".join(f", {name} {len(shards):,}" for name, shards in held_out.items())
    lines = [
        f"recipe      {config.recipe}, {config.data.compare} compared, loss {config.optim.loss}",
        f"data        train {len(train):,} pictures in {len(train.shards)} shard(s){splits}",
        f"model       {total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained; {_inputs(model)}",
        f"steps       {steps:,} of {config.optim.batch_size} pairs, {warmup_steps(config.optim, steps):,} of warm-up, "
        f"on {world} process(es)",
        f"arithmetic  {arithmetic.precision}, matmul {arithmetic.matmul}, {arithmetic.threads} thread(s)",
        f"memory      about {memory / _GIB:.2f} GiB per process: weights and optimizer {weights / _GIB:.2f}, "
        f"encoders {activation_bytes * kept / _GIB:.2f} ({kept} pairs at a time), scores {scores / _GIB:.2f}",
        f"time        about {_duration(per_step * steps)} for the steps ({per_step:.2f} s each), without evaluation",
    ]
    console.say("\n".join(lines))


def _probe(
    reader: PairReader, model: DualEncoder, compare: Compare, objective: Objective, arithmetic: Arithmetic
) -> tuple[float, float, float]:
    """Seconds to read a pair, seconds of a pair's forward and backward pass, bytes that its graph keeps."""
    n = min(_PROBE, len(reader.shards))
    start = time.perf_counter()
    batch = reader([(0, i) for i in range(n)]).to(model.device)
    reading = (time.perf_counter() - start) / n
    kept: dict[int, int] = {}
    weights = {p.data_ptr() for p in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = float("inf")
    model.train()
    for _ in range(2):
        start = time.perf_counter()
        with saved_tensors_hooks(note, _same):
            embeddings = model(batch.images, batch.texts, None, arithmetic.autocast)
            loss = step_loss(embeddings, batch, compare, objective)
        if loss.requires_grad:
            loss.backward()
        seconds = min(seconds, time.perf_counter() - start)
        model.zero_grad(set_to_none=True)
    return reading, seconds / n, sum(kept.values()) / n / 2


def _inputs(model: DualEncoder) -> str:
    """What the towers take."""
    parts = []
    if model.image is not None:
        parts.append(f"pictures {model.picture.size} px")
    if model.text is not None:
        parts.append(f"captions {'cut to the longest of the batch' if model.tokenizer.cut else 'at full length'}")
    return "; ".join(parts)


def _same(tensor: Any) -> Any:
    return tensor


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
