"""The cases of `servers.py` on TensorFlow's own runtime: two server processes, gRPC on 127.0.0.1. Started by `servers.py`.

Run by an interpreter that has TensorFlow. Reads one request a line, a JSON object, and answers each with one line of JSON;
ends with its input. Beside this file's process, the worker, it starts the parameter server.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

from figures import throughput, timed

os.environ.update(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="0", GRPC_VERBOSITY="ERROR")
import tensorflow.compat.v1 as tf  # noqa: E402 - reads the environment as it starts

NBYTES = 64 * 2**20


def server(job: str, ports: dict[str, int]) -> Any:
    spec = tf.train.ClusterSpec({name: [f"127.0.0.1:{port}"] for name, port in ports.items()})
    return tf.train.Server(spec, job_name=job, task_index=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def worker() -> None:
    """Answer requests, each on a session with the worker's server."""
    ports = {"ps": free_port(), "worker": free_port()}
    ps = subprocess.Popen([sys.executable, __file__, json.dumps(ports)], stdin=subprocess.PIPE)
    target = server("worker", ports).target
    tf.disable_v2_behavior()
    with tf.device("/job:ps/task:0"):
        counter = tf.Variable(0, dtype=tf.int64)
        add = tf.assign_add(counter, 1)
        table = tf.Variable(tf.fill([NBYTES // 4], 1.5))
    with tf.device("/job:worker/task:0"):
        add_here = tf.assign_add(tf.Variable(0, dtype=tf.int64), 1)
        table_here = tf.identity(table)
    with tf.Session(target) as session:
        session.run(tf.global_variables_initializer())
        fetches = {"step": add.op, "fetch": add, "local": add_here.op, "read": table, "pull": table_here.op}

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            fetch = fetches[request.get("case", "step")]
            if "threads" not in request:
                return {"samples": timed(lambda: session.run(fetch), request["count"], warmup=request["warmup"])}
            before = session.run(counter)
            steps, seconds = throughput(lambda _: session.run(fetch), request["threads"], request["seconds"])
            return {"steps": steps, "seconds": seconds, "lost": steps - int(session.run(counter) - before)}

        say({"version": tf.__version__, "pids": [os.getpid(), ps.pid]})
        for line in sys.stdin:
            say(answer(json.loads(line)))
    ps.kill()  # TensorFlow's servers can't be stopped
    os._exit(0)


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    if len(sys.argv) == 1:
        worker()
    serving = server("ps", json.loads(sys.argv[1]))
    sys.stdin.read()
    del serving
    os._exit(0)


if __name__ == "__main__":
    main()
