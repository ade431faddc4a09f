"""The others of a measurement: ranks that sleep meanwhile, and children that answer requests, each a line of JSON.

A child is run by an interpreter that has what is compared (TensorFlow). It says hello with its version and the processes it
started, answers with samples, and ends when its input ends. Between requests it sleeps.
Guarantee: a child that ends, or says nothing for too long, raises `PeerError` with what it was asked and the last that it printed;
no child outlives the process that started it by more than it takes to see the end of its input, nor `Peer.close`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HELLO_S, ANSWER_S = 120.0, 400.0  # after which a child that says nothing is given up: TensorFlow plans 100,000 operations in 40 s
END_S = 5.0  # that a child has to end by itself
# By these a launcher tells a process that it is a rank, which a child isn't.
LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "HYDRA_", "MPI_")


class Rest:
    """Lets the other ranks sleep while rank 0 is busy with what is none of their business; a wait inside MPI takes a core."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm.Dup()

    def wake(self) -> None:
        """Rank 0: end the others' wait."""
        for rank in range(1, self._comm.Get_size()):
            self._comm.send(None, rank, 0)

    def wait(self) -> None:
        """The others: sleep until rank 0 calls `wake`."""
        while not self._comm.Iprobe(0, 0):
            time.sleep(1e-3)
        self._comm.recv(source=0, tag=0)


class PeerError(RuntimeError):
    """A child ended or said nothing."""


class Peer:
    """A running child.

    Parameters
    ----------
    python : the interpreter
    script : what it runs, beside this file; it calls `serve`
    arguments : of the script
    own_group : whether `close` ends whatever it started too; False for a child's child, which its parent's end covers

    Attributes
    ----------
    version : what the child compares with
    pids : its processes

    Raises
    ------
    PeerError
        If it doesn't start.
    """

    def __init__(self, python: str, script: str, *arguments: str, own_group: bool = True) -> None:
        self._about = " ".join((python, script, *arguments))
        # It has packages of its own.
        left_out = "PYTHONPATH", *LAUNCHERS
        environment = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        command = [python, str(Path(__file__).parent / script), *arguments]
        self._unread = b""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the child has failed, closed with it
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=environment, start_new_session=own_group
            )
        except OSError as error:
            self._said.close()
            raise PeerError(f"can't start {self._about}: {error}. Mend: name an interpreter that has TensorFlow.") from None
        self._own_group = own_group
        hello = self._answer("start", HELLO_S)
        self.version, self.pids = hello["version"], hello["pids"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Run a case; the child's answer."""
        self.tell(**request)
        return self.answer()

    def tell(self, **request: Any) -> None:
        """Ask without waiting for the `answer`."""
        assert self._child.stdin is not None
        self._asked = request
        with contextlib.suppress(BrokenPipeError):  # that it has ended, the answer will tell
            self._child.stdin.write((json.dumps(request) + "\n").encode())
            self._child.stdin.flush()

    def answer(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """What the child says to the last `tell`."""
        return self._answer(f"answer {self._asked}", timeout_s)

    def _answer(self, what: str, timeout_s: float) -> dict[str, Any]:
        assert self._child.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            ready = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
            more = os.read(self._child.stdout.fileno(), 2**16) if ready else b""
            if not more:
                how = "ended" if ready else f"said nothing for {timeout_s:g} s"
                self._end()
                self._said.seek(0)
                last = self._said.read()[-2000:].decode(errors="replace").strip() or "nothing"
                self.close()
                raise PeerError(f"{self._about} {how} and didn't {what} (exit status {self._child.returncode}). It printed:\n{last}")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it, and what it started. Again is fine."""
        self._end()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._said.close()

    def _end(self) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL) if self._own_group else self._child.kill()
        self._child.wait()


def serve(version: str, pids: list[int], answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """In the child: answer requests until there are no more."""
    _say({"version": version, "pids": pids})
    while line := sys.stdin.readline():
        _say(answer(json.loads(line)))


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
