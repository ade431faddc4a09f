"""Memory of freed arrays stays with the process: counted in page faults, in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

from mpirt.runtime.allocation import LARGEST_NBYTES

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")

# Page faults while two arrays at a time of some sizes are made, written and freed again and again, as in the steps of a training.
SCRIPT = """
import resource, sys
import numpy as np
import mpirt

nbytes, started = int(sys.argv[1]), sys.argv[2] == "start"
if started:
    mpirt.cluster()

def step():
    first = np.ones(nbytes // 4, np.float32)
    second = first + 1
    third = second * 2

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(nbytes: int, started: bool = True, **variables: str) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | variables
    command = [sys.executable, "-c", SCRIPT, str(nbytes), "start" if started else "don't"]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout)


@pytest.mark.parametrize("nbytes", [200_000, 3_000_000, LARGEST_NBYTES - 4096])
def test_arrays_of_later_steps_are_in_pages_that_the_process_has(nbytes: int) -> None:
    assert faults(nbytes) < 100  # one page of each array in each step would be thousands


def test_without_a_cluster_the_allocator_is_as_it_was() -> None:
    assert faults(3_000_000, started=False) > 1000


def test_an_allocator_that_the_user_set_is_left_alone() -> None:
    assert faults(3_000_000, MALLOC_MMAP_THRESHOLD_="100000") > 1000
