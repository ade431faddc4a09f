"""One mpirun and its ranks, from the start until nothing of them is left.

Guarantees: a job is waited for with a deadline; whatever happened, `Job.stop` leaves no process of it behind, whichever
session or process group its processes moved to (they are found by a variable in their environment); on request every
rank's Python stacks are written down first.
Owns: the launcher's flags for each MPI, the environment of ranks, signals. Knows nothing of pytest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

TESTS = Path(__file__).resolve().parent
DUMP_SIGNAL = signal.SIGRTMIN + 9  # as in tests/rank_site/sitecustomize.py
FOLDER = "MPIRT_TEST_FOLDER"  # in the environment of every process of a job; its value is the job's own folder


@dataclass(frozen=True, slots=True)
class Launcher:
    """An mpirun, and how to call it here."""

    path: str
    version: str
    flags: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def mpi(self) -> str:
        """``openmpi``, ``mpich`` or ``other``."""
        if any(word in self.version for word in ("Open MPI", "OpenRTE", "PRRTE")):
            return "openmpi"
        return "mpich" if "HYDRA" in self.version or "MPICH" in self.version else "other"


def find_launcher(path: str | None = None) -> Launcher:
    """The mpirun at ``path``, or the one beside this Python, or the one in PATH; with the flags that tests need.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    beside = str(Path(sys.executable).parent / "mpirun")
    found = path or (beside if os.access(beside, os.X_OK) else shutil.which("mpirun"))
    if not found or not shutil.which(found):
        raise FileNotFoundError(
            f"no mpirun {f'at {path}' if path else f'beside {sys.executable} or in PATH'}. "
            "Mend: run the tests by scripts/test, which installs an MPI, or name one with --mpirun."
        )
    said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, check=False)
    launcher = Launcher(found, said.stdout + said.stderr, (), {})
    if launcher.mpi != "openmpi":
        return launcher
    # More ranks than cores must start, unbound. The OFI BTL serves one-sided traffic between hosts only, and looking for
    # its devices takes 1.0 of the 1.2 s that a start takes otherwise.
    flags = ("--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "--mca", "btl", "^ofi")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
    return Launcher(found, launcher.version, flags, root)


def rank_environment(extra: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment without its ``MPIRT_*`` settings, made fit for ranks on few cores, and ``extra``.

    A value of None takes a variable away.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("MPIRT_")}
    env.setdefault("OPENBLAS_NUM_THREADS", "1")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(TESTS / "rank_site"), env.get("PYTHONPATH"))))
    for name, value in extra.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


@dataclass(frozen=True, slots=True)
class Result:
    """How a job ended. ``rc`` is the launcher's exit status, negative if a signal ended it."""

    rc: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool
    stacks: Mapping[int, str] = field(default_factory=dict)  # rank -> its stacks, of a crash or at the time limit
    leftovers: tuple[str, ...] = ()  # processes that outlived the launcher and had to be killed

    def __str__(self) -> str:
        lines = [f"exit status {self.rc}{', TIMED OUT' if self.timed_out else ''} after {self.seconds:.1f} s"]
        for name, text in (("stdout", self.stdout), ("stderr", self.stderr)):
            if text.strip():
                lines += [f"---- {name}", tail(text)]
        for rank, stack in sorted(self.stacks.items()):
            lines += [f"---- stacks of rank {rank}", stack.rstrip()]
        if self.leftovers:
            lines += ["---- left running by the launcher, killed", *self.leftovers]
        return "\n".join(lines)


class Job:
    """A launched program on ``n`` ranks; ``n=None`` runs it without a launcher, as one process.

    With ``rank_args`` each rank gets arguments of its own after the common ones, as with mpirun's ``prog a : prog b``.
    With ``under`` a command that runs its arguments stands between the launcher and each rank's Python.
    Its folder (``folder``) holds ``rank<k>.pid`` and ``rank<k>.stack`` of every rank, and lives as long as the job.
    """

    def __init__(
        self,
        launcher: Launcher | None,
        n: int | None,
        python_args: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        mpirun_args: Sequence[str] = (),
        rank_args: Sequence[Sequence[str]] = (),
        under: Sequence[str] = (),
    ) -> None:
        assert not rank_args or n == len(rank_args), f"arguments for {len(rank_args)} ranks, but {n} ranks"
        self.nranks = 1 if n is None else n
        self._folder = tempfile.TemporaryDirectory(prefix="mpirt-test-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        argv = [*under, sys.executable, *python_args]
        settings: dict[str, str | None] = dict(env or {})
        if n is not None:
            assert launcher is not None, "n ranks need a launcher"
            programs = [["-n", "1", *argv, *own] for own in rank_args] or [["-n", str(n), *argv]]
            argv = [launcher.path, *launcher.flags, *mpirun_args, *programs[0]]
            for program in programs[1:]:
                argv += [":", *program]
            settings = {**launcher.env, **settings}
        # Whatever MPI and the ranks leave in the temporary folder when killed goes away with the job.
        settings |= {FOLDER: str(self.folder), "TMPDIR": str(self.folder)}
        self._segments: set[str] = set()
        self._segments_noted = 0.0
        self._began = time.monotonic()
        self._result: Result | None = None
        with open(self.folder / "stdout", "wb") as out, open(self.folder / "stderr", "wb") as err:
            self.launcher = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,  # files, not pipes: nobody has to read, and a leftover process can't hold us up
                stderr=err,
                start_new_session=True,
                env=rank_environment(settings),
                cwd=cwd,
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def stdout(self) -> str:
        """What the job has printed so far."""
        return self._result.stdout if self._result else self.read("stdout")

    @property
    def stderr(self) -> str:
        return self._result.stderr if self._result else self.read("stderr")

    def read(self, name: str) -> str:
        """Text of a file in the job's folder, "" if it isn't there."""
        try:
            return (self.folder / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Wait until the job's standard output contains ``text``."""
        self._wait_until(lambda: text in self.read("stdout"), f"{text!r} on its standard output", timeout)

    def pid(self, rank: int, timeout: float = 30) -> int:
        """Process id of ``rank``, waiting for it to start."""
        self._wait_until(lambda: self.read(f"rank{rank}.pid") != "", f"rank {rank} to start", timeout)
        return int(self.read(f"rank{rank}.pid"))

    def signal(self, rank: int, number: int) -> None:
        """Send the signal ``number`` to ``rank``, e.g. SIGKILL or SIGSTOP."""
        pid = self.pid(rank)
        self._note_segments()
        os.kill(pid, number)

    def lost(self, rank: int) -> bool:
        """Whether ``rank`` has started and is gone."""
        pid = self.read(f"rank{rank}.pid")
        return pid != "" and not _alive(int(pid))

    def wait(self, timeout: float) -> Result:
        """Wait for the launcher to end; past ``timeout`` seconds dump all ranks' stacks and stop the job."""
        deadline = time.monotonic() + timeout
        while not self.ended():
            if time.monotonic() > deadline:
                self.dump()
                return self.stop(timed_out=True)
            time.sleep(0.02)
        return self.stop()

    def ended(self) -> bool:
        """Whether the launcher has ended. (Its ranks may not: `stop` sees to that.)"""
        if self.launcher.poll() is not None:
            return True
        if time.monotonic() > self._segments_noted + 0.05:
            self._note_segments()
        return False

    def dump(self, ranks: Sequence[int] | None = None) -> None:
        """Have the Python stacks of ``ranks`` (default: all) written to their ``rank<k>.stack``."""
        asked = []
        for rank in range(self.nranks) if ranks is None else ranks:
            if (pid := self.read(f"rank{rank}.pid")) and not self.lost(rank):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), DUMP_SIGNAL)
                    asked.append(rank)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and not all(self.read(f"rank{rank}.stack") for rank in asked):
            time.sleep(0.02)
        time.sleep(0.05)  # a stack is written frame by frame

    def stop(self, timed_out: bool = False) -> Result:
        """End the job if it runs, kill what is left of it, and tell how it ended. Calling it again tells the same."""
        if self._result is not None:
            return self._result
        ended = self.launcher.poll() is not None
        if not ended:
            self._note_segments()
            # First politely, to the launcher alone: it ends its ranks and removes its session's files.
            self.launcher.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.launcher.wait(2)
        seconds = time.monotonic() - self._began
        deadline = time.monotonic() + (2 if ended else 0)
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        leftovers = tuple(f"pid {pid}: {command}" for pid, command in left.items()) if ended else ()
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        rc = self.launcher.wait()
        stacks = {rank: self.read(f"rank{rank}.stack") for rank in range(self.nranks)}
        stacks = {rank: stack for rank, stack in stacks.items() if stack}
        self._result = Result(rc, self.read("stdout"), self.read("stderr"), seconds, timed_out, stacks, leftovers)
        for segment in self._segments:
            Path(segment).unlink(missing_ok=True)
        self._folder.cleanup()
        return self._result

    def _note_segments(self) -> None:
        """Remember the ranks' shared memory: of a killed or crashed rank's, MPICH's stays until removed by name."""
        self._segments_noted = time.monotonic()
        for rank in range(self.nranks):
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{self.read(f'rank{rank}.pid') or '?'}/maps").read_text().splitlines()
                self._segments |= {line.split()[-1] for line in maps if " /dev/shm/" in line and not line.endswith("(deleted)")}

    def processes(self) -> dict[int, str]:
        """Process id and command line of every living process of this job, launcher included."""
        mark = f"{FOLDER}={self.folder}\0".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                # A process may vanish as we look, or be another user's; a zombie's environment is empty.
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes() + b"\0":
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return dict(sorted(found.items()))

    def _wait_until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if self.ended() and not condition():
                raise AssertionError(f"the job ended while a test waited for {what}: {self.stop()}")
            if time.monotonic() > deadline:
                self.dump()
                raise TimeoutError(f"waited {timeout:.0f} s for {what}: {self.stop(timed_out=True)}")
            time.sleep(0.01)


def tail(text: str, nchars: int = 6000) -> str:
    """The end of ``text``, from the beginning of a line."""
    text = text.rstrip()
    if len(text) <= nchars:
        return text
    return f"[... {len(text) - nchars} characters left out]\n" + text[-nchars:].partition("\n")[2]


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
