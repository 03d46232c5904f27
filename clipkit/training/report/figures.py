"""The report's curves as inline SVG.

They are drawn by matplotlib in placeholder colours that are then replaced by the style sheet's
variables, so that one SVG follows the reader's light or dark setting; its text stays text, set in the page's
font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

# colour variables of the style sheet → the placeholder that stands for each in a drawing
_INK = {"ink": "#010101", "soft": "#020202", "line": "#030303", "one": "#040404", "two": "#050505"}


@dataclass(frozen=True)
class Line:
    """One line of a figure: points x, y (NaN leaves a gap), the band around it, and how it looks.

    color is a name of the style sheet ("one", "two", "soft"); label is written at the line's end.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    color: str = "one"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dotted: bool = False
    faint: bool = False
    markers: bool = False


def curve(
    lines: Sequence[Line],
    *,
    alt: str,
    x_label: str = "step",
    percent: bool = False,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """Lines over a common x as one inline SVG without ids or addresses that could clash or load anything.

    alt: what a screen reader says. percent: y is a share from 0 to 1. x_ticks: the only marks of a log axis.
    """
    # 'none' keeps text as text; the salt makes equal figures equal bytes
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "clipkit",
            "font.size": 10,
            "font.sans-serif": ["DejaVu Sans"],
        }
    ):
        figure = Figure(figsize=(5.2, 3.0))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.105, 0.15, 0.73 if any(line.label for line in lines) else 0.87, 0.8))
        ends = []
        for line in lines:
            ends += _draw(axes, line)
        _frame(axes, x_label, percent, x_ticks)
        _label_ends(axes, ends)
        text = io.StringIO()
        figure.savefig(
            text,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return _inline(text.getvalue(), alt)


def smooth(values: Sequence[float], share: float = 0.04) -> list[float]:
    """The mean of each value with its neighbours on both sides, `share` of all on each; NaN is passed over.

    Towards the ends the window shrinks on both sides alike: an average that only looks back lags behind a
    falling loss and shows it higher than it is.
    """
    array = np.asarray(values, dtype=float)
    reach = max(1, round(share * len(array)))
    result = []
    for i in range(len(array)):
        width = min(reach, i, len(array) - 1 - i)
        window = array[i - width : i + width + 1]
        window = window[np.isfinite(window)]
        result.append(float(window.mean()) if window.size else float("nan"))
    return result


def _draw(axes: Any, line: Line) -> list[tuple[float, float, str, str]]:
    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    color = _INK[line.color]
    if line.low is not None and line.high is not None:
        axes.fill_between(x, line.low, line.high, color=color, alpha=0.15, linewidth=0)
    finite = np.flatnonzero(np.isfinite(y))
    axes.plot(
        x,
        y,
        color=color,
        alpha=0.3 if line.faint else 1,
        linewidth=1 if line.faint or line.dotted else 1.9,
        linestyle=(0, (1.5, 2.5)) if line.dotted else "-",
        solid_capstyle="round",
        solid_joinstyle="round",
        marker="o" if line.markers or finite.size == 1 else None,
        markersize=4.5,
    )
    if not line.label or not finite.size:
        return []
    return [(float(x[finite[-1]]), float(y[finite[-1]]), line.label, color)]


def _frame(axes: Any, x_label: str, percent: bool, x_ticks: Sequence[float] | None) -> None:
    """Only what is needed to read a value: a base line, faint levels, few ticks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_INK["line"])
    axes.grid(axis="y", color=_INK["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=_INK["soft"], pad=6)
    axes.set_xlabel(x_label, color=_INK["soft"], labelpad=4)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.02)
    if percent:
        top = max(axes.get_ylim()[1], 0.01)
        axes.set_ylim(0, min(top, 1.02))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    if x_ticks is not None:
        axes.set_xscale("log")
        axes.set_xticks(list(x_ticks), [f"{tick:g}" for tick in x_ticks])
        axes.minorticks_off()
    else:
        first, last = axes.dataLim.intervalx
        # a single record would get five ticks that all round to its step
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True) if last > first else FixedLocator([first]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _label_ends(axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """Write each line's label at its end, pushed apart where two would overlap."""
    bottom, top = axes.get_ylim()
    gap = 0.085 * (top - bottom)
    height = -np.inf
    for x, y, label, color in sorted(ends, key=lambda end: end[1]):
        height = max(y, height + gap)
        axes.annotate(
            label,
            (x, height),
            xytext=(8, 0),
            textcoords="offset points",
            color=color,
            va="center",
            annotation_clip=False,
            fontsize=10,
        )


def _inline(svg: str, alt: str) -> str:
    """The <svg> element alone: no prologue, no metadata, no namespaces, our variables for its colours."""
    svg = svg[svg.index("<svg") :].strip()
    for unwanted in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    box = svg.split('viewBox="')[1].split('"')[0]
    opening = f'<svg viewBox="{box}" role="img" aria-label="{escape(alt)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r"#(\w+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for name, placeholder in _INK.items():
        svg = svg.replace(placeholder, f"var(--{name})")
    return svg
