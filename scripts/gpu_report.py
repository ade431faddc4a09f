"""Gather what scripts/gpu-check found into one file.

    python scripts/gpu_report.py WORK RESULTS

WORK has JUnit files of the tests (*.xml), operation types whose kernels ran (kernels/*.txt) and reports of scripts/bench/gpu.py
(*.json); RESULTS gets <gpu>-<date>.md. The exit status is 0 if every test passed and there are some.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import cupy

import mpirt  # noqa: F401  (registers the operations)
from mpirt.graph import op_def


def text(value: dict[str, float]) -> str:
    digits = 2 if value["median"] < 10 else 0
    return f"{value['median']:,.{digits}f} ({value['p10']:,.{digits}f} - {value['p90']:,.{digits}f})"


def tables(reports: dict[str, Any]) -> list[str]:
    lines = []
    for name, report in reports.items():
        lines += [f"### {name}", ""]
        contestants = list(dict.fromkeys(who for row in report["rows"] for who in row["values"]))
        ratios = list(dict.fromkeys(who for row in report["rows"] for who in row["ratios"]))
        lines += [f"| figure | case | {' | '.join([*contestants, *ratios])} |"]
        lines += ["|---" * (2 + len(contestants) + len(ratios)) + "|"]
        for row in report["rows"]:
            cells = [text(row["values"][c]) if c in row["values"] else "" for c in contestants]
            cells += [text(row["ratios"][r]) if r in row["ratios"] else "" for r in ratios]
            lines.append(f"| {row['figure']} | {row['case']} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def main() -> int:
    work, results = Path(sys.argv[1]), Path(sys.argv[2])
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    gpu = properties["name"].decode()
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    versions = [f"{p} {importlib.metadata.version(p)}" for p in ("cupy-cuda12x", "cupy-cuda13x", "numpy", "mpi4py") if _has(p)]
    today = datetime.date.today().isoformat()
    lines = [f"# {gpu}, {today}", "", "Written by `scripts/gpu-check`.", ""]
    software = [f"driver {driver}", f"CUDA runtime {cupy.cuda.runtime.runtimeGetVersion()}", f"Python {platform.python_version()}"]
    lines += [f"{properties['totalGlobalMem'] / 2**30:.0f} GiB; {', '.join([*software, *versions])}.", "", "## Tests", ""]
    lines += ["| tests | passed | failed | skipped | seconds |", "|---|---|---|---|---|"]
    failures, total = [], 0
    for path in sorted(work.glob("*.xml")):
        suite = ElementTree.parse(path).getroot()
        suite = suite if suite.tag == "testsuite" else suite[0]
        count = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
        bad = count["failures"] + count["errors"]
        total += count["tests"]
        passed, seconds = count["tests"] - bad - count["skipped"], float(suite.get("time", "0"))
        lines.append(f"| {path.stem} | {passed} | {bad} | {count['skipped']} | {seconds:.0f} |")
        for case in suite.iter("testcase"):
            for child in case:
                if child.tag in ("failure", "error"):
                    failures.append(f"- {path.stem}: `{case.get('name')}`: {(child.get('message') or '').splitlines()[:1]}")
    lines += ["", *(["Failed:", "", *failures, ""] if failures else [])]
    have = {name for name in op_def.op_types() if "GPU" in op_def.op_def(name).kernels}
    ran = {name for path in (work / "kernels").glob("*.txt") for name in path.read_text().split()} & have
    lines.append(f"{len(ran)} of {len(have)} operation types with a kernel for GPUs ran on it in tests of values, ranks not counted.")
    if have - ran:
        lines.append(f"Not among them: {', '.join(sorted(have - ran))}.")
    reports = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
    if reports:
        how = "Medians (10th - 90th percentile) of interleaved rounds, in us; ratios are those of the rounds."
        lines += ["", "## Figures", "", how, "", *tables(reports)]
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}-{today}.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    print(f"\n{path}")
    return 1 if failures or not total else 0


def _has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
