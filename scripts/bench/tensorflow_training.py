"""The contestant of `training.py` that runs on TensorFlow's own servers: 2 ps tasks and 2 workers, gRPC on 127.0.0.1.

`TensorFlow` is the side of the benchmark. It starts this file by an interpreter that has TensorFlow, as worker 0, which starts the
other three processes. Requests and answers are lines of JSON; worker 0 passes on what the other worker must do too.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import training_problem
from training_problem import PS, WORKERS, Problem

PIPE = subprocess.PIPE


class TensorFlow:
    """TensorFlow's processes, as rank 0 sees them.

    Parameters
    ----------
    python : an interpreter that has TensorFlow; None on the other ranks, which only hold the place
    """

    def __init__(self, python: str | None) -> None:
        self.pids: list[int] = []
        self._child: subprocess.Popen[str] | None = None
        if python is not None:
            # The launcher's variables would make TensorFlow's processes look like ranks.
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "PRTE", "HYDRA"))}
            environment.pop("PYTHONPATH", None)
            pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": subprocess.DEVNULL}
            self._child = subprocess.Popen([python, __file__], text=True, env=environment, **pipes)
            self.pids = _answer(self._child)["pids"]

    def prepare(self, problem: Problem, form: str) -> None:
        """Build the graphs of a problem in one form."""
        if self._child is not None:
            with tempfile.NamedTemporaryFile(suffix=".npz") as file:
                training_problem.save(problem, file.name)
                self._ask(do="prepare", path=file.name, form=form)

    def losses(self, count: int) -> list[float]:
        """Losses of the first ``count`` steps (asynchronous: of worker 0 alone)."""
        return list(self._ask(do="losses", count=count)["losses"])

    def timed(self, count: int) -> float:
        """Seconds of ``count`` steps of each worker."""
        return float(self._ask(do="timed", count=count)["seconds"])

    def until(self, accuracy: float, every: int) -> float:
        """Seconds from the first values to ``accuracy``."""
        return float(self._ask(do="until", accuracy=accuracy, every=every)["seconds"])

    def close(self) -> None:
        """End the processes."""
        if self._child is not None:
            self._child.communicate()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._child is not None
        return _tell(self._child, request) or _answer(self._child)


def _tell(child: subprocess.Popen[str], request: dict[str, Any]) -> None:
    assert child.stdin is not None
    child.stdin.write(json.dumps(request) + "\n")
    child.stdin.flush()


def _answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{child.args!r}: TensorFlow's side ended with status {child.wait()}.")
    return dict(json.loads(line))


# ------------------------------------------------------------------------------------- in TensorFlow's processes


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Worker:
    """Trains in a session on its own server when asked to."""

    def __init__(self, tf: Any, target: str, index: int, other: subprocess.Popen[str] | None) -> None:
        self._tf, self._target, self._index, self._other = tf, target, index, other
        self._graph: Any = None
        self._form = ""

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        import training_graphs

        tf, self._form = self._tf, request["form"]
        if self._graph is not None and self._graph.session is not None:
            self._graph.session.close()
        problem = training_problem.load(request["path"])
        with tf.Graph().as_default():
            if self._form == "async":
                self._graph = training_graphs.Asynchronous(tf, problem, self._index)
            elif self._index == 0:
                self._graph = training_graphs.Synchronous(tf, problem)
            if self._graph is not None:
                self._graph.session = tf.Session(self._target)
                if self._index == 0:
                    self._graph.session.run(self._graph.initialize)
        self._pass_on(request)
        return {}

    def losses(self, request: dict[str, Any]) -> dict[str, Any]:
        self._graph.reset()
        return {"losses": self._graph.steps(request["count"])}

    def timed(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of ``count`` steps, from the first worker's start to the last one's end."""
        both = self._form == "async" and self._other is not None
        if both:
            _tell(self._other, request)  # type: ignore[arg-type]
        self._graph.steps(max(2, request["count"] // 10))
        start = time.perf_counter()
        self._graph.steps(request["count"])
        end = time.perf_counter()
        if both:
            other = _answer(self._other)  # type: ignore[arg-type]
            start, end = min(start, other["start"]), max(end, other["end"])
        return {"seconds": end - start, "start": start, "end": end}

    def until(self, request: dict[str, Any]) -> dict[str, Any]:
        every, accuracy = request["every"], request["accuracy"]
        self._graph.reset()
        start = time.perf_counter()
        if self._form == "sync":
            reached = False
            while not reached:
                self._graph.steps(every)
                reached = self._graph.accuracy() >= accuracy
            return {"seconds": time.perf_counter() - start}
        assert self._other is not None
        _tell(self._other, {"do": "race"})
        calls = 0

        def stop() -> bool:
            nonlocal calls
            calls += 1
            return calls % every == 0 and self._graph.accuracy() >= accuracy

        self._graph.steps(10**9, stop)
        seconds = time.perf_counter() - start
        _tell(self._other, {"do": "nothing"})
        _answer(self._other)
        return {"seconds": seconds}

    def race(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train until something is said."""
        self._graph.steps(10**9, lambda: bool(select.select([sys.stdin], [], [], 0)[0]))
        sys.stdin.readline()
        return {}

    def _pass_on(self, request: dict[str, Any]) -> None:
        if self._other is not None:
            _tell(self._other, request)
            _answer(self._other)


def _serve(job: str, index: int, addresses: dict[str, list[str]], pids: list[int], other: subprocess.Popen[str] | None) -> None:
    os.environ.update(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", GRPC_VERBOSITY="ERROR")
    import tensorflow.compat.v1 as tf

    tf.disable_v2_behavior()
    # One thread of BLAS as everyone; a second one between operations, which makes TensorFlow faster here.
    config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=2)
    server = tf.train.Server(tf.train.ClusterSpec(addresses), job_name=job, task_index=index, config=config)
    if job == "ps":
        sys.stdin.read()
        os._exit(0)  # TensorFlow's servers can't be stopped
    worker = _Worker(tf, server.target, index, other)
    actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        name: getattr(worker, name) for name in ("prepare", "losses", "timed", "until", "race")
    }
    _say({"pids": pids})
    while line := sys.stdin.readline():
        request = json.loads(line)
        _say(actions[request["do"]](request))
    os._exit(0)


def _main() -> None:
    if len(sys.argv) > 1:
        _serve(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), [os.getpid()], None)
        return
    addresses = {job: [f"127.0.0.1:{_free_port()}" for _ in range(count)] for job, count in (("ps", PS), ("worker", WORKERS))}
    others = [
        subprocess.Popen([sys.executable, __file__, job, str(i), json.dumps(addresses)], stdin=PIPE, stdout=PIPE, text=True)
        for job, i in (("ps", 0), ("ps", 1), ("worker", 1))
    ]
    pids = [os.getpid(), *(child.pid for child in others)]
    _answer(others[-1])
    _serve("worker", 0, addresses, pids, others[-1])


if __name__ == "__main__":
    _main()
