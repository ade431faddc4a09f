"""BLAS threads of a process whose servers come and go, as threadpoolctl finds them, in a process of its own with 8 cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
os.sched_getaffinity = lambda pid: set(range(8))
os.cpu_count = lambda: 8
import numpy, threadpoolctl
import mpirt as tf

def threads():
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]

tf.cluster({"ps": 2, "worker": 2})
found, servers = [threads()], []
for job, index in (("ps", 0), ("ps", 1), ("worker", 0), ("worker", 1)):
    servers.append(tf.train.Server(None, job, index))
    found.append(threads())
    if found[-1] == [2] and "lower" in sys.argv:
        threadpoolctl.threadpool_limits(1)
for server in servers:
    server.stop()
    found.append(threads())
assert all(len(f) == 1 for f in found), found
print(json.dumps([f[0] for f in found]))
"""
VARIABLES = ("MPIRT_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def threads(*arguments: str, **environment: str) -> list[int]:
    """With no server, with one to four, and with three to none."""
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES and not name.startswith(("OMPI_", "PMI", "MPI_"))}
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found


def test_the_servers_of_a_process_share_its_cores() -> None:
    assert threads() == [8, 8, 4, 2, 2, 2, 4, 8, 8]


@pytest.mark.parametrize("variable", ["MPIRT_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_a_number_of_threads_that_the_user_asks_for_stays(variable: str) -> None:
    assert set(threads(**{variable: "1"})) == {1}


def test_a_lower_number_that_the_script_sets_itself_stays() -> None:
    assert threads("lower") == [8, 8, 4, 2, 1, 1, 1, 1, 1]
