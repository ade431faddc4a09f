"""The suite's results as Markdown: which targets are reached, what was left out, and every figure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from figures import bound, found, panels, spread_text


def as_markdown(everything: Mapping[str, Any]) -> str:
    """All that ``results.json`` has, the rows with a target first, as one table for a README."""
    about = everything["machine"]
    lines = [f"{about['cpu']}, {about['cores']} cores; {about['mpi']}; Python {about['python']}, numpy {about['numpy']}.", ""]
    lines += _table(("line", "ranks", "figure", "case", "target", "median (p10 - p90)", "", "cores used by others"), _targets(everything))
    for report in everything["reports"]:
        if report["left out"]:
            lines += ["", f"Left out of {report['line']} on {report['ranks']} ranks: {'; '.join(report['left out'])}."]
    for name, text in everything["failed"].items():
        lines += ["", f"FAILED: {name}", "", *(f"    {line}" for line in text.splitlines())]
    lines += ["", "## All figures: median (10th - 90th percentile)"]
    for report in everything["reports"]:
        for (figure, unit), rows in panels(report).items():
            lines += ["", f"**{report['line']} on {report['ranks']} ranks: {figure}**, {unit}", ""]
            columns = {kind: list(dict.fromkeys(name for row in rows for name in row[kind])) for kind in ("values", "ratios")}
            cells = (
                (row["case"], *(spread_text(row[kind].get(name)) for kind, names in columns.items() for name in names)) for row in rows
            )
            lines += _table(("case", *columns["values"], *columns["ratios"]), cells)
    return "\n".join(lines) + "\n"


def _targets(everything: Mapping[str, Any]) -> Iterator[Iterable[str]]:
    for report in everything["reports"]:
        share = report["noise"]["other processes' share"]
        noise = "?" if share is None else f"{share:.0%}"
        for row in report["rows"]:
            if row["target"]:
                middle, low, high = (f"{found(row)[name]:.3g}" for name in ("median", "p10", "p90"))
                place = report["line"], str(report["ranks"]), f"{row['figure']}, {row['unit']}", row["case"]
                yield *place, bound(row["target"]), f"{middle} ({low} - {high})", row["verdict"], noise


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    headings = list(headings)
    return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
