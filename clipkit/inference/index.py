"""An exact index of pictures: embeddings in one file, what they belong to in another.

How it lies on the disk is told in ``index_files``; an index of a folder is brought up to date by ``index_update``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from clipkit.errors import ClipkitError, check_count
from clipkit.inference.aligner import Aligner
from clipkit.inference.approximate import open_search
from clipkit.inference.exact import ExactSearch, VectorSearch
from clipkit.inference.files import embed_files, find_pictures
from clipkit.inference.index_files import Saved, check_model, exclusive, read_index, write_index
from clipkit.inference.items import Item, Items, shard_items
from clipkit.inference.nearest import By, Captions, Found, nearest
from clipkit.inference.pictures import thumbnail
from clipkit.inference.query import query_vector
from clipkit.inference.similar import connected, count_behind, leaders
from clipkit.pairs import ShardSet

if TYPE_CHECKING:
    from clipkit.inference.index_update import Changes

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Hit:
    """A found picture.

    Attributes:
        score: cosine similarity with the query.
        path: where it is: a file, or a shard.
        key: its name in the folder or in the shard.
        caption: the one it was found by, else the first; empty if it has none.
        row: in the index.
        others: how many pictures like it stand behind it, if the search groups.
    """

    score: float
    path: str
    key: str
    caption: str
    row: int
    others: int = 0


class Index:
    """Pictures to search; see ``build`` and ``open``.

    Args:
        model: encodes the queries; the one that made the embeddings.
        embeddings: float32 (N, D), unit norm.
        items: what each row is.
        captions: float32 (M, D), unit norm, of all captions of all items, in order; None if pictures alone are
            searched.

    Attributes:
        pictures, captions: what finds pictures and captions; captions is None if they are not searched.
        searches: of a saved index the library it is searched with, for ``pictures`` and ``captions``, with its measured
            recall; empty where the search is exact.
        skipped: what could not be read when it was built.
    """

    def __init__(
        self,
        model: Aligner,
        embeddings: NDArray[np.float32],
        items: Sequence[Item],
        captions: NDArray[np.float32] | None = None,
    ) -> None:
        if len(embeddings) != len(items):
            raise ClipkitError(f"{len(embeddings)} embeddings and {len(items)} items do not belong together")
        self.model = model
        self.embeddings = embeddings
        self.items = Items.of(items)
        self.caption_embeddings = captions
        self.pictures: VectorSearch = ExactSearch(embeddings)
        self.captions: Captions | None = None
        if captions is not None:
            owners = self.items.owners()
            if len(owners) != len(captions):
                raise ClipkitError(f"{len(captions)} embeddings for {len(owners)} captions do not belong together")
            self.captions = Captions(ExactSearch(captions), owners)
        self.searches: dict[str, dict[str, Any]] = {}
        self.skipped: list[str] = []

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def build(cls, model: Aligner, folder: str | Path, progress: Progress | None = None) -> Index:
        """Index the pictures in ``folder``, to the bottom. Unreadable ones are left out and listed in ``skipped``.

        Raises:
            ClipkitError: no such folder, or no picture in it.
        """
        root = Path(folder).absolute()  # found again from anywhere
        paths = find_pictures(root)
        rows: list[NDArray[np.float32]] = []
        items: list[Item] = []
        skipped: list[str] = []
        for done, file in enumerate(embed_files(model, paths), 1):
            if file.row is not None:
                rows.append(file.row)
                key = str(file.path.relative_to(root))
                items.append(Item(str(file.path), key, (), -1, file.size, file.content, file.mtime))
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
        cls, path: str | Path, model: Aligner, folder: str | Path, progress: Progress | None = None, **options: Any
    ) -> tuple[Index, Changes]:
        """Make the index at ``path`` that of ``folder`` as it is now, and open it; see ``update_index``."""
        from clipkit.inference.index_update import update_index

        return update_index(Path(path), model, Path(folder), progress, **options)

    @classmethod
    def of_shards(
        cls,
        model: Aligner,
        shards: ShardSet,
        samples: Sequence[int],
        embeddings: NDArray[np.float32],
        captions: NDArray[np.float32] | None = None,
    ) -> Index:
        """An index of ``samples`` of ``shards`` whose embeddings are known already; ``captions`` as in ``Index``."""
        rows = np.ascontiguousarray(embeddings, dtype=np.float32)
        return cls(model, rows, Items.of(shard_items(shards, samples)), captions)

    def credits(self) -> list[str]:
        """Whose the pictures are and on what terms they are shown, as the ``dataset.json`` of their shards says."""
        in_shards = pc.greater_equal(self.items.column("offset"), 0)
        paths = pc.unique(pc.filter(self.items.column("path"), in_shards)).to_pylist()
        folders = {Path(path).parent for path in paths}
        found: dict[str, None] = {}
        for file in sorted({place / "dataset.json" for folder in folders for place in (folder, folder.parent)}):
            try:
                said = json.loads(file.read_text(encoding="utf-8")).get("license")
            except (OSError, ValueError, AttributeError):
                continue
            if isinstance(said, str) and said:
                found[said] = None
        return list(found)

    def save(self, path: str | Path, backend: str | None = None, uri: str | None = None) -> Path:
        """Write the index to folder ``path``; a kill at any moment leaves the old one or the new one.

        The data go to files of new names, and the header that names them is replaced last.

        Args:
            backend: what the saved index is searched with: ``exact``, ``faiss`` or ``milvus``. By default exact, and
                faiss from a million pictures if it is installed.
            uri: of milvus, a server or a file; by default a file in the folder.

        Raises:
            ClipkitError: the folder is something else, the disk is full, or the backend is not there.
        """
        final = Path(path)
        with exclusive(final):
            captions = self.caption_embeddings
            save_captions = None if captions is None else lambda file: np.save(file, captions)
            save_pictures = lambda file: np.save(file, self.embeddings)  # noqa: E731
            write_index(final, self.model, self.items, save_pictures, save_captions, backend, uri)
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
        while True:
            saved = read_index(folder)
            if model is None:
                from clipkit.inference.load import load

                model = load(saved.model)
            check_model(saved, folder, model)
            try:
                return cls._of_saved(saved, folder, model)
            except ClipkitError:
                if read_index(folder).searches == saved.searches:
                    raise  # else another process has replaced it since it was read

    @classmethod
    def _of_saved(cls, saved: Saved, folder: Path, model: Aligner) -> Index:
        index = cls(model, saved.embeddings, saved.items, saved.captions)
        index.searches = saved.searches
        index.pictures = open_search(folder, saved.searches.get("pictures"), saved.embeddings)
        if index.captions is not None and saved.captions is not None:
            index.captions.vectors = open_search(folder, saved.searches.get("captions"), saved.captions)
        return index

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        minus: Any = (),
        where: Mapping[str, object] | None = None,
        by: By = "picture",
        hide_similar: float | None = None,
        group: float | None = None,
    ) -> list[Hit]:
        """The k pictures nearest to a query, best first.

        Args:
            query: a text, a picture (``Path``, PIL image, array), an embedding float (D,), or a list of these, whose
                embeddings are added.
            k: how many; fewer come back if there are no more.
            minus: what is taken off the query: as ``query``.
            where: only pictures for which all of these hold: a name of ``Item``'s or of its meta, and a value or a
                pattern with ``*``, ``?`` and ``[abc]``.
            by: what the query is compared with: the ``picture``; the ``caption``, of several the nearest; or
                ``either``, whichever is nearer. Captions are as a rule much nearer to a text than pictures are, so
                ``either`` finds pictures by themselves only where they have no caption.
            hide_similar: leave out pictures whose cosine similarity with a better hit is at least this.
            group: the same, and ``Hit.others`` counts how many pictures of the index stand behind each.

        Raises:
            ClipkitError: an empty text, an unreadable picture, a name that no picture has, no captions to search, or
                k below 1.
        """
        if group is not None and hide_similar is not None:
            raise ClipkitError("hide_similar and group both say when pictures are alike; give one of them")
        check_count("k", k)
        threshold = hide_similar if group is None else group
        vector = query_vector(self.model, query, minus)[None]
        allowed = self.items.matching(where) if where else None
        wanted = k
        while True:
            found = nearest(self.pictures, self.captions, vector, wanted, allowed, by)[0]
            rows = found.rows.tolist()
            shown = rows if threshold is None else leaders(self.embeddings, rows, threshold, k)
            if len(shown) >= k or len(rows) < wanted:
                break
            wanted *= 4
        shown = shown[:k]
        others = [0] * len(shown) if group is None else count_behind(self.embeddings, shown, group, allowed)
        place = {row: at for at, row in enumerate(rows)}
        return [self._hit(found, place[row], n) for row, n in zip(shown, others, strict=True)]

    def search_all(
        self,
        queries: Sequence[Any] | NDArray[np.float32],
        k: int = 10,
        *,
        where: Mapping[str, object] | None = None,
        by: By = "picture",
    ) -> list[list[Hit]]:
        """``search`` for many queries at once, which reads the embeddings once and not once for each.

        Args:
            queries: texts, pictures, embeddings, or lists of these; or an array of embeddings (Q, D).
        """
        check_count("k", k)
        vectors = np.array([query_vector(self.model, q, ()) for q in queries], dtype=np.float32)
        allowed = self.items.matching(where) if where else None
        if not len(vectors):
            return []
        found = nearest(self.pictures, self.captions, vectors, k, allowed, by)
        return [[self._hit(of_query, place, 0) for place in range(len(of_query.rows))] for of_query in found]

    def groups(self, threshold: float = 0.95) -> NDArray[np.int64]:
        """int64 (N,): for each picture the first row of its group of look-alikes; alone, its own.

        Pictures are in a group if a chain of them joins them, each with a cosine similarity of at least ``threshold``
        with the next. Every pair is compared: seconds for ten thousand pictures, minutes for a hundred thousand.
        """
        return connected(self.embeddings, threshold)

    def thumbnail(self, row: int, side: int = 256) -> Image.Image:
        """A small picture of a row."""
        return thumbnail(self.items[row].read(), side)

    def _hit(self, found: Found, place: int, others: int) -> Hit:
        row, caption = int(found.rows[place]), int(found.captions[place])
        item = self.items[row]
        text = item.captions[caption] if caption >= 0 else item.caption
        return Hit(float(found.scores[place]), item.path, item.key, text, row, others)
