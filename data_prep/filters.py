"""Filters: thresholds on the scores of samples, kept as masks that another call changes without touching a tar."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit.cache import atomic_write
from clipkit.errors import ClipkitError
from data_prep.engine import Engine, run_tasks
from data_prep.language import UNDETERMINED
from data_prep.scores import read_scores, scores_path
from data_prep.workplace import FILTERS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Filters:
    """Samples that are hidden from training. Nothing is deleted: other thresholds bring them back."""

    min_side: int | None = None
    """Hide pictures whose shorter side (in the source) has fewer pixels."""
    max_aspect: float | None = None
    """Hide pictures that are more than this many times as long as wide, or as wide as long."""
    min_words: int | None = None
    """Hide samples that have a caption with fewer words."""
    max_words: int | None = None
    """Hide samples that have a caption with more words."""
    languages: tuple[str, ...] = ()
    """Hide samples whose captions are in another language (codes such as en de ja); undetermined ones stay."""
    hide_copies: bool = False
    """Hide all but one sample of each set of copies: the first that no other filter hides."""
    clip_model: str | None = None
    """Model that scores how well captions fit (a run, a directory, or an open_clip NAME,TAG)."""
    min_clip_score: float | None = None
    """Hide samples whose best caption has a lower cosine similarity to its picture."""

    def __post_init__(self) -> None:
        for name in ("min_side", "max_aspect", "min_words", "max_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ClipkitError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        if self.min_clip_score is not None and not -1 <= self.min_clip_score <= 1:
            raise ClipkitError(f"--min-clip-score {self.min_clip_score}: expected a cosine similarity, -1 to 1")


def apply_filters(out: str | Path, filters: Filters | None = None, engine: Engine = "local") -> dict[str, Any] | None:
    """Write the masks of the data set at ``out`` and ``out/filters.json``, which is returned.

    Args:
        out: a data set that ``prepare`` made.
        filters: thresholds; those that ``out/filters.json`` has if None.
        engine: who asks the model.

    Raises:
        ClipkitError: no data set, a damaged table, captions whose languages or scores nobody found out, or filters
            that hide every sample of the training split.
    """
    from clipkit.pairs.index import load_index
    from clipkit.pairs.mask import write_mask

    out = Path(out)
    filters = filters or read_filters(out)
    if filters is None:
        return None
    shards = list(shards_of(out))
    if filters.clip_model:
        from data_prep.models import ScoreTask, score_captions

        list(run_tasks(score_captions, [ScoreTask(path, filters.clip_model) for _, path in shards], 1, engine))
    hidden: dict[str, Counter[str]] = {}
    masks = []
    tables = [(path, read_scores(path)) for _, path in shards]
    for (split, path), (_, table), (keep, reasons) in zip(shards, tables, judged(tables, filters), strict=True):
        index = load_index(path)
        if index.keys != table["key"].to_pylist():
            raise ClipkitError(f"{scores_path(path)}: made for other samples than {path.name} has; prepare them again")
        counts = hidden.setdefault(split, Counter())
        counts.update({"samples": len(keep), "kept": int(keep.sum()), **reasons})
        masks.append((index, keep))
    for split, counts in hidden.items():
        if not counts["kept"]:
            raise ClipkitError(f"{out}: these filters hide all {counts['samples']:,} samples of {split}; loosen them")
    for index, keep in masks:
        write_mask(index, keep)
    report = {"filters": asdict(filters), "splits": {split: dict(counts) for split, counts in hidden.items()}}
    with atomic_write(out / FILTERS) as file:
        file.write(json.dumps(report, indent=1).encode() + b"\n")
    return report


def read_filters(out: Path) -> Filters | None:
    """The filters that ``out/filters.json`` has, or None without it."""
    try:
        stored = json.loads((out / FILTERS).read_bytes())["filters"]
        values: dict[str, Any] = {**stored, "languages": tuple(stored["languages"])}
        return Filters(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise ClipkitError(
            f"{out / FILTERS}: not a file of filters; delete it, or run `clipkit filter` again"
        ) from None


def judged(tables: Sequence[tuple[Path, pa.Table]], filters: Filters) -> list[tuple[NDArray[np.bool_], dict[str, int]]]:
    """Of each shard of a data set and its scores: which samples stay, bool (n,), and how many each filter hides (a
    sample may fail several)."""
    fails = [_failed(table, filters, path) for path, table in tables]
    keep = [_kept(len(table), failed) for (_, table), failed in zip(tables, fails, strict=True)]
    if filters.hide_copies:
        for failed, copies in zip(fails, _copies([table for _, table in tables], keep), strict=True):
            failed["hide_copies"] = copies
    return [
        (_kept(len(table), failed), {name: int(which.sum()) for name, which in failed.items()})
        for (_, table), failed in zip(tables, fails, strict=True)
    ]


def _kept(n: int, fails: dict[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    import numpy as np

    return ~np.logical_or.reduce([np.zeros(n, bool), *fails.values()])


def _copies(tables: Sequence[pa.Table], keep: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """Which samples of each shard are copies of the one that stays: the one that its set is called after, or the first
    of the others where other filters hide that."""
    import numpy as np

    named = [list(zip(t["key"].to_pylist(), t["copy_of"].to_pylist(), strict=True)) for t in tables]
    sets = {first for samples in named for _, first in samples if first is not None}
    stays: dict[str, str] = {}
    for samples, kept in zip(named, keep, strict=True):
        for (key, first), stay in zip(samples, kept.tolist(), strict=True):
            if stay and first is not None:
                stays.setdefault(first, key)
            elif stay and key in sets:
                stays[key] = key
    return [
        np.array([stays.get(first or key, first or key) != key for key, first in samples], bool) for samples in named
    ]


def _failed(table: pa.Table, filters: Filters, path: Path) -> dict[str, NDArray[np.bool_]]:
    """Filter, but for copies, to which samples of a table it hides, bool (n,)."""
    import numpy as np

    def column(name: str) -> NDArray[Any]:
        return table[name].to_numpy()

    sides = np.stack([column("source_width"), column("source_height")]).astype(np.float64)
    fails: dict[str, NDArray[np.bool_]] = {}
    if filters.min_side is not None:
        fails["min_side"] = sides.min(axis=0) < filters.min_side
    if filters.max_aspect is not None:
        fails["max_aspect"] = sides.max(axis=0) > filters.max_aspect * sides.min(axis=0)
    if filters.min_words is not None:
        fails["min_words"] = column("shortest_words") < filters.min_words
    if filters.max_words is not None:
        fails["max_words"] = column("longest_words") > filters.max_words
    if filters.languages:
        if table["language"].null_count:
            raise ClipkitError(
                f"{scores_path(path)}: nobody looked at the languages of these captions; "
                f'pip install "clipkit[prepare]" and prepare them again with --overwrite'
            )
        allowed = [*filters.languages, UNDETERMINED]
        fails["languages"] = np.array([language not in allowed for language in table["language"].to_pylist()], bool)
    if filters.min_clip_score is not None:
        if table["clip_score"].null_count:
            raise ClipkitError(f"{scores_path(path)}: no model scored these captions; pass --clip-model MODEL")
        fails["min_clip_score"] = column("clip_score") < filters.min_clip_score
    return fails


def shards_of(out: Path) -> Iterator[tuple[str, Path]]:
    """Split and path of every shard of the data set at ``out``.

    Raises:
        ClipkitError: there is no data set that ``prepare`` made.
    """
    try:
        dataset = json.loads((out / "dataset.json").read_bytes())
        splits = list(dataset["splits"])
    except FileNotFoundError:
        raise ClipkitError(f"{out}: no data set of `clipkit prepare` (no dataset.json in it)") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ClipkitError(f"{out / 'dataset.json'}: damaged; prepare the data again with --overwrite") from None
    for split in splits:
        for path in sorted((out / split).glob("*.tar")):
            yield split, path
