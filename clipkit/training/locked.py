"""Encodings of a locked tower: made once, kept on disk by content, and trained on.

A frozen trunk whose input is not augmented gives the same output every epoch. Its outputs are stored under the
trunk's fingerprint and each input's hash, so a second run, another split or a data set that has grown encodes only
what is new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.cache import atomic_write, cache_dir
from clipkit.encoders import DualEncoder, Tower
from clipkit.encoders.folding import fold_batchnorm
from clipkit.encoders.side_by_side import CPU_CAPTIONS, CPU_PICTURES, side_by_side
from clipkit.errors import ClipkitError
from clipkit.objectives.exchange import rank, world_size
from clipkit.pairs import ReadPicture, ShardSet, decode_image, fit, normalize, shrink
from clipkit.pairs.negatives import ALL
from clipkit.pairs.stream import Negatives

_BATCH = 128  # captions that are measured at a time
_PART = 8192  # encodings of a file: what a kill can lose

Progress = Callable[[str, int, int], None]


class EncodingStore:
    """Rows of float32 by a 16-byte key, in files that are only ever added.

    Args:
        folder: of this trunk's encodings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._parts: list[NDArray[np.float32]] = []
        self._loaded: set[str] = set()

    def refresh(self) -> None:
        """Take in parts that this or another process has written."""
        for keys_path in sorted(self.folder.glob("*.keys.npy")):
            if keys_path.name in self._loaded:
                continue
            try:
                keys = np.load(keys_path, allow_pickle=False)
                rows = np.load(keys_path.with_name(keys_path.name.replace(".keys.npy", ".npy")), mmap_mode="r")
            except (OSError, ValueError, EOFError):
                continue  # damaged: its inputs are encoded again
            if len(rows) != len(keys):
                continue
            part = len(self._parts)
            self._parts.append(rows)
            self._loaded.add(keys_path.name)
            for row, key in enumerate(keys.tobytes()[at : at + 16] for at in range(0, 16 * len(keys), 16)):
                self._rows.setdefault(key, (part, row))

    def add(self, keys: Sequence[bytes], rows: NDArray[np.float32]) -> None:
        """Write one part: rows first, then the keys that make it count."""
        name = hashlib.blake2b(b"".join(keys), digest_size=12).hexdigest()
        with atomic_write(self.folder / f"{name}.npy") as file:
            np.save(file, rows.astype(np.float32))
        with atomic_write(self.folder / f"{name}.keys.npy") as file:
            np.save(file, np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16))

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> NDArray[np.float32]:
        part, row = self._rows[key]
        return np.asarray(self._parts[part][row])


@dataclass(frozen=True)
class LockedImages:
    """Reads a picture's cached encoding: a ``ReadPicture`` that ignores the view's seed."""

    store: EncodingStore
    keys: list[bytes | None]
    reasons: dict[int, str]

    def __call__(self, shards: ShardSet, sample: int, seed: int) -> Tensor:
        key = self.keys[sample]
        if key is None:
            raise ClipkitError(self.reasons[sample])
        return torch.from_numpy(self.store[key].copy())


@dataclass(frozen=True)
class EitherView:
    """A ``ReadPicture`` that takes one of two views, by the view's seed."""

    one: ReadPicture
    other: ReadPicture

    def __call__(self, shards: ShardSet, sample: int, seed: int) -> Tensor:
        return (self.one if seed % 2 else self.other)(shards, sample, seed)


@dataclass(frozen=True)
class LockedTexts:
    """Reads captions' cached encodings: a ``ReadTexts``.

    Attributes:
        store: the encodings.
        long: the captions that are longer than the tower's context.
    """

    store: EncodingStore
    long: frozenset[str] = frozenset()

    def __call__(self, chosen: list[tuple[int, int, str]]) -> Tensor:
        rows = [self.store[text_key(caption)] for _, _, caption in chosen]
        return torch.tensor(np.stack(rows)) if rows else torch.zeros(0)

    def too_long(self, texts: Tensor, captions: list[str]) -> list[bool]:
        """Which of ``captions`` the tower has not seen whole: a ``TooLong``."""
        return [caption in self.long for caption in captions]


def text_key(caption: str) -> bytes:
    """A caption's key in the store."""
    return hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def lock_images(
    model: DualEncoder, shards: ShardSet, progress: Progress | None = None, *, small: bool = False
) -> LockedImages:
    """Every picture of ``shards`` through the image trunk, once. Each process encodes its share.

    Args:
        small: the view of ``clipkit.pairs.shrink``, its size drawn from the picture's content.
    """
    store = _store(model.tower("image"), f"{sorted(model.picture.to_dict().items())} {'small' if small else ''}")
    keys: list[bytes | None] = []
    for i in range(len(shards)):
        keys.append(hashlib.blake2b(shards.read_picture(i), digest_size=16).digest())
    missing = _share([i for i, key in enumerate(keys) if key is not None and key not in store], keys)
    reasons: dict[int, str] = {}

    def pixels(indices: Sequence[int]) -> tuple[list[int], Tensor]:
        good, tensors = [], []
        for i in indices:
            try:
                picture = decode_image(shards.read(i).image, shards.where(i))
                seed = int.from_bytes((keys[i] or b"")[:4], "little")
                tensors.append(shrink(picture, model.picture, seed) if small else fit(picture, model.picture))
                good.append(i)
            except ClipkitError:
                pass  # counted below, on every process alike
        if not tensors:
            return good, torch.zeros(0)
        return good, normalize(torch.stack(tensors), model.picture).to(memory_format=torch.channels_last)

    trunk = model.tower("image").trunk.to(memory_format=torch.channels_last)  # the faster layout for convolutions
    if missing and model.device.type == "cpu":
        side = model.picture.size
        example = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        trunk = fold_batchnorm(trunk, example.to(memory_format=torch.channels_last))
    _encode(trunk, store, keys, missing, pixels, progress, "encoding pictures", CPU_PICTURES)
    for i, key in enumerate(keys):
        if key is not None and key not in store:
            keys[i] = None
            try:
                decode_image(shards.read(i).image, shards.where(i))
                reasons[i] = f"{shards.where(i)}: could not be encoded"
            except ClipkitError as error:
                reasons[i] = str(error)
    return LockedImages(store, keys, reasons)


def lock_texts(model: DualEncoder, captions: Sequence[str], progress: Progress | None = None) -> LockedTexts:
    """Every caption through the text trunk, once, neighbours of like length together."""
    store = _store(model.tower("text"), f"{model.tokenizer.context_length}")
    unique = sorted(set(captions), key=lambda c: (len(c), c))
    keys: list[bytes | None] = [text_key(c) for c in unique]
    missing = _share([i for i, key in enumerate(keys) if key is not None and key not in store], keys)

    def tokens(indices: Sequence[int]) -> tuple[list[int], Tensor]:
        return list(indices), model.tokenizer([unique[i] for i in indices])

    _encode(model.tower("text").trunk, store, keys, missing, tokens, progress, "encoding captions", CPU_CAPTIONS)
    # A token is at least a byte, and a few tokens are no part of the text: most captions need no second look.
    tokenizer = model.tokenizer
    candidates = [c for c in unique if len(c.encode("utf-8", "surrogatepass")) > tokenizer.context_length - 4]
    long: list[str] = []
    for start in range(0, len(candidates), _BATCH):
        some = candidates[start : start + _BATCH]
        long += [c for c, cut in zip(some, tokenizer.too_long(tokenizer(some), some), strict=True) if cut]
    return LockedTexts(store, frozenset(long))


def all_captions(shards: ShardSet, negatives: Negatives | None = None) -> Iterator[str]:
    """Every caption of every readable sample, and every hard negative that may be made of it."""
    for i in range(len(shards)):
        try:
            captions = shards.read_captions(i)
            yield from captions
            if negatives is not None:
                for caption in captions:
                    yield from negatives(shards, i, ALL, (caption,))
        except ClipkitError:
            continue  # a bad sample is reported where it is used


def _store(tower: Tower, view: str) -> EncodingStore:
    name = hashlib.blake2b(f"{tower.fingerprint()} {view}".encode(), digest_size=16).hexdigest()
    store = EncodingStore(cache_dir() / "encodings" / name)
    store.refresh()
    if world_size() > 1:
        dist.barrier()  # nobody adds before everybody has seen the same store, or the shares would not fit together
    return store


def _share(missing: list[int], keys: list[bytes | None]) -> list[int]:
    """This process's part of what is missing, each content once."""
    first: dict[bytes | None, int] = {}
    for i in missing:
        first.setdefault(keys[i], i)
    return list(first.values())[rank() :: world_size()]


def _encode(
    trunk: nn.Module,
    store: EncodingStore,
    keys: list[bytes | None],
    missing: list[int],
    inputs: Callable[[Sequence[int]], tuple[list[int], Tensor]],
    progress: Progress | None,
    label: str,
    on_cpu: int,
) -> None:
    device = next(trunk.parameters()).device
    trunk.eval()

    def run(indices: Sequence[int]) -> tuple[list[int], NDArray[np.float32] | None]:
        good, batch = inputs(indices)
        if not good:
            return good, None
        with torch.inference_mode():
            return good, trunk(batch.to(device)).float().cpu().numpy()

    done_keys: list[bytes] = []
    done_rows: list[NDArray[np.float32]] = []
    done = 0
    for piece, (good, rows) in side_by_side(run, missing, device, on_cpu):
        if rows is not None:
            done_rows.append(rows)
            done_keys += [key for i in good if (key := keys[i]) is not None]
        done += len(piece)
        if progress is not None:
            progress(label, done, len(missing))
        if done_keys and (len(done_keys) >= _PART or done == len(missing)):
            store.add(done_keys, np.concatenate(done_rows))
            done_keys, done_rows = [], []
    if world_size() > 1:
        dist.barrier()
    store.refresh()
