"""The others of a measurement: ranks that sleep meanwhile, and children that answer requests, each a line of JSON.

A child is run by an interpreter that has what is compared (TensorFlow). It says hello with its version and the processes it
started, answers with samples, and ends when its input ends. Between requests it sleeps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


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


class Peer:
    """A running child.

    Parameters
    ----------
    python : the interpreter
    script : what it runs, beside this file; it calls `serve`

    Attributes
    ----------
    version : what the child compares with
    pids : its processes
    """

    def __init__(self, python: str, script: str) -> None:
        pipe = subprocess.PIPE
        command = [python, str(Path(__file__).with_name(script))]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it has packages of its own
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        hello = self._answer()
        self.version, self.pids = hello["version"], hello["pids"]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Run a case; the child's answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self._child.args!r} ended with status {self._child.wait()}.")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        self._child.communicate()


def serve(version: str, pids: list[int], answer: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
    """In the child: answer requests until there are no more."""
    _say({"version": version, "pids": pids})
    for line in sys.stdin:
        _say(answer(json.loads(line)))


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
