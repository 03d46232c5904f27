"""The optimizer's groups and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from clipkit.config import OptimConfig
from clipkit.errors import ClipkitError


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay acts on a parameter: not on gains, biases, position embeddings and the temperature."""
    return parameter.ndim >= 2 and not any(
        part in name for part in ("position", "pos_emb", "cls_token", "class_emb", "cls_emb")
    )


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or SGD with momentum 0.9, over what is not frozen; decay where ``decays`` says.

    Raises:
        ClipkitError: nothing is left to train, or a rate that makes no sense.
    """
    if not config.lr > 0:
        raise ClipkitError(f"--lr is {config.lr}; it must be above 0")
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if all(name in ("log_scale", "bias") for name, _ in trained):
        raise ClipkitError("everything is locked, so there is nothing to train; drop --lock-image or --lock-text")
    groups = [
        {"params": [p for n, p in trained if decays(n, p)], "weight_decay": config.wd},
        {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=1e-6)


def total_steps(config: OptimConfig, n_samples: int) -> int:
    """Steps of the run: as many as ``epochs`` need, at most ``max_steps``, at least one."""
    if not config.epochs > 0:
        raise ClipkitError(f"--epochs is {config.epochs}; it must be above 0")
    if config.max_steps is not None and config.max_steps < 1:
        raise ClipkitError(f"--max-steps is {config.max_steps}; it must be at least 1")
    steps = max(1, math.ceil(config.epochs * n_samples / config.batch_size))
    return steps if config.max_steps is None else min(steps, config.max_steps)


def warmup_steps(config: OptimConfig, steps: int) -> int:
    """Steps of warm-up: a tenth of the run and at most 2,000 unless told; never the whole run."""
    warmup = min(2000, steps // 10) if config.warmup is None else config.warmup
    if warmup < 0:
        raise ClipkitError(f"--warmup is {warmup}; it must be 0 or more")
    return min(warmup, steps - 1)


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up to ``peak``, then a half cosine to 0 at the last step (Loshchilov & Hutter 2017)."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
