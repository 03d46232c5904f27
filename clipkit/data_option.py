"""What people give as ``--train-data`` and ``--val-data``: shards, tables, folders of pictures, URLs, pipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.config import Config
from clipkit.errors import ClipkitError

if TYPE_CHECKING:
    from clipkit.pairs import Bad, ShardSet
    from clipkit.training.console import Console


SENTENCES = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Pairs:
    """The training shards, the held-out ones by split (``val`` is looked at during training, ``test`` after), and
    what of the training data could not become a sample."""

    train: ShardSet
    held_out: dict[str, ShardSet]
    left_out: tuple[Bad, ...] = ()


def pairs_from_config(config: Config) -> Pairs:
    """``--train-data`` and ``--val-data``, turned into shards first if they are tables or folders of pictures.

    Raises:
        ClipkitError: no --train-data, or data that cannot be read.
    """
    if config.data.train_data is None:
        raise ClipkitError(
            "no --train-data: give a folder of WebDataset shards, or a CSV, TSV, JSONL or parquet table of picture "
            "paths and captions"
        )
    if config.data.compare == "interactions":
        raise ClipkitError("--compare interactions reads a table of users and items: pass --recipe two_tower")
    from clipkit.pairs import join_shards, open_shards

    names = source_names(config.data.train_data, config.data.train_weights)
    opened = [open_data(path, config, "train") for path in names]
    splits = [folder for _, folder in opened if folder is not None]
    left_out = tuple(bad for folder in splits for bad in left_out_of(folder))
    if len(opened) > 1:
        train = join_shards([shards for shards, _ in opened], config.data.train_weights)
    else:
        train = opened[0][0]
    held_out: dict[str, ShardSet] = {}
    if config.data.val_data is not None:
        held_out["val"], _ = open_data(config.data.val_data, config, "val")
    else:
        for name in ("val", "test"):
            found = [open_shards(place) for folder in splits if (place := split_folders(folder).get(name))]
            if found:
                held_out[name] = found[0] if len(found) == 1 else join_shards(found)
    return Pairs(train, held_out, left_out)


def source_names(data: str, weights: Sequence[float]) -> list[str]:
    """The sources of ``A::B``.

    Raises:
        ClipkitError: one of them is empty, or there are weights for a single one.
    """
    names = data.split("::")
    if not all(name.strip() for name in names):
        raise ClipkitError(f"{data!r}: a source without a name; expected a path, or several as A::B")
    if weights and len(names) == 1:
        raise ClipkitError("--train-weights are for several sources: --train-data A::B")
    return names


def say_left_out(folder: Path | None, console: Console) -> None:
    """Say what ``left_out_of`` names, the first five of it."""
    left_out = left_out_of(folder) if folder is not None else ()
    for bad in left_out[:5]:
        console.say(f"skipped {bad.where}: {bad.reason}")
    if len(left_out) > 5:
        console.say(f"skipped {len(left_out) - 5} more")


def left_out_of(folder: Path) -> tuple[Bad, ...]:
    """What was left out when the shards in ``folder`` were made; each ``where`` is a file of the source."""
    import json

    from clipkit.pairs import Bad

    listed = folder / "skipped.jsonl"
    if not listed.is_file():
        return ()
    entries = [json.loads(line) for line in listed.read_text(encoding="utf-8").split("\n") if line]
    return tuple(Bad(-1, entry["file"], entry["reason"]) for entry in entries)


def open_data(path: str, config: Config, split: str) -> tuple[ShardSet, Path | None]:
    """The shards of one split, and the folder of all its splits if it has such; sentences, where they are compared."""
    if config.data.compare == "sentences" and Path(path).suffix.lower() in SENTENCES:
        from clipkit.row_tables import open_sentences

        return open_sentences(path, config.data.separator, config.data.encoding, config.data.caption_column), None
    from clipkit.pairs import PipeSet, is_pipe, is_remote, open_shards

    if is_remote(path):
        return open_shards(path), None
    if is_pipe(path):
        if config.optim.max_steps is None or split != "train" or "::" in str(config.data.train_data):
            raise ClipkitError(f"{path}: a pipe is for training, alone, and needs --max-steps, as its end is not known")
        return PipeSet(path, config.optim.max_steps * config.optim.batch_size), None
    folder = Path(path)
    if not folder.exists() and not any(c in path for c in "*?[{"):
        raise ClipkitError(f"{path}: no such file or folder")
    is_table = folder.is_file() and folder.suffix.lower() != ".tar"
    is_pictures = folder.is_dir() and not any(folder.glob("*.tar")) and not any(folder.glob("*/*.tar"))
    if is_table or is_pictures:
        from data_prep import cached_shards

        data = config.data
        folder = cached_shards(
            folder,
            image_column=data.image_column,
            caption_column=data.caption_column,
            image_root=data.image_root,
            encoding=data.encoding,
            separator=data.separator,
            captions_optional=data.pictures_alone,
        )
        root = Path(path) if is_pictures else Path(path).parent
        return open_shards(split_folders(folder).get(split, folder / "train"), path, root.resolve()), folder
    if place := split_folders(folder).get(split):
        return open_shards(place), folder
    if _named_splits(folder.resolve().parent).get(split) == [folder.resolve()]:  # the others are beside it
        return open_shards(path), folder.parent
    return open_shards(path), None


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders of shards in ``folder`` that are named like splits, by the split: ``validation`` holds ``val``.

    Raises:
        ClipkitError: two of them are one split.
    """
    found = _named_splits(folder)
    for split, places in found.items():
        if len(places) > 1:
            names = " and ".join(place.name for place in places)
            raise ClipkitError(f"{folder}: {names} are both the split {split}; name the one that is meant")
    return {split: places[0] for split, places in found.items()}


def _named_splits(folder: Path) -> dict[str, list[Path]]:
    from data_prep.records import SPLIT_NAMES

    found: dict[str, list[Path]] = {}
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        split = SPLIT_NAMES.get(place.name.lower())
        if split and any(place.glob("*.tar")):
            found.setdefault(split, []).append(place)
    return found
