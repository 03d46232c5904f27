"""An exact index of pictures: embeddings in one file, what they belong to in another.

How it lies on the disk is told in ``index_files``; an index of a folder is brought up to date by ``index_update``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.inference.aligner import Aligner
from clipkit.inference.files import embed_files, find_pictures
from clipkit.inference.index_files import Item, exclusive, model_fingerprint, read_index, write_index
from clipkit.inference.pictures import thumbnail
from clipkit.pairs import ShardSet

if TYPE_CHECKING:
    from clipkit.inference.index_update import Changes

_TILE = 262_144  # rows scored at a time

Progress = Callable[[str, int, int], None]


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
        paths = find_pictures(root)
        rows: list[NDArray[np.float32]] = []
        items: list[Item] = []
        skipped: list[str] = []
        for done, file in enumerate(embed_files(model, paths), 1):
            if file.row is not None:
                rows.append(file.row)
                key = str(file.path.relative_to(root))
                items.append(Item(str(file.path), key, "", -1, file.size, file.content, file.mtime))
            else:
                skipped.append(str(file.error))
            if progress is not None:
                progress("indexing pictures", done, len(paths))
        if not items:
            raise ClipkitError(f"{root}: none of {len(paths)} pictures can be read ({skipped[0]})")
        index = cls(model, np.stack(rows), items)
        index.skipped = skipped
        return index

    @classmethod
    def update(
        cls, path: str | Path, model: Aligner, folder: str | Path, progress: Progress | None = None
    ) -> tuple[Index, Changes]:
        """Make the index at ``path`` that of ``folder`` as it is now, and open it; see ``index_update``."""
        from clipkit.inference.index_update import update_index

        return update_index(Path(path), model, Path(folder), progress)

    @classmethod
    def of_shards(
        cls, model: Aligner, shards: ShardSet, samples: Sequence[int], embeddings: NDArray[np.float32]
    ) -> Index:
        """An index of ``samples`` of ``shards`` whose embeddings are known already."""
        items = []
        for i in samples:
            shard, at = shards.locate(i)
            offset, size = (int(n) for n in shard.spans[at, 0])
            record, captions = shards.read_record(i)
            caption = captions[0] if captions else ""
            plain = {k: v for k, v in record.items() if isinstance(v, (str, int, float)) and k != "file"}
            meta = json.dumps(plain, ensure_ascii=False) if plain else ""
            file = shards.source_file(i)
            if file is not None:
                items.append(Item(str(file), shard.keys[at], caption, meta=meta))
            else:
                where = shard.path.resolve() if isinstance(shard.path, Path) else shard.path
                items.append(Item(str(where), shard.keys[at], caption, offset, size, meta=meta))
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
        with exclusive(final):
            write_index(final, self.model, self.items, lambda file: np.save(file, self.embeddings))
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
        header, embeddings, items = read_index(folder)
        if model is None:
            from clipkit.inference.load import load

            model = load(header["model"])
        if model_fingerprint(model) != header["fingerprint"]:
            raise ClipkitError(
                f"{folder} was made by {header['model']}, not by {model.name} as it is now; build the index again"
            )
        return cls(model, embeddings, items)

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        minus: Any = (),
        where: Mapping[str, object] | None = None,
        hide_similar: float | None = None,
    ) -> list[Hit]:
        """The k pictures nearest to a query, best first, exactly.

        Args:
            query: a text, a picture (``Path``, PIL image, array), an embedding float (D,), or a list of these, whose
                embeddings are added.
            k: how many; fewer come back if there are no more.
            minus: what is taken off the query: as ``query``.
            where: only pictures for which all of these hold: a name of ``Item``'s or of its meta, and a value or a
                pattern with ``*``.
            hide_similar: leave out pictures whose cosine similarity with a better hit is at least this.

        Raises:
            ClipkitError: an empty text, an unreadable picture, a name that no picture has, or k below 1.
        """
        if k < 1:
            raise ClipkitError(f"k is {k}; it must be at least 1")
        vector = self._vector(query, minus)
        scores = np.concatenate(
            [self.embeddings[start : start + _TILE] @ vector for start in range(0, len(self), _TILE)]
        )
        allowed = self.matching(where) if where else np.arange(len(scores))
        scores = scores[allowed]
        wanted = k
        while True:
            best = _best(scores, wanted)
            rows = allowed[best].tolist()
            shown = rows if hide_similar is None else self._unlike(rows, hide_similar, k)
            if len(shown) >= k or wanted >= len(scores):
                places = dict(zip(rows, best.tolist(), strict=True))
                return [self._hit(row, float(scores[places[row]])) for row in shown[:k]]
            wanted *= 4

    def matching(self, where: Mapping[str, object]) -> NDArray[np.int64]:
        """int64 (n,) rows of the items for which all of ``where`` holds; see ``search``.

        Raises:
            ClipkitError: a name that no item has.
        """
        own = {field.name for field in fields(Item)} - {"meta"}
        metas = [json.loads(item.meta) if item.meta else {} for item in self.items] if set(where) - own else []
        keep = np.ones(len(self), dtype=np.bool_)
        for name, value in where.items():
            found = [getattr(i, name) for i in self.items] if name in own else [meta.get(name) for meta in metas]
            if name not in own and all(v is None for v in found):
                names = ", ".join(sorted(own | {n for meta in metas for n in meta}))
                raise ClipkitError(f"no picture of the index has a {name!r}; there are {names}")
            keep &= [v is not None and (v == value or fnmatchcase(str(v), str(value))) for v in found]
        return np.flatnonzero(keep)

    def thumbnail(self, row: int, side: int = 256) -> Image.Image:
        """A small picture of a row."""
        return thumbnail(self.items[row].read(), side)

    def _hit(self, row: int, score: float) -> Hit:
        item = self.items[row]
        return Hit(score, item.path, item.key, item.caption, row)

    def _unlike(self, rows: list[int], threshold: float, k: int) -> list[int]:
        """The first k of ``rows`` without those that are like an earlier one."""
        shown: list[int] = []
        for row in rows:
            if not shown or (self.embeddings[shown] @ self.embeddings[row]).max() < threshold:
                shown.append(row)
                if len(shown) == k:
                    break
        return shown

    def _vector(self, query: Any, minus: Any) -> NDArray[np.float32]:
        plus, less = ([*x] if isinstance(x, (list, tuple)) else [x] for x in (query, minus))
        if len(plus) == 1 and not less:
            return self._embedding(plus[0])
        if not plus:
            raise ClipkitError("nothing to search for: give at least one text or picture to look for")
        total = sum((self._embedding(term) for term in plus), np.zeros(self.model.embed_dim, dtype=np.float32))
        total = total - sum((self._embedding(term) for term in less), np.zeros_like(total))
        length = float(np.linalg.norm(total))
        if length < 1e-6:
            raise ClipkitError("nothing is left of the query: what is taken off is what was looked for")
        return np.asarray(total / np.float32(length), dtype=np.float32)

    def _embedding(self, term: Any) -> NDArray[np.float32]:
        if isinstance(term, str):
            return self.model.encode_text(term)
        if isinstance(term, np.ndarray) and term.shape == (self.model.embed_dim,) and term.dtype.kind == "f":
            return term.astype(np.float32)
        return self.model.encode_image(term)


def _best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """int64 (min(k, n),) places of the largest of ``scores`` (n,), best first, the first of equal ones first."""
    if not len(scores):
        return np.zeros(0, dtype=np.int64)
    k = min(k, len(scores))
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    top = np.flatnonzero(scores >= kth)  # with all that tie for the last place: the first rows win
    return top[np.argsort(-scores[top], kind="stable")][:k]
