"""What a server answers to a message that it can't read or can't do: one clear error, to the sender; and it lives on.

Rank 0 is a parameter server. Rank 1 writes its messages by hand, from real ones that it has recorded; then a client of rank 1
must find the server in order.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto import graph_pb2

import mpirt as tf
from mpirt import errors
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.control import _MESSAGE, Kind, to_error
from mpirt.distributed.control_pb2 import (
    CancelStep,
    CloseSession,
    CreateSession,
    ErrorRecord,
    ExtendSession,
    InstructionDef,
    LargeConstant,
    RegisterGraph,
    Rest,
    RunGraph,
    TensorSpec,
)
from tests.loopback.simulated_ranks import values

PS = {"ps": 1, "worker": 1}
HERE = r"rank 0 \(host \S+, pid \d+, /job:ps/task:0\)"


class Hand:
    """Rank 1: sends messages as a master would, and notes the answers."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.plane = cluster.plane
        self.answers: list[tuple[Kind, Any]] = []
        for kind in (Kind.STEP_DONE, Kind.REPLY, Kind.REJECTED):
            theirs = self.plane.handlers[kind]
            self.plane.handlers[kind] = lambda source, message, kind=kind, theirs=theirs: self._note(kind, source, message, theirs)
        self.numbers = iter(range(10**6, 10**7))
        self.tag = cluster.master.tags.take(10_000)

    def _note(self, kind: Kind, source: int, message: Any, handle: Callable[[int, Any], None]) -> None:
        self.answers.append((kind, message))
        handle(source, message)

    def send(self, kind: int, message: Any) -> None:
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        self.cluster.transport.send_control(0, payload, int(kind))

    def answer(self) -> str:
        """The next answer: ``STEP_DONE InvalidArgumentError: ...``, or ``REPLY ok``."""
        self.plane.progress.wait(lambda: bool(self.answers), lambda: "an answer", 5)
        kind, message = self.answers.pop(0)
        if not message.HasField("error"):
            return f"{kind.name} ok"
        return f"{kind.name} {message.error.kind}: {message.error.message}"

    def open(self) -> int:
        """A new session."""
        session = next(self.numbers)
        self.send(Kind.CREATE_SESSION, CreateSession(request=next(self.numbers), session=session))
        assert self.answer() == "REPLY ok"
        return session

    def try_step(self, session: int, extend: Any, register: Any, tag: int | None = None) -> str:
        """The answer to the first step of a graph."""
        extend.session = register.session = session
        register.graph = next(self.numbers)
        self.send(Kind.EXTEND_SESSION, extend)
        self.send(Kind.REGISTER_GRAPH, register)
        self.send(Kind.RUN_GRAPH, RunGraph(graph=register.graph, step=next(self.numbers), tag=self.tag if tag is None else tag))
        return self.answer()


def build() -> Any:
    with tf.device("/job:ps/task:0"):
        v = tf.get_variable("v", initializer=np.ones(3, np.float32))
        with tf.control_dependencies([v.initializer]):
            x = tf.cond(tf.reduce_sum(v) > 100.0, lambda: v + 1.0, lambda: v + 2.0)
        return v.assign_add(x).op


def record(cluster: Cluster) -> tuple[Any, Any]:
    """What a session sends for a step all of whose parts are on rank 0: its nodes, and the program that runs them."""
    sent: dict[int, list[bytes]] = {}
    send = cluster.transport.send_control

    def keep(dest: int, payload: bytes, kind: int = 0) -> None:
        sent.setdefault(kind, []).append(bytes(payload))
        send(dest, payload, kind)

    cluster.transport.send_control = keep  # type: ignore[method-assign]
    with tf.Graph().as_default():
        step = build()
        with tf.Session("mpi:///job:ps/task:0", cluster=cluster) as session:
            session.run(step)
    del cluster.transport.send_control  # type: ignore[method-assign]
    [extend], [register] = sent[Kind.EXTEND_SESSION], sent[Kind.REGISTER_GRAPH]
    return ExtendSession.FromString(extend), RegisterGraph.FromString(register)


def attacked(attack: Callable[[Hand, Any, Any], Any]) -> Any:
    """What ``attack(hand, nodes, program)`` returns on rank 1, after which a client must find the server in order."""

    def script(rank: int, cluster: Cluster) -> Any:
        server = tf.train.Server(cluster)
        if rank == 0:
            server.join()
            return len(cluster.service.worker._sessions), len(cluster.service.worker._steps)
        hand = Hand(cluster)
        nodes, program = record(cluster)
        hand.answers.clear()
        found = attack(hand, nodes, program)
        for session in list(range(10**6, next(hand.numbers))):
            if (1, session) in services[0]._sessions:
                hand.send(Kind.CLOSE_SESSION, CloseSession(session=session))
        with tf.Graph().as_default(), tf.Session("mpi:///job:ps/task:0", cluster=cluster) as session:
            session.run(build())
        server.join()
        return found

    services: dict[int, Any] = {}

    def remember(rank: int, cluster: Cluster) -> Any:
        services[rank] = cluster.service.worker
        return script(rank, cluster)

    left, found = values(2, remember, PS)
    assert left == (0, 0), "sessions or steps are left"
    return found


def copy(message: Any) -> Any:
    result = type(message)()
    result.CopyFrom(message)
    return result


def test_the_recorded_messages_work() -> None:
    assert attacked(lambda hand, nodes, program: hand.try_step(hand.open(), nodes, program)) == "STEP_DONE ok"


# ---- messages and handles


def test_messages_that_do_not_parse_and_kinds_that_there_are_not_come_back() -> None:
    def attack(hand: Hand, nodes: Any, program: Any) -> list[str]:
        told = []
        for kind in (Kind.CREATE_SESSION, Kind.EXTEND_SESSION, Kind.REGISTER_GRAPH, Kind.RUN_GRAPH, Kind.CANCEL_STEP, Kind.CLOSE_SESSION):
            hand.send(kind, b"\xff\xff\xff")
            told.append(hand.answer())
        hand.send(Kind.RESET, b"\x12\x02\xff\xfe")  # a text that isn't UTF-8
        hand.send(4711, b"hello")
        return [*told, hand.answer(), hand.answer()]

    *malformed, text, unknown = attacked(attack)
    kinds = ["CREATE_SESSION", "EXTEND_SESSION", "REGISTER_GRAPH", "RUN_GRAPH", "CANCEL_STEP", "CLOSE_SESSION"]
    sender = r"rank 1 \(host \S+, pid \d+, /job:worker/task:0\)"
    for said, kind in zip(malformed, kinds, strict=True):
        assert re.fullmatch(
            rf"REJECTED InvalidArgumentError: control message of 3 bytes from {sender} refused: malformed {kind}\.", said
        ), said
    assert text.endswith("refused: malformed RESET.")
    assert unknown.endswith("control message of 5 bytes from " + unknown.partition("from ")[2].partition(" refused")[0]
                            + " refused: unknown kind 4711.")  # fmt: skip


NUMBERS = [-1, 0, 12345, 2**62, -(2**63)]


def test_handles_that_nobody_has_given_out_are_refused() -> None:
    def attack(hand: Hand, nodes: Any, program: Any) -> list[list[str]]:
        told = []
        for number in NUMBERS:
            program.session = nodes.session = number
            answers = []
            hand.send(Kind.RUN_GRAPH, RunGraph(graph=number, step=number, tag=hand.tag))
            answers.append(hand.answer())
            hand.send(Kind.REGISTER_GRAPH, program)
            answers.append(hand.answer())
            hand.send(Kind.EXTEND_SESSION, nodes)
            answers.append(hand.answer())
            hand.send(Kind.CLOSE_SESSION, CloseSession(session=number, request=number))
            answers.append(hand.answer())
            told.append(answers)
        session = hand.open()
        hand.send(Kind.CREATE_SESSION, CreateSession(request=1, session=session))
        told.append([hand.answer()])
        assert hand.try_step(session, nodes, program) == "STEP_DONE ok"
        hand.send(Kind.REGISTER_GRAPH, program)
        told.append([hand.answer()])
        return told

    *unknown, [twice], [again] = attacked(attack)
    for number, (run, register, extend, close) in zip(NUMBERS, unknown, strict=True):
        assert re.fullmatch(rf"STEP_DONE AbortedError: graph {number} of rank 1 is not registered on {HERE}\.", run), run
        for said in (register, extend):
            assert re.fullmatch(rf"REJECTED AbortedError: session {number} of rank 1 is not open on {HERE}\.", said), said
        assert close == "REPLY ok"
    assert re.fullmatch(rf"REPLY AlreadyExistsError: session \d+ is open already on {HERE}\.", twice), twice
    assert re.fullmatch(r"REJECTED AlreadyExistsError: graph \d+ of rank 1 is registered already\.", again), again


def test_tags_of_others_and_tags_and_steps_in_use_are_refused() -> None:
    def attack(hand: Hand, nodes: Any, program: Any) -> list[str]:
        session = hand.open()
        others = hand.cluster.transport.max_tag // 2  # the first tag of rank 0's master
        told = [hand.try_step(session, ExtendSession(), program_of_constants, tag) for tag in (-1, 0, others, 2**40)]
        with tf.Graph().as_default(), tf.device("/job:ps/task:0"):  # a step that stays where it is until it is cancelled
            nodes, program = recorded_step(hand.cluster, tf.FIFOQueue(1, tf.float32, shared_name="empty").dequeue().op)
        nodes.session = program.session = session
        program.graph = next(hand.numbers)
        hand.send(Kind.EXTEND_SESSION, nodes)
        hand.send(Kind.REGISTER_GRAPH, program)
        for step, tag in ((77, hand.tag), (77, hand.tag + 50), (78, hand.tag)):
            hand.send(Kind.RUN_GRAPH, RunGraph(graph=program.graph, step=step, tag=tag))
        told += [hand.answer(), hand.answer()]
        hand.send(Kind.CANCEL_STEP, CancelStep(step=77))
        return [*told, hand.answer()]

    def recorded_step(cluster: Cluster, op: Any) -> tuple[Any, Any]:
        sent: dict[int, bytes] = {}
        send = cluster.transport.send_control

        def keep(dest: int, payload: bytes, kind: int = 0) -> None:
            sent.setdefault(kind, bytes(payload))
            send(dest, payload, kind)

        cluster.transport.send_control = keep  # type: ignore[method-assign]
        session = tf.Session("mpi:///job:ps/task:0", graph=op.graph, cluster=cluster)
        with pytest.raises(tf.errors.DeadlineExceededError):
            session.run(op, options=tf.RunOptions(timeout_in_ms=50))
        session.close()
        del cluster.transport.send_control  # type: ignore[method-assign]
        cluster.plane.poll_all()
        hands.answers.clear()
        return ExtendSession.FromString(sent[Kind.EXTEND_SESSION]), RegisterGraph.FromString(sent[Kind.REGISTER_GRAPH])

    program_of_constants = RegisterGraph()

    def with_hand(hand: Hand, nodes: Any, program: Any) -> list[str]:
        nonlocal hands
        hands = hand
        return attack(hand, nodes, program)

    hands: Any = None
    *outside, same_step, same_tag, cancelled = attacked(with_hand)
    for said, tag in zip(outside, (-1, 0, (2**29 - 1) // 2, 2**40), strict=True):
        assert said == f"STEP_DONE InvalidArgumentError: 1 tag(s) from {tag} on: they don't belong to the master on rank 1."
    assert same_step == "REJECTED AlreadyExistsError: step 77 of rank 1 runs already."
    assert re.fullmatch(r"STEP_DONE AlreadyExistsError: a step with the tag \d+ runs already\.", same_tag), same_tag
    assert cancelled == "STEP_DONE CancelledError: the step was cancelled."


def test_only_rank_0_counts_and_only_it_says_that_the_job_is_over() -> None:
    def script(rank: int, cluster: Cluster) -> list[str]:
        server = tf.train.Server(cluster)
        hand = Hand(cluster)
        told = []
        if rank == 1:
            hand.send(Kind.REST_OVER, Rest())
            told.append(hand.answer())
            cluster.transport.send_control(2, Rest(resting=True).SerializeToString(), Kind.REST)
            told.append(hand.answer())
            assert not cluster.service.over
        server.join()
        return told

    assert values(3, script, {"ps": 1, "worker": 2})[1] == [
        "REJECTED InvalidArgumentError: only rank 0 says that the job is over.",
        "REJECTED InvalidArgumentError: only rank 0 keeps the count of the ranks that rest.",
    ]


# ---- nodes


def broken_nodes(change: Callable[[Any], None]) -> str:
    """The answer to the first step of a graph whose nodes were changed."""

    def attack(hand: Hand, nodes: Any, program: Any) -> str:
        graph_def = graph_pb2.GraphDef.FromString(nodes.graph_def)
        change(graph_def)
        nodes.graph_def = graph_def.SerializeToString()
        return hand.try_step(hand.open(), nodes, program)

    found: str = attacked(attack)
    return found


def node(graph_def: Any, op: str) -> Any:
    return next(n for n in graph_def.node if n.op == op)


def loop_back(graph_def: Any) -> None:
    """A body that calls itself."""
    body = graph_def.library.function[0]
    inner = body.node_def.add()
    inner.CopyFrom(next(n for n in graph_def.node if "then_branch" in n.attr))
    inner.name = "again"
    inner.attr["then_branch"].func.name = inner.attr["else_branch"].func.name = body.signature.name
    del inner.input[:]


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an unknown operation": (lambda g: setattr(node(g, "AssignAdd"), "op", "Explode"), r"NotFoundError: .*'Explode'.*"),
    "an unknown attribute": (lambda g: node(g, "AssignAdd").attr["colour"].__setattr__("i", 3), r"InvalidArgumentError: .*'colour'.*"),
    "an attribute of another kind": (lambda g: node(g, "AssignAdd").attr["T"].__setattr__("i", 3), r"InvalidArgumentError: .*T.*kind.*"),
    "a missing input": (
        lambda g: node(g, "AssignAdd").input.__setitem__(0, "gone"),
        r"InvalidArgumentError: node 'AssignAdd' has input 'gone', which is not there\.",
    ),
    "a cycle": (
        lambda g: node(g, "AssignAdd").input.__setitem__(1, "AssignAdd:0"),
        r"InvalidArgumentError: node 'AssignAdd' has input 'AssignAdd:0', which is not there\.",
    ),
    "a node twice": (lambda g: g.node.add().CopyFrom(g.node[0]), r"InvalidArgumentError: node '.*' comes twice\."),
    "a body that isn't there": (lambda g: g.library.function.__delitem__(0), r"NotFoundError: .*has no function .*"),
    "a body that contains itself": (loop_back, r"InvalidArgumentError: .*contains itself, or is nested too deeply\."),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_graph_with_something_wrong_in_it_is_refused_with_the_first_step(what: str) -> None:
    change, error = CHANGES[what]
    said = broken_nodes(change)
    assert re.fullmatch(f"STEP_DONE {error}", said, re.DOTALL), said


def test_a_graph_cut_off_anywhere_is_refused_or_lacks_what_its_program_names() -> None:
    def attack(hand: Hand, nodes: Any, program: Any) -> set[str]:
        told = set()
        session = hand.open()
        for length in range(0, len(nodes.graph_def), 7):
            cut = copy(nodes)
            cut.graph_def = nodes.graph_def[:length]
            session = hand.open()
            told.add(re.sub(r"\d+|'.*?'", "#", hand.try_step(session, cut, program)))
        return told

    told = attacked(attack)
    assert told <= {
        "STEP_DONE InvalidArgumentError: a GraphDef of # bytes can#t be parsed.",
        "STEP_DONE InvalidArgumentError: a GraphDef of # bytes can't be parsed.",
        "STEP_DONE NotFoundError: malformed program: node # is not known here.",
    }, told


@pytest.mark.parametrize("shape", [[2**40], [2**31, 2**31], [-1], [2**62, 4]])
def test_a_constant_of_a_hostile_shape_is_refused_before_it_takes_memory(shape: list[int]) -> None:
    def attack(hand: Hand, nodes: Any, program: Any) -> str:
        spec = TensorSpec(name="large", dtype=1, shape=shape)
        nodes.constants.append(LargeConstant(tensor=spec, tag=hand.tag))
        return hand.try_step(hand.open(), nodes, program)

    said = attacked(attack)
    assert re.match("STEP_DONE (ResourceExhausted|InvalidArgument)Error: large constant 'large'", said), said


def test_a_compressed_constant_in_a_message_does_not_expand_to_gigabytes() -> None:
    def change(graph_def: Any) -> None:
        tensor = node(graph_def, "Const").attr["value"].tensor
        tensor.Clear()
        tensor.dtype = 1
        tensor.tensor_shape.dim.add(size=2**28)
        tensor.float_val.append(1.0)

    said = broken_nodes(change)
    assert re.fullmatch(
        r"STEP_DONE InvalidArgumentError: node '.*' has a tensor of 268435456 elements, but only 0 are there\.", said
    ), said


# ---- programs

HUGE = 2**31 - 1
PROGRAMS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "slots for gigabytes": (lambda p: setattr(p, "num_slots", HUGE), rf"malformed program: {HUGE} slots for \d+ values\."),
    "fewer slots than none": (lambda p: setattr(p, "num_slots", -1), r"malformed program: -1 slots for \d+ values\."),
    "a slot outside": (lambda p: p.instructions[0].outputs.__setitem__(0, HUGE), rf"malformed program: slot {HUGE} of \d+\."),
    "a negative slot": (lambda p: p.constants[0].__setattr__("slot", -5), r"malformed program: slot -5 of \d+\."),
    "a node outside": (lambda p: p.instructions[0].__setattr__("node", 99), r"malformed program: node 99 of \d+\."),
    "an unknown node": (lambda p: p.nodes.__setitem__(0, "nobody"), r"malformed program: node 'nobody' is not known here\."),
    "a device of nobody": (
        lambda p: p.devices.__setitem__(0, "/job:ps/task:0/device:GPU:7"),
        r"malformed program: '/job:ps/task:0/device:GPU:7' is no device of this rank, which has /job:ps/task:0/device:CPU:0\.",
    ),
    "a device outside": (lambda p: p.instructions[0].__setattr__("device", -2), r"malformed program: device -2 of \d+\."),
    "a kind that there is not": (lambda p: p.instructions[0].__setattr__("kind", 99), r"malformed program: 99 is no kind of instruction\."),
    "too many inputs": (lambda p: p.instructions[0].inputs.extend([0] * 9), r"malformed program: '.*' has \d+ inputs and \d+ outputs\."),
    "a transfer outside": (
        lambda p: p.instructions.append(InstructionDef(kind=4, node=3, outputs=[0])), r"malformed program: transfer 3 of \d+\."
    ),
    "a transfer to no rank": (
        lambda p: p.transfers.add(src_rank=0, dst_rank=9, src="/job:ps/task:0"), r"malformed program: transfer 0 .* to rank 9\."
    ),
    "a transfer of no task": (lambda p: p.transfers.add(src_rank=0, dst_rank=1, src="nobody"), r"malformed program: 'nobody' is no task\."),
    "a transfer with a number below 0": (
        lambda p: p.transfers.add(index=-1, src_rank=0, dst_rank=1, src="/job:ps/task:0"), r"malformed program: transfer -1 .*"
    ),
    "a packet of transfers that aren't there": (
        lambda p: p.packets.add(transfers=[77]), r"malformed program: transfer 77 of \d+\."
    ),
    "a packet of one": (
        lambda p: packet(p, [(0, 1)]), r"malformed program: a packet of 1 transfers is too short or too large\."
    ),
    "a packet that is too large": (
        lambda p: packet(p, [(0, 1), (0, 1)], 600), r"malformed program: a packet of 2 transfers is too short or too large\."
    ),
    "a packet of unknown size": (
        lambda p: packet(p, [(0, 1), (0, 1)], -1), r"malformed program: a packet of 2 transfers is too short or too large\."
    ),
    "a packet to and fro": (
        lambda p: packet(p, [(0, 1), (1, 0)]), r"malformed program: a packet goes from one rank to one rank\."
    ),
    "a transfer in two packets": (
        lambda p: (packet(p, [(0, 1), (0, 1)]), p.packets.add().CopyFrom(p.packets[0])),
        r"malformed program: a transfer is in two packets\.",
    ),
    "a packet that is never sent": (
        lambda p: packet(p, [(own(p), 1 - own(p))] * 2), r"malformed program: the transfers of a packet are not sent in its order\."
    ),
    "an array of petabytes": (
        lambda p: p.instructions.append(InstructionDef(kind=5, outputs=[0], made=TensorSpec(dtype=1, shape=[HUGE, HUGE]))),
        r"malformed program: an array of type float32 and shape .*",
    ),
    "an array of a negative size": (
        lambda p: p.instructions.append(InstructionDef(kind=5, outputs=[0], made=TensorSpec(dtype=1, shape=[-3]))),
        r"malformed program: no array has the shape \[-3\]\.",
    ),
    "a reduction into what is no array of its own": (
        lambda p: p.instructions.append(InstructionDef(kind=6, how="sum", number=1, inputs=[0], outputs=[0], parts=[0, 4, 0, 4])),
        r"malformed program: slot 0 has no array whose elements 0 to 4 could be filled\.",
    ),
    "a reduction beyond its array": (
        lambda p: p.instructions.extend([
            InstructionDef(kind=5, outputs=[0], made=TensorSpec(dtype=1, shape=[3])),
            InstructionDef(kind=6, how="sum", number=1, inputs=[0], outputs=[0], parts=[0, 4, 0, 4]),
        ]),
        r"malformed program: slot 0 has no array whose elements 0 to 4 could be filled\.",
    ),
    "an unknown reduction": (
        lambda p: p.instructions.append(InstructionDef(kind=6, how="os", number=1, inputs=[0], outputs=[0], parts=[0, -1, 0, -1])),
        r"malformed program: '' can't fold 1 arrays by 'os' and 1\.",
    ),
    "parts for other arrays": (
        lambda p: p.instructions.append(InstructionDef(kind=6, how="sum", number=1, inputs=[0], outputs=[0], parts=[0, -1])),
        r"malformed program: parts \[0, -1\] of 2 array\(s\)\.",
    ),
    "a view of another size": (
        lambda p: p.instructions.append(InstructionDef(kind=7, inputs=[0], outputs=[0], parts=[0, 2], made=TensorSpec(shape=[3]))),
        r"malformed program: a part of an array can't have the shape \[3\]\.",
    ),
}  # fmt: skip


def packet(program: Any, ends: list[tuple[int, int]], size: int = 1) -> None:
    """Add a packet of float64 vectors between ranks."""
    first = len(program.transfers)
    for i, (src, dst) in enumerate(ends):
        spec = TensorSpec(name=f"x{i}:0", dtype=2, shape=[size])
        program.transfers.add(index=50 + i, tensor=spec, src_rank=src, dst_rank=dst, src="/job:ps/task:0")
    program.packets.add(transfers=range(first, first + len(ends)))


def own(program: Any) -> int:
    """The rank of the program: that of its only device."""
    return 0 if "/job:ps/task:0" in program.devices[0] else 1


@pytest.mark.parametrize("what", PROGRAMS)
def test_a_program_that_contradicts_itself_is_refused_with_the_first_step(what: str) -> None:
    change, error = PROGRAMS[what]

    def attack(hand: Hand, nodes: Any, program: Any) -> str:
        change(program.program)
        return hand.try_step(hand.open(), nodes, program)

    said = attacked(attack)
    assert re.fullmatch(f"STEP_DONE (InvalidArgument|NotFound)Error: {error}", said), said


def test_a_program_that_reads_what_nobody_has_written_fails_as_a_step() -> None:
    def attack(hand: Hand, nodes: Any, program: Any) -> str:
        del program.program.constants[:]
        return hand.try_step(hand.open(), nodes, program)

    said = attacked(attack)
    assert said.startswith("STEP_DONE ") and "Error: " in said and said != "STEP_DONE ok", said


def test_a_python_function_that_this_ranks_script_never_registered_is_not_called() -> None:
    called: list[int] = []

    def attack(hand: Hand, nodes: Any, program: Any) -> str:
        graph_def = graph_pb2.GraphDef()
        call = graph_def.node.add(name="call", op="PyFunc")
        call.attr["token"].s = b"os.system:0"
        call.attr["Tin"].list.SetInParent()
        call.attr["Tout"].list.SetInParent()
        program.program.Clear()
        program.program.nodes.append("call")
        program.program.devices.append("/job:ps/task:0/device:CPU:0")
        program.program.instructions.add(kind=0, node=0, device=0)
        return hand.try_step(hand.open(), ExtendSession(graph_def=graph_def.SerializeToString()), program)

    said = attacked(attack)
    assert not called
    assert said == "STEP_DONE InvalidArgumentError: 'call' (PyFunc): no function is registered for token 'os.system:0' on this rank."


# ---- whoever waits for an answer that can't come hears why


@pytest.mark.parametrize("kind", [Kind.CREATE_SESSION, Kind.RUN_GRAPH, Kind.RESET])
def test_a_client_whose_message_is_refused_hears_it_and_can_go_on(kind: Kind) -> None:
    def script(rank: int, cluster: Cluster) -> str:
        server = tf.train.Server(cluster)
        if rank == 0:
            server.join()
            return ""
        send, left = cluster.transport.send_control, [1]

        def garble(dest: int, payload: bytes, k: int = 0) -> None:
            if k == kind and left:
                left.pop()
                payload = b"\xff\xff"
            send(dest, payload, k)

        cluster.transport.send_control = garble  # type: ignore[method-assign]
        with tf.Session(server.target, cluster=cluster) as session, tf.device("/job:ps/task:0"):
            v = tf.Variable(1.0)
            began = time.perf_counter()
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                if kind is Kind.RESET:
                    tf.Session.reset(server.target, cluster=cluster)
                session.run(v.initializer)
            assert time.perf_counter() - began < 3
            session.run(v.initializer)
            assert session.run(v + 1.0) == 2.0
        server.join()
        return str(caught.value)

    said = values(2, script, PS)[1]
    assert f"refused: malformed {kind.name}." in said, said


@pytest.mark.parametrize("kind", [Kind.CREATE_SESSION, Kind.RUN_GRAPH, Kind.RESET])
def test_a_client_hears_of_an_error_of_the_service_itself(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    def script(rank: int, cluster: Cluster) -> str:
        server = tf.train.Server(cluster)
        if rank == 0:
            handle, left = cluster.plane.handlers[kind], [1]

            def fail(source: int, message: Any) -> None:
                if left:
                    left.pop()
                    raise ZeroDivisionError("a mistake of ours")
                handle(source, message)

            cluster.plane.handlers[kind] = fail
            ready.wait(5)
            server.join()
            return ""
        ready.wait(5)
        with tf.Session(server.target, cluster=cluster) as session, tf.device("/job:ps/task:0"):
            v = tf.Variable(1.0)
            with pytest.raises(tf.errors.UnknownError, match="a mistake of ours"):
                if kind is Kind.RESET:
                    tf.Session.reset(server.target, cluster=cluster)
                session.run(v.initializer)
            session.run(v.initializer)
            assert session.run(v + 1.0) == 2.0
        server.join()
        return "heard"

    ready = threading.Barrier(2)
    assert values(2, script, PS)[1] == "heard"
    assert "a mistake of ours" in caplog.text, "it is logged with its traceback"


@pytest.mark.parametrize("kind", ["annotations", "Any", "__builtins__", "error_code_from_exception_type", "OK", "SystemExit", "", "x" * 99])
def test_an_error_of_a_strange_kind_is_an_unknown_error(kind: str) -> None:
    error = to_error(ErrorRecord(kind=kind, message="what"), None)
    assert type(error) is errors.UnknownError and error.message == "what"


def test_every_message_of_the_services_is_covered_here() -> None:
    """Kinds that a service answers or handles: a new one needs a case of its own."""
    services = {kind for kind in Kind if kind >= Kind.CREATE_SESSION}
    assert {kind.name for kind in services} == {
        "CREATE_SESSION", "EXTEND_SESSION", "REGISTER_GRAPH", "RUN_GRAPH", "STEP_DONE", "CANCEL_STEP", "RESET", "CLOSE_SESSION", "REPLY",
        "STEP_STATUS", "STEP_WAITS", "REJECTED", "GONE", "REST", "REST_OVER", "SESSION_ENDED",
    }  # fmt: skip
    assert set(_MESSAGE) >= services
