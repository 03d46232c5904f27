"""WebDataset shards as one indexed sequence of samples.

A sample is the members of a tar that share a key (the name up to the first dot of its last part): a picture, and a
``.json`` or ``.txt`` with its captions or a ``.cls`` with its label. A shard of pictures alone will do where nothing is
compared but pictures.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError
from clipkit.pairs.captions import parse_captions
from clipkit.pairs.classes import label_of, with_class_names
from clipkit.pairs.files import OF_THE_PROCESS, ShardFiles
from clipkit.pairs.index import ShardIndex, load_index
from clipkit.pairs.mask import SIDECARS, kept
from clipkit.pairs.remote import Remote, UnreachableError, find_remote, is_remote, list_remote

_BRACES = re.compile(r"\{[^{}]*(\.\.|,)[^{}]*\}")
_SHOWN = 5  # problems of shards that are told one by one
_TOGETHER = 16  # remote shards that are opened at a time
_REMEMBERED = 65_536  # samples whose captions stay in memory


@dataclass(frozen=True)
class Sample:
    """One picture with its captions, as stored.

    Attributes:
        key: name of the sample in its shard.
        image: the encoded picture.
        image_ext: its file extension in lower case, without the dot.
        captions: its captions, in stored order; empty ones are dropped.
        meta: the sample's json, or an empty dict, with the label of its ``.cls``.
    """

    key: str
    image: bytes
    image_ext: str
    captions: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One source of a mixture: its name, how many of the shards are its own, and its weight in training."""

    name: str
    n_shards: int
    weight: float


class ShardSet:
    """Samples of several shards as one sequence, in the order of the shards' names.

    Args:
        shards: the indexes, one per tar.
        name: what messages call the set.
        root: folder that the samples' ``file`` starts from, where the shards were made of files that are still there.
        parts: the sources that the shards come from, in order, where they are mixed by weight.
    """

    def __init__(
        self, shards: list[ShardIndex], name: str, root: Path | None = None, parts: tuple[Part, ...] = ()
    ) -> None:
        self.shards = shards
        self.name = name
        self.root = root
        self.parts = parts
        self.sizes = [len(shard) for shard in shards]
        self._first = [0, *accumulate(self.sizes)]
        joined = "\n".join(f"{s.path.name} {s.fingerprint}" for s in shards)
        joined += "".join(f"\n{part.n_shards} x {part.weight!r}" for part in parts)
        self.fingerprint = hashlib.blake2b(joined.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        self.remote = any(isinstance(shard.path, Remote) for shard in shards)
        self._files = ShardFiles()
        self._captions: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return self._first[-1]

    @property
    def problems(self) -> list[str]:
        """What was wrong with the shards themselves: damaged stretches, samples without picture or caption."""
        return [f"{shard.path}: {problem}" for shard in self.shards for problem in shard.problems]

    def locate(self, i: int) -> tuple[ShardIndex, int]:
        """The shard of sample ``i`` and its place there."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = bisect_right(self._first, i) - 1
        return self.shards[shard], i - self._first[shard]

    def source_of(self, i: int) -> range:
        """The samples of the source that sample ``i`` belongs to: of a mixture one part, else all."""
        first = 0
        for part in self.parts:
            stop = first + part.n_shards
            if i < self._first[stop]:
                return range(self._first[first], self._first[stop])
            first = stop
        return range(len(self))

    def key(self, i: int) -> str:
        """Key of sample ``i``."""
        shard, at = self.locate(i)
        return shard.keys[at]

    def where(self, i: int) -> str:
        """``shard.tar/key.ext`` of sample ``i``, for messages and results."""
        shard, at = self.locate(i)
        return f"{shard.path}/{shard.keys[at]}.{shard.extensions[at]}"

    def source_file(self, i: int) -> Path | None:
        """The file that sample ``i`` was made from, if it is known and still there."""
        file = self.read_record(i)[0].get("file")
        if self.root is None or not isinstance(file, str):
            return None
        path = self.root / file
        return path if path.is_file() else None

    def read(self, i: int) -> Sample:
        """Sample ``i``, read from its shard.

        Raises:
            ClipkitError: the bytes are not what the index says, or the json is no json.
        """
        shard, at = self.locate(i)
        meta, captions = self.read_record(i)
        return Sample(shard.keys[at], self.read_picture(i), shard.extensions[at], captions, meta)

    def read_captions(self, i: int) -> tuple[str, ...]:
        """Captions of sample ``i``, without reading its picture; those of small sets are parsed once."""
        captions = self._captions.get(i)
        if captions is None:
            captions = self.read_record(i)[1]
            if len(self._captions) < _REMEMBERED:
                self._captions[i] = captions
        return captions

    def read_record(self, i: int) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The json and the captions of sample ``i``, without reading its picture."""
        record, text, stored = (self._bytes(i, field) for field in (1, 2, 3))
        return self.parsed(i, record, text, stored, self.locate(i)[0].classes if stored else ())

    def parsed(
        self, i: int, record: bytes, text: bytes, stored: bytes, classes: tuple[str, ...] = ()
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The json and the captions of sample ``i``, from the bytes of its ``.json``, ``.txt`` and ``.cls``, of which a
        number is that of one of ``classes``."""
        try:
            meta, captions = parse_captions(record, text)
            if stored and meta.get("label") is None:
                meta["label"] = label_of(stored, classes)
        except ClipkitError as error:
            raise ClipkitError(f"{self.where(i)}: {error}") from None
        return meta, captions

    def read_picture(self, i: int) -> bytes:
        """The encoded picture of sample ``i``."""
        return self._bytes(i, 0)

    def fetch(self, samples: Iterable[int]) -> None:
        """Fetch what ``samples`` need of remote shards at once; without it, each is fetched when it is read."""
        if self.remote:
            self._files.fetch(self.locate(i) for i in samples)

    def _bytes(self, i: int, field: int) -> bytes:
        """Picture (0), json (1), txt (2) or cls (3) of sample ``i``."""
        try:
            return self._files.read(*self.locate(i), field)
        except OSError as error:
            why = f"{self.where(i)}: cannot be read ({error.strerror or error})"
            if help_ := OF_THE_PROCESS.get(error.errno or 0):
                raise UnreachableError(f"{why}; {help_}") from None
            raise ClipkitError(why) from None

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(len(self)))

    def close(self) -> None:
        """Close the shards' files; reading opens them again."""
        self._files.close()


def open_shards(path: str | Path, name: str | None = None, root: Path | None = None) -> ShardSet:
    """The shards at ``path``: a tar, a folder of tars, or a glob or ``{000..009}`` pattern, on a disk or behind a URL.

    Args:
        name: what messages call them; default: ``path``. Shards that were made of a table go by the table's name.
        root: see ``ShardSet``.

    Raises:
        ClipkitError: nothing is there, no tar is there, or no tar holds a sample.
    """
    paths: Sequence[Path | Remote] = remote_shards(str(path)) if is_remote(path) else shard_paths(path)
    shards = _indexes(paths)
    shard_set = ShardSet(shards, name or str(path), root)
    if not len(shard_set):
        if any(len(load_index(path)) for path in paths):  # samples there are
            raise ClipkitError(f"{path}: filters hide every sample; run `clipkit filter` with lower thresholds")
        why = f" ({shard_set.problems[0]})" if shard_set.problems else ""
        raise ClipkitError(
            f"{path}: no sample in {len(paths)} shard(s){why}; a sample is KEY.jpg beside KEY.txt, KEY.json or KEY.cls"
        )
    problems = shard_set.problems
    for problem in problems[:_SHOWN]:
        warnings.warn(problem, stacklevel=2)
    if len(problems) > _SHOWN:
        in_shards = sum(bool(shard.problems) for shard in shards)
        rest = f"{len(problems) - _SHOWN:,} more problems; {in_shards:,} of {len(shards):,} shards have some"
        warnings.warn(f"{shard_set.name}: {rest}; `clipkit doctor` lists them", stacklevel=2)
    return shard_set


def join_shards(sets: Sequence[ShardSet], weights: Sequence[float] = ()) -> ShardSet:
    """Several sources as one, each with its share of every batch.

    Args:
        weights: of each source; without them each has the weight of its number of samples.

    Raises:
        ClipkitError: another number of weights than sources.
    """
    if weights and len(weights) != len(sets):
        names = ", ".join(s.name for s in sets)
        raise ClipkitError(f"--train-weights: {len(weights)} weights for {len(sets)} sources ({names})")
    told = [float(weight) for weight in weights] or [float(len(s)) for s in sets]
    parts = tuple(Part(s.name, len(s.shards), weight) for s, weight in zip(sets, told, strict=True))
    return ShardSet([shard for s in sets for shard in s.shards], " + ".join(s.name for s in sets), parts=parts)


def _indexes(paths: Sequence[Path | Remote]) -> list[ShardIndex]:
    """Indexes of the shards; those of remote ones side by side, as they wait more than they compute."""
    if not any(isinstance(path, Remote) for path in paths):
        return with_class_names([kept(load_index(path)) for path in paths])
    with ThreadPoolExecutor(min(_TOGETHER, len(paths))) as pool:
        return with_class_names(list(pool.map(lambda path: kept(load_index(path)), paths)))


def remote_shards(url: str) -> list[Remote]:
    """The tars behind ``url``, in order: one, those of a pattern, or those of a folder that the server can list."""
    if not url.partition("://")[2].strip("/"):
        raise ClipkitError(
            f"{url}: an address without a place; expected one such as {url.partition(':')[0]}://host/000.tar"
        )
    if _BRACES.search(url):
        import braceexpand

        urls = list(braceexpand.braceexpand(url))
    else:
        urls = [url] if url.endswith(".tar") and not any(c in url for c in "*[") else list_remote(url)
    with ThreadPoolExecutor(min(_TOGETHER, len(urls))) as pool:
        return list(pool.map(find_remote, urls))


def shard_paths(path: str | Path) -> list[Path]:
    """The tar files that ``path`` names, sorted by name."""
    text = str(path)
    if not Path(text).exists() and _BRACES.search(text):
        import braceexpand

        parts = list(braceexpand.braceexpand(text))
        if any(c in text for c in "*?["):
            return [path for part in parts for path in shard_paths(part)]
        paths = [Path(part) for part in parts]
        missing = [p for p in paths if not p.is_file()]
        if missing:
            raise ClipkitError(f"{missing[0]}: no such shard (from {text}; {len(missing)} of {len(paths)} are missing)")
        return paths
    if not Path(text).exists() and any(c in text for c in "*?["):
        paths = sorted(Path(p) for p in glob.glob(text) if not p.endswith(SIDECARS))
        if not paths:
            raise ClipkitError(f"{text}: no file matches")
        return _checked(paths)
    if Path(text).is_file():
        return [Path(text)]
    if Path(text).is_dir():
        paths = sorted(p for p in Path(text).glob("*.tar") if not p.name.startswith("."))  # ._000.tar is macOS's
        if not paths:
            raise ClipkitError(f"{text}: no *.tar shards in this folder")
        return _checked(paths)
    raise ClipkitError(f"{text}: no such file or folder")


def _checked(paths: list[Path]) -> list[Path]:
    """``paths``, all of which are files."""
    for path in paths:
        if path.is_dir():
            raise ClipkitError(f"{path}: a folder and not a tar; move it away or name the shards")
        if not path.is_file():
            what = f"a link to {os.readlink(path)}, where no file is" if path.is_symlink() else "not a regular file"
            raise ClipkitError(f"{path}: {what}; remove it or put the tar there")
    return paths
