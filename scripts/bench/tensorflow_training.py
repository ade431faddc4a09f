"""The contestant of `training.py` that runs on TensorFlow's own servers: 2 ps tasks and 2 workers, gRPC on 127.0.0.1.

`TensorFlow` is the side of the benchmark. It starts this file by an interpreter that has TensorFlow (`peers.Peer`), as worker 0,
which starts the other three processes (`tensorflow_servers`) and passes on what the other worker must do too.
"""

from __future__ import annotations

import json
import os
import select
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import training_problem
from peers import Peer, serve
from training_problem import PS, WORKERS, Problem


class TensorFlow:
    """TensorFlow's processes, as rank 0 sees them.

    Parameters
    ----------
    python : an interpreter that has TensorFlow; None on the other ranks, which only hold the place
    """

    def __init__(self, python: str | None) -> None:
        self._peer = Peer(python, "tensorflow_training.py") if python is not None else None
        self.pids = self._peer.pids if self._peer else []

    def prepare(self, problem: Problem, form: str) -> None:
        """Build the graphs of a problem in one form."""
        if self._peer is not None:
            with tempfile.NamedTemporaryFile(suffix=".npz") as file:
                training_problem.save(problem, file.name)
                self._peer.ask(do="prepare", path=file.name, form=form)

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
        if self._peer is not None:
            self._peer.close()

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._peer is not None
        return self._peer.ask(**request)


# ------------------------------------------------------------------------------------- in TensorFlow's processes


class _Worker:
    """Trains in a session on its own server when asked to."""

    def __init__(self, tf: Any, target: str, index: int, other: Peer | None) -> None:
        self._tf, self._target, self._index, self._other = tf, target, index, other
        self._graph: Any = None
        self._form = ""

    def prepare(self, request: Mapping[str, Any]) -> dict[str, Any]:
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

    def losses(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._graph.reset()
        return {"losses": self._graph.steps(request["count"])}

    def timed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Seconds of ``count`` steps, from the first worker's start to the last one's end."""
        both = self._form == "async" and self._other is not None
        if both:
            self._other.tell(**request)
        self._graph.steps(max(2, request["count"] // 10))
        start = time.perf_counter()
        self._graph.steps(request["count"])
        end = time.perf_counter()
        if both:
            other = self._other.answer()
            start, end = min(start, other["start"]), max(end, other["end"])
        return {"seconds": end - start, "start": start, "end": end}

    def until(self, request: Mapping[str, Any]) -> dict[str, Any]:
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
        self._other.tell(do="race")
        calls = 0

        def stop() -> bool:
            nonlocal calls
            calls += 1
            return calls % every == 0 and self._graph.accuracy() >= accuracy

        self._graph.steps(10**9, stop)
        seconds = time.perf_counter() - start
        self._other.tell(do="nothing")
        self._other.answer()
        return {"seconds": seconds}

    def race(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Train until something is said."""
        self._graph.steps(10**9, lambda: bool(select.select([sys.stdin], [], [], 0)[0]))
        sys.stdin.readline()
        return {}

    def _pass_on(self, request: Mapping[str, Any]) -> None:
        if self._other is not None:
            self._other.ask(**request)


def _main() -> None:
    import tensorflow_servers
    from tensorflow_servers import tf

    # One thread of BLAS as everyone; a second one between operations, which makes TensorFlow faster here.
    config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=2)
    others: dict[tuple[str, int], Peer] = {}
    job, index = "worker", 0
    if len(sys.argv) > 1:
        job, index = sys.argv[1], int(sys.argv[2])
        target = tensorflow_servers.join(job, index, json.loads(sys.argv[3]), config)
    else:
        target, others = tensorflow_servers.start({"ps": PS, "worker": WORKERS}, config)
    worker = _Worker(tf, target, index, others.get(("worker", 1)))
    actions: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        name: getattr(worker, name) for name in ("prepare", "losses", "timed", "until", "race")
    }
    pids = [os.getpid(), *(pid for other in others.values() for pid in other.pids)]
    serve(tf.__version__, pids, lambda request: actions[request["do"]](request))
    for other in others.values():
        other.close()
    tensorflow_servers.end()


if __name__ == "__main__":
    _main()
