"""The suite's cases on TensorFlow's own runtime. Started by the lines of the suite (`peers.Peer`).

Run by an interpreter that has TensorFlow. Cases of two servers: this process is the worker, and it starts the parameter server
as another process, gRPC on 127.0.0.1, when the first such case is asked for. Cases of one process have a session of their own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import tensorflow_servers
from figures import throughput, timed
from graphs import two_chains
from peers import Peer, serve
from tensorflow_servers import tf
from tensorflow_taskbench import taskbench

NBYTES = 64 * 2**20
children: list[Peer] = []


@cache
def target() -> str:
    """The worker's address, with the parameter server running."""
    found, others = tensorflow_servers.start({"ps": 1, "worker": 1})
    children.extend(others.values())
    return found


@cache
def servers_cases() -> tuple[Any, dict[str, Any], Any]:
    """The session of the line "servers", what its cases fetch, and its counter."""
    with tf.Graph().as_default():
        with tf.device("/job:ps/task:0"):
            counter = tf.Variable(0, dtype=tf.int64, name="counter")
            add = tf.assign_add(counter, 1, use_locking=True)  # else threads lose steps
            table = tf.Variable(tf.fill([NBYTES // 4], 1.5), name="table")
        with tf.device("/job:worker/task:0"):
            add_here = tf.assign_add(tf.Variable(0, dtype=tf.int64, name="here"), 1)
            table_here = tf.identity(table)
        session = tf.Session(target())
        session.run(tf.global_variables_initializer())
    return session, {"step": add.op, "fetch": add, "local": add_here.op, "read": table, "pull": table_here.op}, counter


def servers(request: Mapping[str, Any]) -> dict[str, Any]:
    """Remote steps, reads, and steps of many threads."""
    session, fetches, counter = servers_cases()
    fetch = fetches[request.get("case", "step")]
    if "threads" not in request:
        return {"samples": timed(lambda: session.run(fetch), request["count"], warmup=request["warmup"])}
    before = session.run(counter)
    steps, seconds = throughput(lambda _: session.run(fetch), request["threads"], request["seconds"])
    return {"steps": steps, "seconds": seconds, "lost": steps - int(session.run(counter) - before)}


@cache
def echo(nbytes: int) -> Callable[[], object]:
    """A step that brings a tensor from the worker to the parameter server and back."""
    with tf.Graph().as_default():
        with tf.device("/job:worker/task:0"):
            here = tf.Variable(tf.fill([nbytes // 4], np.float32(1.5)), name=f"echo_{nbytes}")  # a server's, by name
        with tf.device("/job:ps/task:0"):
            there = tf.identity(here)
        with tf.device("/job:worker/task:0"):
            back = tf.identity(there)
        config = tf.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = True  # Grappler would see that nobody needs the answer
        session = tf.Session(target(), config=config)
        session.run(tf.global_variables_initializer())
        return session.make_callable(back.op)


def edge(request: Mapping[str, Any]) -> dict[str, Any]:
    """Round trips of a tensor."""
    return {"samples": timed(echo(request["nbytes"]), request["count"], warmup=request["warmup"])}


@cache
def small_operations(shape: str, count: int) -> Callable[[], object]:
    """A step of ``count`` operations on 10 floats in one process: a chain, or side by side."""
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [10])
        ends = [x]
        for number in range(count):
            if shape == "chain":
                ends = [tf.add(ends[0], x) if number % 2 else tf.multiply(ends[0], x)]
            else:
                ends.append(tf.add(x, x) if number % 2 else tf.multiply(x, x))
        config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=2)
        # Grappler would fold the wide graph's equal operations into one.
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        config.graph_options.optimizer_options.opt_level = -1  # nor common subexpressions
        call = tf.Session(config=config).make_callable(ends[0] if shape == "chain" else tf.group(ends), [x])
    ones = np.ones(10, np.float32)
    return lambda: call(ones)


@cache
def big_chain(nbytes: int, count: int) -> Callable[[], object]:
    """A step of ``count`` elementwise operations on a large variable in one process."""
    with tf.Graph().as_default():
        x = y = tf.Variable(tf.fill([nbytes // 4], np.float32(1.0)))
        for number in range(count):
            y = tf.add(y, 0.5) if number % 2 else tf.multiply(y, x)
        config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
        session = tf.Session(config=config)
        session.run(tf.global_variables_initializer())
        return session.make_callable(y)


def operations(request: Mapping[str, Any]) -> dict[str, Any]:
    """Steps of many operations in one process."""
    if request["case"] == "big":
        call = big_chain(request["nbytes"], request["operations"])
    else:
        call = small_operations(request["case"], request["operations"])
    return {"samples": timed(call, request["count"], warmup=request["warmup"])}


def planning(request: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds to build the graph of the line "planning" and to run its first step."""
    start = time.perf_counter()
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [10])
        ends = two_chains(tf, x, request["operations"], ("/job:worker/task:0", "/job:ps/task:0"))
        built = time.perf_counter()
        with tf.Session(target()) as session:
            session.run([end.op for end in ends], {x: np.zeros(10, np.float32)})
            return {"build": built - start, "first": time.perf_counter() - built}


LINES: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "planning": planning,
    "servers": servers,
    "edge": edge,
    "operations": operations,
    "taskbench": lambda request: taskbench(request, target()),
}


def main() -> None:
    if len(sys.argv) > 1:
        job, index, addresses = sys.argv[1:]
        tensorflow_servers.join(job, int(index), json.loads(addresses))
    serve(tf.__version__, [os.getpid()], lambda request: LINES[request["line"]](request))
    for child in children:
        child.close()
    tensorflow_servers.end()


if __name__ == "__main__":
    main()
