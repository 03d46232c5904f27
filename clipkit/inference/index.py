"""An exact index of pictures: embeddings in one file, what they belong to in another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from clipkit.cache import atomic_write
from clipkit.errors import ClipkitError
from clipkit.inference.aligner import Aligner
from clipkit.inference.pictures import thumbnail
from clipkit.pairs import ShardSet
from clipkit.pairs.index import IMAGE_EXTENSIONS

HEADER = "index.json"
_TILE = 262_144  # rows scored at a time
_BATCH = 256

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Item:
    """A picture of an index: a file, or a member of a shard (``offset`` and ``size`` of its bytes; -1 for a file)."""

    path: str
    key: str
    caption: str
    offset: int = -1
    size: int = -1

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ClipkitError: the file is gone.
        """
        try:
            with open(self.path, "rb") as file:
                if self.offset >= 0:
                    file.seek(self.offset)
                    return file.read(self.size)
                return file.read()
        except OSError as error:
            raise ClipkitError(
                f"{self.path}: cannot be read any more ({error.strerror}); build the index again"
            ) from None


@dataclass(frozen=True)
class Hit:
    """A found picture: its cosine similarity, where it is, and its row in the index."""

    score: float
    path: str
    key: str
    caption: str
    row: int


class Index:
    """Pictures to search; see ``build`` and ``open``.

    Args:
        model: encodes the queries; the one that made the embeddings.
        embeddings: float32 (N, D), unit norm.
        items: what each row is.
    """

    def __init__(self, model: Aligner, embeddings: NDArray[np.float32], items: Sequence[Item]) -> None:
        if len(embeddings) != len(items):
            raise ClipkitError(f"{len(embeddings)} embeddings and {len(items)} items do not belong together")
        self.model = model
        self.embeddings = embeddings
        self.items = list(items)
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def build(cls, model: Aligner, folder: str | Path, progress: Progress | None = None) -> Index:
        """Index the pictures in ``folder``, to the bottom. Unreadable ones are left out and listed in ``skipped``.

        Raises:
            ClipkitError: no such folder, or no picture in it.
        """
        root = Path(folder)
        if not root.is_dir():
            raise ClipkitError(f"{root}: no such folder of pictures")
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS and p.is_file())
        if not paths:
            raise ClipkitError(f"{root}: no picture in it ({', '.join(IMAGE_EXTENSIONS)})")
        rows: list[NDArray[np.float32]] = []
        items: list[Item] = []
        skipped: list[str] = []
        for start in range(0, len(paths), _BATCH):
            part = paths[start : start + _BATCH]
            good, embeddings = _encode_readable(model, part, skipped)
            rows.append(embeddings)
            items += [Item(str(p), str(p.relative_to(root)), "") for p in good]
            if progress is not None:
                progress("indexing pictures", min(start + _BATCH, len(paths)), len(paths))
        if not items:
            raise ClipkitError(f"{root}: none of {len(paths)} pictures can be read ({skipped[0]})")
        index = cls(model, np.concatenate(rows), items)
        index.skipped = skipped
        return index

    @classmethod
    def of_shards(
        cls, model: Aligner, shards: ShardSet, samples: Sequence[int], embeddings: NDArray[np.float32]
    ) -> Index:
        """An index of ``samples`` of ``shards`` whose embeddings are known already."""
        items = []
        for i in samples:
            shard, at = shards.locate(i)
            offset, size = (int(n) for n in shard.spans[at, 0])
            captions = shards.read_captions(i)
            caption = captions[0] if captions else ""
            file = shards.source_file(i)
            if file is not None:
                items.append(Item(str(file), shard.keys[at], caption))
            else:
                where = shard.path.resolve() if isinstance(shard.path, Path) else shard.path
                items.append(Item(str(where), shard.keys[at], caption, offset, size))
        return cls(model, np.ascontiguousarray(embeddings, dtype=np.float32), items)

    def credits(self) -> list[str]:
        """Whose the pictures are and on what terms they are shown, as the ``dataset.json`` of their shards says."""
        folders = {Path(item.path).parent for item in self.items if item.offset >= 0}
        found: dict[str, None] = {}
        for file in sorted({place / "dataset.json" for folder in folders for place in (folder, folder.parent)}):
            try:
                said = json.loads(file.read_text(encoding="utf-8")).get("license")
            except (OSError, ValueError, AttributeError):
                continue
            if isinstance(said, str) and said:
                found[said] = None
        return list(found)

    def save(self, path: str | Path) -> Path:
        """Write the index to folder ``path``; a kill at any moment leaves the old one or the new one.

        The data go to files of new names, and the header that names them is replaced last.

        Raises:
            ClipkitError: the folder is something else, or the disk is full.
        """
        final = Path(path)
        if final.exists() and not (final.is_dir() and (not any(final.iterdir()) or (final / HEADER).is_file())):
            raise ClipkitError(f"{final} exists and is no index, so it is not replaced; choose another path")
        tag = os.urandom(6).hex()
        embeddings, items = f"embeddings-{tag}.npy", f"items-{tag}.parquet"
        fields = ("path", "key", "caption", "offset", "size")
        fingerprint = model_fingerprint(self.model)
        header = {"format": 1, "model": self.model.name, "fingerprint": fingerprint, "embeddings": embeddings,
                  "items": items}  # fmt: skip
        try:
            with atomic_write(final / embeddings) as file:
                np.save(file, self.embeddings)
            with atomic_write(final / items) as file:
                pq.write_table(pa.table({f: [getattr(item, f) for item in self.items] for f in fields}), file)
            with atomic_write(final / HEADER) as file:
                file.write(json.dumps(header, indent=2).encode())
        except OSError as error:
            for name in (embeddings, items):
                (final / name).unlink(missing_ok=True)
            raise ClipkitError(f"{final}: the index could not be written ({error.strerror}); free space") from None
        for old in final.iterdir():
            if old.name not in (HEADER, embeddings, items) and old.name.startswith(("embeddings-", "items-")):
                old.unlink()
        return final

    @classmethod
    def open(cls, path: str | Path, model: Aligner | None = None) -> Index:
        """The index saved at ``path``.

        Args:
            model: encodes the queries; default: the one that is named in the index.

        Raises:
            ClipkitError: no index there, or it was made by another model.
        """
        folder = Path(path)
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            embeddings = np.load(folder / header["embeddings"], mmap_mode="r", allow_pickle=False)
            columns = pq.read_table(folder / header["items"]).to_pydict()
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise ClipkitError(
                f"{folder}: no index there, or a damaged one ({error}); build it with clipkit index"
            ) from None
        if model is None:
            from clipkit.inference.load import load

            model = load(header["model"])
        if model_fingerprint(model) != header["fingerprint"]:
            raise ClipkitError(
                f"{folder} was made by {header['model']}, not by {model.name} as it is now; build the index again"
            )
        items = [Item(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        return cls(model, embeddings, items)

    def search(self, query: Any, k: int = 10) -> list[Hit]:
        """The k pictures nearest to a query, best first, exactly.

        Args:
            query: a text, a picture (``Path``, PIL image, array), or an embedding float (D,).
            k: how many; fewer come back if the index is smaller.

        Raises:
            ClipkitError: an empty text, an unreadable picture, or k below 1.
        """
        if k < 1:
            raise ClipkitError(f"k is {k}; it must be at least 1")
        vector = self._vector(query)
        scores = np.concatenate(
            [self.embeddings[start : start + _TILE] @ vector for start in range(0, len(self), _TILE)]
        )
        k = min(k, len(scores))
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        top = np.flatnonzero(scores >= kth)  # with all that tie for the last place: the first rows win
        best = top[np.argsort(-scores[top], kind="stable")][:k]
        return [self._hit(int(row), float(scores[row])) for row in best]

    def thumbnail(self, row: int, side: int = 256) -> Image.Image:
        """A small picture of a row."""
        return thumbnail(self.items[row].read(), side)

    def _hit(self, row: int, score: float) -> Hit:
        item = self.items[row]
        return Hit(score, item.path, item.key, item.caption, row)

    def _vector(self, query: Any) -> NDArray[np.float32]:
        if isinstance(query, str):
            return self.model.encode_text(query)
        if isinstance(query, np.ndarray) and query.shape == (self.model.embed_dim,) and query.dtype.kind == "f":
            return query.astype(np.float32)
        return self.model.encode_image(query)


def model_fingerprint(model: Aligner) -> str:
    """Hash of everything that decides the embeddings."""
    parts = [model.model.image.fingerprint(), model.model.text.fingerprint(), str(model.model.picture.to_dict())]
    for tower in (model.model.image, model.model.text):
        for name, tensor in sorted(tower.head.state_dict().items()):
            parts.append(name + hashlib.blake2b(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest())
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _encode_readable(model: Aligner, paths: list[Path], skipped: list[str]) -> tuple[list[Path], NDArray[np.float32]]:
    """Embeddings of the pictures that can be read; the others are added to ``skipped``."""
    try:
        return paths, model.encode_image(paths)
    except ClipkitError:
        good, rows = [], [np.zeros((0, model.embed_dim), dtype=np.float32)]
        for path in paths:
            try:
                rows.append(model.encode_image([path]))
                good.append(path)
            except ClipkitError as error:
                skipped.append(str(error))
        return good, np.concatenate(rows)
