"""Run by test_family_ranks.py in a process of its own: every objective on 1, 2, 3 and 4 gloo processes.

    python family_worker.py FOLDER [full]

Results go to FOLDER/results-W-RANK.pt, by the name of the case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from objectives_family import LOSSES, gradients
from objectives_loops import KINDS, ruled
from objectives_tables import table
from worlds import run_worlds

from clipkit.objectives import Comparison, GlobalContrastive, Tiling
from clipkit.pairs.order import piece

WORLDS = (1, 2, 3, 4)
WAYS: dict[str, tuple[Any, Tiling | None]] = {
    "gather, ragged": ("gather", Tiling(rows=2, columns=3, keep_bytes=100)),
    "ring, ragged": ("ring", Tiling(rows=2, columns=3, keep_bytes=0)),
    "gather": ("gather", None),
}
SOME = ("labels", "itself groups shift queue", "captions groups shift queue bias")
SPLITS = ("even", "last")


def split(c: Comparison, how: str, rank: int, world: int) -> Comparison:
    """A rank's rows of a table: even pieces, or everything on the last rank."""

    def own(n: int) -> slice:
        if how == "even":
            return piece(n, rank, world)
        return slice(None) if rank == world - 1 else slice(0)

    rows, columns = own(len(c.query_ids)), own(len(c.key_ids))
    fields: dict[str, Any] = {n: getattr(c, n)[rows] for n in ("queries", "query_ids")}
    fields |= {n: getattr(c, n)[columns] for n in ("keys", "key_ids")}
    if c.query_groups is not None and c.key_groups is not None:
        fields |= {"query_groups": c.query_groups[rows], "key_groups": c.key_groups[columns]}
    if c.key_shift is not None:
        fields["key_shift"] = c.key_shift[columns]
    return replace(c, **fields)


def faded(direction: str, n: int = 13) -> Comparison:
    """A saturated table at so small a temperature that float64 needs every row's own maximum, and some negatives are
    nothing beside it."""
    c = table("saturated" if direction == "saturated" else "one far", "pairs", n, 3000.0)
    return replace(c, queries=c.queries.clone(), keys=c.keys.clone())


def cases(rank: int, world: int, full: bool) -> Iterator[tuple[str, Any]]:
    some = iter(range(1 << 30))
    for loss, (tiled, whole) in LOSSES.items():
        for kind in KINDS if full else SOME:
            every = [(how, way) for how in SPLITS for way in WAYS]
            # a ring's gradients add up on their way, where a label's rows are on several ranks
            ring = [("even", "ring, ragged")] if kind == "labels" else []
            for how, way in every if full else sorted({*ring, every[next(some) % len(every)]}):
                own = replace(split(ruled(kind), how, rank, world), exchange=WAYS[way][0])
                yield f"tiled/{loss}/{kind}/{how}/{way}", gradients(partial(tiled, tiling=WAYS[way][1]), own)
        kind, how = SOME[next(some) % 3], SPLITS[next(some) % 2]
        yield f"dense/{loss}/{kind}/{how}/-", gradients(whole, split(ruled(kind), how, rank, world))
    for loss in ("infonce", "infonce rows"):
        for direction in ("saturated", "one far"):
            own = split(faded(direction), "even", rank, world)
            yield f"faded/{loss}/{direction}", gradients(partial(LOSSES[loss][0], tiling=Tiling(3, 4, 0)), own)
    objective = GlobalContrastive(16, gamma=0.4)
    for seed in range(2):
        objective(split(ruled("captions groups", seed), "even", rank, world))
    yield "estimates", {n: x.clone() for n, x in objective.state_dict().items()}
    for kind in ("itself groups", "captions groups", "queue all grouped"):
        yield f"cleared/{kind}", split(ruled(kind), "even", rank, world).cleared()


def worlds_of(kind: str) -> tuple[int, ...]:
    """How many processes there are in turn. Four take longest, so that they are among the slow ones."""
    return WORLDS if kind == "full" else WORLDS[:-1]


def found_by(rank: int, world: int, arguments: Sequence[str]) -> dict[str, Any]:
    """What a rank finds, everything or some of it; of four processes always some, which is what takes longest."""
    return dict(cases(rank, world, "full" in arguments and world < 4))


if __name__ == "__main__":
    run_worlds(worlds_of("full" if "full" in sys.argv else "some"), found_by)
