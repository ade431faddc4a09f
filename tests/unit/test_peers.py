"""Which processes of this host are still there."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mpirt.transport.peers import Identity, PeerWatch

PROGRAM = """
import sys
sys.path[:] = eval(sys.argv[1])
from mpirt.transport.peers import Identity
me = Identity.of_this_process()
print(me.host, me.boot, me.pid, me.start, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[str], Identity]]:
    """Another process, and what it says of itself. It ends when its standard input does."""
    command = [sys.executable, "-c", PROGRAM, repr([os.getcwd(), *sys.path])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host, boot, pid, start = process.stdout.readline().split()
        yield process, Identity(host, boot, int(pid), int(start))
        process.kill()


def test_a_killed_process_is_seen_within_50_ms_also_before_anyone_has_waited_for_it(
    other: tuple[subprocess.Popen[str], Identity],
) -> None:
    process, identity = other
    watch = PeerWatch(0, [Identity.of_this_process(), identity])
    assert watch.alive(0) and watch.alive(1)
    assert watch.check([0, 1]) is None
    process.kill()
    began = time.perf_counter()
    while watch.check([0, 1]) is None and time.perf_counter() < began + 10:
        time.sleep(0.001)
    assert time.perf_counter() - began < 0.05
    assert watch.check([0, 1]) == 1
    assert watch.check([0]) is None
    process.wait()
    assert not watch.alive(1), "gone from the process table"
    watch.close()
    assert watch.alive(1), "nothing is known any more"


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": "another"}, {"start": 1}])
def test_of_a_process_that_is_not_surely_the_one_meant_nothing_is_known(
    other: tuple[subprocess.Popen[str], Identity], change: dict[str, object]
) -> None:
    process, identity = other
    watch = PeerWatch(0, [Identity.of_this_process(), dataclasses.replace(identity, **change)])  # type: ignore[arg-type]
    process.kill()
    process.wait()
    assert watch.alive(1)
    assert watch.check([0, 1]) is None


def test_an_identity_survives_the_exchange() -> None:
    records = Identity.empty_records(2)
    me = Identity.of_this_process()
    records[1:] = me.to_record()
    assert Identity.from_record(records[1]) == me
    assert me.start > 0 and me.pid == os.getpid()
