"""One PNG for each line of the suite: a panel for each figure, the contestants side by side with their spread.

Without matplotlib (the extra ``bench``) there are no plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import panels

COLORS = {"mpirt": "#1f77b4", "mpi4py": "#ff7f0e", "tensorflow": "#2ca02c", "limit": "#7f7f7f", "numpy": "#9467bd"}
SPARE = ("#d62728", "#17becf", "#8c564b", "#e377c2", "#bcbd22", "#1a3a5a")  # of contestants with other names, in turn
COLUMNS = 2
MOST_BARS = 8  # cases


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Write ``path``; nothing where matplotlib isn't installed or there is nothing to show."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    shown = {name: rows for name, rows in panels(report).items() if any(row["values"] for row in rows)}
    if not shown:
        return
    others = [name for name in _contestants(report["rows"]) if name not in COLORS]
    colors = COLORS | {name: SPARE[number % len(SPARE)] for number, name in enumerate(others)}
    lines = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(7 * COLUMNS, 4.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    share = report["noise"]["other processes' share"]
    noise = "" if share is None else f"; other processes used {share:.0%} of the cores"
    figure.suptitle(f"{report['line']}: medians, 10th to 90th percentile{noise}")
    for number, ((name, unit), rows) in enumerate(shown.items()):
        axes = figure.add_subplot(lines, COLUMNS, number + 1)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel(unit)
        series = all(row["case"][0].isdigit() for row in rows)  # sizes; other cases have no order that a line could follow
        if len(rows) <= MOST_BARS and not (series and len(rows) > 2):
            _bars(axes, rows, colors)
        else:
            _points(axes, rows, colors, "-" if series else "none")
        axes.set_xticks(range(len(rows)), [row["case"] for row in rows], rotation=30, ha="right", fontsize=8)
        medians = [value["median"] for row in rows for value in row["values"].values()]
        if min(medians) > 0 and max(medians) > 20 * min(medians):
            axes.set_yscale("log")
        else:
            highest = max(value["p90"] for row in rows for value in row["values"].values())
            axes.set_ylim(0, 1.05 * min(highest, 2 * max(medians)) or 1)  # a rare disturbance must not hide the medians
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, loc="best" if len(rows) <= 12 else "upper right")  # to look for the best place takes seconds
    figure.savefig(path, dpi=110)


def _contestants(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["values"]))


def _spread(found: Mapping[str, float]) -> tuple[float, float]:
    """How far below and above the median the percentiles are."""
    return max(0.0, found["median"] - found["p10"]), max(0.0, found["p90"] - found["median"])


def _points(axes: Any, rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], line: str) -> None:
    for name in _contestants(rows):
        points = [(x, row["values"][name]) for x, row in enumerate(rows) if name in row["values"]]
        below, above = zip(*(_spread(value) for _, value in points), strict=True)
        xs, ys = [x for x, _ in points], [value["median"] for _, value in points]
        axes.errorbar(xs, ys, yerr=[below, above], label=name, color=colors[name], marker="o", ms=4, capsize=2, ls=line)


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> None:
    names = _contestants(rows)
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        for x, row in enumerate(rows):
            if name in row["values"]:
                value = row["values"][name]
                below, above = _spread(value)
                place = x + (position - (len(names) - 1) / 2) * width
                label = name if name not in axes.get_legend_handles_labels()[1] else None
                axes.bar(place, value["median"], width, yerr=[[below], [above]], label=label, color=colors[name], capsize=2)
