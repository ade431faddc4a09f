"""Tests on several MPI ranks, from a pytest that is itself no MPI process.

    @pytest.mark.ranks(4)
    def test_every_rank_sees_the_others(rank, nranks, shared_path): ...

    @pytest.mark.ranks([1, 2, 3], timeout=30, env={"MPIRT_STALL_S": "1"})
    def test_holds_for_any_number_of_ranks(rank, nranks): ...

    def test_a_script_ends_with_status_3(mpirun):
        result = mpirun(2, "import sys; sys.exit(3)", expect_rc=3)

Guarantees: a ``ranks`` test runs in an mpirun of its own, and passes only if it passed on every rank and mpirun and all its
ranks ended by themselves with status 0. The first failure anywhere (also a rank that is lost without a word) or the time
limit ends it within seconds; the report then has every rank's outcome, stacks and output. No process is left behind.
Fixtures of such a test are made in the ranks, never in the outer process. Owns no process handling (launch.py) and
nothing that happens inside a rank (rank_main.py).
"""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.launch import FOLDER, TESTS, Job, Launcher, Result, find_launcher, tail

# How long the other ranks may take to fail or finish by themselves once one has failed.
GRACE_S = 1.0
IN_RANK = FOLDER in os.environ


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mpirun", help="the mpirun for tests on several ranks (default: beside this Python, else in PATH)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ranks(n, timeout=60, env=None): run on n MPI ranks, in an mpirun of its own")
    config.addinivalue_line("markers", "slow: takes more than about 10 s; left out by scripts/test --fast")


def pytest_report_header(config: pytest.Config) -> str | None:
    try:
        launcher = find_launcher(config.getoption("--mpirun"))
    except FileNotFoundError as error:
        return f"mpirun: {error}"
    version = [line for line in launcher.version.splitlines() if any(c.isdigit() for c in line)]
    return f"mpirun: {launcher.path} ({' '.join(version[0].split()) if version else launcher.mpi})"


@cache
def _launcher(path: str | None) -> Launcher:
    return find_launcher(path)


# ---- fixtures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nranks(request: pytest.FixtureRequest) -> int | None:
    """Number of ranks this test runs on; None without the ``ranks`` marker. (autouse: a list of numbers parametrises it)"""
    number: int | None = getattr(request, "param", None)
    if number is None and (marker := request.node.get_closest_marker("ranks")):
        number = marker.args[0]
    return number


@pytest.fixture
def rank() -> int:
    """This process's MPI rank, in a ``ranks`` test; known without starting MPI."""
    assert IN_RANK, "the fixture 'rank' needs @pytest.mark.ranks(n)"
    return int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0")


@pytest.fixture
def shared_path() -> Path:
    """An empty folder, the same on all ranks of a ``ranks`` test (``tmp_path`` is each rank's own)."""
    assert IN_RANK, "the fixture 'shared_path' needs @pytest.mark.ranks(n)"
    path = Path(os.environ[FOLDER]) / "shared"
    path.mkdir(exist_ok=True)
    return path


ExpectedStatus = int | Literal["nonzero"] | None


class Mpirun:
    """The fixture ``mpirun``: whole programs under mpirun, as a user starts them.

    ``n`` is the number of ranks, or None for plain ``python`` without a launcher. ``script`` is a file, a program text
    (any string with a newline or a space), or a list of arguments of ``python``. ``env`` adds variables (None removes one);
    ``MPIRT_*`` variables are taken from nowhere else. ``mpirun_args`` go to the launcher as they are. ``rank_args`` are
    arguments for each rank, after ``args`` (mpirun's form ``-n 1 prog a : -n 1 prog b``). ``under`` is a command that runs
    its arguments, between the launcher and Python.
    """

    def __init__(self, launcher: Callable[[], Launcher], folder: Path) -> None:
        self._launcher, self._folder = launcher, folder
        self._jobs: list[Job] = []

    @property
    def mpi(self) -> str:
        """``openmpi``, ``mpich`` or ``other``."""
        return self._launcher().mpi

    def __call__(
        self,
        n: int | None,
        script: str | Path | Sequence[str],
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str | None] | None = None,
        timeout: float = 60,
        expect_rc: ExpectedStatus = 0,
        cwd: Path | None = None,
        mpirun_args: Sequence[str] = (),
        rank_args: Sequence[Sequence[str]] = (),
    ) -> Result:
        """Run to the end. The test fails on a time-out, on an exit status other than expected, and on processes left behind;
        ``expect_rc=None`` expects nothing: look at the result.
        """
        with self.start(n, script, args, env=env, cwd=cwd, mpirun_args=mpirun_args, rank_args=rank_args) as job:
            result = job.wait(timeout)
        as_expected = result.rc != 0 if expect_rc == "nonzero" else result.rc == expect_rc
        if expect_rc is not None and (result.timed_out or result.leftovers or not as_expected):
            pytest.fail(f"expected exit status {expect_rc} within {timeout:g} s, got {result}", pytrace=False)
        return result

    def start(
        self,
        n: int | None,
        script: str | Path | Sequence[str],
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        mpirun_args: Sequence[str] = (),
        rank_args: Sequence[Sequence[str]] = (),
        under: Sequence[str] = (),
    ) -> Job:
        """Start and return at once; ``job.pid(k)``, ``job.signal(k, SIGKILL)``, ``job.wait_for(text)``, ``job.wait(timeout)``.
        What still runs when the test ends is killed.
        """
        if isinstance(script, str) and ("\n" in script or " " in script):
            path = self._folder / f"script{len(self._jobs)}.py"
            path.write_text(textwrap.dedent(script).lstrip("\n"))
            script = path
        python_args = [str(script), *args] if isinstance(script, str | Path) else [*script, *args]
        launcher = self._launcher() if n else None
        job = Job(launcher, n, python_args, env=env, cwd=cwd, mpirun_args=mpirun_args, rank_args=rank_args, under=under)
        self._jobs.append(job)
        return job

    def close(self) -> None:
        """Stop all jobs."""
        for job in self._jobs:
            job.stop()


@pytest.fixture
def mpirun(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mpirun]:
    """Runs whole programs under mpirun: see `Mpirun`."""
    assert not IN_RANK, "the fixture 'mpirun' can't be used in a ranks test: mpirun doesn't nest"
    runner = Mpirun(lambda: _launcher(request.config.getoption("--mpirun")), tmp_path)
    yield runner
    runner.close()


# ---- the marker, outside -----------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("ranks")
    if marker and not isinstance(marker.args[0], int):
        metafunc.parametrize("nranks", marker.args[0], ids=[f"n{n}" for n in marker.args[0]], indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not IN_RANK:
        items[:] = [
            RanksItem.standing_in_for(item, marker)
            if isinstance(item, pytest.Function) and (marker := item.get_closest_marker("ranks"))
            else item
            for item in items
        ]


class RanksFailed(Exception):
    """A ranks test failed; the message is the whole report."""


class RanksItem(pytest.Item):
    """Stands in for a ``ranks`` test in the outer pytest: runs it under mpirun and judges what its ranks report.

    It has the test's name, markers and place, but no fixtures: those belong to the ranks.
    """

    function: pytest.Function
    nranks: int
    timeout: float
    env: Mapping[str, str | None]

    @classmethod
    def standing_in_for(cls, function: pytest.Function, marker: pytest.Mark) -> RanksItem:
        def options(n: Any, timeout: float = 60, env: Any = None) -> tuple[Any, float, Any]:
            return n, timeout, env or {}

        assert function.parent is not None
        item: RanksItem = cls.from_parent(function.parent, name=function.name)
        item.own_markers = function.own_markers
        item.keywords.update(function.keywords)
        item.function = function
        n, item.timeout, item.env = options(*marker.args, **marker.kwargs)
        of_this_id: Any = n if isinstance(n, int) else function.callspec.params["nranks"]
        item.nranks = of_this_id
        return item

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self.function.reportinfo()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        return str(excinfo.value) if isinstance(excinfo.value, RanksFailed) else super().repr_failure(excinfo, style)

    def runtest(self) -> None:
        if "OMPI_COMM_WORLD_RANK" in os.environ or "PMI_RANK" in os.environ:
            raise RanksFailed("ranks tests start their own mpirun: run plain 'python -m pytest', not under mpirun")
        rootdir, inifile = self.config.rootpath, self.config.inipath
        python_args = [str(TESTS / "rank_main.py"), str(rootdir), str(inifile or ""), self.nodeid]
        launcher = _launcher(self.config.getoption("--mpirun"))
        with Job(launcher, self.nranks, python_args, env=self.env, cwd=rootdir) as job:
            why, outcomes = _watch(job, self.timeout)
            printed = {rank: job.read(f"rank{rank}.out") for rank in range(self.nranks)}
            result = job.stop(timed_out=why is Stop.TIME_LIMIT)
        if why or result.rc or result.leftovers or {o.kind for o in outcomes.values()} not in ({"passed"}, {"skipped"}):
            raise RanksFailed(_report(self, why, result, outcomes, printed))
        if outcomes[0].kind == "skipped":
            pytest.skip(outcomes[0].text)


class Stop(Enum):
    """Why the harness ended a job that had not ended by itself."""

    FAILURE = "stopped as a rank had failed"
    TIME_LIMIT = "TIMED OUT"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rank told, or that it told nothing: ``passed``, ``failed``, ``skipped``; ``lost``, ``running``."""

    kind: str
    text: str = ""


def _outcome(job: Job, rank: int) -> Outcome:
    gone = job.lost(rank)  # asked first, as a result precedes a normal end
    if told := job.read(f"rank{rank}.json"):
        return Outcome(**json.loads(told))
    return Outcome("lost" if gone else "running")


def _watch(job: Job, timeout: float) -> tuple[Stop | None, dict[int, Outcome]]:
    """Wait for the launcher to end, or for a reason to end the job; dump the stacks of ranks that are then still running."""
    deadline, why = time.monotonic() + timeout, Stop.TIME_LIMIT
    while True:
        ended = job.ended()
        outcomes = {rank: _outcome(job, rank) for rank in range(job.nranks)}
        kinds = {outcome.kind for outcome in outcomes.values()}
        if ended:
            return None, {rank: Outcome("lost") if o.kind == "running" else o for rank, o in outcomes.items()}
        if why is Stop.TIME_LIMIT and kinds & {"failed", "lost"}:
            deadline, why = time.monotonic() + GRACE_S, Stop.FAILURE
        if why is Stop.FAILURE and "running" not in kinds:
            return why, outcomes
        if time.monotonic() > deadline:
            # A rank that has told its outcome may still hang in its exit: at the time limit that is worth a stack, too.
            job.dump([rank for rank, o in outcomes.items() if o.kind == "running" or why is Stop.TIME_LIMIT])
            return why, outcomes
        time.sleep(0.02)


TOLD = {"lost": "LOST: it ended without an outcome", "running": "STILL IN THE TEST when stopped"}


def _report(item: RanksItem, why: Stop | None, result: Result, outcomes: dict[int, Outcome], printed: dict[int, str]) -> str:
    ending = why.value if why else f"mpirun's exit status {result.rc}"
    lines = [f"{item.name} on {item.nranks} ranks: {ending}, after {result.seconds:.1f} s (limit {item.timeout:g} s)"]
    for rank, outcome in outcomes.items():
        lines.append(f"---- rank {rank}: {TOLD.get(outcome.kind, outcome.kind)}")
        if outcome.text:
            lines.append(outcome.text)
        if stack := result.stacks.get(rank):
            own = [line for line in stack.splitlines() if not any(part in line for part in HARNESS_FRAMES)]
            lines += [f"  stacks of rank {rank}:", *(f"  {line}" for line in own if line)]
        if printed[rank].strip():
            lines += [f"  output of rank {rank}:", textwrap.indent(tail(printed[rank]), "  ")]
    if why is None and (result.stdout + result.stderr).strip():
        lines += ["---- mpirun", tail(result.stdout + result.stderr)]
    if result.leftovers:
        lines += ["---- left running by the launcher, killed", *result.leftovers]
    return "\n".join(lines)


HARNESS_FRAMES = ("/_pytest/", "/pluggy/", "/rank_main.py", "<frozen importlib")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Settings of the developer's own shell must not reach a test; in a rank they are the test's (``env=``)."""
    if not IN_RANK:
        for name in [name for name in os.environ if name.startswith("MPIRT_")]:
            del os.environ[name]
    return (yield)
