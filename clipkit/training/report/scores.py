"""The report's figures: retrieval and zero-shot accuracy beside their baseline and chance."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from clipkit.training.report.figures import Line, curve
from clipkit.training.report.html import percent, section

Report = Mapping[str, Any]
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


def scores(reports: Mapping[str, Report]) -> str:
    """Every figure with its interval, beside its baseline and chance, a section for each report."""
    return "\n".join(_scores(name, report) for name, report in reports.items())


def _scores(name: str, report: Report) -> str:
    baseline = report.get("baseline")
    base_name = escape(str(report.get("baseline_name", "without training")))
    rows = ""
    base_blocks = _blocks(baseline) if baseline else {}
    for block, figures in _blocks(report).items():
        if block:
            rows += f'<tr class="block"><th colspan="5" scope="colgroup">{block}</th></tr>'
        for label, (interval, chance) in figures.items():
            base = base_blocks.get(block, {}).get(label)
            rows += _score_row(label, interval, chance, base and base[0], base_name if baseline else "")
    head = "<th></th><th>this run, 95 % interval</th>" + (f"<th>{base_name}</th>" if baseline else "")
    head += '<th>chance</th><th class="strip">0 to 100 %</th>'
    table = f'<table class="scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    key = '<span><i class="run"></i>this run and its interval</span>'
    if baseline:
        key += f'<span><i class="base"></i>{base_name}</span>'
    key += '<span><i class="guess"></i>chance</span>'
    about = f"<p>{escape(str(report.get('protocol', '')))}.</p>{_extra(report)}"
    return section(_pretty(name), about, f'{table}<p class="key">{key}</p>{_recall_curves(report)}')


def _blocks(report: Report) -> dict[str, dict[str, tuple[Report, float]]]:
    """Block → label → (interval, chance) for the figures of a report."""
    if "top1" in report:
        rows = {"top-1": (report["top1"], report["chance"])}
        if report.get("top5"):
            rows["top-5"] = (report["top5"], 5 * report["chance"])
        return {"": rows | {"mean per class": (report["mean_per_class"], report["chance"])}}
    if report.get("kind") == "recommendation":
        return {
            "": {
                f"{label}@{k}": (interval, report[f"chance_{key}"][k])
                for key, label in (("recall", "recall"), ("ndcg", "NDCG"))
                for k, interval in report[key].items()
            }
        }
    return {
        label: {f"recall@{k}": (interval, report[f"chance_{key}"][k]) for k, interval in report[key].items()}
        for key, label in DIRECTIONS.items()
    }


def _score_row(label: str, interval: Report, chance: float, base: Report | None, base_name: str) -> str:
    low, high = interval.get("low"), interval.get("high")
    span, marks = "", f'<s style="left:{100 * min(chance, 1):.2f}%"></s>'
    if base:
        marks += f'<s class="base" style="left:{100 * base["value"]:.2f}%"></s>'
    if low is not None and high is not None:
        span = f'<span class="soft"> {100 * low:.1f}–{100 * high:.1f}</span>'
        marks += f'<b style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></b>'
    marks += f'<u style="left:{100 * interval["value"]:.2f}%"></u>'
    base_value = percent(base["value"]) if base else "–"
    base_cell = f'<td class="num" data-name="{base_name}">{base_value}</td>' if base_name else ""
    return (
        f'<tr><th scope="row">{escape(label)}</th>'
        f'<td class="num"><span class="value">{percent(interval["value"])}</span>{span}</td>{base_cell}'
        f'<td class="num chance" data-name="chance">{percent(chance)}</td>'
        f'<td class="strip" aria-hidden="true"><i>{marks}</i></td></tr>'
    )


def _extra(report: Report) -> str:
    """What belongs beside the figures: the majority class, or the median ranks."""
    if "majority" in report:
        return f"<p>Always naming the commonest class would score {percent(report['majority'])}.</p>"
    if "median_rank_image_to_text" not in report:
        return ""
    return (
        f"<p>Median rank of the right caption: {report['median_rank_image_to_text']:,g} of "
        f"{report['n_texts']:,}; of the right picture: {report['median_rank_text_to_image']:,g} of "
        f"{report['n_images']:,}.</p>"
    )


def _recall_curves(report: Report) -> str:
    """Recall over k with its band, the untrained model's, and chance, a figure for each direction."""
    if len(report.get("image_to_text", ())) < 2:
        return ""
    figures = ""
    for key, label in DIRECTIONS.items():
        ks, intervals = [int(k) for k in report[key]], list(report[key].values())
        lines = [Line(ks, list(report[f"chance_{key}"].values()), "chance", "soft", dotted=True)]
        base = (report.get("baseline") or {}).get(key, {})
        if base:
            values = [interval["value"] for interval in base.values()]
            lines.append(Line([int(k) for k in base], values, "baseline", "two", markers=True))
        known = all(interval.get("low") is not None for interval in intervals)
        low = [interval["low"] for interval in intervals] if known else None
        high = [interval["high"] for interval in intervals] if known else None
        shares = [interval["value"] for interval in intervals]
        lines.append(Line(ks, shares, "this run", low=low, high=high, markers=True))
        alt = f"Recall at k, {label}: " + ", ".join(f"@{k} {percent(s)}" for k, s in zip(ks, shares, strict=True))
        svg = curve(lines, alt=alt, x_label="k", percent=True, x_ticks=ks)
        figures += f"<figure><figcaption>Recall@k <span>{label}</span></figcaption>{svg}</figure>"
    return f'<div class="curves">{figures}</div>'


def classes(reports: Mapping[str, Report], most: int = 30) -> str:
    """Accuracy of each class as bars, and the commonest confusions."""
    parts = []
    for name, report in reports.items():
        if report.get("kind") != "zero_shot":
            continue
        counts = dict(zip(report["class_names"], report["class_counts"], strict=True))
        ordered = sorted(report["per_class"].items(), key=lambda item: (-item[1]["value"], item[0]))
        bars = [_bar(label, interval["value"], counts[label], report["chance"]) for label, interval in ordered]
        shown = f'<dl class="bars">{"".join(bars[:most])}</dl>'
        if len(bars) > most:
            rest = "".join(bars[most:])
            shown += f'<details><summary>{len(bars) - most:,} more</summary><dl class="bars">{rest}</dl></details>'
        about = "<p>Accuracy of each class, best first, and its number of pictures. Dotted: chance.</p>"
        about += _confusions(report)
        parts.append(section(f"{_pretty(name)}, by class", about, shown))
    return "\n".join(parts)


def _bar(label: str, share: float, count: int, chance: float) -> str:
    return (
        f'<dt>{escape(label)}</dt><dd class="bar"><b style="width:{100 * share:.1f}%"></b>'
        f'<s style="left:{100 * chance:.1f}%"></s></dd>'
        f'<dd class="num">{percent(share)} <span class="soft">of {count:,}</span></dd>'
    )


def _confusions(report: Report, most: int = 4) -> str:
    confusion = np.array(report["confusion"])
    np.fill_diagonal(confusion, 0)
    names = report["class_names"]
    found = []
    for cell in np.argsort(-confusion, axis=None, kind="stable")[:most]:
        true, taken = divmod(int(cell), len(names))
        if confusion[true, taken]:
            found.append(f"{escape(names[true])} for {escape(names[taken])} ({confusion[true, taken]:,})")
    return f"<p>Most often mistaken: {'; '.join(found)}.</p>" if found else ""


def _pretty(name: str) -> str:
    known = {"zero_shot": "Zero-shot classification", "neighbours": "Named by the nearest neighbours"}
    text = known.get(name, name.replace("_", " "))
    return text[:1].upper() + text[1:]
