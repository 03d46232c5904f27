"""``clipkit index`` and ``clipkit search``."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from clipkit.errors import ClipkitError
from clipkit.inputs import parse_query, parse_where
from clipkit.model_option import ModelOption, list_skipped

if TYPE_CHECKING:
    from clipkit.inference import Aligner, Hit, Index
    from clipkit.training.console import Console


@dataclass(frozen=True)
class Search:
    """Find pictures by words or by a picture."""

    query: tyro.conf.Positional[str]
    """Words, the path of a picture, or arithmetic of both: '"a beach" + photo.jpg - "people"'."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)
    images: str | None = None
    """Folder of pictures to search; encoded at the first time and kept in the cache. Default: the pictures that the run
    was tested on."""
    index: str | None = None
    """Index made by `clipkit index`."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 10
    """How many."""
    threshold: float | None = None
    """Leave out pictures whose cosine similarity is lower."""
    where: tuple[str, ...] = ()
    """Only pictures with these: NAME=PATTERN, as in label=bird or 'path=*/2019/*'."""
    hide_similar: float | None = None
    """Leave out pictures whose cosine similarity with a better one is at least this; 0.95 hides bursts."""
    json: bool = False
    """Print JSON."""
    open: bool = False
    """Show the pictures in the system's viewer."""

    def run(self, console: Console) -> None:
        plus, minus = parse_query(self.query)
        where = parse_where(self.where)
        model = self.model.load()
        index = find_index(model, self.images, self.index, console)
        hits = index.search(plus, self.n, minus=minus, where=where, hide_similar=self.hide_similar)
        hits = [h for h in hits if self.threshold is None or h.score >= self.threshold]
        if self.json:
            print(json.dumps([h.__dict__ for h in hits], indent=2, ensure_ascii=False))
        else:
            for hit in hits:
                shown = hit.path if index.items[hit.row].offset < 0 else f"{hit.path}/{hit.key}"
                print(f"{hit.score:.3f}  {_relative(shown)}{'  ' + hit.caption if hit.caption else ''}")
        if self.open:
            _show(index, hits)


@dataclass(frozen=True)
class MakeIndex:
    """Index a folder of pictures, to search it at once later; again, and only what has changed is encoded."""

    folder: tyro.conf.Positional[str]
    """Folder of pictures; the folders in it too."""
    output: str | None = None
    """Where the index goes. Default: FOLDER.index beside the folder."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)

    def run(self, console: Console) -> None:
        from clipkit.inference import Index

        output = self.output or f"{self.folder.rstrip('/')}.index"
        index, changes = Index.update(output, self.model.load(), self.folder, console.progress)
        list_skipped(index.skipped)
        said = ", ".join(f"{n:,} {what}" for what, n in changes._asdict().items() if n and what != "kept")
        print(
            f"{len(index):,} pictures indexed ({said or 'nothing has changed'}): "
            f'clipkit search "..." --index {output} --model {self.model.model}'
        )


def find_index(model: Aligner, images: str | None, index: str | None, console: Console) -> Index:
    """The index to search: a saved one, that of a folder, or the run's own."""
    from clipkit.inference import Index
    from clipkit.training.checkpoint import FOLDER

    if index is not None:
        return Index.open(index, model)
    if images is not None:
        return folder_index(model, images, console)
    own = Path(model.name) / "index"
    if not (Path(model.name) / FOLDER).is_dir() or not own.is_dir():
        raise ClipkitError("nothing to search: pass --images FOLDER, or --index made by `clipkit index`")
    return Index.open(own, model)


def folder_index(model: Aligner, folder: str | Path, console: Console) -> Index:
    """The index of a folder as it is now, kept in the cache, so that only what is new is encoded."""
    from clipkit.cache import cache_dir
    from clipkit.inference import Index
    from clipkit.inference.index_files import model_fingerprint

    which = f"{Path(folder).resolve()} {model_fingerprint(model)}"
    name = hashlib.blake2b(which.encode(), digest_size=16).hexdigest()
    index, _ = Index.update(cache_dir() / "folders" / name, model, folder, console.progress)
    list_skipped(index.skipped)
    return index


def _show(index: Index, hits: list[Hit]) -> None:
    """The pictures in the system's viewer; members of shards through copies in a temporary folder."""
    import tempfile
    import webbrowser

    folder: str | None = None
    for hit in hits:
        item = index.items[hit.row]
        path = Path(item.path)
        if item.offset >= 0:
            folder = folder or tempfile.mkdtemp(prefix="clipkit-")
            path = Path(folder) / f"{hit.row}.png"
            index.thumbnail(hit.row, 1024).save(path)
        webbrowser.open(path.resolve().as_uri())


def _relative(path: str) -> str:
    """``path`` from here, if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path
