"""Hugging Face data sets: a folder that ``save_to_disk`` wrote, a folder of parquet files, or a name on the hub.

Folders are read with pyarrow alone. A name needs the package ``datasets``, which fetches it; it is then saved to the
cache and read like every other folder. Pictures stay where they are and are read again when they are needed, so that a
data set larger than the memory can be prepared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit.errors import ClipkitError
from clipkit.pairs.mask import SCORES_SUFFIX
from data_prep.cells import rows_with_cells
from data_prep.records import Source
from data_prep.tables import CAPTION_COLUMNS, IMAGE_COLUMNS, RowOptions, find_captions, find_column, grouped_records

if TYPE_CHECKING:
    import pyarrow as pa

_SPLIT = re.compile(r"(?:^|[/_-])(train|validation|valid|val|dev|test)(?:ing)?(?:[/_.-]|$)")
_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
_MADE = "caption made of the class"  # a column beside those of the data set


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote ``folder``."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def is_parquet_folder(folder: Path) -> bool:
    """Whether ``folder`` holds parquet files of rows, at the top or below ``data``; scores beside shards are none."""
    return any(True for _ in _parquet_files(folder))


def read_dataset(folder: Path, rows: RowOptions) -> Source:
    """Records of a saved data set or of a folder of parquet files.

    Raises:
        ClipkitError: a file of it is damaged, a column is not there, or no row can be used.
    """
    if is_saved(folder):
        files = [(split, path) for split, part in _saved_parts(folder) for path in _arrow_files(part)]
    else:
        files = [(_split_of(path.relative_to(folder).as_posix()), path) for path in _parquet_files(folder)]
    if not files:
        raise ClipkitError(f"{folder}: a Hugging Face data set without data (no .arrow or .parquet file)")
    schema = _schema(files[0][1])
    image = find_column(folder, schema.names, rows.image_column, IMAGE_COLUMNS, "pictures", "image")
    known = (*CAPTION_COLUMNS, "label")
    caption = find_captions(folder, schema.names, rows.caption_column, known, rows.captions_optional)
    names = _class_names(schema, folder)

    def cells() -> Iterator[dict[str, Any]]:
        for split, path in files:
            for row in rows_with_cells(path, [image]):
                for column, labels in names.items():
                    if isinstance(row.get(column), int) and 0 <= row[column] < len(labels):
                        row[column] = labels[row[column]]
                if caption in names and isinstance(row.get(caption), str):
                    label = " ".join(row.pop(caption).replace("_", " ").split())
                    row.update({"label": label, _MADE: rows.template.replace("{}", label)})
                yield {**row, "split": split or row.get("split")}

    return grouped_records(folder, cells(), image, _MADE if caption in names else caption, rows)


def fetch_dataset(name: str, cache: Path) -> Path:
    """The folder of the data set that the hub calls ``name``, fetched on first use.

    Raises:
        ClipkitError: the package ``datasets`` is not there, or the hub has no such data set or cannot be reached.
    """
    place = cache / "huggingface" / re.sub(r"[^A-Za-z0-9_.-]+", "--", name)
    if is_saved(place):
        return place
    try:
        import datasets
    except ImportError:
        raise ClipkitError(
            f"{name}: no such file or folder; if it is a data set on the Hugging Face hub, fetching it needs "
            f'pip install "clipkit[hub]"'
        ) from None
    try:
        datasets.load_dataset(name).save_to_disk(str(place))
    except Exception as error:  # of the hub, the network, the data set's own files
        said = " ".join(str(error).split()) or type(error).__name__
        raise ClipkitError(f"{name}: cannot be fetched from the Hugging Face hub ({said[:160]})") from None
    return place


def _saved_parts(folder: Path) -> list[tuple[str | None, Path]]:
    if not (folder / "dataset_dict.json").is_file():
        return [(None, folder)]
    try:
        names = json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
        return [(_split_of(name), folder / name) for name in names]
    except (ValueError, KeyError, TypeError):
        raise ClipkitError(f"{folder / 'dataset_dict.json'}: damaged; save the data set again") from None


def _arrow_files(part: Path) -> list[Path]:
    """The files of a saved split: those in its state.json, as ``map`` and ``filter`` leave others beside them."""
    state = part / "state.json"
    try:
        listed = json.loads(state.read_bytes()).get("_data_files") if state.is_file() else None
        named = [part / entry["filename"] for entry in listed or []]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ClipkitError(f"{state}: damaged; save the data set again") from None
    for path in named:
        if not path.is_file():
            raise ClipkitError(f"{path}: no such file, but {state} names it; save the data set again")
    return named or sorted(path for path in part.glob("*.arrow") if not path.name.startswith("cache-"))


def _parquet_files(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "data", *sorted(p for p in folder.glob("*") if p.is_dir() and p.name != "data")):
        yield from (path for path in sorted(place.glob("*.parquet")) if not path.name.endswith(SCORES_SUFFIX))


def _split_of(name: str) -> str | None:
    match = _SPLIT.search(name)
    return _SPLITS[match[1]] if match else None


def _schema(path: Path) -> pa.Schema:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path)
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).schema
    except (pa.ArrowException, OSError) as error:
        raise ClipkitError(f"{path}: damaged ({' '.join(str(error).split())[:160]})") from None


def _class_names(schema: pa.Schema, folder: Path) -> dict[str, list[str]]:
    """Column to the names of its classes, from what ``datasets`` leaves in the schema or in dataset_info.json."""
    found: dict[str, Any] = {}
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        found = stored.get("info", {}).get("features") or {}
        for info in [] if found else [folder / "dataset_info.json", *sorted(folder.glob("*/dataset_info.json"))]:
            if info.is_file():
                found = json.loads(info.read_bytes()).get("features") or {}
                break
        return {name: list(f["names"]) for name, f in found.items() if isinstance(f, dict) and f.get("names")}
    except (ValueError, AttributeError, TypeError):
        return {}
