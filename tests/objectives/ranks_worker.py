"""Run by test_ranks.py in a process of its own: every case on 1, 2, 3 and 4 gloo processes.

    python ranks_worker.py FOLDER [full]

The parent imports clipkit once and forks before any tensor is made, so that four processes cost one import. Results
go to FOLDER/results-W-RANK.pt, by the name of the case.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ranks_counting
import torch
from objectives_tables import table
from ranks_mutations import MUTATIONS, mutated
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from worlds import run_worlds

from clipkit.encoders import Embeddings
from clipkit.objectives import ClipLoss, Comparison, SigLipLoss, Tiling, compare, dense, infonce, sigmoid, tiled_infonce
from clipkit.objectives.exchange import gather_rows, row_counts, sum_over_ranks
from clipkit.pairs.order import piece

LOSSES = {"infonce": infonce, "sigmoid": sigmoid}
WORLDS = (1, 2, 3, 4)
WAYS: dict[str, tuple[Any, Tiling | None]] = {
    "gather, ragged": ("gather", Tiling(rows=2, columns=3, keep_bytes=100)),
    "gather": ("gather", None),
    "ring, ragged": ("ring", Tiling(rows=2, columns=3, keep_bytes=0)),
    "ring": ("ring", None),
}
DENSE = {"infonce": dense.infonce, "sigmoid": dense.sigmoid}
# image ids, text ids, and whether a rank takes its pictures' texts or any even piece of all texts
CASES: dict[str, tuple[list[int], list[int], bool]] = {
    "pairs": (list(range(9)), list(range(9)), True),
    "as few as ranks": (list(range(4)), list(range(4)), True),
    "fewer than ranks": ([0, 1], [0, 1], True),
    "captions": ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6], True),
    "positives elsewhere": ([0, 1, 0, 1, 2, 2, 0, 3, 3], [3, 2, 2, 1, 1, 1, 0, 0, 0, 3, 3], False),
    "no positives": ([0, 1, 2, 9, 8, 7, 6], [20, 21, 0, 22, 23, 24, 25, 2], False),
    "none at all": ([0, 1, 2, 3, 4], [20, 21, 22, 23, 24], False),
}
# features, ids, rows, and who has them
TABLES = [
    (features, ids, n, split)
    for features, ids, n in [
        ("random", "pairs", 13), ("random", "labels", 13), ("saturated", "captions", 13), ("orthonormal", "pairs", 13),
        ("duplicates", "lonely", 13), ("anti-aligned", "pairs", 13), ("far from all keys", "captions", 13),
        ("one far", "pairs", 13), ("random", "captions", 2), ("random", "all the same", 5), ("random", "pairs", 1),
    ]
    for split in ("even", "last")
]  # fmt: skip
DTYPES = {"float64": torch.float64, "float32": torch.float32}
SCALES = (14.0, 100.0)


class Model(nn.Module):
    """Two linear towers, enough to see whether every gradient is right."""

    def __init__(self, scale: float, bias: bool, dtype: torch.dtype = torch.float64, locked: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (nn.Linear(6, 4, dtype=torch.float64).to(dtype) for _ in range(2))
        if locked:
            getattr(self, locked).requires_grad_(False)
        self.log_scale = nn.Parameter(torch.tensor([scale], dtype=torch.float64).log().to(dtype))
        # a parameter that gets no gradient would stall DDP
        self.bias = nn.Parameter(torch.tensor([-1.0], dtype=dtype)) if bias else None

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        unit_images, unit_texts = F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1)
        return unit_images, unit_texts, self.log_scale, self.bias


def part(
    case: str, rank: int, world: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This rank's inputs and ids."""
    image_list, text_list, by_picture = CASES[case]
    image_ids, text_ids = torch.tensor(image_list), torch.tensor(text_list)
    generator = torch.Generator().manual_seed(len(case) + 100 * seed)
    images, texts = (torch.randn(len(i), 6, dtype=torch.float32, generator=generator) for i in (image_ids, text_ids))
    rows = piece(len(image_ids), rank, world)
    if by_picture:
        columns = torch.isin(text_ids, image_ids[rows]).nonzero()[:, 0]
    else:
        columns = torch.arange(len(text_ids))[piece(len(text_ids), rank, world)]
    return images[rows].to(dtype), texts[columns].to(dtype), image_ids[rows], text_ids[columns]


def gradients(module: nn.Module) -> dict[str, Tensor]:
    whole = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {n: (g.full_tensor() if isinstance(g, DTensor) else g).clone() for n, g in whole.items()}


def step(
    case: str, loss: str, scale: float, way: str, rank: int, world: int, dtype: str = "float64", locked: str = ""
) -> dict[str, Any]:
    """One backward pass under DDP."""
    images, texts, image_ids, text_ids = part(case, rank, world, DTYPES[dtype])
    module: nn.Module = Model(scale, loss == "sigmoid", DTYPES[dtype], locked)
    wrapped = DistributedDataParallel(module) if world > 1 else module
    value = LOSSES[loss](compare(Embeddings(*wrapped(images, texts)), image_ids, text_ids, WAYS[way][0]), WAYS[way][1])
    value.backward()
    return {"loss": value.detach(), "gradients": gradients(module)}


def optimizer_of(name: str, module: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    return torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.1)


def ten_steps(name: str, loss: str, way: str, rank: int, world: int, dtype: str) -> dict[str, Any]:
    """Weights after ten steps, clipped for SGD."""
    module: nn.Module = Model(8.0, loss == "sigmoid", DTYPES[dtype])
    wrapped = DistributedDataParallel(module) if world > 1 else module
    optimizer = optimizer_of(name, module)
    for i in range(10):
        images, texts, image_ids, text_ids = part("captions", rank, world, DTYPES[dtype], i)
        c = compare(Embeddings(*wrapped(images, texts)), image_ids, text_ids, WAYS[way][0])
        optimizer.zero_grad()
        LOSSES[loss](c, WAYS[way][1]).backward()
        if name == "sgd":
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
    return {"weights": {n: p.detach().clone() for n, p in module.named_parameters()}}


def sharded(loss: str, way: str, world: int, rank: int) -> dict[str, Any]:
    """As ``step``, with every parameter sharded (FSDP2)."""
    images, texts, image_ids, text_ids = part("captions", rank, world)
    module = Model(8.0, loss == "sigmoid")
    fully_shard(module, mesh=init_device_mesh("cpu", (world,)))
    c = compare(Embeddings(*module(images, texts)), image_ids, text_ids, WAYS[way][0])
    value = LOSSES[loss](c, WAYS[way][1])
    value.backward()
    kinds = {n: isinstance(p, DTensor) for n, p in module.named_parameters()}
    local = module.log_scale.to_local()  # type: ignore[operator]
    found = {"loss": value.detach(), "gradients": gradients(module), "sharded": kinds, "local": local.numel()}
    return found | {"grad": isinstance(module.log_scale.grad, DTensor)}


def split(c: Comparison, how: str, rank: int, world: int) -> Comparison:
    """A rank's rows of a table: even pieces, or everything on the last rank."""
    if how == "even":
        rows, columns = piece(len(c.queries), rank, world), piece(len(c.keys), rank, world)
    else:
        rows = columns = slice(None) if rank == world - 1 else slice(0)
    own = replace(c, queries=c.queries[rows], keys=c.keys[columns])
    return replace(own, query_ids=c.query_ids[rows], key_ids=c.key_ids[columns])


def with_gradients(c: Comparison, exchange: Any) -> Comparison:
    tensors = {n: getattr(c, n) for n in ("queries", "keys", "log_scale", "bias")}
    leaves = {n: x if x is None else x.clone().requires_grad_() for n, x in tensors.items()}
    return replace(c, exchange=exchange, **leaves)


def dense_piece(c: Comparison, loss: str) -> dict[str, Any]:
    """As ``piece_of_table``, of the loss that makes the table."""
    own = with_gradients(c, "gather")
    value = DENSE[loss](own)
    value.backward()
    return answers(own, value)


def piece_of_table(c: Comparison, loss: str, way: str, mutation: str = "") -> dict[str, Any]:
    """Loss and gradients of the features themselves, and how often the maxima were needed."""
    own = with_gradients(c, WAYS[way][0])
    calls, original = [0], tiled_infonce._maxima

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        return original(*arguments)

    tiled_infonce._maxima = counted
    try:
        value = LOSSES[loss](own, WAYS[way][1])
        with mutated(mutation):
            value.backward()
    finally:
        tiled_infonce._maxima = original
    return {"maxima": calls[0]} | answers(own, value)


def answers(own: Comparison, value: Tensor) -> dict[str, Any]:
    leaves = {n: getattr(own, n) for n in ("queries", "keys", "log_scale", "bias")}
    return {"loss": value.detach()} | {n: x.grad for n, x in leaves.items() if x is not None}


def drop_in(name: str, rank: int, world: int) -> dict[str, Any]:
    """open_clip's interface under DDP; pairs in uneven pieces."""
    images, texts, _, _ = part("pairs", rank, world)
    module: nn.Module = Model(8.0, name == "siglip")
    wrapped = DistributedDataParallel(module) if world > 1 else module
    unit_images, unit_texts, log_scale, bias = wrapped(images, texts)
    if name == "clip":
        loss: nn.Module = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)
        value = loss(unit_images, unit_texts, log_scale.exp()[0])
    else:
        loss = SigLipLoss(rank=rank, world_size=world)
        value = loss(unit_images, unit_texts, log_scale.exp(), bias, output_dict=True)["contrastive_loss"]
    value.backward()
    return {"loss": value.detach(), "gradients": gradients(module)}


def exchange(rank: int, world: int) -> dict[str, Any]:
    """gather_rows and sum_over_ranks on their own, with a weight that differs per rank and row."""
    counts = [(3 * r + 1) % 4 for r in range(world)]  # 1, 0, 3, 2: one rank has nothing
    rows = (torch.arange(counts[rank] * 2.0, dtype=torch.float64).view(-1, 2) + 100 * rank).requires_grad_()
    everyone = gather_rows(rows, row_counts(len(rows), rows.device))
    weight = (torch.arange(everyone.numel(), dtype=torch.float64).view_as(everyone) + 1) * (rank + 1)
    (everyone * weight).sum().backward()
    x = torch.tensor([float(rank + 1)], dtype=torch.float64, requires_grad=True)
    total = sum_over_ranks(x)
    (total * (rank + 1)).sum().backward()
    return {"everyone": everyone.detach(), "grad": rows.grad, "total": total.detach(), "x_grad": x.grad}


def cases(rank: int, world: int, full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a world computes, by name: everything, or every kind once or twice."""
    some = iter(range(1 << 30))  # of a list of n ways, every n-th case has the same
    ways = list(WAYS)
    for loss in LOSSES:
        for case in CASES:
            every = [(way, scale) for scale in (3.0, 100.0) for way in ways]
            for way, scale in every if full else [every[next(some) % 8]]:
                yield f"ddp/float64/{case}/{loss}/{scale:g}/{way}", step(case, loss, scale, way, rank, world)
            way = ways[next(some) % 4]
            if full or case in ("captions", "no positives", "fewer than ranks"):
                yield f"ddp/float32/{case}/{loss}/14/{way}", step(case, loss, 14.0, way, rank, world, "float32")
        for locked in ("image", "text"):
            for way in ways if full else ways[1:3]:
                yield f"locked/{locked}/{loss}/{way}", step("captions", loss, 8.0, way, rank, world, "float64", locked)
        for name in ("sgd", "adamw"):
            for way, dtype in (("gather, ragged", "float64"), ("ring", "float64"), ("gather", "float32")):
                if full or (loss == "infonce") != (way == "ring"):
                    yield f"{name}/{dtype}/{loss}/{way}", ten_steps(name, loss, way, rank, world, dtype)
        for features, ids, n, how in TABLES:
            for dtype in DTYPES:
                every = [(way, scale) for scale in SCALES for way in ways]
                if not full and (dtype == "float32") == (how == "last") and features != "one far":
                    continue
                for way, scale in every if full else [every[4 + next(some) % 4]]:
                    c = table(features, ids, n, scale, -3.0 if loss == "sigmoid" else None, DTYPES[dtype])
                    own = piece_of_table(split(c, how, rank, world), loss, way)
                    yield f"table/{dtype}/{features}/{ids}/{n}/{how}/{loss}/{scale:g}/{way}", own
        for features, ids, n, how in TABLES[:4] + TABLES[-6:]:
            c = table(features, ids, n, 14.0, -3.0 if loss == "sigmoid" else None)
            yield f"dense/{features}/{ids}/{n}/{how}/{loss}", dense_piece(split(c, how, rank, world), loss)
    for name in ("clip", "siglip"):
        yield f"drop-in/{name}", drop_in(name, rank, world)
    if world > 1:
        yield "exchange", exchange(rank, world)
        for loss in LOSSES:
            for way in ("gather", "ring"):
                yield f"sharded/{loss}/{way}", sharded(loss, way, world, rank)
                counts = [ranks_counting.collectives(LOSSES[loss], n, way) for n in (3, 40)]
                yield f"collectives/{loss}/{way}", {"of": counts}
            for mutation in MUTATIONS if loss == "infonce" else MUTATIONS[::3]:
                c = table("random", "captions", 13, 14.0, -3.0 if loss == "sigmoid" else None)
                own = piece_of_table(split(c, "even", rank, world), loss, "gather, ragged", mutation)
                yield f"mutant/{mutation}/{loss}", own


def worlds_of(kind: str) -> tuple[int, ...]:
    """How many processes there are in turn. Four take longest, so that they are among the slow ones."""
    return WORLDS if kind == "full" else WORLDS[:-1]


def found_by(rank: int, world: int, arguments: Sequence[str]) -> dict[str, Any]:
    """What a rank finds, everything or some of it; of four processes always some, which is what takes longest."""
    return dict(cases(rank, world, "full" in arguments and world < 4))


if __name__ == "__main__":
    run_worlds(worlds_of("full" if "full" in sys.argv else "some"), found_by)
