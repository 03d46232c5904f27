"""Tars that cannot be indexed, because they come out of a pipe: read once through, with webdataset.

``pipe:COMMAND`` runs a command whose output is a tar, as in ``pipe:cat x.tar`` or ``pipe:ssh host cat {0..9}.tar``.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from clipkit.errors import ClipkitError
from clipkit.pairs.index import IMAGE_EXTENSIONS, RECORDS, ShardIndex
from clipkit.pairs.order import mix_int, piece
from clipkit.pairs.shards import Sample, ShardSet

if TYPE_CHECKING:
    from clipkit.pairs.batch import PairBatch
    from clipkit.pairs.stream import PairReader

NOT_PROMISED = (
    "a pipe is read as it comes: its order depends on processes and workers, an epoch may miss or repeat samples, and "
    "a resumed run starts the pipes again"
)
_BUFFER = 1000  # samples among which the next one is drawn


def is_pipe(path: object) -> bool:
    """Whether ``path`` is a command whose output is a tar."""
    return str(path).startswith("pipe:")


class PipeSet(ShardSet):
    """Pipes in the place of shards. How many samples they hold is not known: ``n`` are what the run will read."""

    def __init__(self, path: str, n: int) -> None:
        import braceexpand

        self.urls = list(braceexpand.braceexpand(path))
        fingerprint = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        super().__init__(
            [ShardIndex(Path(path), [], [], np.zeros((0, 1 + len(RECORDS), 2), np.int64), [], fingerprint)], path
        )
        self.sizes = [n]

    def __len__(self) -> int:
        return self.sizes[0]

    def locate(self, i: int) -> tuple[ShardIndex, int]:
        """A pipe has no places."""
        raise ClipkitError(f"{self.name}: a pipe cannot be read by number; make shards of it for this")


class Pulled(ShardSet):
    """Samples that came out of a pipe, held in memory under the numbers ``first``, ``first + 1``, ..."""

    def __init__(self, samples: list[tuple[str, dict[str, bytes]]], first: int, name: str) -> None:
        super().__init__([], name)
        self.samples, self.first = samples, first

    def __len__(self) -> int:
        return len(self.samples)

    def source_of(self, i: int) -> range:
        """All of them."""
        return range(self.first, self.first + len(self.samples))

    def where(self, i: int) -> str:
        """The pipe and the sample's key."""
        return f"{self.name}/{self.samples[i - self.first][0]}"

    def read_picture(self, i: int) -> bytes:
        """The encoded picture."""
        fields = self.samples[i - self.first][1]
        return next((fields[e] for e in IMAGE_EXTENSIONS if e in fields), b"")

    def read_record(self, i: int) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The json and the captions."""
        fields = self.samples[i - self.first][1]
        record, text, stored = (fields.get(name, b"") for name in RECORDS)
        return self.parsed(i, record, text, stored)

    def read(self, i: int) -> Sample:
        """The whole sample."""
        key, fields = self.samples[i - self.first]
        meta, captions = self.read_record(i)
        extension = next((e for e in IMAGE_EXTENSIONS if e in fields), "")
        return Sample(key, self.read_picture(i), extension, captions, meta)


class PipeBatches(IterableDataset):
    """A rank's batches of steps [start, stop) out of pipes; with reading processes, each makes its share of them."""

    def __init__(
        self, reader: PairReader, pipes: PipeSet, batch_size: int, start: int, stop: int, rank: int, world: int
    ) -> None:
        self.reader, self.pipes, self.batch_size = reader, pipes, batch_size
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __iter__(self) -> Iterator[PairBatch | ClipkitError]:
        """The batches; out of a reading process a user's mistake comes as a value, as its one line."""
        try:
            yield from self._batches()
        except ClipkitError as error:
            if get_worker_info() is None:
                raise
            yield error

    def _batches(self) -> Iterator[PairBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        place = piece(self.batch_size, self.rank, self.world)
        samples = self._shuffled(self.rank * workers + worker, self.world * workers)
        for step in range(self.start + worker, self.stop, workers):
            first = step * self.batch_size + place.start
            pulled = Pulled([next(samples) for _ in range(place.stop - place.start)], first, self.pipes.name)
            items = [(0, i) for i in pulled.source_of(first)]
            yield replace(self.reader, shards=pulled)(items)

    def _shuffled(self, reader: int, readers: int) -> Iterator[tuple[str, dict[str, bytes]]]:
        """This reader's samples for ever, each drawn from a buffer."""
        draw = random.Random(mix_int(self.reader.seed, self.start, reader))
        buffer: list[tuple[str, dict[str, bytes]]] = []
        for sample in self._endless(reader, readers):
            if len(buffer) < _BUFFER:
                buffer.append(sample)
            if len(buffer) == min(_BUFFER, len(self.pipes)):
                at = draw.randrange(len(buffer))
                buffer[at], drawn = buffer[-1], buffer[at]
                buffer.pop()
                yield drawn

    def _endless(self, reader: int, readers: int) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Whole pipes where there are enough of them for everybody, else every so-many-th sample of each."""
        from webdataset.handlers import warn_and_continue
        from webdataset.tariterators import tarfile_samples

        shared = len(self.pipes.urls) < readers
        for epoch in range(self.start, self.start + 1_000_000):
            urls = list(self.pipes.urls)
            random.Random(mix_int(self.reader.seed, epoch)).shuffle(urls)
            mine = urls if shared else urls[reader::readers]
            found = 0
            for n, sample in enumerate(tarfile_samples([{"url": url} for url in mine], handler=warn_and_continue)):
                found += 1
                if not shared or n % readers == reader:
                    fields = {e: data for e, data in sample.items() if isinstance(data, bytes)}
                    yield str(sample["__key__"]), fields
            if not found:
                raise ClipkitError(f"{self.pipes.name}: not one sample came out of the pipe; try the command by itself")
