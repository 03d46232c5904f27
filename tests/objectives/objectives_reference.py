"""What the objectives are, written from their formulas in numpy, in the longest float that there is.

Values and gradients in closed form, of one process with the whole table, positives without cancellation: where one
row's positives are p and q, n E_p - A is the sum of E_q (exp(s_p - s_q) - 1), and for one positive it is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.objectives import Comparison, Tiling, infonce, sigmoid

Loss = Callable[..., Tensor]
Table = NDArray[np.longdouble]
LOSSES: dict[str, Loss] = {"infonce": infonce, "sigmoid": sigmoid}
TENSORS = ("value", "queries", "keys", "log_scale", "bias")


@dataclass(frozen=True)
class Answer:
    """A loss () and its gradients, shaped as what they belong to."""

    value: Table
    queries: Table
    keys: Table
    log_scale: Table
    bias: Table


def long(x: Tensor) -> Table:
    """Exactly ``x``: bfloat16 and float32 are rounded before, not here."""
    return x.detach().double().numpy().astype(np.longdouble)


def reference(loss: Loss, c: Comparison, scores: Table | None = None, centred: bool = True) -> tuple[Answer, Answer]:
    """The loss of a table with its gradients, and the sums of what is added up to them, without signs.

    Args:
        loss: infonce or sigmoid.
        c: the table, everything that there is of it.
        scores: (Q, K) to use instead of the exact ones.
        centred: whether the temperature's gradient is summed over the scores' distances from the mean positive.
    """
    queries, keys, scale = long(c.queries), long(c.keys), np.exp(long(c.log_scale))[0]
    bias = np.longdouble(0) if c.bias is None else long(c.bias)[0]
    scores = scale * queries @ keys.T + bias if scores is None else scores
    positive = (c.query_ids[:, None] == c.key_ids[None, :]).numpy()
    value, grad, terms = _infonce(scores, positive) if loss is infonce else _sigmoid(scores, positive)
    plain = scores - bias
    # InfoNCE's gradients of the scores add up to 0, so the temperature's is the same from scores less any constant.
    apart = plain - plain[positive].mean() if centred and loss is infonce and positive.any() else plain
    none = np.zeros(1, np.longdouble)
    return Answer(
        value,
        scale * grad @ keys,
        scale * grad.T @ queries,
        (grad * apart).sum() + none,
        none if loss is infonce else grad.sum() + none,
    ), Answer(
        value,
        scale * terms @ abs(keys),
        scale * terms.T @ abs(queries),
        (terms * abs(apart)).sum() + none,
        terms.sum() + none,
    )


def _infonce(scores: Table, positive: NDArray[np.bool_]) -> tuple[Table, Table, Table]:
    rows, columns = _direction(scores, positive), _direction(scores.T, positive.T)
    return (rows[0] + columns[0]) / 2, (rows[1] + columns[1].T) / 2, (rows[2] + columns[2].T) / 2


def _direction(scores: Table, positive: NDArray[np.bool_]) -> tuple[Table, Table, Table]:
    """SupCon's L_out, the mean over the rows that have a positive, and its gradient for every score: P - 1/n at a
    positive. Their terms are P and 1/n, but for a row's only positive P - 1 is all the others' P and one term."""
    n_rows = max(int(positive.any(1).sum()), 1)
    value, grad, terms = np.longdouble(0), np.zeros_like(scores), np.zeros_like(scores)
    for i in np.flatnonzero(positive.any(1)):
        row, mine = scores[i], positive[i]
        exp = np.exp(row - row.max())
        of_positives, of_negatives, s = exp[mine].sum(), exp[~mine].sum(), row[mine]
        value += np.log1p(of_negatives / of_positives) + np.log(np.exp(s - s.mean()).mean()) + np.log(len(s))
        apart = (np.expm1(s[:, None] - s[None, :]) * exp[mine][None, :]).sum(1)
        grad[i, ~mine] = exp[~mine] / (of_positives + of_negatives)
        grad[i, mine] = (apart - of_negatives) / (len(s) * (of_positives + of_negatives))
        terms[i] = abs(grad[i])
        if len(s) > 1:
            terms[i, mine] = exp[mine] / (of_positives + of_negatives) + np.longdouble(1) / len(s)
    return value / n_rows, grad / n_rows, terms / n_rows


def _sigmoid(scores: Table, positive: NDArray[np.bool_]) -> tuple[Table, Table, Table]:
    wrong = np.where(positive, -scores, scores)  # how wrong a cell is; the loss is softplus of it
    terms = np.exp(-np.logaddexp(0, -wrong)) / len(scores)
    return np.logaddexp(0, wrong).sum() / len(scores), np.where(positive, -terms, terms), terms


def _computed_scores(c: Comparison, seed: int) -> Table:
    """(Q, K) scores as the table's own dtype gives them, the features of each cell summed in one of five orders, and
    for odd seeds a last bit more or less: a tile's shape decides on the order too, and even equal rows then have
    scores that differ in their last bits."""
    dtype, generator = _dtype(c), np.random.default_rng(seed)
    queries, keys = c.queries.detach().to(dtype), c.keys.detach().to(dtype)
    orders = [torch.from_numpy(generator.permutation(queries.shape[1])) for _ in range(5)]
    products = torch.stack([queries[:, order] @ keys[:, order].T for order in orders])
    choice = torch.from_numpy(generator.integers(5, size=(1, len(queries), len(keys))))
    products = products.gather(0, choice)[0]
    if seed % 2:
        products = products.nextafter(torch.from_numpy(generator.choice([-9.0, 9.0], products.shape)).to(dtype))
    scores = c.log_scale.detach().double().exp().to(dtype) * products
    return long(scores if c.bias is None else scores + c.bias.detach().to(dtype))


def _dtype(c: Comparison) -> torch.dtype:
    return torch.float64 if torch.float64 in (c.queries.dtype, c.keys.dtype) else torch.float32


def norm(x: Table) -> float:
    return float(np.sqrt((x * x).sum()))


def error(got: Table, true: Table) -> float:
    """In norm, of the whole tensor."""
    return norm(got - true) / norm(true) if norm(true) else float(norm(got) > 0)


def breaches(loss: Loss, c: Comparison, *gots: Answer, dense: bool = False) -> list[str]:
    """Which tensors of which of ``gots`` break the contract: loss and gradients of the table ``c``, in norm.

    Allowed is an error of 1e-12 in float64 and of 5e-6 in float32, or, if this is more,

    - twice the error of the reference when it is fed the scores of that dtype. For a single number this is a lottery,
      so it is the worst of several draws;
    - and what rounding the terms gives, four half bits each, for an exponential takes a few operations: where the sum
      is a ten thousandth of its terms, as between an image and its own duplicate, float32 terms have no five digits.

    Nothing is asked of a gradient below 1e-30, which float32 may not hold to all its bits, and of one that is all
    rounding noise, because the allowed error is as large as itself: what is exactly 0 where all rows are alike is an
    accident of the last bits.

    Args:
        loss, c: what was to be computed.
        gots: what was, in one way or another.
        dense: they are from a dense loss, which adds up the temperature's gradient over the scores as they are, and
            not over their distance from the mean positive, which has fewer digits to lose.
    """
    true, terms = reference(loss, c, centred=not dense)
    floor, half_bit = (1e-12 if _dtype(c) == torch.float64 else 5e-6), torch.finfo(_dtype(c)).eps / 2
    worst = {n: max(error(getattr(g, n), getattr(true, n)) for g in gots) for n in TENSORS}
    suspects = {n: off for n, off in worst.items() if norm(getattr(true, n)) >= 1e-30 and not off <= floor}
    found = []
    draws = 0 if not suspects else 16 if len(c.queries) < 100 else 4
    fed = [reference(loss, c, _computed_scores(c, seed))[0] for seed in range(draws)]
    for name, off in suspects.items():
        exact = getattr(true, name)
        noise = max(error(getattr(f, name), exact) for f in fed)
        allowed = max(floor, 2 * noise + 4 * half_bit * norm(getattr(terms, name)) / norm(exact))
        if allowed < 0.5 and not off <= allowed:
            found.append(f"{name}: {off:.1e} > {allowed:.1e}")
    found += [f"{n}: not a number" for n in TENSORS if not all(np.isfinite(getattr(g, n)).all() for g in gots)]
    if loss is infonce and any(norm(g.bias) for g in gots):
        found.append("bias: all scores move alike")
    return found


def answer(loss: Loss, c: Comparison, tiling: Tiling | None = None, upstream: float = 1.0) -> Answer:
    """What clipkit makes of a table; ``upstream`` is the gradient that comes from above the loss."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in (c.queries, c.keys, c.log_scale, c.bias)]
    queries, keys, log_scale, bias = leaves
    value = loss(replace(c, queries=queries, keys=keys, log_scale=log_scale, bias=bias), tiling)
    (value * upstream).backward()
    grads = [torch.zeros(1) if x is None else x.grad for x in leaves]
    assert all(g is not None for g in grads)
    return Answer(long(value), *(long(g) for g in grads if g is not None))
