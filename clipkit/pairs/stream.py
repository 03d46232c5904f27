"""Batches of pairs from shards: any step, any rank, the same global batch.

The global batch of step t is positions [tB, (t+1)B) of the ``Order``; the tail of an epoch is carried into the next.
A rank takes its piece of the batch, a worker makes whole pieces. Views, captions and substitutes are drawn per
(seed, epoch, sample), so nothing depends on how many ranks or workers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from clipkit.errors import ClipkitError
from clipkit.pairs.batch import Bad, PairBatch, label_id
from clipkit.pairs.captions import no_caption
from clipkit.pairs.guard import WIDTH, caption_groups, picture_groups
from clipkit.pairs.mixture import STRETCH, Mixture, shares
from clipkit.pairs.order import CHUNK, WINDOW, Order, mix_int, piece, sample_seed
from clipkit.pairs.pipes import PipeBatches, PipeSet
from clipkit.pairs.remote import UnreachableError
from clipkit.pairs.ring import Empty, Ring, new_memory
from clipkit.pairs.shards import ShardSet
from clipkit.pairs.workers import Ahead, raised, read_in_workers, start_quietly

CAPTION, VIEW, SUBSTITUTE = 1, 2, 3  # purposes of a sample's seeds; 4 is the dropout of a step
_TRIES = 20  # substitutes tried for a bad sample before the run stops


class _LeftOut(Exception):
    """A bad sample that is not replaced."""


ReadPicture = Callable[[ShardSet, int, int], Tensor]
"""(shards, sample, seed) -> one picture's tensor, or those of its views (v, ...); raises ClipkitError for a bad one."""
ReadTexts = Callable[[list[tuple[int, int, str]]], Tensor]
"""[(sample, caption's place, caption)] -> texts of a batch (t, ...)."""
Negatives = Callable[[ShardSet, int, int, tuple[str, ...]], list[str]]
"""(shards, sample, seed, its captions in the batch) -> captions that are wrong for it."""
TooLong = Callable[[Tensor, list[str]], list[bool]]
"""(texts of a batch, their captions) -> whether each was cut off."""


@dataclass(frozen=True)
class PairReader:
    """Makes batches: picks captions, replaces bad samples, stacks.

    Args:
        shards: the samples.
        picture: reads one picture, or its views; None reads none.
        texts: turns a batch's captions into a tensor; None reads none, and samples need no caption.
        seed: the run's seed.
        captions: ``one`` drawn per (seed, epoch, sample), ``two`` of them (the same one twice where there is but one),
            or ``all``.
        substitute: put another sample in a bad one's place (training), or leave it out (evaluation).
        too_long: tells which captions of a batch the text tower cannot take whole; None does not ask.
        negatives: gives a sample's hard negatives; None gives none.
        labels: read the samples' labels as well.
        guard: give samples that may belong together the same groups.
        finish: what is done to each batch at last, or None.
        padding: what fills a row of tokens that is shorter than others.
    """

    shards: ShardSet
    picture: ReadPicture | None
    texts: ReadTexts | None
    seed: int
    captions: str = "one"
    substitute: bool = True
    too_long: TooLong | None = None
    negatives: Negatives | None = None
    labels: bool = False
    guard: bool = False
    finish: Callable[[PairBatch], PairBatch] | None = None
    padding: int = 0

    def __call__(self, items: list[tuple[int, int]], empty: Empty = new_memory) -> PairBatch:
        """The batch of ``items``, pairs of (epoch, sample), with the pictures in a tensor made by ``empty``."""
        self.shards.fetch(sample for _, sample in items)
        images = torch.zeros(0)  # made by the first one and filled in place: a list of them would be a second copy
        chosen: list[tuple[int, int, str]] = []
        ids: list[int] = []
        labels: list[int] = []
        text_ids: list[int] = []
        image_groups: list[list[int]] = []
        text_groups: list[list[int]] = []
        delivered: list[tuple[int, int]] = []
        epoch_of: dict[int, int] = {}
        bad: list[Bad] = []
        for epoch, sample in items:
            try:
                used, image, captions, label = self._read(epoch, sample, bad)
            except _LeftOut:
                continue
            if image is not None:
                images = images if ids else empty((len(items), *image.shape), image.dtype)
                images.numpy()[len(ids)] = image.numpy()  # faster than torch where channels lie side by side
            ids.append(used)
            if label is not None:
                labels.append(label)
            delivered.append((epoch, sample))
            epoch_of[used] = epoch
            seed = sample_seed(self.seed, epoch, used, CAPTION)
            picked = [(used, place, captions[place]) for place in _places(self.captions, len(captions), seed)]
            chosen += picked
            text_ids += [used] * len(picked)
            if self.negatives is not None:
                wrong = self.negatives(self.shards, used, seed, tuple(caption for _, _, caption in picked))
                chosen += [(used, -1, caption) for caption in wrong]
                text_ids += [-1 - used] * len(wrong)
            if self.guard:
                image_groups.append(picture_groups(self.shards, used, [caption for _, _, caption in picked]))
                new = chosen[len(text_groups) :]
                text_groups += [caption_groups(self.shards, used, c, is_negative=place < 0) for _, place, c in new]
        texts = None if self.texts is None else self.texts(chosen)
        cut: list[bool] = []
        if texts is not None and self.too_long and chosen:
            cut = self.too_long(texts, [caption for _, _, caption in chosen])
        truncated = tuple((epoch_of[c[0]], c[0]) for c, was_cut in zip(chosen, cut, strict=False) if was_cut)
        image_ids = torch.tensor(ids, dtype=torch.int64)
        batch = PairBatch(
            None if self.picture is None else images[: len(ids)],
            texts,
            image_ids,
            torch.tensor(text_ids, dtype=torch.int64),
            tuple(bad),
            tuple(delivered),
            truncated,
            torch.tensor(labels, dtype=torch.int64) if self.labels else None,
            torch.tensor(image_groups, dtype=torch.int64).view(-1, WIDTH) if self.guard else None,
            torch.tensor(text_groups, dtype=torch.int64).view(-1, WIDTH) if self.guard else None,
            text_places=torch.tensor([place for _, place, _ in chosen], dtype=torch.int64),
        )
        return batch if self.finish is None else self.finish(batch)

    def with_texts_of(self, batch: PairBatch, wanted: Sequence[tuple[int, int]]) -> PairBatch:
        """``batch`` with a text more for each of ``wanted``, (sample, place of the caption among its captions).

        Texts have the ids of the samples that they are taken from, so that they are right for those. What cannot be
        read is left out.
        """
        chosen: list[tuple[int, int, str]] = []
        for sample, place in wanted:
            chosen += [(sample, place, caption) for caption in self.shards.read_captions(sample)[place : place + 1]]
        if not chosen or batch.texts is None or self.texts is None:
            return batch
        samples, places = (torch.tensor([c[i] for c in chosen], dtype=torch.int64) for i in (0, 1))
        more = {"text_ids": samples}
        if batch.text_places is not None:
            more["text_places"] = places
        if batch.text_groups is not None:
            more["text_groups"] = torch.tensor([caption_groups(self.shards, sample, c) for sample, _, c in chosen])
        joined: dict[str, Any] = {"texts": _stacked(batch.texts, self.texts(chosen), self.padding)}
        for name, rows in more.items():
            before: Tensor = getattr(batch, name)
            joined[name] = torch.cat([before, rows.to(before.device)])
        return replace(batch, **joined, mined=len(chosen))

    def _read(self, epoch: int, sample: int, bad: list[Bad]) -> tuple[int, Tensor | None, tuple[str, ...], int | None]:
        tried = sample
        for attempt in range(_TRIES):
            try:
                captions: tuple[str, ...] = ()
                if self.texts is not None:
                    captions = self.shards.read_captions(tried)
                    if not captions:
                        meta = self.shards.read_record(tried)[0]
                        raise ClipkitError(f"{self.shards.where(tried)}: {no_caption(meta)}")
                label = self._label(tried) if self.labels else None
                seed = sample_seed(self.seed, epoch, tried, VIEW)
                image = None if self.picture is None else self.picture(self.shards, tried, seed)
                return tried, image, captions, label
            except UnreachableError:
                raise  # no fault of the sample: to go on without it would be a loss that nobody sees
            except ClipkitError as error:
                bad.append(Bad(tried, self.shards.where(tried), str(error), epoch))
                if not self.substitute:
                    raise _LeftOut from None
                source = self.shards.source_of(sample)
                tried = source[mix_int(self.seed, epoch, sample, SUBSTITUTE, attempt) % len(source)]
        raise ClipkitError(
            f"{bad[-1].reason}; {_TRIES} samples in a row were bad: check the data before training on it"
        )

    def _label(self, sample: int) -> int:
        label = self.shards.read_record(sample)[0].get("label")
        return -1 - sample if label is None else label_id(label)


def _stacked(one: Tensor, other: Tensor, padding: int) -> Tensor:
    """The rows of both (n, L) and (m, K), the shorter ones filled up."""
    width = max(one.shape[1], other.shape[1])
    return torch.cat([pad(x, (0, width - x.shape[1]), value=padding) for x in (one, other.to(one.device))])


def _places(which: str, n: int, seed: int) -> list[int]:
    """Places among a sample's ``n`` captions of those that its batch gets."""
    if which == "all":
        return list(range(n))
    if n == 0:
        return []
    first = seed % n
    if which == "one":
        return [first]
    return [first, (first + 1 + mix_int(seed, CAPTION) % (n - 1)) % n] if n > 1 else [0, 0]


class _Steps(Sequence[list[tuple[int, int]]]):
    """The rank's (epoch, sample) items of each step in [start, stop)."""

    def __init__(self, order: Order | Mixture, batch_size: int, rank: int, world: int, start: int, stop: int) -> None:
        self.order, self.batch_size = order, batch_size
        self.rank, self.world = rank, world
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            first, last, _ = at.indices(len(self))
            bounds = self.start + first, self.start + max(first, last)
            return _Steps(self.order, self.batch_size, self.rank, self.world, *bounds)
        if not 0 <= at < len(self):
            raise IndexError(at)
        return step_items(self.order, self.start + at, self.batch_size, self.rank, self.world)


def step_items(
    order: Order | Mixture, step: int, batch_size: int, rank: int = 0, world: int = 1
) -> list[tuple[int, int]]:
    """(epoch, sample) of the rank's part of global batch ``step``, sorted by place in the shards."""
    epochs, samples = order.positions(step * batch_size, (step + 1) * batch_size)
    by_place = np.lexsort((epochs, samples))
    mine = by_place[piece(batch_size, rank, world)]
    return [(int(e), int(s)) for e, s in zip(epochs[mine], samples[mine], strict=True)]


def stream(
    reader: PairReader,
    order: Order | Mixture,
    batch_size: int,
    *,
    start: int = 0,
    stop: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[PairBatch]:
    """The rank's batches of steps [start, stop).

    Args:
        reader: makes a batch from its items.
        order: the endless order of samples.
        batch_size: pairs of the *global* batch.
        start, stop: steps; the state of the stream is the next step, nothing else.
        rank, world: which part, of how many.
        workers: reading processes; 0 reads in this one.

    Raises:
        ClipkitError: fewer samples than a global batch, or fewer pairs in a batch than processes.
    """
    check_batch_size(reader.shards, batch_size, world)
    if isinstance(reader.shards, PipeSet):
        batches_of = PipeBatches(reader, reader.shards, batch_size, start, stop, rank, world)
        loader: DataLoader[PairBatch] = DataLoader(batches_of, batch_size=None, num_workers=workers)
        return raised(start_quietly(loader) if workers else iter(batches_of))
    steps = _Steps(order, batch_size, rank, world, start, stop)
    if workers == 0 or start >= stop:
        batches: Iterator[PairBatch] = (reader(items) for items in steps)
    elif (ring := Ring.of(workers)) is not None:
        batches = map(ring.open, read_in_workers(partial(ring.fill, reader), steps, workers))
    else:
        batches = read_in_workers(reader, steps, workers)
    if reader.shards.remote:
        # half a window: what its next half needs is being fetched
        distance = max(1, WINDOW * CHUNK // (2 * batch_size))
        return Ahead(lambda items: reader.shards.fetch(s for _, s in items), steps, distance).follow(batches)
    return batches


def check_batch_size(shards: ShardSet, batch_size: int, world: int) -> None:
    """Refuse a global batch that is larger than the data, or smaller than the number of processes."""
    if len(shards) < batch_size:
        fix = f"pass --batch-size {len(shards)} or less" if len(shards) > 1 else "give more data"
        raise ClipkitError(f"{shards.name} has {len(shards)} samples, fewer than a batch of {batch_size}; {fix}")
    parts = shards.parts
    counts = shares([part.weight for part in parts], [part.name for part in parts]) if parts else []
    at = 0
    for part, count in zip(parts, counts, strict=True):
        n, wanted = sum(shards.sizes[at : at + part.n_shards]), -(-batch_size * count // STRETCH)
        if n < wanted:
            raise ClipkitError(
                f"{part.name} has {n} samples, fewer than its share of a batch ({wanted} of {batch_size}); lower its "
                f"--train-weights or --batch-size"
            )
        at += part.n_shards
    if batch_size < world:
        raise ClipkitError(f"--batch-size {batch_size} is smaller than the number of processes ({world})")
