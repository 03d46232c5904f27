"""The data card: what is in a data set, for people (``data_card.md``), for programs (``stats.json``) and for the eye
(``contact_sheet.jpg``). All of it is made from the finished data set, so it can be made again at any time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipkit.cache import atomic_write
from data_prep.filters import judged, read_filters, shards_of
from data_prep.scores import read_scores
from data_prep.sheet import contact_sheet

_SHOWN = 12  # labels, languages and reasons that a table of the card lists


def write_card(out: Path) -> None:
    """Write the three files for the data set at ``out``.

    Raises:
        ClipkitError: there is no data set, or a table of it is damaged.
    """
    stats = statistics(out)
    with atomic_write(out / "stats.json") as file:
        file.write(json.dumps(stats, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace") + b"\n")
    with atomic_write(out / "contact_sheet.jpg") as file:
        file.write(contact_sheet([path for _, path in shards_of(out)]))
    with atomic_write(out / "data_card.md") as file:
        file.write(card_text(stats).encode("utf-8", "backslashreplace"))


def statistics(out: Path) -> dict[str, Any]:
    """Counts and distributions of the data set at ``out``, as plain JSON values."""
    dataset = json.loads((out / "dataset.json").read_bytes())
    tables: dict[str, list[Any]] = {}
    for split, path in shards_of(out):
        tables.setdefault(split, []).append(read_scores(path))
    return {
        "source": dataset["source"],
        "fingerprint": dataset["fingerprint"],
        "license": dataset["license"],
        "splits": {split: _split_statistics(parts) for split, parts in tables.items()},
        "filters": _filter_statistics(out),
        "left_out": _left_out(out),
    }


def _split_statistics(tables: list[Any]) -> dict[str, Any]:
    import pyarrow as pa

    table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    column = {name: table[name].to_pylist() for name in table.column_names}
    sides = [min(size) for size in zip(column["source_width"], column["source_height"], strict=True)]
    scored = [score for score in column["clip_score"] if score is not None]
    labels = Counter(label for label in column["label"] if label is not None)
    return {
        "pictures": len(table),
        "captions": sum(column["captions"]),
        "shards": len(tables),
        "bytes": sum(column["bytes"]),
        "shorter_side_in_source": _spread(sides),
        "stored_width": _spread(column["width"]),
        "stored_height": _spread(column["height"]),
        "captions_per_picture": _spread(column["captions"]),
        "shortest_caption_words": _spread(column["shortest_words"]),
        "longest_caption_words": _spread(column["longest_words"]),
        "languages": dict(Counter(code for code in column["language"] if code is not None).most_common()),
        "labels": dict(labels.most_common()),
        "copies": sum(first is not None for first in column["copy_of"]),
        "clip_score": _spread(scored) if scored else None,
    }


def _spread(values: list[Any]) -> dict[str, float]:
    """Smallest, median, largest and mean."""
    ordered = sorted(values)
    return {
        "min": ordered[0],
        "p5": ordered[len(ordered) // 20],
        "median": ordered[len(ordered) // 2],
        "p95": ordered[-(len(ordered) // 20) - 1],
        "max": ordered[-1],
        "mean": round(sum(ordered) / len(ordered), 2),
    }


def _filter_statistics(out: Path) -> dict[str, Any] | None:
    """Thresholds, and how many samples each hides."""
    filters = read_filters(out)
    if filters is None:
        return None
    hidden: dict[str, Counter[str]] = {}
    shards = list(shards_of(out))
    judgements = judged([(path, read_scores(path)) for _, path in shards], filters)
    for (split, _), (keep, reasons) in zip(shards, judgements, strict=True):
        hidden.setdefault(split, Counter()).update({"hidden": int((~keep).sum()), **reasons})
    set_ones = {name: value for name, value in vars(filters).items() if value not in (None, (), False)}
    return {"thresholds": set_ones, "splits": {split: dict(counts) for split, counts in hidden.items()}}


def _left_out(out: Path) -> dict[str, Any]:
    """How much was left out, by reason; names and numbers in a reason are taken out, so that like comes to like."""
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    if (out / "skipped.jsonl").is_file():
        for line in filter(None, (out / "skipped.jsonl").read_text(encoding="utf-8").split("\n")):
            entry = json.loads(line)
            reason = plain_reason(entry["reason"])
            reasons[reason] += 1
            examples.setdefault(reason, entry["file"])
    listed = [{"reason": reason, "count": n, "example": examples[reason]} for reason, n in reasons.most_common()]
    return {"total": sum(reasons.values()), "reasons": listed}


def plain_reason(reason: str) -> str:
    """A reason without what is particular to one picture."""
    reason = re.sub(r"^a copy of .*?(, which is in \w+|, which has its captions now|)$", r"a copy of another\1", reason)
    reason = re.sub(r"there is no .* beside it", "there is no .txt beside it", reason)
    reason = re.sub(r"nothing is written in .*", "nothing is written in its .txt", reason)
    return re.sub(r"\d[\d,.]*", "N", reason)


def card_text(stats: dict[str, Any]) -> str:
    """The card as Markdown."""
    lines = ["# Data card", "", f"Made from `{_inline(stats['source'])}`, fingerprint `{stats['fingerprint']}`."]
    if stats["license"]:
        lines += ["", f"Licence: {stats['license']}"]
    lines += ["", "![Some of the pictures with their captions](contact_sheet.jpg)", "", "## Samples", ""]
    lines += _table(["", *stats["splits"]], _sample_rows(stats["splits"].values()))
    for name, title in (("languages", "Languages"), ("labels", "Labels")):
        counts: Counter[str] = Counter()
        for split in stats["splits"].values():
            counts.update(split[name])
        if counts:
            lines += ["", f"## {title}", "", *_table([title.lower(), "pictures"], _top(counts))]
    if not any(split["languages"] for split in stats["splits"].values()):
        lines += ["", 'Languages: nobody looked (`pip install "clipkit[prepare]"`).']
    lines += ["", "## Left out", ""]
    if stats["left_out"]["total"]:
        lines += [f"{stats['left_out']['total']:,} in all, each one listed in `skipped.jsonl`.", ""]
        rows = [[r["reason"], f"{r['count']:,}", f"`{_inline(r['example'])}`"] for r in stats["left_out"]["reasons"]]
        lines += _table(["reason", "count", "example"], rows[:_SHOWN])
    else:
        lines += ["Nothing."]
    lines += ["", "## Hidden by filters", "", *_filter_lines(stats["filters"])]
    return "\n".join(lines) + "\n"


def _sample_rows(splits: Iterable[dict[str, Any]]) -> list[list[str]]:
    splits = list(splits)

    def spread(name: str) -> list[str]:
        return [f"{s[name]['min']:,} / {s[name]['median']:,} / {s[name]['max']:,}" if s[name] else "" for s in splits]

    rows = [
        ["pictures", *(f"{s['pictures']:,}" for s in splits)],
        ["captions", *(f"{s['captions']:,}" for s in splits)],
        ["copies of an earlier picture", *(f"{s['copies']:,}" for s in splits)],
        ["shards", *(f"{s['shards']:,}" for s in splits)],
        ["pictures' bytes", *(f"{s['bytes'] / 1e6:,.1f} MB" for s in splits)],
        ["shorter side in the source, min / median / max px", *spread("shorter_side_in_source")],
        ["stored width, min / median / max px", *spread("stored_width")],
        ["stored height, min / median / max px", *spread("stored_height")],
        ["captions of a picture, min / median / max", *spread("captions_per_picture")],
        ["words of its shortest caption, min / median / max", *spread("shortest_caption_words")],
        ["words of its longest caption, min / median / max", *spread("longest_caption_words")],
    ]
    if any(s["clip_score"] for s in splits):
        scores = [s["clip_score"] for s in splits]
        said = [f"{c['min']:.2f} / {c['median']:.2f} / {c['max']:.2f}" if c else "" for c in scores]
        rows.append(["CLIP score, min / median / max", *said])
    return rows


def _filter_lines(filters: dict[str, Any] | None) -> list[str]:
    if filters is None:
        return ["Nothing. `clipkit filter` hides samples by their scores and brings them back."]
    said = ", ".join(f"{name} {value}" for name, value in filters["thresholds"].items())
    rows = [
        [split, *(f"{counts.get(name, 0):,}" for name in ("hidden", *_filter_names(filters)))]
        for split, counts in filters["splits"].items()
    ]
    return [f"Thresholds: {said or 'none'}.", "", *_table(["split", "hidden", *_filter_names(filters)], rows)]


def _filter_names(filters: dict[str, Any]) -> list[str]:
    return [name for name in next(iter(filters["splits"].values())) if name != "hidden"]


def _top(counts: Counter[str]) -> list[list[str]]:
    rows = [[_inline(name), f"{n:,}"] for name, n in counts.most_common(_SHOWN)]
    if len(counts) > _SHOWN:
        rest = sum(counts.values()) - sum(n for _, n in counts.most_common(_SHOWN))
        rows.append([f"{len(counts) - _SHOWN:,} others", f"{rest:,}"])
    return rows


def _table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *(line(row) for row in rows)]


def _inline(text: str) -> str:
    """``text`` on one line and without backticks, whatever a file name holds."""
    return " ".join(str(text).replace("`", "'").split())
