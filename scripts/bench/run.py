"""The benchmark suite: python scripts/bench/run.py [--quick] [--only edge,taskbench] [--results FOLDER] [-- ARGUMENTS]

Runs each line of the suite as a job of its own, ``mpirun -n N python scripts/bench/<line>.py --json FILE``, one after the other,
and leaves in the results folder: ``results.json`` (all of it), ``results.md`` (the targets and what was found, then every figure),
and for each line ``<line>-<ranks>.png`` (with matplotlib) and ``<line>-<ranks>.log``, what it printed. What a line found is in the
folder as soon as it ends, whatever becomes of the others. A line that fails beside TensorFlow runs again without it. Ends with
status 1 if a line failed, and names it; the other lines still run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import bound, found, machine, print_report, with_tensorflow
from markdown import as_markdown
from plots import plot
from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from tests.launch import Job, Launcher, find_launcher, tail  # noqa: E402 - the folder above must be in the path


@dataclass(frozen=True, slots=True)
class Line:
    """One script of the suite, run once with each number of ranks."""

    name: str
    ranks: tuple[int, ...] = (2,)
    tensorflow: bool = False  # whether TensorFlow can do it too


LINES = (
    Line("edge", tensorflow=True),
    Line("taskbench", tensorflow=True),
    Line("operations", (1,), tensorflow=True),
    Line("training", (2, 4), tensorflow=True),
    Line("collectives", (2, 4)),
    Line("planning", tensorflow=True),
    Line("plans", (1,)),
    Line("memory", (1,)),
    Line("servers", tensorflow=True),
    Line("scale", (2, 4)),
)


class Failed(Exception):  # noqa: N818 - says what became of a line
    """A line gave no results."""


def run_line(line: Line, ranks: int, launcher: Launcher, args: argparse.Namespace, tensorflow: str) -> dict[str, Any]:
    """Run a line on ``ranks`` ranks, beside TensorFlow of that interpreter if one is given; its report.

    Raises
    ------
    Failed
        If it ended with an error, past the time limit, or without a report.
    """
    name = f"{line.name}-{ranks}"
    path = args.results / f"{name}.json"
    path.unlink(missing_ok=True)
    arguments = [str(HERE / f"{line.name}.py"), "--json", str(path)]
    arguments += ["--quick"] if args.quick else []
    arguments += ["--rounds", str(args.rounds)] if args.rounds else []
    arguments += ["--tensorflow", tensorflow]
    arguments += args.arguments
    # The launcher takes the settings of mpirt away, which a test must not inherit; here they are part of what is measured.
    settings = {name: value for name, value in os.environ.items() if name.startswith("MPIRT_")}
    with Job(launcher, ranks, arguments, env=settings) as job:
        result = job.wait(args.timeout)
    (args.results / f"{name}.log").write_text(f"{result.stdout}\n{result.stderr}")
    if result.timed_out:
        raise Failed(f"no end after {args.timeout:g} s\n{result}")
    if result.rc != 0:
        raise Failed(f"exit status {result.rc}\n{tail(result.stderr or result.stdout, 4000)}")
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise Failed(f"ended well, but left no report: {error}") from None
    finally:
        path.unlink(missing_ok=True)


def summary(reports: list[dict[str, Any]], console: Console) -> None:
    """How many targets are reached, and which are not."""
    rows = [(report, row) for report in reports for row in report["rows"] if row["target"]]
    if not rows:
        return
    missed = [(report, row) for report, row in rows if not row["verdict"].startswith("reached")]
    console.print(f"{len(rows) - len(missed)} of {len(rows)} targets reached")
    for report, row in missed:
        text = f"{row['verdict']}: {bound(row['target'])}, found {found(row)['median']:.3g}"
        console.print(f"  {report['line']}, {row['figure']}, {row['case']}: {text}")


def main() -> int:
    """Run the lines that are asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: the whole suite in under 3 minutes")
    parser.add_argument("--only", metavar="LINE,...", help=f"of {', '.join(line.name for line in LINES)}")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="FOLDER", help="default: ./results")
    parser.add_argument("--mpirun", help="the launcher (default: the one beside this Python, or in PATH)")
    parser.add_argument("--rounds", type=int, help="of every line")
    with_tensorflow(parser)
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for each line (default 1800, with --quick 300)")
    parser.add_argument("arguments", nargs="*", help="after --: more arguments of the lines (--sizes 8 1024)")
    args = parser.parse_args()
    args.timeout = args.timeout or (300.0 if args.quick else 1800.0)
    names = args.only.split(",") if args.only else [line.name for line in LINES]
    unknown = sorted(set(names) - {line.name for line in LINES})
    if unknown:
        parser.error(f"--only: no line is called {', '.join(map(repr, unknown))}; there are {', '.join(line.name for line in LINES)}.")

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # a job is left in order, its processes ended
    console = Console(width=170, highlight=False)
    launcher = find_launcher(args.mpirun)
    args.results.mkdir(parents=True, exist_ok=True)
    reports: list[dict[str, Any]] = []
    failed: dict[str, str] = {}

    def run(line: Line, ranks: int, tensorflow: str) -> bool:
        """One line, told and noted; whether it gave a report."""
        name = f"{line.name} on {ranks} ranks{', with TensorFlow' if tensorflow else ''}"
        began = time.monotonic()
        try:
            report = run_line(line, ranks, launcher, args, tensorflow)
        except Failed as failure:
            failed[name] = str(failure)
            console.print(f"[bold]{name} FAILED[/bold]: ", end="")
            console.print(str(failure), markup=False)
        else:
            report |= {"ranks": ranks, "seconds": time.monotonic() - began}
            reports.append(report)
            print_report(report, console)
            console.print(f"{line.name} took {report['seconds']:.0f} s\n")
            plot(report, args.results / f"{line.name}-{ranks}.png")
        # Which MPI it was, the ranks have seen.
        about = machine() | {"mpi": next((report["machine"]["mpi"] for report in reports if "mpi" in report["machine"]), launcher.mpi)}
        everything = {"machine": about, "quick": args.quick, "reports": reports, "failed": failed}
        (args.results / "results.json").write_text(json.dumps(everything, indent=1))
        (args.results / "results.md").write_text(as_markdown(everything))
        return name not in failed

    began = time.monotonic()
    for line in LINES:
        for ranks in line.ranks if line.name in names else ():
            tensorflow = args.tensorflow or "" if line.tensorflow else ""
            if not run(line, ranks, tensorflow) and tensorflow:
                run(line, ranks, "")
    summary(reports, console)
    console.print(f"results in {args.results}, after {time.monotonic() - began:.0f} s")
    if failed:
        console.print(f"[bold]failed: {', '.join(failed)}[/bold]")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
