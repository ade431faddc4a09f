"""100,000 broken messages to a server: each is refused or harmless, and the server goes on.

Real messages of a real session are recorded and broken: bytes flipped, cut out, doubled; or fields set to strange values. They
come from a rank of their own. What a rank may tell all others (that the job is broken, that a rank is gone) is not sent, nor
a Reset, which any rank may ask for.
"""

from __future__ import annotations

import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto import graph_pb2

import mpirt as tf
from mpirt import errors
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.control import _MESSAGE, Kind
from mpirt.distributed.control_pb2 import ExtendSession
from mpirt.distributed.graph_messages import NodeTable
from mpirt.transport.base import ControlMessage
from tests.loopback.simulated_ranks import values

SERVICE = [kind for kind in Kind if kind >= Kind.CREATE_SESSION and kind not in (Kind.GONE, Kind.REJECTED, Kind.RESET)]
NUM_MESSAGES, NUM_GRAPHS, BATCH = 60_000, 40_000, 500
NUMBERS = [0, 1, -1, 2, 3, 7, 64, 4096, 2**31 - 1, -(2**31), 2**29, 2**62, -(2**63)]
TEXTS = ["", "x:0", "v", "/job:ps/task:0", "/job:ps/task:0/device:CPU:0", "/job:no/task:9/device:GPU:1", "^v", "a" * 3000, "\u00e9"]


def broken_bytes(r: random.Random, payload: bytes) -> bytes:
    """Some bytes of a message flipped, cut out, doubled or added."""
    data = bytearray(payload)
    for _ in range(r.randint(1, 4)):
        at, length = r.randrange(len(data) + 1), r.randrange(1, 9)
        change = r.randrange(5)
        if change == 0 and data:
            data[at % len(data)] ^= 1 << r.randrange(8)
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length]
        elif change == 3:
            data[at:at] = r.randbytes(length)
        else:
            del data[at:]
    return bytes(data)


def numbers_of(message: Any) -> Iterator[tuple[Any, Any]]:
    """(message, field) of all fields inside that hold something."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            is_map = field.message_type.GetOptions().map_entry
            for part in value.values() if is_map else value if field.is_repeated else [value]:
                if hasattr(part, "ListFields"):  # a map may hold texts
                    yield from numbers_of(part)


def broken_fields(r: random.Random, kind: Kind, payload: bytes) -> bytes:
    """Some fields of a message set to strange values, doubled or dropped."""
    message = _MESSAGE[kind].FromString(payload)
    for _ in range(r.randint(1, 3)):
        places = list(numbers_of(message))
        if not places:
            break
        owner, field = r.choice(places)
        if r.random() < 0.2:
            owner.ClearField(field.name)
            continue
        value: Any = r.choice(NUMBERS)
        if field.type == field.TYPE_STRING:
            value = r.choice(TEXTS)
        elif field.type == field.TYPE_BYTES:
            value = broken_bytes(r, getattr(owner, field.name))
        elif field.type == field.TYPE_BOOL:
            value = bool(value % 2)
        elif field.type in (field.TYPE_INT32, field.TYPE_UINT32):
            value = value % 2**31 if field.type == field.TYPE_UINT32 else max(min(value, 2**31 - 1), -(2**31))
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            items = getattr(owner, field.name)
            if field.message_type is not None:
                items.add().CopyFrom(r.choice(items))
            elif r.random() < 0.5 and len(items):
                items[r.randrange(len(items))] = value
            else:
                items.append(value)
        elif field.message_type is None:
            setattr(owner, field.name, value)
    result: bytes = message.SerializeToString()
    return result


def build() -> tuple[Any, Any, Any]:
    """A step whose part on the ps has constants, variables, a queue, a body and tensors of the client's rank."""
    with tf.device("/job:ps/task:0"):
        v = tf.Variable(np.ones((2, 3), np.float32), name="v")
        queue = tf.FIFOQueue(10, [tf.float32], [[]], name="q")
        x = tf.placeholder(tf.float32, [None, 3], name="x")
        y = tf.cond(tf.reduce_sum(x) > 0.0, lambda: tf.matmul(x, v, transpose_b=True), lambda: tf.zeros([1, 2])) + 1.0
        put = queue.enqueue([tf.reduce_sum(y)])
        with tf.control_dependencies([put]):
            got = queue.dequeue()
        texts = tf.constant(["a", "bc"])
    return [y, got, texts, v.assign_add(v * 0.0)], x, v


def record(cluster: Cluster) -> list[tuple[Kind, bytes]]:
    """The messages that a session of this rank sends to the ps."""
    sent: list[tuple[Kind, bytes]] = []
    send = cluster.transport.send_control

    def keep(dest: int, payload: bytes, kind: int = 0) -> None:
        if dest == 0 and kind in SERVICE:
            sent.append((Kind(kind), bytes(payload)))
        send(dest, payload, kind)

    cluster.transport.send_control = keep  # type: ignore[method-assign]
    with tf.Graph().as_default():
        fetches, x, v = build()
        with tf.Session("mpi:///job:ps/task:0", cluster=cluster) as session:
            session.run(v.initializer)
            session.run(fetches, {x: np.ones((1, 3))})
    del cluster.transport.send_control  # type: ignore[method-assign]
    return sent


@pytest.mark.slow
def test_broken_messages_harm_neither_the_server_nor_another_client(caplog: pytest.LogCaptureFixture) -> None:
    told: Counter[str] = Counter()

    def script(rank: int, cluster: Cluster) -> Any:
        if rank == 2:  # no server: nobody else reads this rank's mail
            try:
                return attack(cluster)
            finally:
                done.append(True)
        server = tf.train.Server(cluster)
        if rank == 0:
            server.join()
            return None
        with tf.Graph().as_default(), tf.container("client"):  # a client that goes on all the while
            fetches, x, v = build()
            steps = 0
            with tf.Session(server.target, cluster=cluster) as session:
                session.run(v.initializer)
                while not done:
                    y, got, texts, _ = session.run(fetches, {x: np.ones((1, 3))})
                    assert y.tolist() == [[4, 4]] and got == 8 and texts.tolist() == [b"a", b"bc"]
                    steps += 1
                    time.sleep(0.01)
        server.join()
        return steps

    def attack(cluster: Cluster) -> int:
        real = record(cluster)
        needed = {Kind.CREATE_SESSION, Kind.EXTEND_SESSION, Kind.REGISTER_GRAPH, Kind.RUN_GRAPH, Kind.CLOSE_SESSION}
        assert {kind for kind, _ in real} >= needed
        r = random.Random(1)
        plane = planes[0]
        for start in range(0, NUM_MESSAGES, BATCH):
            batch = []
            for _ in range(BATCH):
                kind, payload = r.choice(real)
                payload = broken_bytes(r, payload) if r.random() < 0.5 else broken_fields(r, kind, payload)
                number = int(kind if r.random() < 0.9 else r.choice(SERVICE)) if r.random() < 0.99 else r.choice([0, 999, 2**20])
                batch.append(ControlMessage(2, number, payload))
            plane.progress.perform(lambda batch=batch: [plane.receive(message) for message in batch], f"batch {start}")  # type: ignore[misc]
            while (answer := cluster.transport.world.poll_control(2)) is not None:  # type: ignore[attr-defined]
                told[Kind(answer.kind).name] += 1
        return len(real)

    done: list[bool] = []
    planes: dict[int, Any] = {}

    def remember(rank: int, cluster: Cluster) -> Any:
        planes[rank] = cluster.plane
        return script(rank, cluster)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, steps, _ = values(3, remember, {"ps": 1, "worker": 2}, timeout_s=300)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert steps > 10
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [], "an error that is not the field's"
    assert told["REJECTED"] > 1000 and told["STEP_DONE"] > 1000 and told["REPLY"] > 1000, told
    assert grown_mib < 1024


@pytest.mark.slow
def test_broken_graphs_are_refused_with_one_error_of_the_field() -> None:
    with tf.Graph().as_default() as graph:
        build()
        real = graph.as_graph_def()
    whole = real.SerializeToString()
    r = random.Random(2)
    outcomes: Counter[str] = Counter()
    for _ in range(NUM_GRAPHS):
        if r.random() < 0.6:
            payload = broken_bytes(r, whole)
        else:
            message = graph_pb2.GraphDef.FromString(whole)
            owner, field = r.choice(list(numbers_of(message)))
            owner.ClearField(field.name)
            payload = message.SerializeToString()
        try:
            NodeTable().extend(ExtendSession(graph_def=payload))
        except errors.OpError as error:
            outcomes[type(error).__name__] += 1
        else:
            outcomes["taken"] += 1
    assert sum(outcomes.values()) == NUM_GRAPHS
    assert set(outcomes) <= {"taken", "InvalidArgumentError", "NotFoundError", "ResourceExhaustedError", "UnimplementedError"}, outcomes
    assert outcomes["InvalidArgumentError"] > 10_000, outcomes
