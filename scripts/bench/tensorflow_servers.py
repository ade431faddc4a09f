"""TensorFlow, and its servers for the suite: each in a process of its own, gRPC on 127.0.0.1, on ports that are free.

Runs in an interpreter that has TensorFlow. A script that is asked for a cluster (`start`) serves one task itself and runs itself
anew for each other task (`peers.Peer`), with the arguments job, index and addresses; those it hands to `join`.
Guarantee: a cluster starts whole, on other ports if one is taken meanwhile, or `PeerError` says which task didn't and why.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from peers import Peer, PeerError

os.environ.update(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="2", TF_ENABLE_ONEDNN_OPTS="0", GRPC_VERBOSITY="ERROR")
import tensorflow.compat.v1 as tf  # noqa: E402 - reads the environment as it starts

tf.disable_v2_behavior()

ATTEMPTS = 3  # a port that was free may be taken when its server starts
Addresses = dict[str, list[str]]

_kept: list[Any] = []  # servers end with their process only


def free_ports(count: int) -> list[int]:
    """As many different ports."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def join(job: str, index: int, addresses: Addresses, config: Any = None) -> str:
    """Serve a task in this process from now on; the server's target."""
    server = tf.train.Server(tf.train.ClusterSpec(addresses), job_name=job, task_index=index, config=config)
    _kept.append(server)
    return str(server.target)


def start(jobs: dict[str, int], config: Any = None) -> tuple[str, dict[tuple[str, int], Peer]]:
    """Start a cluster of ``jobs``, this process as task 0 of the last one; its target, and the processes of the other tasks."""
    tasks = [(job, index) for job, count in jobs.items() for index in range(count)]
    here = list(jobs)[-1], 0
    failures = []
    for _ in range(ATTEMPTS):
        ports = iter(free_ports(len(tasks)))
        addresses = {job: [f"127.0.0.1:{next(ports)}" for _ in range(count)] for job, count in jobs.items()}
        others: dict[tuple[str, int], Peer] = {}
        try:
            target = join(*here, addresses, config)
            for job, index in tasks:
                if (job, index) != here:
                    others[job, index] = Peer(sys.executable, sys.argv[0], job, str(index), json.dumps(addresses), own_group=False)
        except (tf.errors.OpError, PeerError) as error:
            failures.append(str(error))
            for other in others.values():
                other.close()
            continue
        return target, others
    raise PeerError(f"TensorFlow's servers didn't start in {ATTEMPTS} attempts:\n" + "\n".join(failures))


def end() -> None:
    """End this process; a server can't be stopped."""
    sys.stdout.flush()
    os._exit(0)
