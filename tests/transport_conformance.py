"""What every transport promises, as functions that all ranks of a world run at once, each with its own transport.

tests/loopback runs them on threads, tests/mpi on the ranks of an mpirun. A check ends with no message under way.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from mpirt.errors import InternalError
from mpirt.transport import base
from mpirt.transport.base import ControlMessage, Counters, Request, Transport, wait_until

LIMIT_S = 30.0


def complete(*requests: Request) -> None:
    """Wait for all of ``requests``."""
    for request in requests:
        wait_until(request.test, lambda: "a message of a test", timeout_s=LIMIT_S)


def next_control(transport: Transport) -> ControlMessage:
    """Wait for a control message."""
    found: list[ControlMessage] = []

    def arrived() -> bool:
        message = transport.poll_control()
        if message is not None:
            found.append(message)
        return message is not None

    wait_until(arrived, lambda: "a control message of a test", timeout_s=LIMIT_S)
    return found[0]


def everyone(transport: Transport) -> Iterable[int]:
    """All ranks, this one included."""
    return range(transport.size)


def meet(transport: Transport) -> None:
    """Return when all ranks have called it."""
    nothing = np.empty(0)
    receives = [transport.irecv(nothing, source, tag=0) for source in everyone(transport)]
    complete(*receives, *[transport.isend(nothing, dest, tag=0) for dest in everyone(transport)])


def messages_of_one_tag_arrive_in_the_order_sent(transport: Transport) -> None:
    sends: list[Request] = []
    for peer in everyone(transport):
        sends += [transport.isend(np.array([transport.rank, i]), peer, tag=3) for i in range(20)]
    for peer in everyone(transport):
        for i in range(20):
            got = np.empty(2, int)
            complete(transport.irecv(got, peer, tag=3))
            assert got.tolist() == [peer, i]
    complete(*sends)


def arrays_of_any_dtype_and_shape_arrive_bit_for_bit(transport: Transport) -> None:
    right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    for dtype in ("f2", "f4", "f8", "?", "c8", "c16", "i1", "u8", "S5", "M8[s]"):
        for shape in ((), (1,), (0,), (3, 0, 2), (5,), (2, 3, 4)):
            sent = np.random.default_rng(7).integers(0, 2, np.empty(shape, dtype).nbytes, "u1").view(dtype).reshape(shape)
            got = np.empty(shape, dtype)
            receive = transport.irecv(got, left, tag=4)
            complete(transport.isend(sent, right, tag=4), receive)
            assert (got.tobytes(), receive.nbytes()) == (sent.tobytes(), sent.nbytes)


def a_message_may_be_shorter_than_its_receive(transport: Transport) -> None:
    right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    for count in (10, 3, 1, 0):
        got = np.zeros(10)
        receive = transport.irecv(got, left, tag=5)
        complete(transport.isend(np.arange(1.0, count + 1), right, tag=5), receive)
        assert receive.nbytes() == 8 * count
        assert got[:count].tolist() == list(range(1, count + 1))


def receives_match_by_tag_in_whatever_order_they_are_posted(transport: Transport) -> None:
    right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    sends = [transport.isend(np.array([tag]), right, tag) for tag in range(10, 20)]
    order = random.Random(1).sample(range(10, 20), 10)
    receives = {tag: (transport.irecv(got := np.empty(1, int), left, tag), got) for tag in order}
    complete(*sends, *[receive for receive, _ in receives.values()])
    assert [int(receives[tag][1][0]) for tag in range(10, 20)] == list(range(10, 20))


def random_traffic_between_all_ranks_arrives_and_is_counted_exactly(transport: Transport) -> None:
    draw = random.Random(2024)  # the same messages on every rank
    messages = []
    for number in range(300):
        source, dest = draw.randrange(transport.size), draw.randrange(transport.size)
        size = draw.choice((0, 1, 8, 1000, 70_000, 300_000)) if number % 10 == 0 else draw.randrange(200)
        messages.append((number, source, dest, draw.randrange(20, 24), size, size + draw.choice((0, 50))))

    def content(number: int, size: int) -> Any:
        return np.random.default_rng(number).integers(0, 256, size, "u1")

    meet(transport)
    before = _copy(transport.counters)
    own = random.Random(transport.rank)
    receives, sends = [], []
    todo = list(messages)
    backlog: list[tuple[int, int, int, int, int, int]] = []
    while todo or backlog:  # receives are posted in the order of their messages, but some time before or after the sends
        if todo and (not backlog or own.random() < 0.6):
            message = todo.pop(0)
            backlog.append(message)
            number, source, dest, tag, size, room = message
            if source == transport.rank:
                sends.append(transport.isend(content(number, size), dest, tag, expected_nbytes=room))
        else:
            number, source, dest, tag, size, room = backlog.pop(0)
            if dest == transport.rank:
                got = np.empty(room, "u1")
                receives.append((transport.irecv(got, source, tag), got, number, size))
    for receive, got, number, size in receives:
        complete(receive)
        assert receive.nbytes() == size, f"message {number}"
        assert got[:size].tobytes() == content(number, size).tobytes(), f"message {number}"
    complete(*sends)

    mine = [size for _, source, _, _, size, _ in messages if source == transport.rank]
    to_me = [size for _, _, dest, _, size, _ in messages if dest == transport.rank]
    after = transport.counters
    assert after.messages_sent - before.messages_sent == len(mine)
    assert after.bytes_sent - before.bytes_sent == sum(mine)
    assert after.messages_received - before.messages_received == len(to_me)
    assert after.bytes_received - before.bytes_received == sum(to_me)
    assert (after.control_sent, after.control_received) == (before.control_sent, before.control_received)


def control_messages_of_any_size_arrive_in_order_from_each_rank(transport: Transport) -> None:
    sizes = (0, 1, 10, 3_000_000, 2, 4095, 4096, 4097, 100_000, 0, 5)
    before = _copy(transport.counters)
    for peer in everyone(transport):
        for i, size in enumerate(sizes):
            transport.send_control(peer, bytes([i]) * size, kind=i % 3)
    got: dict[int, list[tuple[int, bytes]]] = {peer: [] for peer in everyone(transport)}
    for _ in range(len(sizes) * transport.size):
        message = next_control(transport)
        got[message.source].append((message.kind, message.payload))
    expected = [(i % 3, bytes([i]) * size) for i, size in enumerate(sizes)]
    assert all(got[peer] == expected for peer in everyone(transport))
    assert transport.counters.control_sent - before.control_sent == len(expected) * transport.size
    assert transport.counters.control_received - before.control_received == len(expected) * transport.size
    assert transport.counters.messages_sent == before.messages_sent


def large_messages_travel_in_chunks_and_may_be_short_or_empty(transport: Transport) -> None:
    """Needs a CHUNK_NBYTES that is small."""
    right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    chunk = base.CHUNK_NBYTES
    assert chunk <= 1024
    for room in (chunk - 8, chunk, chunk + 8, 4 * chunk, 5 * chunk - 8):
        for nbytes in {room, chunk, 3 * chunk, 8, 0}:
            if nbytes > room:
                continue
            before = _copy(transport.counters)
            sent, got = np.arange(nbytes // 8), np.zeros(room // 8, int)
            receive = transport.irecv(got, left, tag=6)
            complete(transport.isend(sent, right, tag=6, expected_nbytes=room), receive)
            assert receive.nbytes() == nbytes
            assert got[: nbytes // 8].tolist() == sent.tolist()
            assert transport.counters.messages_sent - before.messages_sent == 1
            assert transport.counters.bytes_sent - before.bytes_sent == nbytes
            assert transport.counters.messages_received - before.messages_received == 1
            assert transport.counters.bytes_received - before.bytes_received == nbytes


def a_receive_can_be_cancelled_until_its_message_comes(transport: Transport) -> None:
    """Also in chunks, where some may have come: needs a CHUNK_NBYTES that is small."""
    right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    for count in (1, 1000):
        sent, untouched, got = np.full(count, 5.0), np.zeros(count), np.zeros(count)
        cancelled = transport.irecv(untouched, left, tag=7)
        assert cancelled.cancel()
        assert cancelled.cancel()
        meet(transport)
        receive = transport.irecv(got, left, tag=7)
        complete(transport.isend(sent, right, tag=7), receive)
        assert got.tolist() == sent.tolist()
        assert not receive.cancel()
        late = transport.irecv(got, left, tag=7)
        send = transport.isend(2 * sent, right, tag=7)
        if not late.cancel():  # a race: the message may be here by now
            complete(late)
        else:
            complete(transport.irecv(got, left, tag=7))
        complete(send)
        assert not send.cancel()
        assert got.tolist() == (2 * sent).tolist()


def a_message_longer_than_its_receive_is_an_error_that_names_both_ranks(transport: Transport) -> None:
    if transport.size == 1:
        return  # Open MPI 5.0 cuts a message to oneself off without an error
    right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    receive = transport.irecv(np.empty(2), left, tag=8)
    send = transport.isend(np.empty(10), right, tag=8)
    with pytest.raises(InternalError, match=f"rank {left} .*") as caught:
        complete(receive)
    assert "tag 8" in str(caught.value) and re.search(rf"rank {transport.rank}\b", str(caught.value))
    complete(send)


def prepared_messages_are_started_again_and_again_and_meet_others_in_order(transport: Transport) -> None:
    """Two, and as many as are started by one call of MPI."""
    for count in (2, 9):
        _prepared_messages(transport, count)


def _prepared_messages(transport: Transport, count: int) -> None:
    right, left = (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size
    sizes = [4] + (count - 1) * [1]
    outgoing, incoming = [np.zeros(n) for n in sizes], [np.full(n, -1.0) for n in sizes]
    sends = [transport.prepare_send(buffer, right, tag=9 + i) for i, buffer in enumerate(outgoing)]
    receives = [transport.prepare_receive(buffer, left, tag=9 + i) for i, buffer in enumerate(incoming)]
    assert all(request.test() for request in (*sends, *receives)), "before its first start it is complete"
    before = _copy(transport.counters)
    for step in range(6):
        transport.start_all(receives) if step % 2 else [receive.start() for receive in receives]
        for i, buffer in enumerate(outgoing):
            buffer[:] = 10 * step + i
        if step == 3:  # an empty message of another kind comes in its place
            other = transport.isend(np.empty(0), right, tag=9)
            for send in sends[1:]:
                send.start()
            complete(other, *sends[1:], *receives)
            assert [r.nbytes() for r in receives] == [0] + (count - 1) * [8]
            continue
        for send in sends:
            send.start()
        complete(*sends, *receives)
        assert transport.test_all(sends)
        assert [buffer.tolist() for buffer in incoming] == [[10.0 * step + i] * n for i, n in enumerate(sizes)]
        assert [r.nbytes() for r in receives] == [8 * n for n in sizes] == [s.nbytes() for s in sends]
        assert all(request.test() for request in (*sends, *receives)), "once complete, always complete"
    after = transport.counters
    assert after.messages_sent - before.messages_sent == after.messages_received - before.messages_received == 6 * count
    nbytes = 5 * 32 + 6 * 8 * (count - 1)
    assert after.bytes_sent - before.bytes_sent == after.bytes_received - before.bytes_received == nbytes
    transport.release([*sends, *receives])
    for _ in range(3):
        transport.poll_control()
    meet(transport)


def ranks_that_live_are_not_taken_for_dead(transport: Transport) -> None:
    assert all(transport.peer_alive(rank) for rank in everyone(transport))
    assert transport.check_peers(everyone(transport)) is None
    assert len(transport.hosts) == len(transport.pids) == transport.size


CHECKS = (
    messages_of_one_tag_arrive_in_the_order_sent,
    arrays_of_any_dtype_and_shape_arrive_bit_for_bit,
    a_message_may_be_shorter_than_its_receive,
    receives_match_by_tag_in_whatever_order_they_are_posted,
    random_traffic_between_all_ranks_arrives_and_is_counted_exactly,
    control_messages_of_any_size_arrive_in_order_from_each_rank,
    large_messages_travel_in_chunks_and_may_be_short_or_empty,
    a_receive_can_be_cancelled_until_its_message_comes,
    a_message_longer_than_its_receive_is_an_error_that_names_both_ranks,
    prepared_messages_are_started_again_and_again_and_meet_others_in_order,
    ranks_that_live_are_not_taken_for_dead,
)


def _copy(counters: Counters) -> Counters:
    return Counters(**{name: getattr(counters, name) for name in Counters.__slots__})
