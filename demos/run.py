"""What a run directory tells of itself: its facts, its curves, its report and the card of its data. No page here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from clipkit.inference import Aligner
from clipkit.training.report import read_metrics
from clipkit.training.report.html import finite
from clipkit.training.report.sections import training

_REPORT, _CARD, _SHEET = "report.html", "data_card.md", "contact_sheet.jpg"
_MOST = 16 << 20  # bytes of a report that the page takes


@dataclass(frozen=True)
class RunTold:
    """HTML of the facts and of the curves, the report as a whole document, the data card as Markdown, and the contact
    sheet as JPEG; None or empty where there is none."""

    facts: str
    curves: str
    report: str | None
    card: str | None
    sheet: bytes | None


def read_run(model: Aligner, run: Path) -> RunTold:
    """Whatever is there; a run that was stopped early has less to tell, and a model without a run only its facts."""
    records = [r for r in read_metrics(run / "metrics.jsonl") if finite(r.get("step"))]
    train = [record for record in records if record.get("kind") == "train"]
    evals = [record for record in records if record.get("kind") == "eval"]
    config = _config(run)
    folder = data_folder(run, config)
    card, sheet = data_card(folder) if folder is not None else (None, None)
    return RunTold(_facts(model, config, train), training(train, evals), _report(run / _REPORT), card, sheet)


def data_folder(run: Path, config: dict[str, Any]) -> Path | None:
    """The prepared data of a run: what it was trained on, or where the pictures of its index are."""
    said = str(config.get("train_data") or "").split("::")
    candidates = [Path(name) for name in said if name and "://" not in name and not name.startswith("pipe:")]
    for place in [*candidates, *_indexed(run)]:
        for folder in (place, place.parent, place.parent.parent):
            if (folder / "dataset.json").is_file():
                return folder
    return None


def data_card(folder: Path) -> tuple[str | None, bytes | None]:
    """The data card of prepared data as Markdown, and its contact sheet; made now where it was not made before."""
    try:
        if (folder / _CARD).is_file():
            text = (folder / _CARD).read_text(encoding="utf-8", errors="replace")
            sheet = (folder / _SHEET).read_bytes() if (folder / _SHEET).is_file() else None
        else:
            from data_prep.card import card_text, statistics
            from data_prep.filters import shards_of
            from data_prep.sheet import contact_sheet

            text = card_text(statistics(folder))
            sheet = contact_sheet([path for _, path in shards_of(folder)])
    except (OSError, ValueError, KeyError, TypeError):  # shards of another writer have no tables to make it from
        return None, None
    # the page shows the sheet below, and has its own heading
    lines = [line for line in text.splitlines() if not line.startswith(("![", "# "))]
    return "\n".join(lines).strip(), sheet


def report_frame(document: str) -> str:
    """The report in a frame of its own, so that neither's style reaches the other; nothing in it is executed."""
    return f'<iframe class="ck-report" title="Evaluation report" sandbox="" srcdoc="{escape(document)}"></iframe>'


def _indexed(run: Path) -> Iterator[Path]:
    """A file of the run's index."""
    try:
        header = json.loads((run / "index" / "index.json").read_text(encoding="utf-8"))
        yield from map(Path, pq.read_table(run / "index" / header["items"], columns=["path"])["path"][:1].to_pylist())
    except (OSError, ValueError, KeyError, TypeError):
        return


def _config(run: Path) -> dict[str, Any]:
    try:
        read = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return read if isinstance(read, dict) else {}


def _report(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= _MOST else None
    except (OSError, ValueError):
        return None


def _facts(model: Aligner, config: dict[str, Any], train: list[dict[str, Any]]) -> str:
    """What the model is, in a list of terms."""
    towers = [(f"{name.capitalize()} tower", tower) for name, tower in model.model.towers.items()]
    facts = {"Recipe": config.get("recipe"), "Data": config.get("train_data")}
    facts |= {name: f"{sum(p.numel() for p in tower.parameters()) / 1e6:,.1f} M parameters" for name, tower in towers}
    facts["Space"] = f"{model.embed_dim} dimensions, scale {model.scale:.3g}"
    sure = "a softmax over the labels" if model.kind == "softmax" else "each pair by itself (sigmoid)"
    facts["Probabilities"] = sure
    if train:
        facts["Trained"] = f"{train[-1]['step']:,} steps of {config.get('batch_size', '?')} pairs"
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items() if value)
    return f'<dl class="ck-facts">{rows}</dl>'


CSS = """
.ck-facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); gap: 0.75rem; }
.ck-facts dt { font-size: var(--text-xs); opacity: 0.75; }
.ck-facts dd { margin: 0; overflow-wrap: anywhere; }
.ck-curves {
  --ink: var(--body-text-color); --soft: color-mix(in srgb, var(--body-text-color) 75%, transparent);
  --line: var(--border-color-primary);
  --one: var(--color-accent); --two: #d97706;
}
.ck-curves section > header { display: none; }
.ck-curves .curves {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem;
}
.ck-curves figure { margin: 0; min-width: 0; }
.ck-curves figcaption { font-size: var(--text-sm); font-weight: 600; }
.ck-curves figcaption span { font-weight: 400; opacity: 0.75; }
.ck-curves svg { display: block; width: 100%; height: auto; overflow: visible; }
.ck-report {
  display: block; width: 100%; height: min(80vh, 56rem); border: 1px solid var(--border-color-primary);
  border-radius: 8px; color-scheme: light dark;
}
.ck-card-of-data { padding: 0 var(--size-3); overflow-x: auto; }
.ck-card-of-data table { width: auto; }
"""
