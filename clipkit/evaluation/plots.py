"""Plots of what was measured, drawn by matplotlib without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.errors import ClipkitError

if TYPE_CHECKING:
    from clipkit.evaluation.label_efficiency import LabelEfficiency


def draw_label_efficiency(curve: LabelEfficiency, path: str | Path) -> None:
    """Accuracy over the number of labels, with the intervals over seeds as bars.

    Raises:
        ClipkitError: matplotlib knows no file of that ending, or the folder is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    labels = [point.n_labels for point in curve.points]
    for name, title, colour, marker in (
        ("pretrained", "pretrained", "#0072b2", "o"),
        ("scratch", "from scratch", "#d55e00", "s"),
    ):
        intervals = [getattr(point, name) for point in curve.points]
        values = [100 * i.value for i in intervals]
        reach = [[100 * (i.value - i.low) for i in intervals], [100 * (i.high - i.value) for i in intervals]]
        axes.errorbar(labels, values, reach, label=title, color=colour, marker=marker, capsize=3)
    axes.axhline(100 * curve.chance, color="grey", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xticks(labels, [f"{n:,}\n{100 * p.fraction:g} %" for n, p in zip(labels, curve.points, strict=True)])
    axes.minorticks_off()
    axes.set_xlabel("labelled training samples")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ClipkitError(f"{path}: the plot cannot be written ({str(error).splitlines()[0]})") from None
