"""Simulated ranks that all run a server; some of them are clients, the others only join."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import mpirt as tf
from mpirt.distributed.cluster import Cluster
from tests.loopback.simulated_ranks import Spec, values

Client = Callable[[int, Cluster], Any]


def served(
    n: int,
    client: Client,
    spec: Spec = None,
    *,
    clients: Collection[int] = (0,),
    seed: int | None = None,
    timeout_s: float = 20,
) -> list[Any]:
    """What ``client(rank, cluster)`` returned on each of ``clients``; every rank hosts one task or several, and serves them.

    Parameters
    ----------
    spec : ``{"worker": n}`` by default
    seed : makes the transport an adversary
    """

    def script(rank: int, cluster: Cluster) -> Any:
        servers = [tf.train.Server(cluster, *task) for task in cluster.tasks]
        result = client(rank, cluster) if rank in clients else None
        servers[0].join()
        return result

    found = values(n, script, spec if spec is not None else {"worker": n}, seed, timeout_s)
    return [found[rank] for rank in sorted(clients)]


def session_on(task: str, cluster: Cluster, config: Any = None) -> tf.Session:
    """A session whose target is ``"ps:0"``."""
    job, index = task.split(":")
    return tf.Session(f"mpi:///job:{job}/task:{index}", cluster=cluster, config=config)
