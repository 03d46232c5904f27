"""Global contrastive loss: negatives of the whole data set, estimated sample by sample, for small batches.

InfoNCE compares with a batch; what a small one leaves out biases its gradient. Here every sample keeps a running
estimate of what *all* the others would add up to, and the batch only updates it (SogCLR, Yuan et al. 2022; FastCLIP,
Wei et al. 2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clipkit.errors import ClipkitError
from clipkit.objectives.comparison import Comparison
from clipkit.objectives.dense import global_mean, idle
from clipkit.objectives.exchange import gather_plain
from clipkit.objectives.log_sums import LogSums
from clipkit.objectives.tile import Tiling, wide
from clipkit.objectives.tiled import log_sums_of, narrow


class GlobalContrastive(nn.Module):
    """SogCLR's loss, an objective that remembers.

    For a query i with its positive and N other keys j, g_i = (1/N) sum over j of exp(s_ij - s_i,positive) is what its
    batch says, and u_i <- (1 - gamma) u_i + gamma g_i what all batches have said; a sample's first g is taken whole.
    The gradient is that of g_i / (eps + u_i), with the new u_i, in the mean over the queries, and likewise over the
    keys; half of either. So each negative weighs what it weighs among all of the data set. The value is log(eps + u_i)
    in the same mean. With gamma = 1 that is log(eps + g_i): InfoNCE's loss less log N, where eps is 1 / N.

    With several positives g_i is the mean over all pairs of a positive and a negative. Keys of one id share u.

    The estimates are buffers and go into a checkpoint with the module. Ranks update them alike, from everybody's g.
    In evaluation mode (``eval()``) they are used and not changed.

    Args:
        n_samples: ids of the comparison are in 0 ... n_samples - 1. None: ``remember`` says it, before the first call.
        gamma: in (0, 1], how much a new batch counts. May be changed at any time; see ``falling_gamma``.
        eps: added to u. The papers' is tiny; a larger one lets go of what is already told apart.

    Raises:
        ClipkitError: numbers outside their ranges; when called, ids outside theirs.
    """

    log_u_rows: Tensor | None
    log_u_columns: Tensor | None

    def __init__(self, n_samples: int | None = None, gamma: float = 0.8, eps: float = 1e-14) -> None:
        super().__init__()
        if not 0 < gamma <= 1:
            raise ClipkitError(f"gamma={gamma}: expected a number above 0 and at most 1")
        if not eps > 0:
            raise ClipkitError(f"eps={eps}: expected a number above 0")
        self.gamma, self.eps = gamma, eps
        self.register_buffer("log_u_rows", None)
        self.register_buffer("log_u_columns", None)
        if n_samples is not None:
            self.remember(n_samples)

    def remember(self, n_samples: int, device: torch.device | str = "cpu") -> None:
        """Start the estimates of ``n_samples`` samples, on ``device``."""
        if n_samples < 1:
            raise ClipkitError(f"n_samples={n_samples}: the number of samples in the data set is needed")
        # logarithms, as exp((s - s') / temperature) overflows; -inf is a sample that has not been seen
        unseen = torch.full((n_samples,), -torch.inf, dtype=wide(torch.device(device)), device=device)
        self.log_u_rows, self.log_u_columns = unseen, unseen.clone()

    def forward(self, c: Comparison, tiling: Tiling | None = None) -> Tensor:
        """() loss of the global batch on every rank, its gradient W times this rank's share, as of ``infonce``."""
        spread, log_u_rows, log_u_columns = c.spread, self.log_u_rows, self.log_u_columns
        if log_u_rows is None or log_u_columns is None:
            raise ClipkitError("n_samples is not known: give it to GlobalContrastive, or to remember()")
        _check(spread.query_ids, len(log_u_rows), "query_ids")
        _check(spread.key_ids, len(log_u_rows), "key_ids")
        own_Q, all_K = (_log_g(sums) for sums in log_sums_of(c, (1.0,), tiling))
        all_Q = gather_plain(own_Q.detach(), spread.query_counts)
        u_Q = self._updated(log_u_rows, spread.query_ids, all_Q)[c.query_ids]
        u_K = self._updated(log_u_columns, spread.key_ids, all_K.detach())[c.key_ids]
        row_loss = self._loss(own_Q, u_Q) / _useful(all_Q).sum().clamp(min=1)
        column_loss = self._loss(all_K[c.own_keys], u_K) / _useful(all_K).sum().clamp(min=1)
        return narrow(global_mean(0.5 * (row_loss + column_loss)) + idle(c), c)

    @torch.no_grad()
    def _updated(self, log_u: Tensor, ids: Tensor, log_g: Tensor) -> Tensor:
        """(n_samples,) ``log_u`` with what this batch says of ``ids`` (N,); in training it is changed itself."""
        ids, place = ids[_useful(log_g)].unique(return_inverse=True)
        log_g = _log_mean_by(place, log_g[_useful(log_g)], len(ids)).to(log_u.dtype)
        old = log_u[ids]
        new = log_g
        if self.gamma < 1:
            mixed = torch.logaddexp(old + math.log(1 - self.gamma), log_g + math.log(self.gamma))
            new = torch.where(old == -torch.inf, log_g, mixed)
        return (log_u if self.training else log_u.clone()).index_copy_(0, ids, new)

    def _loss(self, log_g: Tensor, log_u: Tensor) -> Tensor:
        """() sum of log(eps + u) with the gradient of g / (eps + u)."""
        log_g, log_u = log_g[_useful(log_g)], log_u[_useful(log_g)].to(log_g.dtype)
        losses = torch.logaddexp(log_u, torch.full_like(log_u, math.log(self.eps)))
        pull = (log_g.detach() - losses).exp() * log_g
        return (losses + pull - pull.detach()).sum()


def _check(ids: Tensor, n_samples: int, name: str) -> None:
    low, high = (int(x) for x in ids.aminmax()) if len(ids) else (0, 0)
    if low < 0 or high >= n_samples:
        wrong = low if low < 0 else high
        raise ClipkitError(f"{name} has {wrong}: with n_samples={n_samples} an id is in 0 ... {n_samples - 1}")


def _log_g(sums: LogSums) -> Tensor:
    """(N,) log of the mean over positives p and negatives j of exp(s_j - s_p); -inf where there are none."""
    s = sums.finite()
    log_g = s.negatives[0] - s.others.log() + s.inverse - s.n.log()
    return log_g.masked_fill((sums.n == 0) | (sums.others == 0), -torch.inf)


def _useful(log_g: Tensor) -> Tensor:
    return log_g.detach() > -torch.inf


def _log_mean_by(place: Tensor, x: Tensor, n: int) -> Tensor:
    """(n,) log of the mean of exp(x) over the entries of ``x`` (N,) with each ``place`` (N,)."""
    top = x.new_full((n,), -torch.inf).scatter_reduce(0, place, x, "amax")
    total = x.new_zeros(n).index_add_(0, place, (x - top[place]).exp())
    return top + (total / torch.bincount(place, minlength=n)).log()


def falling_gamma(least: float, epoch: float, epochs: float) -> float:
    """FastCLIP's gamma (Wei et al. 2024, section 4): from 1 down to ``least`` along a half cosine, the same during an
    epoch.

    Args:
        least: in (0, 1], where it ends.
        epoch: epochs done, of which the whole ones count.
        epochs: after how many it has fallen. The paper takes half of the run's.
    """
    share = min(1.0, math.floor(epoch) / max(epochs, 1.0))
    return least + (1 - least) * (1 + math.cos(math.pi * share)) / 2
