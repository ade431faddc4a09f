"""The transport within one process: what every transport promises, and what only this one does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from mpirt.errors import AbortedError, InternalError
from mpirt.transport import base
from mpirt.transport.base import Transport
from mpirt.transport.loopback import LoopbackTransport, LoopbackWorld
from tests.transport_conformance import CHECKS, complete

Check = Callable[[Transport], None]


def on_all_ranks(world: LoopbackWorld, body: Check) -> None:
    """Run ``body`` on a thread for each rank; a failure of one ends all and is raised here."""
    failures: list[BaseException] = []

    def run(transport: LoopbackTransport) -> None:
        try:
            body(transport)
        except BaseException as error:  # passed on by the main thread
            failures.append(error)
            with pytest.raises(AbortedError):
                transport.abort()

    threads = [threading.Thread(target=run, args=(world.transport(rank),)) for rank in range(world.size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_is_a_transport(check: Check, seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK_NBYTES", 1024)
    on_all_ranks(LoopbackWorld(3, seed=seed), check)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_one_rank_alone_is_a_transport(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK_NBYTES", 1024)
    check(LoopbackTransport())


def test_an_adversary_lets_tags_overtake_each_other_but_not_messages_of_one_tag() -> None:
    orders = set()
    for seed in range(20):
        world = LoopbackWorld(2, seed=seed)
        a, b = world.transport(0), world.transport(1)
        for i in range(3):
            for tag in (1, 2):
                a.isend(np.array([i]), 1, tag)
        got = {tag: [np.empty(1, int) for _ in range(3)] for tag in (1, 2)}
        receives = {(tag, i): b.irecv(got[tag][i], 0, tag) for tag in (1, 2) for i in range(3)}
        order: list[tuple[int, int]] = []
        while len(order) < 6:
            order += [key for key, receive in receives.items() if key not in order and receive.test()]
        assert [[int(array[0]) for array in got[tag]] for tag in (1, 2)] == [[0, 1, 2], [0, 1, 2]]
        orders.add(tuple(order))
    assert len(orders) > 3


def test_an_adversary_punishes_a_sender_that_writes_its_buffer_before_the_send_is_complete() -> None:
    spoiled = 0
    for seed in range(20):
        world = LoopbackWorld(2, seed=seed)
        buffer, got = np.array([1.0]), np.zeros(1)
        send = world.transport(0).isend(buffer, 1, 0)
        if not send.test():
            buffer[0] = 2.0
        complete(world.transport(1).irecv(got, 0, 0), send)
        spoiled += got[0] == 2.0
    assert 0 < spoiled < 20


def test_an_adversary_fills_a_posted_receive_with_garbage() -> None:
    buffer = np.zeros(2)
    LoopbackWorld(2, seed=1).transport(0).irecv(buffer, 1, 0)
    assert np.isnan(buffer).all()


def test_a_sender_that_counts_on_another_number_of_chunks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK_NBYTES", 1024)
    transport = LoopbackTransport()
    receive = transport.irecv(np.empty(1000), 0, 9)
    transport.isend(np.empty(0), 0, 9)
    with pytest.raises(InternalError) as caught:
        receive.test()
    assert caught.value.message == (
        "tag 9 from rank 0 to rank 0: the sender counts on a receive of 0 bytes, which takes 1 messages; "
        "it is of 8000 bytes, 8 messages."
    )


def test_after_an_abort_whatever_another_rank_does_raises() -> None:
    world = LoopbackWorld(2)
    survivor = world.transport(1)
    receive = survivor.irecv(np.empty(1), 0, 0)
    with pytest.raises(AbortedError, match="rank 0 of 2 aborted the job with exit status 7"):
        world.transport(0).abort(7)
    for action in (receive.test, survivor.poll_control, lambda: survivor.send_control(0, b"")):
        with pytest.raises(AbortedError, match="rank 0 of 2 aborted the job with exit status 7"):
            action()


def test_a_killed_rank_is_seen_by_the_others() -> None:
    world = LoopbackWorld(3)
    world.kill(2)
    assert [world.transport(0).peer_alive(rank) for rank in range(3)] == [True, True, False]
    assert world.transport(0).check_peers([1, 2]) == 2
    assert world.transport(0).check_peers([1]) is None


def test_a_finished_exchange_leaves_nothing_behind() -> None:
    transport = LoopbackTransport()
    for tag in range(100):
        transport.isend(np.empty(1), 0, tag)
        complete(transport.irecv(np.empty(1), 0, tag))
    assert not transport.world._channels
