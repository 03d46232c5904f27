"""A recipe's table for a real batch: the role of every cell, and what the loss wants of it.

Nothing of a method is written down here a second time: the batch comes from the recipe's reader, the embeddings from
its encoders, the roles from its ``Comparison``, and the gradients from its objective.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.config import Config
from clipkit.encoders import DualEncoder, TwoViewsSettings
from clipkit.errors import ClipkitError
from clipkit.explain.sides import Item, Sides, find_sides
from clipkit.objectives import Comparison
from clipkit.pairs import PairBatch, PipeSet, ShardSet, make_order
from clipkit.pairs.stream import ReadTexts, check_batch_size, step_items
from clipkit.recipes import Recipe
from clipkit.training.data import training_reader
from clipkit.training.step import settle_objective

POSITIVE, NEGATIVE, ITSELF, GUARDED, BATCH, NO_ROLE = "+", "-", ".", "g", "k", "o"


@dataclass(frozen=True)
class Queue:
    """The queue's columns, put together in one.

    Attributes:
        size: how many.
        gradients: (q,) float64, the sum of each row's.
        hardest: (q,) float64, the largest cosine of each row.
    """

    size: int
    gradients: NDArray[np.float64]
    hardest: NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """One table of a step.

    Attributes:
        queries, keys: the rows and the columns.
        roles: (q, k) str: "+" positive, "-" negative; of those that do not count "." a row with itself, "g" guarded (a
            known false negative), "k" another key of the batch where only the queue's are negatives; "o" what is no
            positive where the objective asks for no negatives.
        cosines: (q, k) float64.
        scores: (q, k) float64 as the objective sees them: with temperature, bias and shift, or the cosines.
        gradients: (q, k) float64, of the step's loss with respect to each score. Below 0 the loss falls when the two
            come closer.
        loss: this table's.
        temperature: what cosines are divided by; None for an objective over distances.
        learned: whether the temperature learns.
        bias: added to every score, or None.
        shifted: whether keys have a correction of their own (logQ).
        queue: the queue's columns, if there is one.
    """

    queries: list[Item]
    keys: list[Item]
    roles: NDArray[np.str_]
    cosines: NDArray[np.float64]
    scores: NDArray[np.float64]
    gradients: NDArray[np.float64]
    loss: float
    temperature: float | None
    learned: bool
    bias: float | None
    shifted: bool
    queue: Queue | None

    @property
    def largest(self) -> float:
        """The largest gradient of a cell, without its sign."""
        found = [np.abs(self.gradients).max()] + ([np.abs(self.queue.gradients).max()] if self.queue else [])
        return float(max(found))


@dataclass(frozen=True)
class Explained:
    """A recipe on a batch.

    Attributes:
        recipe: the method.
        config: resolved, with the batch's size.
        source: what the data are called.
        weights: "untrained", or the run that they are from.
        tables: the step's.
        loss: of all of them.
        objective: its name and its settings.
        about: the first line of its documentation.
        heads: what is trained beside the tower for the views, or None.
    """

    recipe: Recipe
    config: Config
    source: str
    weights: str
    tables: list[Table]
    loss: float
    objective: tuple[str, dict[str, Any]]
    about: str
    heads: TwoViewsSettings | None

    def called(self, source: str) -> Explained:
        """The same, with another name for the data."""
        return replace(self, source=source)


def explain(
    recipe: Recipe, config: Config, samples: int, model: DualEncoder | None = None, weights: str = "untrained"
) -> Explained:
    """The first batch of ``samples`` of the recipe's data, as its objective sees it.

    Args:
        recipe, config: as for training; ``config.data.train_data`` says which data.
        samples: of the batch, at most as many as there are.
        model: with trained weights; default: the recipe's fresh ones. In training mode, as in a step.
        weights: what ``model`` is called.

    Raises:
        ClipkitError: data, model or settings are wrong, or the table is too large to be looked at cell by cell.
    """
    shards = recipe.pairs(config).train
    if isinstance(shards, PipeSet):
        raise ClipkitError(f"{shards.name}: a pipe cannot be read twice; give shards or a table")
    model = (model or recipe.encoders(config)).train()
    n = min(samples, len(shards))
    check_batch_size(shards, n, 1)
    config = config.replace(batch_size=n)
    chosen: list[tuple[int, int, str]] = []
    reader = training_reader(model, shards, config)
    if reader.texts is not None:
        reader = replace(reader, texts=_noting(reader.texts, chosen))
    batch = reader(step_items(make_order(shards, config.run.seed), 0, n))
    tables, loss, objective = _tables(recipe, config, model, batch, shards, chosen)
    heads = model.two_views.settings if model.two_views is not None else None
    shards.close()
    return Explained(
        recipe, config, shards.name, weights, tables, loss, _described(objective), _about(objective), heads
    )


def _noting(texts: ReadTexts, chosen: list[tuple[int, int, str]]) -> ReadTexts:
    def read(of_batch: list[tuple[int, int, str]]) -> Tensor:
        chosen.extend(of_batch)
        return texts(of_batch)

    return read


def _tables(
    recipe: Recipe,
    config: Config,
    model: DualEncoder,
    batch: PairBatch,
    shards: ShardSet,
    chosen: list[tuple[int, int, str]],
) -> tuple[list[Table], float, Callable[..., Any]]:
    compare = recipe.compare(config)
    objective = settle_objective(recipe.objective(config), shards, model.device)
    torch.manual_seed(config.run.seed)  # of dropout
    with torch.no_grad():  # the gradient ends at the scores
        embeddings = model(batch.images, batch.texts)
    comparisons = compare(embeddings, batch, "gather")
    sides = find_sides(compare, embeddings, batch, shards, chosen)
    nudged = [nudge(c) for c in comparisons]
    losses = [objective(c) for c in nudged]
    total = torch.stack(losses).sum()
    if not total.requires_grad:
        cells = max(c.on_scores.numel() for c in nudged)
        raise ClipkitError(
            f"a table of {cells:,} cells is walked in tiles and never held; pass fewer --samples or a shorter --queue"
        )
    leaves = [leaf for c in nudged for leaf in (c.on_scores, c.on_products)]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    tables = [
        _table(c, side, loss, found[2 * i : 2 * i + 2], model)
        for i, (c, side, loss) in enumerate(zip(nudged, sides, losses, strict=True))
    ]
    return tables, float(total.detach()), objective


@dataclass(frozen=True)
class Nudged(Comparison):
    """A comparison whose scores and products are leaves of the graph, and that remembers what it was asked for.

    Attributes:
        on_scores, on_products: (q, K + M) float64 zeros, added to them.
        asked: names of the roles that the objective has asked for.
    """

    on_scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    on_products: Tensor = field(default_factory=lambda: torch.zeros(0))
    asked: set[str] = field(default_factory=set)

    def products(self, dtype: torch.dtype | None = None) -> Tensor:
        products = super().products(dtype)
        return products + self.on_products.to(products.dtype)

    def scores(self, dtype: torch.dtype | None = None, biased: bool = True) -> Tensor:
        scores = super().scores(dtype, biased)
        return scores + self.on_scores.to(scores.dtype)

    def counts(self) -> Tensor:
        self.asked.add("negatives")
        return super().counts()


def nudge(c: Comparison) -> Nudged:
    """``c`` with leaves of zeros where its scores and its products are."""
    held = {f.name: getattr(c, f.name) for f in fields(Comparison)}
    columns = len(c.keys) + (0 if c.queue is None else len(c.queue))
    leaves = [torch.zeros(len(c.queries), columns, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return Nudged(**held, on_scores=leaves[0], on_products=leaves[1])


def _table(c: Nudged, sides: Sides, loss: Tensor, found: tuple[Tensor | None, ...], model: DualEncoder) -> Table:
    has_negatives = "negatives" in c.asked
    of_scores, of_products = found
    # Scores are made of products; an objective over distances takes the products themselves.
    gradients = of_scores if of_scores is not None else of_products
    if gradients is None:
        gradients = torch.zeros_like(c.on_scores)
    with torch.no_grad():
        products, scores = c.products(torch.float64), c.scores(torch.float64)
    k = len(c.keys)
    scaled = of_scores is not None
    heads = model.two_views is not None and sides.of_views
    return Table(
        sides.queries,
        sides.keys,
        _roles(c, has_negatives),
        products[:, :k].numpy(),
        (scores if scaled else products)[:, :k].numpy(),
        gradients[:, :k].numpy(),
        float(loss.detach()),
        float((-c.log_scale.double()).exp()) if scaled else None,
        scaled and not heads and model.log_scale.requires_grad,
        float(c.bias) if scaled and c.bias is not None else None,
        scaled and c.key_shift is not None,
        Queue(products.shape[1] - k, gradients[:, k:].sum(1).numpy(), products[:, k:].amax(1).numpy())
        if c.queue is not None and len(c.queue)
        else None,
    )


def _roles(c: Nudged, has_negatives: bool) -> NDArray[np.str_]:
    """(q, k) of the batch's columns; see ``Table.roles``."""
    k = len(c.keys)
    positive, counts = c.positives()[:, :k].numpy(), c.counts()[:, :k].numpy()
    roles = np.full(positive.shape, NEGATIVE if has_negatives else NO_ROLE)
    only_queue = c.queue is not None and not (counts & ~positive).any()
    roles[~counts] = BATCH if only_queue else GUARDED
    if c.itself:
        np.fill_diagonal(roles, ITSELF)
    roles[positive] = POSITIVE
    return roles


def _described(objective: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of an objective: what it takes besides the comparison and how to compute."""
    what: Any = objective.func if isinstance(objective, partial) else objective
    given = dict(objective.keywords) if isinstance(objective, partial) else {}
    if not inspect.isfunction(what):
        return type(what).__name__, given
    known = {name: p.default for name, p in inspect.signature(what).parameters.items()}
    settings = {n: v for n, v in (known | given).items() if n not in ("dtype", "tiling") and v is not inspect._empty}
    return what.__name__, settings


def _about(objective: Callable[..., Any]) -> str:
    """The first sentence of an objective's documentation."""
    what: Any = objective.func if isinstance(objective, partial) else objective
    return (inspect.getdoc(what) or "").split("\n\n")[0].replace("\n", " ")
