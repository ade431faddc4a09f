"""Figures of a benchmark: samples, medians with their spread, ratios that compare like with like, and the report of a line.

Every line of the suite measures in rounds, gives its samples (`Measured`) to a `Report` and ends with `Report.finish`; `run.py`
gathers their JSON. Guarantee: a ratio divides medians of one and the same round, in which the contestants ran one next to the
other; what is reported is the median over the rounds. So a disturbance that outlasts a round doesn't move a ratio.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

PERCENTILES = (50, 10, 90)
QUIET = 0.1  # of all cores used by other processes; above that, figures tell more of the neighbours
LINEAR = 1.15  # an exponent up to which growth counts as linear: larger data fit worse into caches
# How many of its units a second, a byte, or a byte per second is. Samples in any other unit are shown as they are.
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "GB/s": 1e-9, "kB": 1e-3, "MB": 1e-6, "MiB": 2.0**-20}


@dataclass
class Measured:
    """What one case gave: the samples of each round. A round of one case ran next to the same round of the others."""

    rounds: list[list[float]] = field(default_factory=list)

    def add(self, samples: Sequence[float]) -> None:
        """One round more: seconds, bytes, or plain numbers."""
        self.rounds.append(list(samples))

    @property
    def median(self) -> float:
        """Of all samples."""
        return float(np.median(np.concatenate(self.rounds)))

    def summary(self, scale: float = 1.0) -> dict[str, float]:
        """Median, 10th and 90th percentile of all samples, each times ``scale``, and how many there are."""
        return summary(np.concatenate(self.rounds) * scale)

    def ratios_to(self, other: Measured) -> list[float]:
        """For each round, this case's median divided by the other's."""
        return [float(np.median(a) / np.median(b)) for a, b in zip(self.rounds, other.rounds, strict=True)]


def summary(samples: npt.ArrayLike) -> dict[str, float]:
    """Median, 10th and 90th percentile, and number of ``samples``."""
    middle, low, high = (float(value) for value in np.percentile(samples, PERCENTILES))
    return {"median": middle, "p10": low, "p90": high, "n": np.size(samples)}


def timed(call: Callable[[], object], count: int, warmup: int = 0) -> list[float]:
    """Seconds of each of ``count`` calls."""
    for _ in range(warmup):
        call()
    clock, samples = time.perf_counter, []
    for _ in range(count):
        start = clock()
        call()
        samples.append(clock() - start)
    return samples


def throughput(call: Callable[[int], object], threads: int, seconds: float) -> tuple[int, float]:
    """How often ``threads`` threads made ``call(number of the thread)``, and the seconds it took them; raises what one raised."""
    counts, failures, started, over = [0] * threads, [], threading.Event(), threading.Event()

    def work(number: int) -> None:
        started.wait()
        count = 0
        try:
            while not over.is_set():
                call(number)
                count += 1
        except Exception as error:
            failures.append(error)
        counts[number] = count

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    start = time.perf_counter()
    started.set()
    time.sleep(seconds)
    over.set()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(counts), time.perf_counter() - start


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power of its size with which a cost grows: the slope of a line through their logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


class Disturbance:
    """Share of the cores that processes other than ``ours`` used while this was entered. Linux only; elsewhere nan."""

    def __init__(self, ours: Sequence[int]) -> None:
        self._ours = ours
        self._foreign = 0
        self._seconds = 0.0
        self._start = (0, 0.0)

    def __enter__(self) -> Disturbance:
        self._start = self._foreign_ticks(), time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self._foreign += self._foreign_ticks() - self._start[0]
        self._seconds += time.perf_counter() - self._start[1]

    @property
    def share(self) -> float:
        """From 0 to 1, of all cores."""
        if not self._seconds:
            return float("nan")
        return max(0, self._foreign) / (self._seconds * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1))

    def _foreign_ticks(self) -> int:
        try:
            with open("/proc/stat") as lines:
                user, nice, system, _, _, interrupts, soft, stolen = map(int, lines.readline().split()[1:9])
            own = 0
            for pid in self._ours:
                with open(f"/proc/{pid}/stat") as line:
                    own += sum(map(int, line.read().rpartition(")")[2].split()[11:13]))
        except OSError:
            return 0
        return user + nice + system + interrupts + soft + stolen - own


class Target(TypedDict):
    """What to reach: a ratio ("mpirt / mpi4py"), or a contestant's value in the row's unit ("mpirt"), at most, at least, or both."""

    ratio: str
    at_most: NotRequired[float]
    at_least: NotRequired[float]


def arguments(description: str | None, rounds: int = 7, quick_rounds: int = 3) -> argparse.ArgumentParser:
    """The arguments that every line has: --quick, --json, --rounds, --tensorflow. A line may add its own.

    ``parse_args().rounds`` is ``quick_rounds`` with --quick and ``rounds`` without, unless given.
    """
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usual_rounds = rounds, quick_rounds
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: seconds instead of minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    parser.add_argument("--rounds", type=int, help=f"default {rounds}, with --quick {quick_rounds}")
    with_tensorflow(parser)
    return parser


def with_tensorflow(parser: argparse.ArgumentParser) -> None:
    """Add --tensorflow."""
    here = sys.executable if importlib.util.find_spec("tensorflow") else None
    text = "an interpreter with TensorFlow (default: this one, if it has it; '' for none)"
    parser.add_argument("--tensorflow", metavar="PYTHON", default=here, help=text)


class _Parser(argparse.ArgumentParser):
    usual_rounds = 0, 0

    def parse_args(self, *given: Any, **named: Any) -> Any:
        args = super().parse_args(*given, **named)
        if args.rounds is None:
            args.rounds = self.usual_rounds[args.quick]
        if args.rounds < 1:
            self.error(f"--rounds {args.rounds}: needs 1 or more.")
        return args


class Report:
    """The results of one line.

    Parameters
    ----------
    line : name of the line, as in ``run.py``
    pids : the processes that belong to it (all ranks); what others use of the cores inside ``with report.others`` is noise
    """

    def __init__(self, line: str, pids: Sequence[int] = ()) -> None:
        self.line = line
        self.rows: list[dict[str, Any]] = []
        self.others = Disturbance(pids or [os.getpid()])
        self._left_out: list[str] = []

    def leave_out(self, what: str, everything: Sequence[Any], measured: Sequence[Any]) -> None:
        """Tell which of ``everything`` that the line has isn't measured this time: the sizes 1 KiB and 64 MiB."""
        if missing := [str(each) for each in everything if each not in measured]:
            self._left_out.append(f"{what} {', '.join(missing)}")

    def row(
        self,
        case: str,
        figure: str,
        unit: str,
        values: Mapping[str, Measured],
        target: Target | None = None,
        note: str = "",
    ) -> None:
        """Add what the contestants gave for one case.

        Parameters
        ----------
        case : "8 B", "stencil_1d, width 4"
        figure : what was measured: "round trip"; rows with one figure make one plot
        unit : "us", "GB/s" (see ``UNITS``; samples are in seconds, bytes, bytes per second), "samples/s" (or in the unit)
        values : by contestant: "mpirt", "mpi4py", "tensorflow", "limit", or more of these ("mpi4py packed"). Those without any
            round are left out. Ratios are those of each whose name begins with "mpirt" to each other one; the two need the
            same number of rounds.
        target : what to reach
        note : what a reader must know about this row
        """
        measured = {name: value for name, value in values.items() if value.rounds}
        scale = UNITS.get(unit, 1.0)
        ratios = {}
        for name in measured:
            for other in measured:
                if name.startswith("mpirt") and not other.startswith("mpirt"):
                    try:
                        each = measured[name].ratios_to(measured[other])
                    except ValueError:
                        rounds = len(measured[name].rounds), len(measured[other].rounds)
                        raise ValueError(
                            f"{self.line}, {case}: {name} has {rounds[0]} rounds and {other} {rounds[1]}; each round measures all"
                        ) from None
                    ratios[f"{name} / {other}"] = summary(each)
        row = {
            "case": case,
            "figure": figure,
            "unit": unit,
            "values": {name: value.summary(scale) for name, value in measured.items()},
            "ratios": ratios,
            "target": target,
            "note": note,
        }
        row["verdict"] = verdict(row)
        self.rows.append(row)

    def growth(self, what: str, sizes: Sequence[float], measured: Sequence[Measured]) -> None:
        """Add the power of its size with which a cost grows, of each round, to be `LINEAR`. Nothing for one size only."""
        if len(sizes) > 1:
            rounds = zip(*(cost.rounds for cost in measured), strict=True)
            powers = Measured([[exponent(sizes, [float(np.median(samples)) for samples in costs])] for costs in rounds])
            self.row(what, "exponent of growth", "power", {"mpirt": powers}, Target(ratio="mpirt", at_most=LINEAR))

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        share = self.others.share
        noise = {"other processes' share": None if math.isnan(share) else share}
        return {"line": self.line, "machine": machine(), "rows": self.rows, "noise": noise, "left out": self._left_out}

    def write(self, path: Path) -> None:
        """Write the JSON, whole or not at all."""
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.as_json(), indent=1))
        part.replace(path)

    def print(self, console: Any) -> None:
        """Print the table on a ``rich`` console."""
        print_report(self.as_json(), console)

    def finish(self, path: Path | None) -> None:
        """Print the table, and write the JSON if there is a path."""
        from rich.console import Console

        self.print(Console(width=170, highlight=False))  # launchers make the output a pipe, or a terminal of any width
        if path is not None:
            self.write(path)


def verdict(row: Mapping[str, Any]) -> str:
    """Whether a row's target is reached; with a question mark where it lies within the spread of the rounds. "" without one."""
    target = row["target"]
    if target is None:
        return ""
    found = row["ratios"].get(target["ratio"]) or row["values"].get(target["ratio"])
    if found is None:
        return "not measured"
    low, high = target.get("at_least", -math.inf), target.get("at_most", math.inf)
    reached = low <= found["median"] <= high
    unsure = any(found["p10"] <= limit <= found["p90"] and found["p10"] < found["p90"] for limit in (low, high))
    return ("reached" if reached else "MISSED") + ("?" if unsure else "")


def print_report(report: Mapping[str, Any], console: Any) -> None:
    """The tables of one line's JSON, one for each figure, on a ``rich`` console.

    Of the ratios it shows those of the first contestant and those that have a target; the JSON has all.
    """
    from rich.table import Table

    for (figure, unit), rows in panels(report).items():
        contestants = list(dict.fromkeys(name for row in rows for name in row["values"]))
        aims = {row["target"]["ratio"] for row in rows if row["target"]}
        pairs = dict.fromkeys(ratio for row in rows for ratio in row["ratios"])
        ratios = [ratio for ratio in pairs if ratio.startswith(f"{contestants[0]} / ") or ratio in aims]
        console.print(f"[bold]{report['line']}: {figure}[/bold], {unit}: median (p10 - p90)")
        table = Table()
        for heading in ("case", *contestants, *ratios, *(["to reach"] if aims else [])):
            table.add_column(heading, overflow="fold")
        for row in rows:
            cells = [row["values"].get(name) for name in contestants] + [row["ratios"].get(name) for name in ratios]
            table.add_row(row["case"], *map(spread_text, cells), *([_goal(row)] if aims else []))
        console.print(table)
        for row in rows:
            if row["note"]:
                console.print(f"  {row['case']}: {row['note']}", markup=False)
    if report["left out"]:
        console.print(f"{report['line']}: left out this time: {'; '.join(report['left out'])}", markup=False)
    share = report["noise"]["other processes' share"]
    if share is not None:
        console.print(f"{report['line']}: other processes used {share:.0%} of the cores meanwhile")
        if share > QUIET:
            console.print(f"[bold]Too noisy to tell[/bold]: above {QUIET:.0%}, trust no figure, and ratios only where far from the target.")


def panels(report: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The rows of each figure and unit."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in report["rows"]:
        found.setdefault((row["figure"], row["unit"]), []).append(row)
    return found


def found(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row's target speaks of: median, 10th and 90th percentile."""
    name = row["target"]["ratio"]
    nothing = dict.fromkeys(("median", "p10", "p90"), float("nan"))
    return dict(row["ratios"].get(name) or row["values"].get(name) or nothing)


def _goal(row: Mapping[str, Any]) -> str:
    return "" if row["target"] is None else f"{bound(row['target'])}: {row['verdict']}"


def bound(target: Target) -> str:
    """``mpirt / mpi4py <= 1.5``."""
    low, high = target.get("at_least"), target.get("at_most")
    bounds = ([f">= {low:g}"] if low is not None else []) + ([f"<= {high:g}"] if high is not None else [])
    return f"{target['ratio']} {' and '.join(bounds)}"


def spread_text(found: Mapping[str, float] | None) -> str:
    """``1.05 (1.00 - 1.19)``; nothing for None."""
    if found is None:
        return ""
    text = _number(found["median"])
    return text if found["n"] == 1 else f"{text} ({_number(found['p10'])} - {_number(found['p90'])})"


def _number(value: float) -> str:
    """Three digits that count, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    cpu = platform.processor()
    try:
        with open("/proc/cpuinfo") as lines:
            cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    found = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if "mpi4py.MPI" in sys.modules:
        mpi = sys.modules["mpi4py.MPI"]
        found["mpi"] = mpi.Get_library_version().split(",")[0].split("\n")[0].strip("\0 ")
        found["ranks"] = mpi.COMM_WORLD.Get_size()
    return found
