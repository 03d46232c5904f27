"""Run by test_strategy.py in a process of its own: ten steps of a tiny model, by one process and by two over gloo.

    python strategy_worker.py FOLDER

Writes FOLDER/W-RANK.pt: for each strategy and micro-batch size losses, norms, weights, and what was exchanged.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))

from training_helpers import make_config

from clipkit.config import ModelConfig, OptimConfig
from clipkit.encoders import DualEncoder, build
from clipkit.objectives import exchange as exchange_module
from clipkit.objectives import infonce, pairs_table
from clipkit.pairs import PairBatch
from clipkit.pairs.order import piece
from clipkit.training.checkpoint import State as CheckpointState
from clipkit.training.checkpoint import load_optimizer, save_checkpoint
from clipkit.training.optim import make_optimizer
from clipkit.training.step import train_step
from clipkit.training.strategy import collect, optimizer_state, shard, whole

PAIRS, STEPS = 11, 10
KINDS: dict[str, Callable[[DualEncoder], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "fsdp": shard,
    "fsdp, weights stay": lambda model: shard(model, reshard_after_forward=False),
}
COUNTED = (
    ("reduce_scatter_single", "scatter"), ("reduce_scatter_tensor", "scatter"), ("all_reduce", "reduce"),
    ("all_gather_single", "gather"), ("all_gather_into_tensor", "gather"),
)  # fmt: skip


def batch(step: int, rank: int, world: int) -> PairBatch:
    """This process's part of a step's batch of generated pictures and tokens."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (PAIRS, 3, 32, 32), generator=generator, dtype=torch.uint8)
    texts = torch.randint(1, 400, (PAIRS, 24), generator=generator)
    texts[:, 8:] = 0
    texts[:, 8] = 49407  # end of text
    ids = torch.tensor([*range(PAIRS - 1), 0])  # the last pair is of the first one's kind
    mine = piece(PAIRS, rank, world)
    return PairBatch(images[mine], texts[mine], ids[mine], ids[mine])


def counted(run: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What ``run`` returns, and how often it called each kind of exchange, clipkit's own ones not included."""
    calls: Counter[str] = Counter()
    real = {name: getattr(dist, name) for name, _ in COUNTED if hasattr(dist, name)}

    def counting(name: str, kind: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if sys._getframe(1).f_globals.get("__name__") != exchange_module.__name__:
                calls[kind] += 1
            return real[name](*args, **options)

        return call

    try:
        for name, kind in COUNTED:
            if name in real:
                setattr(dist, name, counting(name, kind))
        return run(), dict(calls)
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def train(kind: str, micro: int | None, rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Ten steps, a checkpoint and a resumed optimizer after the fifth."""
    torch.manual_seed(0)
    model = build(ModelConfig(str(folder / "tiny.json"))).double()
    config = OptimConfig(lr=1e-3, grad_clip=0.5, micro_batch_size=micro)
    wrapped = KINDS[kind](model) if world > 1 else model
    trained: DualEncoder = getattr(wrapped, "module", wrapped)
    optimizer = make_optimizer(trained, config)
    accelerator = Accelerator(cpu=True)
    out: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(STEPS):
        if step == STEPS // 2:
            collect(trained, model)
            moments = optimizer_state(optimizer)
            run = folder / f"run-{world}-{kind.replace(', ', '-')}-{micro}"
            if rank == 0:
                save_checkpoint(run, model, moments, CheckpointState(step, "", None, {}, 0.0), _config())
            if world > 1:
                dist.barrier()
            optimizer = make_optimizer(trained, config)
            load_optimizer(optimizer, run / "checkpoints" / f"step-{step}")
        result, out["calls"] = counted(
            partial(train_step, wrapped, batch(step, rank, world), pairs_table, infonce, optimizer, accelerator, config)
        )
        out["losses"].append(result.loss)
        out["norms"].append(result.grad_norm)
    out["weights"] = {name: whole(p).detach().clone() for name, p in trained.named_parameters()}
    out["kinds"] = {type(p).__name__ for p in trained.parameters()}
    out["units"] = sum(hasattr(m, "set_requires_gradient_sync") for m in trained.modules())
    local = getattr(trained.log_scale, "to_local", lambda: trained.log_scale)()
    out["scale_shard"] = local.numel()
    return out


def _config() -> Any:
    from clipkit.config import Config

    return Config()


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if rank == 0:
        torch.save({("ddp", None): train("ddp", None, 0, 1, folder)}, folder / "1-0.pt")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    cases = [(kind, micro) for kind in KINDS for micro in (None, 2)]
    cases += [("fsdp", 5)]  # two pieces on one process and one on the other
    torch.save({case: train(*case, rank, 2, folder) for case in cases}, folder / f"2-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    make_config(place / "tiny.json")
    mp.start_processes(rank_main, args=(place,), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
