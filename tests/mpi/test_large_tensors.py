"""A tensor of 3 GiB, whose bytes no 32-bit number counts, crosses through shared memory and as messages in chunks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mpirun_plugin import Mpirun

GIB = 1 << 30
COUNT = 3 * GIB // 8 + 101  # no multiple of a chunk or a page
NEEDED_NBYTES = 11 * GIB  # 6 for both ends; and a window is made only where twice as much is free

CROSS = f"""
import os
import numpy as np
import mpirt as tf

COUNT, IN_CHUNK = {COUNT}, {GIB // 8}
cluster = tf.cluster({{"a": 1, "b": 1}})
places = [0, COUNT - 1, *[IN_CHUNK * k + near for k in (1, 2, 3) for near in (-1, 0)]]
with tf.device("/job:a/task:0"):
    x = tf.placeholder(tf.int64, [COUNT])
with tf.device("/job:b/task:0"):
    y = tf.identity(x)
    some, total = tf.gather(y, places), tf.reduce_sum(y)
value = np.arange(COUNT) if cluster.rank == 0 else np.broadcast_to(np.int64(0), [COUNT])
with tf.Session(fetch_on="owner") as session:
    found = session.run([some, total], {{x: value}})
    if cluster.rank == 1:
        assert found[0].tolist() == places, (found[0], places)
        assert found[1] == COUNT * (COUNT - 1) // 2, found[1]
        counters = cluster.transport.counters
        os.write(1, f"{{counters.window_bytes_received}} {{counters.bytes_received >= 8 * COUNT}}\\n".encode())
"""


def free_nbytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_3_gib_cross(mpirun: Mpirun, shared: bool) -> None:
    if free_nbytes() < NEEDED_NBYTES:
        pytest.skip(f"{free_nbytes() / GIB:.1f} GiB of memory are free; this needs {NEEDED_NBYTES / GIB:.0f}")
    ran = mpirun(2, CROSS, env={"MPIRT_SHM": str(int(shared))}, timeout=300)
    told = [line for line in ran.stdout.splitlines() if line.endswith(("True", "False"))]
    assert told == [f"{8 * COUNT} False" if shared else "0 True"]
