"""Files of sentences and of interactions, as people have them, to rows."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config import DataConfig
from clipkit.errors import ClipkitError
from clipkit.evaluation import leave_one_out
from clipkit.pairs.captions import clean_caption
from clipkit.pairs.interactions import CodeTable, InteractionSet
from clipkit.pairs.negatives import FIELDS
from clipkit.pairs.rows import RowSet

FIRST = ("sentence1", "anchor", "query", "question", "sentence", "text", "caption", "premise")
SECOND = ("sentence2", "positive", "paraphrase", "answer", "entailment")
USER = ("user", "user_id", "userid", "customer", "customer_id", "reader", "visitor_id")
ITEM = ("item", "item_id", "itemid", "product", "product_id", "article_id", "movie", "movie_id", "movieid", "book_id")
TIME = ("timestamp", "time", "date", "datetime", "unixtime")


def open_sentences(
    path: str | Path, separator: str | None = None, encoding: str | None = None, column: str | None = None
) -> RowSet:
    """Sentences to train on: a text file with one a line, or a table.

    A table (CSV, TSV, JSONL, parquet) has a column of sentences (``column``), perhaps one of their paraphrases, perhaps
    one of sentences that are near and mean something else; known names are in ``FIRST``, ``SECOND`` and ``FIELDS``.

    Raises:
        ClipkitError: no such file, no sentence in it, or no column of a known name.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipkitError(f"{path}: no such file; sentences come as a text file, one a line, or as a table")
    if path.suffix.lower() == ".txt":
        return _checked(path, [(clean_caption(line),) for line in _lines(path, encoding) if line.strip()], None)
    columns, rows = _table(path, separator, encoding)
    if column is not None and column not in columns:
        raise ClipkitError(f"{path}: --caption-column {column}: no such column; there are {', '.join(columns)}")
    first, second, negative = (_known(columns, names) for names in (FIRST, SECOND, FIELDS))
    first = column or first
    if first is None:
        raise ClipkitError(
            f"{path}: no column of sentences among {', '.join(columns) or 'none'}; pass --caption-column, or name it "
            f"{' or '.join(FIRST[:3])}, and that of its paraphrase {SECOND[0]} or {SECOND[1]}"
        )
    captions: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    for row in rows:
        texts = [clean_caption(str(row.get(column) or "")) for column in (first, second) if column]
        texts = [text for text in texts if text]
        if texts:
            captions.append(tuple(texts))
            records.append({"negative": str(row[negative])} if negative and row.get(negative) else {})
    return _checked(path, captions, records)


def open_interactions(data: DataConfig) -> dict[str, InteractionSet]:
    """``--train-data`` as interactions: each user's last item is held out for ``test``, the last of the rest for
    ``val``, and ``train`` has what is left (``clipkit.evaluation.leave_one_out``), every item of a user once.

    Raises:
        ClipkitError: no file, unknown columns, or nothing to learn from.
    """
    if data.train_data is None:
        raise ClipkitError("no --train-data: give a table of interactions with a column of users and one of items")
    return dict(_interactions(data, _stamp(data.train_data, data.user_features, data.item_features)))


@lru_cache(maxsize=2)
def _interactions(data: DataConfig, stamp: tuple[Any, ...]) -> dict[str, InteractionSet]:
    path = Path(str(data.train_data))
    columns, rows = _table(path, data.separator, data.encoding)
    user, item = (
        _column(path, columns, given, known, what)
        for given, known, what in ((data.user_column, USER, "user"), (data.item_column, ITEM, "item"))
    )
    time = data.time_column or _known(columns, TIME)
    if time is not None and time not in columns:
        raise ClipkitError(f"{path}: --time-column {time}: no such column; there are {', '.join(columns)}")
    named = [(_id(r.get(user)), _id(r.get(item)), r.get(time) if time else None) for r in rows]
    pairs = [(name, thing, moment) for name, thing, moment in named if name is not None and thing is not None]
    if not pairs:
        raise ClipkitError(f"{path}: not one row with both a {user} and an {item}")
    if len(pairs) < len(named):
        warnings.warn(f"{path}: {len(named) - len(pairs):,} rows without {user} or {item} are left out", stacklevel=2)
    if time is not None:
        pairs.sort(key=lambda pair: _moment(f"{path}: {time} of {user} {pair[0]} and {item} {pair[1]}", pair[2]))
    users, items = (
        _code_table(list(dict.fromkeys(names)), file, key, data, flag)
        for names, file, key, flag in (
            ([name for name, _, _ in pairs], data.user_features, user, "--user-features"),
            ([thing for _, thing, _ in pairs], data.item_features, item, "--item-features"),
        )
    )
    row_of_user, row_of_item = ({name: row for row, name in enumerate(table.names)} for table in (users, items))
    rows_R = np.array([(row_of_user[name], row_of_item[thing]) for name, thing, _ in pairs])
    arrays = {}
    for split in ("test", "val"):
        held = leave_one_out(rows_R[:, 0], rows_R[:, 1])
        arrays[split] = np.stack([held.users, held.held_out], axis=1)
        rows_R = rows_R[held.train_R]
    arrays["train"] = np.array(list(dict.fromkeys(map(tuple, rows_R.tolist()))))
    counts = np.bincount(arrays["train"][:, 1], minlength=len(items.names))
    seen = _seen(arrays["train"], len(users.names))
    before_test = _seen(np.concatenate([arrays["train"], arrays["val"]]), len(users.names))
    share = np.maximum(counts, 1) / counts.sum()
    return {
        name: InteractionSet(
            f"{path} {name}", users, items, rows[:, 0], rows[:, 1], before_test if name == "test" else seen, share
        )
        for name, rows in arrays.items()
        if len(rows)
    }


def plain_table(table: CodeTable) -> dict[str, Any]:
    """``table`` as plain data: names, columns, the codes' values, and the codes."""
    return {
        "names": list(table.names),
        "columns": list(table.columns),
        "values": [list(values) for values in table.values],
        "codes": table.codes.tolist(),
    }


def _id(value: Any) -> str | None:
    """The name that a user or an item goes by, None if there is none: 7 and 7.0 are the same, as a column of whole
    numbers with a gap is read as floating."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _code_table(names: list[str], features: str | None, key: str, data: DataConfig, flag: str) -> CodeTable:
    """A table of ``names``, with the columns of the file of features."""
    columns: list[str] = []
    known: dict[str, dict[str, Any]] = {}
    if features is not None:
        path = Path(features)
        found, rows = _table(path, data.separator, data.encoding)
        if key not in found:
            others = ", ".join(found) or "none"
            raise ClipkitError(f"{flag} {path}: no column {key!r} to join on; there are {others}")
        columns = [column for column in found if column != key]
        known = {own: row for row in rows if (own := _id(row.get(key))) is not None}
        if not known.keys() & set(names):
            first = next(iter(known), None)
            raise ClipkitError(f"{flag} {path}: its {key} are none of the data's, as {first!r} is not {names[0]!r}")
    values, codes = [tuple(names)], [np.arange(1, len(names) + 1)]
    for column in columns:
        cells = ["" if (v := known.get(name, {}).get(column)) is None else str(v) for name in names]
        there = tuple(sorted(set(cells) - {""}))
        number = {value: code for code, value in enumerate(there, start=1)}
        values.append(there)
        codes.append(np.array([number.get(cell, 0) for cell in cells]))
    return CodeTable(tuple(names), np.stack(codes, axis=1).astype(np.int64), (key, *columns), tuple(values))


def _seen(train: NDArray[np.int64], n_users: int) -> list[NDArray[np.int64]]:
    ordered = train[np.argsort(train[:, 0], kind="stable")]
    first = np.searchsorted(ordered[:, 0], np.arange(n_users + 1))
    return [ordered[start:stop, 1] for start, stop in pairwise(first)]


def _column(path: Path, columns: list[str], given: str | None, known: tuple[str, ...], what: str) -> str:
    found = given if given in columns else None if given else _known(columns, known)
    if found is None:
        raise ClipkitError(
            f"{path}: no column {given or f'of {what}s'}; there are {', '.join(columns) or 'none'}: pass "
            f"--{what}-column"
        )
    return found


def _moment(where: str, value: Any) -> float:
    """A number that orders times: of numbers, dates, and what ISO 8601 writes."""
    from datetime import date, datetime

    try:
        if isinstance(value, date):
            value = value.isoformat()
        try:
            moment = float(value)
        except ValueError:
            moment = datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, TypeError, OverflowError):
        moment = math.nan
    if not math.isfinite(moment):
        raise ClipkitError(
            f"{where} is {value!r}; expected a number or a date as 2024-05-31 12:00:00: mend or delete the row, or "
            f"name another --time-column"
        )
    return moment


def _stamp(*files: str | None) -> tuple[Any, ...]:
    """What changes when one of ``files`` does."""
    return tuple((p.stat().st_mtime_ns, p.stat().st_size) for f in files if f and (p := Path(f)).is_file())


def _checked(path: Path, captions: list[tuple[str, ...]], records: list[dict[str, Any]] | None) -> RowSet:
    if not captions:
        raise ClipkitError(f"{path}: not one sentence in it")
    return RowSet(str(path), captions, records)


def _table(path: Path, separator: str | None, encoding: str | None) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and readable rows of a table."""
    from data_prep.records import Skipped
    from data_prep.table_rows import repeated, table_rows

    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise ClipkitError(f"{path}: {what}; give one table (CSV, TSV, JSONL or parquet)")
    columns, rows = table_rows(path, separator, encoding, (*FIRST, *SECOND, *USER, *ITEM))
    if twice := repeated(columns):
        raise ClipkitError(f"{path}: two columns are called {twice!r}; give them different names")
    return columns, [row for row in rows if not isinstance(row, Skipped)]


def _known(columns: list[str], names: tuple[str, ...]) -> str | None:
    """The column with the first of ``names``, in whatever case."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)


def _lines(path: Path, encoding: str | None) -> list[str]:
    try:
        return path.read_text(encoding=encoding or "utf-8-sig").split("\n")
    except (UnicodeDecodeError, LookupError) as error:
        raise ClipkitError(f"{path}: not {encoding or 'UTF-8'} text ({error}); pass --encoding") from None
