"""Every objective once more, a cell at a time in plain Python, as its paper writes it: slow, and hard to get wrong.

On one process; ``c`` is all there is of the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.objectives import Comparison


@dataclass(frozen=True)
class Cell:
    """Of a row: the column, the score, the cosine, and whether it is a positive."""

    column: int
    score: float
    cosine: float
    positive: bool


def rows(c: Comparison) -> list[list[Cell]]:
    """The counting cells of every row, the queue's last."""
    scale, bias = math.exp(float(c.log_scale)), 0.0 if c.bias is None else float(c.bias)
    found = []
    for i, query in enumerate(c.queries.tolist()):
        row = []
        for j, key in enumerate(c.keys.tolist()):
            cosine = sum(a * b for a, b in zip(query, key, strict=True))
            positive = int(c.query_ids[i]) == int(c.key_ids[j])
            if c.itself and i == j:
                continue
            if c.query_groups is not None and c.key_groups is not None and not positive:
                pairs = zip(c.query_groups[i].tolist(), c.key_groups[j].tolist(), strict=True)
                if any(a == b and a != -1 for a, b in pairs):
                    continue
            shift = 0.0 if c.key_shift is None else float(c.key_shift[j])
            row.append(Cell(j, scale * cosine + bias + shift, cosine, positive))
        for j, key in enumerate([] if c.queue is None else c.queue.tolist()):
            cosine = sum(a * b for a, b in zip(query, key, strict=True))
            row.append(Cell(len(c.keys) + j, scale * cosine + bias, cosine, False))
        found.append(row)
    return found


def columns(c: Comparison) -> list[list[Cell]]:
    """The counting cells of every key's column."""
    return [[cell for row in rows(c) for cell in row if cell.column == j] for j in range(len(c.keys))]


def mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def cross_entropy(line: list[Cell]) -> float | None:
    positives = [x.score for x in line if x.positive]
    if not positives:
        return None
    total = sum(math.exp(x.score) for x in line)
    return -mean([math.log(math.exp(s) / total) for s in positives])


def counting(values: list[float | None]) -> list[float]:
    return [x for x in values if x is not None]


def infonce(c: Comparison, directions: str = "both") -> float:
    of_rows = mean(counting([cross_entropy(line) for line in rows(c)]))
    if directions == "rows":
        return of_rows
    return (of_rows + mean(counting([cross_entropy(line) for line in columns(c)]))) / 2


def sigmoid(c: Comparison) -> float:
    every = [x for line in rows(c) for x in line]
    return sum(-math.log(1 / (1 + math.exp(-x.score if x.positive else x.score))) for x in every) / len(c.queries)


def negative_cosine(c: Comparison) -> float:
    return mean([2 - 2 * x.cosine for line in rows(c) for x in line if x.positive])


def distance(x: Cell) -> float:
    return math.sqrt(max(0.0, 2 - 2 * x.cosine))


def margin(c: Comparison, margin: float) -> float:
    every = [x for line in rows(c) for x in line]
    close = [(margin - distance(x)) ** 2 / 2 for x in every if not x.positive and distance(x) < margin]
    return mean([distance(x) ** 2 / 2 for x in every if x.positive]) + mean(close)


def triplet(c: Comparison, margin: float, mining: str) -> float:
    losses = []
    for line in rows(c):
        positives = [2 - 2 * x.cosine for x in line if x.positive]
        negatives = [2 - 2 * x.cosine for x in line if not x.positive]
        if not positives or not negatives:
            continue
        if mining == "all":
            losses += [p - n + margin for p in positives for n in negatives if p - n + margin > 0]
        elif mining == "hardest":
            losses.append(max(0.0, max(positives) - min(negatives) + margin))
        else:
            for p in positives:
                farther = [n for n in negatives if n > p]
                losses.append(max(0.0, p - (min(farther) if farther else max(negatives)) + margin))
    return mean(losses)


def hard_line(line: list[Cell], beta: float, tau_plus: float, least: float) -> float | None:
    positives = [math.exp(x.score) for x in line if x.positive]
    negatives = [math.exp(x.score) for x in line if not x.positive]
    if not positives:
        return None
    left = 0.0
    if negatives:
        weights = [e**beta for e in negatives]
        weighted = [e * w / mean(weights) for e, w in zip(negatives, weights, strict=True)]
        n = len(negatives)
        left = (sum(weighted) - tau_plus * n * mean(positives)) / (1 - tau_plus)
        left = max(left, n * math.exp(least)) if tau_plus else left
    return -mean([math.log(p / (sum(positives) + left)) for p in positives])


def hard_infonce(c: Comparison, beta: float, tau_plus: float = 0.0, directions: str = "both") -> float:
    least = -math.exp(float(c.log_scale)) + (0.0 if c.bias is None else float(c.bias))
    lines = [rows(c)] if directions == "rows" else [rows(c), columns(c)]
    return mean([mean(counting([hard_line(line, beta, tau_plus, least) for line in side])) for side in lines])


def g(line: list[Cell]) -> float | None:
    positives, negatives = ([x.score for x in line if x.positive is sign] for sign in (True, False))
    pairs = [math.exp(n - p) for n in negatives for p in positives]
    return mean(pairs) if pairs else None


def gradient(value: Callable[[Comparison], float], c: Comparison, step: float = 1e-5) -> dict[str, Tensor]:
    """By central differences, of queries, keys, log_scale and bias. Of one table, so that it is the same function
    whether queries and keys are one tensor or two."""
    found = {}
    for name in ("queries", "keys", "log_scale", "bias"):
        x = getattr(c, name)
        if x is None:
            continue
        grad = torch.zeros_like(x)
        for i in range(x.numel()):
            ends = []
            for sign in (1, -1):
                moved = x.clone()
                moved.view(-1)[i] += sign * step
                ends.append(value(replace(c, **{name: moved})))
            grad.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
        found[name] = grad
    return found


def unit(n: int, d: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(n, d, dtype=torch.float64, generator=generator), dim=1)


def ruled(kind: str, seed: int = 0, d: int = 4) -> Comparison:
    """A small table in float64 with the rules of ``kind``: words of "captions", "labels", "itself", "groups",
    "shift", "queue", "bias", "all grouped"."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.1], dtype=torch.float64)
    if "labels" in kind or "itself" in kind:
        query_ids, key_ids = (torch.randint(3, (n,), generator=generator) for n in (6, 7))
    elif "captions" in kind:
        query_ids, key_ids = torch.arange(5), torch.tensor([0, 0, 1, 3, 4, 4, 4])
    else:
        query_ids = key_ids = torch.arange(6)
    queries, keys = unit(len(query_ids), d, generator), unit(len(key_ids), d, generator)
    if "itself" in kind:
        keys, key_ids = queries, query_ids
    c = Comparison(queries, keys, query_ids, key_ids, scale, itself="itself" in kind)
    if "bias" in kind:
        c = replace(c, bias=torch.tensor([-0.7], dtype=torch.float64))
    if "groups" in kind or "all grouped" in kind:
        a, b = (torch.randint(-1, 3, (n, 2), generator=generator) for n in (len(query_ids), len(key_ids)))
        a, b = (a, a) if "itself" in kind else (a, b)
        a, b = (0 * a, 0 * b) if "all grouped" in kind else (a, b)
        c = replace(c, query_groups=a, key_groups=b)
    if "shift" in kind:
        shift = torch.randn(len(key_ids), dtype=torch.float64, generator=generator)
        c = replace(c, key_shift=shift)
    if "queue" in kind:
        c = replace(c, queue=unit(5, d, generator))
    return c


KINDS = (
    "pairs", "captions", "labels", "itself", "groups", "captions groups", "itself groups", "shift", "labels shift",
    "queue", "queue all grouped", "bias", "captions groups shift queue bias", "itself groups shift queue",
)  # fmt: skip
