"""Run by test_ranks.py in a process of its own: every case on 2, 3 and 4 gloo processes and on one.

    python ranks_worker.py FOLDER

The parent imports clipkit once and forks before any tensor is made, so that four processes cost one import. Results
go to FOLDER/results-W-RANK.pt: for each case the loss, DDP's averaged gradients and the collectives called.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from clipkit.encoders import Embeddings
from clipkit.objectives import compare, infonce, sigmoid
from clipkit.objectives import exchange as exchange_module
from clipkit.objectives.exchange import gather_rows, row_counts, sum_over_ranks
from clipkit.pairs.order import piece

LOSSES = {"infonce": infonce, "sigmoid": sigmoid}
WORLDS = (1, 2, 3, 4)
# image ids, text ids, and whether a rank takes its pictures' texts or any even piece of all texts
CASES: dict[str, tuple[list[int], list[int], bool]] = {
    "pairs": (list(range(9)), list(range(9)), True),
    "as few as ranks": (list(range(4)), list(range(4)), True),
    "captions": ([0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6], True),
    "positives elsewhere": ([0, 1, 0, 1, 2, 2, 0, 3, 3], [3, 2, 2, 1, 1, 1, 0, 0, 0, 3, 3], False),
    "no positives": ([0, 1, 2, 9, 8, 7, 6], [20, 21, 0, 22, 23, 24, 25, 2], False),
    "none at all": ([0, 1, 2, 3, 4], [20, 21, 22, 23, 24], False),
}


class Model(nn.Module):
    """Two linear towers, enough to see whether every gradient is right."""

    def __init__(self, scale: float, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (nn.Linear(6, 4, dtype=torch.float64) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor([scale], dtype=torch.float64).log())
        # a parameter that gets no gradient would stall DDP
        self.bias = nn.Parameter(torch.tensor([-1.0], dtype=torch.float64)) if bias else None

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        unit_images, unit_texts = F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1)
        return unit_images, unit_texts, self.log_scale, self.bias


def part(case: str, rank: int, world: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This rank's inputs and ids."""
    image_list, text_list, by_picture = CASES[case]
    image_ids, text_ids = torch.tensor(image_list), torch.tensor(text_list)
    generator = torch.Generator().manual_seed(len(case))
    images, texts = (torch.randn(len(i), 6, dtype=torch.float64, generator=generator) for i in (image_ids, text_ids))
    rows = piece(len(image_ids), rank, world)
    if by_picture:
        columns = torch.isin(text_ids, image_ids[rows]).nonzero()[:, 0]
    else:
        columns = torch.arange(len(text_ids))[piece(len(text_ids), rank, world)]
    return images[rows], texts[columns], image_ids[rows], text_ids[columns]


def step(case: str, loss: str, scale: float, rank: int, world: int) -> dict[str, Any]:
    images, texts, image_ids, text_ids = part(case, rank, world)
    module: nn.Module = Model(scale, bias=loss == "sigmoid")
    wrapped = DistributedDataParallel(module) if world > 1 else module
    embeddings = Embeddings(*wrapped(images, texts))
    value = LOSSES[loss](compare(embeddings, image_ids, text_ids))
    value.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters()}
    return {"loss": value.detach(), "gradients": gradients}


def collectives(loss: str, pairs: int) -> dict[str, Any]:
    """Calls of each collective and the most elements that one of them carried, without DDP's own."""
    calls: Counter[str] = Counter()
    largest = 0
    kinds = {
        "gather": ("all_gather", "all_gather_into_tensor", "all_gather_single"),
        "scatter": ("reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single"),
        "reduce": ("all_reduce",),
        "other": ("all_gather_object", "broadcast", "all_to_all", "all_to_all_single", "reduce", "gather", "scatter"),
    }
    known = {getattr(dist, n): kind for kind, names in kinds.items() for n in names if hasattr(dist, n)}

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal largest
            calls[known[function]] += 1
            largest = max([largest, *(a.numel() for a in arguments if isinstance(a, Tensor))])
            return function(*arguments, **options)

        return call

    # where torch keeps them, and where clipkit may have bound them to a name of its own
    places = [(m, n, f) for m in (dist, exchange_module) for n, f in vars(m).items() if _is_one_of(f, known)]
    for module, name, function in places:
        setattr(module, name, counted(function))
    try:
        ids = torch.arange(pairs) + pairs * dist.get_rank()
        features = [F.normalize(torch.randn(pairs, 4, dtype=torch.float64), dim=-1).requires_grad_() for _ in range(2)]
        scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
        value = LOSSES[loss](compare(Embeddings(*features, scale, None), ids, ids))
        forward = dict(calls)
        calls.clear()
        value.backward()
    finally:
        for module, name, function in places:
            setattr(module, name, function)
    return {"forward": forward, "backward": dict(calls), "largest": largest}


def _is_one_of(value: Any, known: dict[Any, str]) -> bool:
    return callable(value) and value.__hash__ is not None and value in known


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


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank >= world:
            continue
        if world > 1:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
        results: dict[str, Any] = {
            f"{case}/{loss}/{scale:g}": step(case, loss, scale, rank, world)
            for case in CASES
            if len(CASES[case][0]) >= world
            for loss in LOSSES
            for scale in (3.0, 100.0)
        }
        if world > 1:
            results["exchange"] = exchange(rank, world)
            results["collectives"] = {loss: [collectives(loss, n) for n in (3, 40)] for loss in LOSSES}
            dist.barrier()
            dist.destroy_process_group()
        torch.save(results, Path(folder) / f"results-{world}-{rank}.pt")


if __name__ == "__main__":
    mp.start_processes(rank_main, args=(sys.argv[1],), nprocs=max(WORLDS), start_method="fork")  # type: ignore[no-untyped-call]
