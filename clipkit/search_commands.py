"""``clipkit index`` and ``clipkit search``."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from clipkit.errors import ClipkitError, one_line
from clipkit.inputs import parse_query, parse_where
from clipkit.model_option import ModelOption, list_skipped

if TYPE_CHECKING:
    from clipkit.inference import Aligner, Hit, Index
    from clipkit.training.console import Console

WAIT = 3600.0  # seconds for another process that encodes the same folder


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
    by: Literal["picture", "caption", "either"] = "picture"
    """What the query is compared with; captions are there where the index was made with --captions or of shards."""
    hide_similar: float | None = None
    """Leave out pictures whose cosine similarity with a better one is at least this; 0.95 hides bursts."""
    group: float | None = None
    """The same, and say how many are left out behind each."""
    json: bool = False
    """Print JSON."""
    open: bool = False
    """Show the pictures in the system's viewer."""

    def run(self, console: Console) -> None:
        plus, minus = parse_query(self.query)
        where = parse_where(self.where)
        for flag, value in (("threshold", self.threshold), ("hide-similar", self.hide_similar), ("group", self.group)):
            if value is not None and not math.isfinite(value):
                raise ClipkitError(f"--{flag} is {value}; it is a cosine similarity, from -1 to 1")
        if self.images is not None and self.index is not None:
            raise ClipkitError("--images and --index both say what is searched; give one of them")
        model = self.model.load()
        index = find_index(model, self.images, self.index, console, quiet=self.json)
        hits = index.search(
            plus, self.n, minus=minus, where=where, by=self.by, hide_similar=self.hide_similar, group=self.group
        )
        hits = [h for h in hits if self.threshold is None or h.score >= self.threshold]
        if self.json:
            print(json.dumps([h.__dict__ for h in hits], indent=2, ensure_ascii=False))
        else:
            for hit in hits:
                shown = hit.path if index.items[hit.row].offset < 0 else f"{hit.path}/{hit.key}"
                others = f"  and {hit.others:,} like it" if hit.others else ""
                named = f"{_relative(shown)}{'  ' + hit.caption if hit.caption else ''}"
                print(f"{hit.score:.3f}  {one_line(named)}{others}")
        if self.open:
            _show(index, hits)


@dataclass(frozen=True)
class MakeIndex:
    """Index a folder of pictures, to search it at once later; again, and only what has changed is encoded."""

    folder: tyro.conf.Positional[str]
    """Folder of pictures, the folders in it too; or a folder of shards (.tar), whose captions are searched as well."""
    output: str | None = None
    """Where the index goes. Default: FOLDER.index beside the folder."""
    captions: str | None = None
    """Table of pictures and captions (CSV, TSV, JSONL, parquet), several rows to a picture if you like, to search by
    caption too. Default: the index keeps those that it has."""
    image_column: str | None = None
    """Column of that table that names the picture."""
    caption_column: str | None = None
    """Column of that table that holds the caption."""
    backend: Literal["exact", "faiss", "milvus"] | None = None
    """What the index is searched with. Default: what it has; else exact, and faiss from a million pictures if it is
    installed. What faiss and milvus find of the exact best is measured and printed."""
    rebuild: bool = False
    """Encode everything anew, where the index is damaged or another model's; captions and backend stay."""
    uri: str | None = None
    """Of milvus: http://HOST:19530, or a file. Default: a file in the index. A token is taken from MILVUS_TOKEN."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)

    def run(self, console: Console) -> None:
        from clipkit.inference import Index

        if self.uri is not None and self.backend != "milvus":
            raise ClipkitError(f"--uri {self.uri} is of milvus; add --backend milvus")
        output = self.output or self._beside()
        if any(Path(self.folder).glob("*.tar")):
            if self.captions is not None:
                raise ClipkitError(f"{self.folder} holds shards, which bring their captions; leave --captions out")
            index = shards_index(self.model.load(), self.folder, output, self.backend, self.uri, console)
            said = f"{len(index.items.owners()):,} captions"
        else:
            captions = self._captions()
            index, changes = Index.update(
                output, self.model.load(), self.folder, console.progress, captions=captions, backend=self.backend,
                uri=self.uri, rebuild=self.rebuild,
            )  # fmt: skip
            counts = [f"{n:,} {what}" for what, n in changes._asdict().items() if n and what != "kept"]
            counts += [f"{len(index.items.owners()):,} captions"] if captions is not None else []
            said = ", ".join(counts) or "nothing has changed"
        list_skipped(index.skipped)
        for what, search in index.searches.items():
            print(
                f"{what} are searched with {search['backend']}: it finds {search['recall']:.1%} of the exact "
                f"{search['k']} best, measured with {search['queries']} queries"
            )
        print(
            f"{len(index):,} pictures indexed ({said}): "
            f'clipkit search "..." --index {output} --model {self.model.model}'
        )

    def _beside(self) -> str:
        folder = Path(self.folder)
        folder = folder.resolve() if folder.name in ("", "..") else folder
        if not folder.name:
            raise ClipkitError(f"{self.folder}: there is no place beside it for the index; pass --output")
        return f"{folder}.index"

    def _captions(self) -> dict[str, tuple[str, ...]] | None:
        """Of the pictures in the folder, by their paths in it.

        Raises:
            ClipkitError: a table that cannot be read, or that names no picture of the folder.
        """
        from data_prep.tables import read_table

        if self.captions is None:
            return None
        root = Path(self.folder).resolve()
        read = partial(read_table, self.captions, image_column=self.image_column, caption_column=self.caption_column)
        try:
            source = read(image_root=root)
        except ClipkitError:
            source = read()  # its paths start where the table is
        inside = [  # a picture that is a link is found by its own name
            (record.image.parent.resolve() / record.image.name, record.captions)
            for record in source.records
            if isinstance(record.image, Path)
        ]
        captions = {str(p.relative_to(root)): texts for p, texts in inside if p.is_relative_to(root)}
        if not captions:
            raise ClipkitError(f"{self.captions} names no picture in {self.folder}; check its paths")
        list_skipped([f"{bad.file}: {bad.reason}" for bad in source.skipped])
        return captions


def shards_index(
    model: Aligner, folder: str, output: str, backend: str | None, uri: str | None, console: Console
) -> Index:
    """An index of all samples of the shards in ``folder``, made anew, with all their captions."""
    from clipkit.config import Config
    from clipkit.evaluation.encoding import encode_pairs
    from clipkit.inference import Index
    from clipkit.inference.index_files import read_wish
    from clipkit.pairs import open_shards
    from clipkit.training.data import plain_reader

    shards = open_shards(folder)
    console.say(f"encoding {len(shards):,} pictures and their captions", detail=True)
    encoded = encode_pairs(model.model, plain_reader(model.model, shards, Config()), autocast=model.autocast)
    samples = encoded.samples.tolist()
    index = Index.of_shards(model, shards, samples, encoded.images.numpy(), encoded.texts.numpy())
    backend, uri = (backend, uri) if backend is not None else read_wish(Path(output))
    opened = Index.open(index.save(output, backend, uri), model)
    opened.skipped = [bad.reason for bad in encoded.bad]
    return opened


def find_index(model: Aligner, images: str | None, index: str | None, console: Console, quiet: bool = False) -> Index:
    """The index to search: a saved one, that of a folder, or the run's own."""
    from clipkit.inference import Index
    from clipkit.training.checkpoint import FOLDER

    if index is not None:
        return Index.open(index, model)
    if images is not None:
        return folder_index(model, images, console, quiet)
    own = Path(model.name) / "index"
    if not (Path(model.name) / FOLDER).is_dir() or not own.is_dir():
        raise ClipkitError("nothing to search: pass --images FOLDER, or --index made by `clipkit index`")
    return Index.open(own, model)


def folder_index(model: Aligner, folder: str | Path, console: Console, quiet: bool = False) -> Index:
    """The index of a folder as it is now, kept in the cache, so that only what is new is encoded.

    A second one of the same folder waits for the first, and finds its work done.

    Args:
        quiet: no progress lines in a log, where standard output is for something else.
    """
    from clipkit.cache import cache_dir
    from clipkit.inference import Index
    from clipkit.inference.index_files import FORMAT, HEADER, can_be_read, model_fingerprint

    which = f"{FORMAT} {Path(folder).resolve()} {model_fingerprint(model)}"
    place = cache_dir() / "folders" / hashlib.blake2b(os.fsencode(which), digest_size=16).hexdigest()
    index, _ = Index.update(
        place, model, folder, None if quiet and not console.terminal else console.progress,
        rebuild=(place / HEADER).is_file() and not can_be_read(place),  # what is in the cache can be made again
        wait=WAIT, say=lambda text: print(f"clipkit: {text}", file=sys.stderr),
    )  # fmt: skip
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
