"""The contract of many processes: loss and gradient are those of one process with the whole batch.

What the processes find is compared with the reference, not with clipkit on one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks_worker as worker
import torch
from objectives_reference import LOSSES, Answer, breaches, long, reference
from objectives_tables import table
from ranks_counting import DIM
from torch import Tensor, nn
from worlds import Found, launch

from clipkit.objectives import Comparison

WORKER = Path(worker.__file__)
WORLDS = (1, 2, 3, 4)
MANY = WORLDS[1:]
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@pytest.fixture(
    scope="module", params=["some", pytest.param("full", marks=pytest.mark.slow)]
)  # the full product takes minutes
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What every rank of every world found, from one launch."""
    return launch(WORKER, tmp_path_factory.mktemp("ranks"), worker.worlds_of(request.param), request.param)


def of_kind(found: Found, world: int, kind: str) -> Iterator[tuple[str, list[str], list[dict[str, Any]]]]:
    """(name, its parts after the kind, every rank's result) of each case of a kind."""
    names = [n for n in found[world][0] if n.startswith(f"{kind}/")]
    assert names
    for name in names:
        yield name, name.split("/")[1:], [ranks[name] for ranks in found[world]]


def whole(
    case: str, loss: str, module: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0, rounded: bool = False
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The reference's loss of all of a case's rows and its gradients, which ``module`` has afterwards; and what
    rounding single terms to ``dtype`` makes of sums over all scores.

    Args:
        case, loss, dtype, seed: what was computed.
        module: all parameters in ``dtype``.
        rounded: the reference is fed scores in ``dtype``.
    """
    images, texts, image_ids, text_ids = worker.part(case, 0, 1, dtype, seed)
    outputs = module(images, texts)
    detached = [None if x is None else x.detach() for x in outputs]
    c = Comparison(detached[0], detached[1], image_ids, text_ids, *detached[2:])
    scores = None
    if rounded:
        product = c.log_scale.double().exp().to(dtype) * (c.queries @ c.keys.T)
        scores = long(product if c.bias is None else product + c.bias)
    true, terms = reference(LOSSES[loss], c, scores, centred=False)
    made = {
        x: torch.from_numpy(g.astype(np.float64)).to(dtype)
        for x, g in zip(outputs, (true.queries, true.keys, true.log_scale, true.bias), strict=True)
        if x is not None and x.requires_grad
    }
    torch.autograd.backward(list(made), list(made.values()))
    half_bit = torch.finfo(dtype).eps / 2
    rounding = {n: 4 * half_bit * float(getattr(terms, n)[0]) for n in ("log_scale", "bias")}
    return {"loss": torch.tensor(float(true.value), dtype=torch.float64)} | worker.gradients(module), rounding


def apart(got: dict[str, Tensor], true: dict[str, Tensor], allowed: Callable[[str], float]) -> dict[str, float]:
    """Errors in norm, per tensor, that are larger than allowed; gradients that are 0 but for rounding have none."""
    assert set(got) == set(true)
    errors = {n: float((got[n].double() - t).norm() / t.norm()) for n, t in true.items() if float(t.norm()) > 1e-12}
    return {n: e for n, e in errors.items() if not e <= allowed(n)}


@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_processes_is_one_under_ddp(found: Found, world: int) -> None:
    for name, (dtype, case, loss, scale, _), ranks in of_kind(found, world, "ddp"):
        arguments = float(scale), loss == "sigmoid", worker.DTYPES[dtype]
        true, _ = whole(case, loss, worker.Model(*arguments).double())
        if not (case == "none at all" and loss == "infonce"):
            assert float(true["log_scale"].abs()) > 1e-9, "a case that proves nothing"
        # the same towers, and the reference between their features' scores and their features' gradients
        fed, rounding = whole(case, loss, worker.Model(*arguments), worker.DTYPES[dtype], rounded=True)
        noise = apart(fed, true, lambda _: 0.0)
        for n, size in rounding.items():
            noise[n] = noise.get(n, 0.0) + (size / float(true[n].norm()) if n in true and true[n].norm() else 0.0)
        for got in ranks:
            allowed = lambda n: max(TOLERANCE[dtype], 2 * noise.get(n, 0.0))  # noqa: B023, E731
            bad = apart({"loss": got["loss"]} | got["gradients"], true, allowed)
            assert not bad, (name, bad)


@pytest.mark.parametrize("world", WORLDS)
def test_every_kind_of_table_in_uneven_pieces(found: Found, world: int) -> None:
    """The features' own gradients, W times as large as their share because DDP averages; in the contract's tolerance.

    With ranks that have no rows at all: fewer rows than ranks, or all of them on the last one.
    """
    for name, (dtype, features, ids, n, _, loss, scale, way), ranks in of_kind(found, world, "table"):
        c = table(features, ids, int(n), float(scale), -3.0 if loss == "sigmoid" else None, worker.DTYPES[dtype])
        dense = world == 1 and worker.WAYS[way][1] is None
        bad = breaches(LOSSES[loss], c, assembled(ranks, world), dense=dense)
        assert not bad, (name, bad)


@pytest.mark.parametrize("world", WORLDS)
def test_the_dense_losses_too(found: Found, world: int) -> None:
    """What the tiled are documented by holds on many processes as well."""
    for name, (features, ids, n, _, loss), ranks in of_kind(found, world, "dense"):
        c = table(features, ids, int(n), 14.0, -3.0 if loss == "sigmoid" else None)
        got = assembled(ranks, world)
        bad = breaches(LOSSES[loss], c, got, dense=True)
        assert not bad, (name, bad)


def assembled(ranks: list[dict[str, Any]], world: int) -> Answer:
    """One answer from every rank's piece, as averaging over ranks gives it."""
    mean = [sum(long(r[n]) for r in ranks) / world for n in ("log_scale", "bias") if n in ranks[0]]
    queries, keys = (np.concatenate([long(r[n]) for r in ranks]) / world for n in ("queries", "keys"))
    return Answer(long(ranks[0]["loss"]), queries, keys, mean[0], mean[1] if mean[1:] else 0 * mean[0])


@pytest.mark.parametrize("world", WORLDS)
def test_one_ranks_faded_row_makes_all_take_the_maxima(found: Found, world: int) -> None:
    expected = {"one far": 1, "far from all keys": 1, "random": 0, "saturated": 0}
    seen = set()
    for name, (dtype, features, _, _, _, loss, scale, way), ranks in of_kind(found, world, "table"):
        assert len({r["maxima"] for r in ranks}) == 1, (name, "ranks would wait for one another")
        tiled = world > 1 or worker.WAYS[way][1] is not None
        if (dtype, loss, scale) == ("float32", "infonce", "100") and tiled and features in expected:
            assert ranks[0]["maxima"] == expected[features], name
            seen.add(features)
    assert seen == set(expected) or world == 1


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_see_the_same_number(found: Found, world: int) -> None:
    """To the last bit: what a rank decides on a loss (stop, fall back, keep the best) all ranks must decide."""
    first = {n: r["loss"] for n, r in found[world][0].items() if "loss" in r}
    assert len(first) > 10
    assert not [n for ranks in found[world] for n in first if not torch.equal(ranks[n]["loss"], first[n])]


@pytest.mark.parametrize("world", WORLDS)
def test_a_locked_tower_takes_nothing_from_the_other(found: Found, world: int) -> None:
    for name, (locked, loss, _), ranks in of_kind(found, world, "locked"):
        module = worker.Model(8.0, loss == "sigmoid")
        true = {n: g for n, g in whole("captions", loss, module)[0].items() if not n.startswith(locked)}
        for got in ranks:
            bad = apart({"loss": got["loss"]} | got["gradients"], true, lambda _: 1e-12)
            assert not bad, (name, bad)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_after_ten_steps(found: Found, world: int, optimizer: str) -> None:
    """Adam divides noise by noise where a gradient is 0: its weights are compared all together, in float32 to 1e-4."""
    for name, (dtype, loss, _), ranks in of_kind(found, world, optimizer):
        module = worker.Model(8.0, loss == "sigmoid", worker.DTYPES[dtype]).double()
        before = {n: p.detach().clone() for n, p in module.named_parameters()}
        update = worker.optimizer_of(optimizer, module)
        for i in range(10):
            update.zero_grad()
            whole("captions", loss, module, seed=i)
            if optimizer == "sgd":
                nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            update.step()
        true = {n: p.detach() for n, p in module.named_parameters()}
        assert all(float((true[n] - before[n]).norm()) > 0.01 for n in true), "nothing was trained"
        for got in (r["weights"] for r in ranks):
            if optimizer == "adamw":
                got, weights = ({"all": torch.cat([x[n].double().flatten() for n in true])} for x in (got, true))
                bad = apart(got, weights, lambda _: 1e-12 if dtype == "float64" else 1e-4)  # noqa: B023
            else:
                bad = apart(got, true, lambda _: TOLERANCE[dtype])  # noqa: B023
            assert not bad, (name, bad)


@pytest.mark.parametrize("world", MANY)
def test_sharded_parameters_get_the_same_gradients(found: Found, world: int) -> None:
    """FSDP2: every parameter is a DTensor, the one-element temperature too, of which the other ranks hold nothing."""
    for name, (loss, _), ranks in of_kind(found, world, "sharded"):
        module = worker.Model(8.0, loss == "sigmoid")
        true, _ = whole("captions", loss, module)
        for rank, got in enumerate(ranks):
            assert all(got["sharded"].values()) and got["grad"]
            assert got["local"] == (1 if rank == 0 else 0)
            bad = apart({"loss": got["loss"]} | got["gradients"], true, lambda _: 1e-12)
            assert not bad, (name, bad)


@pytest.mark.parametrize("world", WORLDS)
def test_open_clips_interface_gives_the_global_mean_and_its_gradient(found: Found, world: int) -> None:
    for name, (loss,), ranks in of_kind(found, world, "drop-in"):
        kind = "infonce" if loss == "clip" else "sigmoid"
        module = worker.Model(8.0, kind == "sigmoid")
        true, _ = whole("pairs", kind, module)
        for got in ranks:
            bad = apart({"loss": got["loss"]} | got["gradients"], true, lambda _: 1e-12)
            assert not bad, (name, bad)


@pytest.mark.parametrize("world", MANY)
@pytest.mark.parametrize("mutation", worker.MUTATIONS)
def test_a_backward_pass_that_lacks_something_is_noticed(found: Found, world: int, mutation: str) -> None:
    """That the comparison above can fail."""
    for name, (what, loss), ranks in of_kind(found, world, "mutant"):
        c = table("random", "captions", 13, 14.0, -3.0 if loss == "sigmoid" else None)
        if what == mutation:
            assert breaches(LOSSES[loss], c, assembled(ranks, world)), name


@pytest.mark.parametrize("world", MANY)
def test_rows_are_gathered_in_order_and_their_gradients_summed(found: Found, world: int) -> None:
    counts = [(3 * r + 1) % 4 for r in range(world)]
    parts = [torch.arange(n * 2.0, dtype=torch.float64).view(-1, 2) + 100 * r for r, n in enumerate(counts)]
    expected = torch.cat(parts)
    weights = torch.arange(expected.numel(), dtype=torch.float64).view_as(expected) + 1
    shares = (weights * sum(range(1, world + 1))).split(counts)
    for rank, ranks in enumerate(found[world]):
        got = ranks["exchange"]
        assert torch.equal(got["everyone"], expected)
        assert torch.equal(got["grad"], shares[rank])
        assert float(got["total"]) == float(got["x_grad"]) == sum(range(1, world + 1))


@pytest.mark.parametrize("world", MANY)
@pytest.mark.parametrize("loss", LOSSES)
def test_keys_travel_once_and_their_gradients_once(found: Found, world: int, loss: str) -> None:
    """Half of what gathering both modalities with their gradients would send, and no table in it."""
    by_rank = [ranks[f"collectives/{loss}/gather"]["of"] for ranks in found[world]]
    assert all(other == by_rank[0] for other in by_rank), "ranks would wait for one another"
    for pairs, calls in zip((3, 40), by_rank[0], strict=True):
        columns = pairs * world
        gathers = [(dtype, n) for kind, dtype, n in calls["forward"] if kind == "gather"]
        assert sorted(gathers) == [("float64", columns * DIM), ("int64", 2 * columns)]  # keys; both sides' ids
        reduces = sorted(n for kind, dtype, n in calls["forward"] if kind == "reduce" and dtype == "float64")
        assert reduces == ([2, 5, 2 * columns] if loss == "infonce" else [1])
        assert len(calls["forward"]) == 2 + len(reduces) + 1  # and the counts of rows
        assert calls["backward"] == [("scatter", "float64", columns * DIM)]


@pytest.mark.parametrize("world", MANY)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_ring_never_holds_everybodys_keys(found: Found, world: int, loss: str) -> None:
    by_rank = [ranks[f"collectives/{loss}/ring"]["of"] for ranks in found[world]]
    assert all(other == by_rank[0] for other in by_rank)
    for pairs, calls in zip((3, 40), by_rank[0], strict=True):
        every = calls["forward"] + calls["backward"]
        assert not [c for c in every if c[0] == "gather" and c[1] == "float64"]
        assert not [c for c in every if c[0] in ("scatter", "other")]
        hops = [n for kind, _, n in every if kind == "messages"]
        assert set(hops) == {pairs * DIM}, "a block at a time"
        # InfoNCE walks twice, and the keys' gradients travel all the way home
        assert len(hops) == (2 if loss == "infonce" else 1) * (world - 1) + world
        assert all(n <= 2 * pairs * world for kind, dtype, n in every if kind == "reduce" and dtype == "float64")
