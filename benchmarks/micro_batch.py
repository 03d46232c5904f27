"""A step of ViT-B/32 in pieces: peak memory against the batch size, and the time beside a step in one piece.

    python benchmarks/micro_batch.py DATA [--batches 64 128 256] [--micro 16] [--model ViT-B-32]

DATA is a table of pictures and captions or shards, as for --train-data, with at least the largest batch of pictures; of
several captions one is drawn. Each measurement is one training step (forward, backward, AdamW) in a process of its own,
in float32; memory is what the process has at its peak above what it had with the model, before its first step. Seconds
are those of a second step.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from isolated import forget_peak, in_process, measured, peak, resident

GIB = 1 << 30


def one(data: str, model: str, batch: int, micro: int | None) -> dict[str, float]:
    """Peak bytes and seconds of a step."""
    import torch
    from accelerate import Accelerator

    from clipkit.config import Config
    from clipkit.data_option import open_data
    from clipkit.encoders import build
    from clipkit.objectives import infonce, pairs_table
    from clipkit.pairs import Order
    from clipkit.pairs.stream import step_items
    from clipkit.training.data import plain_reader
    from clipkit.training.optim import make_optimizer
    from clipkit.training.precision import apply_arithmetic, choose_arithmetic
    from clipkit.training.step import train_step

    cpu = torch.device("cpu")
    apply_arithmetic(choose_arithmetic("float32", cpu), cpu)
    config = Config().replace(model=model, train_data=data, batch_size=batch, micro_batch_size=micro)
    encoder = build(config.model).train()
    optimizer = make_optimizer(encoder, config.optim)
    accelerator = Accelerator(cpu=True)
    shards, _ = open_data(data, config, "train")
    reader = replace(plain_reader(encoder, shards, config), captions="one")
    before = resident()
    forget_peak()
    items = step_items(Order(shards.sizes, 0), 0, batch)
    pairs = reader(items)
    step = lambda: train_step(encoder, pairs, pairs_table, infonce, optimizer, accelerator, config.optim)  # noqa: E731
    first = measured(step)
    figures = {**first, "peak_bytes": peak() - before, "batch_bytes": pairs.images.nbytes + pairs.texts.nbytes}
    if batch <= 256:
        figures |= measured(step)
    return figures


def main() -> None:
    """Measure, print the table, write micro_batch.json."""
    from machine import write

    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--micro", type=int, default=16)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(**json.loads(options.one))))
        return
    if options.data is None:
        parser.error("give DATA: a table of pictures and captions, or shards")
    rows: list[dict[str, Any]] = []
    for micro in (options.micro, None):
        for batch in options.batches if micro else [min(options.batches)]:
            figures = in_process(
                __file__, {"data": options.data, "model": options.model, "batch": batch, "micro": micro}, timeout=86_400
            )
            rows.append({"batch": batch, "micro_batch": micro, **(figures or {"failed": True})})
            if figures:
                print(
                    f"batch {batch:6,} in pieces of {micro or batch:6,}: peak {figures['peak_bytes'] / GIB:6.2f} GiB "
                    f"(its pixels and tokens {figures['batch_bytes'] / GIB:.2f}), {figures['cpu_seconds']:8.1f} CPU s",
                    flush=True,
                )
            write(
                "micro_batch", {"model": options.model, "steps": sorted(rows, key=lambda row: row["batch"])}
            )  # after each: the large ones take an hour


if __name__ == "__main__":
    sys.exit(main())
