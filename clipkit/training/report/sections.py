"""The report's account of the run: its headline, its curves, its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from clipkit.training.report.figures import Line, curve, smooth
from clipkit.training.report.html import count, finite, percent, section
from clipkit.training.report.scores import DIRECTIONS

Report = Mapping[str, Any]


def headline(title: str, train: Sequence[Report], reports: Mapping[str, Report], notes: Sequence[str]) -> str:
    """The run in one sentence, and its plain facts in a second one."""
    facts = []
    if train:
        last = train[-1]
        facts.append(count(int(last["step"]), "step"))
        for key, text in (
            ("epoch", "{:.3g} epochs"),
            ("loss", "last loss {:.3g}"),
            ("scale", "scale {:.3g}"),
        ):
            if finite(last.get(key)):
                facts.append(text.format(last[key]))
        speeds = [r["samples_per_second"] for r in train if finite(r.get("samples_per_second"))]
        if speeds:
            facts.append(f"{np.median(speeds):,.0f} samples a second")
    lines = [", ".join(facts) + "."] if facts else []
    lines += [escape(note) for note in notes]
    return f'<h1>{escape(title)}</h1>\n<p class="lede">{escape(_lede(train, reports))}</p>\n' + "\n".join(
        f'<p class="facts">{line}</p>' for line in lines
    )


def _lede(train: Sequence[Report], reports: Mapping[str, Report]) -> str:
    """What the first report says, as a sentence for somebody who does not know what recall@k is."""
    for report in reports.values():
        if report.get("kind") == "recommendation":
            k, recall = next(iter(report["recall"].items()))
            return (
                f"The next item of {report['n_users']:,} users is among its first {k} suggestions, of "
                f"{report['n_items']:,} items, for {percent(recall['value'])}; guessing would find "
                f"{percent(report['chance_recall'][k])}."
            )
        shown = f"Shown {report.get('n_images', report.get('n_test', 0)):,} pictures"
        if "top1" in report:
            named, chance = percent(report["top1"]["value"]), percent(report["chance"])
            among = f"among {len(report['class_names']):,} classes"
            return f"{shown}, it names the class of {named} of them, {among}; guessing would name {chance}."
        k, recall = next(iter(report["image_to_text"].items()))
        found, chance = percent(recall["value"]), percent(report["chance_image_to_text"][k])
        place = "at the first try" if k == "1" else f"in {k} tries"
        return (
            f"{shown}, it finds a right caption for {found} of them {place}, among {report['n_texts']:,}; "
            f"guessing would find {chance}."
        )
    if train:
        return "The run has been trained; it has not been evaluated yet."
    return "Nothing has been recorded yet."


def training(train: Sequence[Report], evals: Sequence[Report]) -> str:
    """Loss, temperature and recall over the steps, then learning rate and gradient norm."""
    figures = []
    for key, name, unit in (
        ("loss", "Loss", ""),
        ("scale", "Temperature", "as the scale 1/τ"),
        ("lr", "Learning rate", ""),
        ("grad_norm", "Gradient norm", ""),
    ):
        points = [(record["step"], _value(record, key)) for record in train]
        if not any(finite(y) for _, y in points):
            continue
        x, y = [p[0] for p in points], [p[1] if finite(p[1]) else math.nan for p in points]
        lines = [Line(x, y)]
        if key in ("loss", "grad_norm") and len(points) > 12:
            unit = "each record, and smoothed"
            lines = [Line(x, y, faint=True), Line(x, smooth(y))]
        last = [value for value in y if math.isfinite(value)][-1]
        svg = curve(lines, alt=f"{name} over {len(points)} records, last {last:.4g}")
        figures.append(f"<figure><figcaption>{name} <span>{unit}</span></figcaption>{svg}</figure>")
    figures[1:1] = _recall_history(evals)
    if not figures:
        return ""
    about = f"<p>{count(len(train), 'training record')}, {count(len(evals), 'evaluation')}.</p>"
    return section("How it got there", about, f'<div class="curves">{"".join(figures)}</div>')


def _recall_history(evals: Sequence[Report]) -> list[str]:
    """Recall@1 of both directions (or the smallest k there is) over the evaluations made during training."""
    keys = {key for record in evals for key in record if key.startswith(tuple(f"{d}@" for d in DIRECTIONS))}
    ks = sorted({int(key.split("@")[1]) for key in keys if key.split("@")[1].isdigit()})
    if not ks:
        return []
    lines = []
    for (direction, label), color in zip(DIRECTIONS.items(), ("one", "two"), strict=True):
        points = [(r["step"], r[f"{direction}@{ks[0]}"]) for r in evals if finite(r.get(f"{direction}@{ks[0]}"))]
        if points:
            lines.append(Line([p[0] for p in points], [p[1] for p in points], label, color, markers=True))
    if not lines:
        return []
    alt = f"Recall at {ks[0]} during training: " + ", ".join(f"{li.label} ends at {percent(li.y[-1])}" for li in lines)
    svg = curve(lines, alt=alt, percent=True)
    return [f"<figure><figcaption>Recall@{ks[0]} <span>during training</span></figcaption>{svg}</figure>"]


def details(config: str, environment: Mapping[str, Any]) -> str:
    """The resolved configuration and what the run ran on, folded."""
    parts = []
    if config.strip():
        parts.append(f"<details><summary>config.yaml</summary><pre>{escape(config.strip())}</pre></details>")
    if environment:
        width = max(map(len, environment))
        text = "\n".join(f"{name:<{width}}  {value}" for name, value in environment.items())
        parts.append(f"<details><summary>Environment</summary><pre>{escape(text)}</pre></details>")
    return section("To do it again", "", "".join(parts)) if parts else ""


def thanks(credits: Sequence[str]) -> str:
    """Whose the pictures are: many licences want it said wherever they are shown."""
    return section("Pictures by", "", "".join(f"<p>{escape(line)}</p>" for line in credits)) if credits else ""


def _value(record: Report, key: str) -> Any:
    """A record's value; the scale may have been written as its logarithm only."""
    if key == "scale" and "scale" not in record and finite(record.get("log_scale")):
        return math.exp(record["log_scale"])
    return record.get(key)
