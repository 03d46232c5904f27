"""What is written down of a step and of an evaluation, and how it is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from clipkit.training.step import StepResult


def train_record(result: StepResult, step: int, epoch: float, rate: float) -> dict[str, Any]:
    """A step's line in ``metrics.jsonl``.

    Args:
        epoch: passes over the data so far.
        rate: the step's learning rate.
    """
    record = {
        "kind": "train",
        "step": step,
        "epoch": round(epoch, 4),
        "loss": result.loss,
        "log_scale": result.log_scale,
        "scale": math.exp(result.log_scale),
        "lr": rate,
        "grad_norm": result.grad_norm,
    }
    if result.bias is not None:
        record["bias"] = result.bias
    if result.cleared is not None:
        record["cleared"] = result.cleared
    return record


def said(figures: dict[str, float]) -> str:
    """The figures of an evaluation in a few words."""
    if "ndcg@10" in figures:
        return f"recall@10 {figures['recall@10']:.1%}, NDCG@10 {figures['ndcg@10']:.1%}"
    if "neighbours_top1" in figures:
        return f"accuracy of the nearest neighbours {figures['neighbours_top1']:.1%}"
    both = figures["image_to_text@1"], figures["text_to_image@1"]
    return f"recall@1 {both[0]:.1%} image to text, {both[1]:.1%} text to image"


def read_figures(path: Path) -> dict[str, Any]:
    """A run's figures before training; none if the file is missing or damaged."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return figures if isinstance(figures, dict) else {}
