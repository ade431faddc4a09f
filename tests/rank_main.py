"""What a rank of a ``ranks`` test runs: pytest on that one test, with few plugins and no terminal.

    rank_main.py ROOTDIR INIFILE NODEID

Writes into the job's folder (tests/launch.py): ``rank<k>.out``, everything the process printed, down to the C libraries;
and ``rank<k>.json``, its outcome: at once when a phase of the test fails, else after the last one. No file: the rank is lost.
Imports no MPI; the test does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from pathlib import Path

FOLDER = Path(os.environ["MPIRT_TEST_FOLDER"])
RANK = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0")


def write_result(kind: str, text: str) -> None:
    path = FOLDER / f"rank{RANK}.json"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"kind": kind, "text": text}))
        temporary.rename(path)


def main() -> int:
    rootdir, inifile, nodeid = sys.argv[1:]
    printed = os.open(FOLDER / f"rank{RANK}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for tests.mpirun_plugin, also from another rootdir

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    class Reporter:
        """Turns pytest's reports into this rank's result file."""

        outcome, text = "passed", ""

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
            report = yield
            if report.failed:
                write_result("failed", f"{report.when}: {report.longreprtext}")
            elif report.skipped:
                self.outcome, self.text = "skipped", report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            return report

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                write_result("failed", f"collection: {report.longreprtext}")

        def pytest_runtest_logfinish(self) -> None:
            write_result(self.outcome, self.text)

    options = [f"--rootdir={rootdir}", *(["-c", inifile] if inifile else []), "-o", "addopts="]
    options += ["--import-mode=importlib", "--strict-markers", "--runxfail", f"--basetemp={FOLDER / f'tmp{RANK}'}", "-s"]
    for plugin in ("terminal", "cacheprovider", "faulthandler", "junitxml", "pastebin", "stepwise", "doctest", "unittest"):
        options += ["-p", f"no:{plugin}"]
    status = pytest.main([*options, "-p", "tests.mpirun_plugin", nodeid], plugins=[Reporter()])
    write_result("failed", f"pytest ended with {status!r} and ran no test; the rank's output tells why")
    if status:
        # An exit with this status would have mpirun kill the other ranks before they could tell theirs. The harness ends us.
        time.sleep(10)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
