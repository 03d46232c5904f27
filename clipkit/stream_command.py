"""``clipkit stream``: the order in which training reads shards, for everybody to see; and how fast."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from clipkit.errors import ClipkitError, one_line
from clipkit.inputs import parse_flags

if TYPE_CHECKING:  # a mistyped flag should not wait for torch
    from torch import Tensor

    from clipkit.pairs import PairBatch, PairReader

_POSITIONS = 2**53  # samples into a stream, far inside what 64 bits can count
_LARGEST = 4096  # pixels of a view's side


@dataclass(frozen=True)
class Stream:
    """The batches that training would read from shards: their keys, or samples per second without --keys."""

    shards: tyro.conf.Positional[str]
    """WebDataset shards as in --train-data: a folder, a tar, a pattern, a URL, or several sources A::B."""
    train_weights: tuple[float, ...] = ()
    """Weights of the sources A::B. Default: their numbers of samples."""
    batch_size: int = 256
    """Pairs of a global batch, over all ranks together."""
    ranks: int = 1
    """Training processes to read as, one after the other."""
    workers: int = 0
    """Reading processes of each rank."""
    seed: int = 0
    """The run's seed."""
    from_step: int = 0
    """The first step, counted from 0; nothing before it is read."""
    steps: int = 10
    """How many steps."""
    keys: bool = False
    """Print a line for each sample: step and key, in the order of the shards, the substitutes of bad ones in place."""
    per_rank: bool = False
    """With --keys: step, rank and key."""
    captions: Literal["one", "all", "none"] = "one"
    """Captions of a sample, as in training; none as by simclr, moco, byol and supcon, which take pictures alone."""
    augment: Literal["none", "crop"] = "crop"
    """Views of the pictures, when speed is measured."""
    size: int = 224
    """Side of the views in pixels."""

    def run(self) -> None:
        """Read, and print."""
        for name in ("batch_size", "ranks", "steps", "size"):
            if getattr(self, name) < 1:
                raise ClipkitError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")
        for name in ("workers", "from_step"):
            if getattr(self, name) < 0:
                raise ClipkitError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be 0 or more")
        if not -(2**63) <= self.seed < 2**63:
            raise ClipkitError(f"--seed is {self.seed}; it must fit in 64 bits")
        if (self.from_step + self.steps) * self.batch_size >= _POSITIONS:
            raise ClipkitError(
                f"--from-step {self.from_step} with --steps {self.steps} and --batch-size {self.batch_size} is further "
                f"than anybody trains; the last sample must come before number 2^53"
            )
        if self.size > _LARGEST:
            raise ClipkitError(f"--size is {self.size}; it must be at most {_LARGEST:,} pixels")
        reader = self._reader()
        if self.keys:
            self._print_keys(reader)
        else:
            self._measure(reader)

    def _reader(self) -> PairReader:
        from functools import partial

        from clipkit.config import Config
        from clipkit.data_option import open_data, source_names
        from clipkit.pairs import Augment, PairReader, PictureSpec, PipeSet, join_shards
        from clipkit.training.data import read_augmented, read_view, without_captions

        compare = "views" if self.captions == "none" else "pairs"
        config = Config().replace(max_steps=self.from_step + self.steps, batch_size=self.batch_size, compare=compare)
        names = source_names(self.shards, self.train_weights)
        opened = [open_data(path, config, "train")[0] for path in names]
        shards = join_shards(opened, self.train_weights) if len(opened) > 1 else opened[0]
        spec = PictureSpec(size=self.size)
        crop = self.augment == "crop" and not self.keys
        picture = partial(read_augmented, spec=spec, augment=Augment()) if crop else partial(read_view, spec=spec)
        unread = self.captions == "none" or (not isinstance(shards, PipeSet) and without_captions(shards) > 0)
        return PairReader(
            shards, picture, None if unread else _no_texts, self.seed, "all" if self.captions == "all" else "one"
        )

    def _batches(self, reader: PairReader, rank: int) -> Iterator[PairBatch]:
        from clipkit.pairs import make_order
        from clipkit.pairs.stream import stream

        return stream(
            reader,
            make_order(reader.shards, self.seed),
            self.batch_size,
            start=self.from_step,
            stop=self.from_step + self.steps,
            rank=rank,
            world=self.ranks,
            workers=self.workers,
        )

    def _print_keys(self, reader: PairReader) -> None:
        ranks = [self._batches(reader, rank) for rank in range(self.ranks)]
        bad: dict[str, str] = {}
        for step, pieces in enumerate(zip(*ranks, strict=True), start=self.from_step):
            for rank, piece in enumerate(pieces):
                bad |= {b.where: b.reason for b in piece.bad}
                head = f"{step}\t{rank}" if self.per_rank else f"{step}"
                print("\n".join(f"{head}\t{one_line(reader.shards.key(i))}" for i in piece.image_ids.tolist()))
        for reason in bad.values():
            print(f"clipkit: replaced {one_line(reason)}", file=sys.stderr)

    def _measure(self, reader: PairReader) -> None:
        from clipkit.pairs import ShardSet

        shards: ShardSet = reader.shards
        print(
            f"{shards.name}: {len(shards):,} samples in {len(shards.shards)} shard(s), fingerprint {shards.fingerprint}"
        )
        samples = bad = 0
        begun, before = time.perf_counter(), _cpu_seconds()
        first = 0.0
        for rank in range(self.ranks):
            for batch in self._batches(reader, rank):
                first = first or time.perf_counter() - begun
                samples += len(batch.image_ids)
                bad += len(batch.bad)
        seconds, cpu = time.perf_counter() - begun, _cpu_seconds() - before
        print(
            f"{samples:,} samples in {seconds:.2f} s: {samples / seconds:,.0f} samples/s, {samples / cpu:,.0f} per CPU "
            f"second; first batch after {first:.2f} s; {bad} substituted"
        )


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    children = os.times()  # in hundredths of a second, which is more than a small batch takes
    return time.process_time() + children.children_user + children.children_system


def _no_texts(chosen: list[tuple[int, int, str]]) -> Tensor:
    import torch

    return torch.tensor([sample for sample, _, _ in chosen], dtype=torch.int64)


def run(arguments: list[str]) -> int:
    """Parse ``arguments`` and run the verb."""
    verb: Stream = parse_flags(Stream, arguments, "clipkit stream")
    verb.run()
    return 0
