"""What messages between ranks cost, measured between ranks 0 and 1 of this job while the others sleep.

All of it comes from steps that are prepared once and run again whenever costs are asked for, so that it takes a fraction of a second
to learn what they are now. The clock is looked at behind each instruction (`rehearsal.Stamped`), and on one host all ranks have
the same one. Two kinds of steps:

- *fans*: one rank sends, the other takes what is there already: what posting and taking costs a processor, and what it costs to look
  whether the last step's messages have left;
- *relays*: a tensor that goes to and fro, computed anew on each side: what sending costs, how much later the other rank has it, and
  how much longer a kernel takes beside the other rank than alone (`rehearsal.Alone`), because another core holds what it reads
  or writes; and tensors that both ranks reduce on a board.

Sizes in between are interpolated, beyond the largest the last slope goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rehearsal import Alone, Stamped, initialize, quiet
from tracks import BOX, IN_PARTS, MESSAGE, PACKET, PRODUCED, STAYS, WHOLE, WINDOW, Cost, Costs

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import Meet, Program, Recv, Run, Send
from mpirt.runtime.executor import Executor, SessionState
from mpirt.runtime.resources import ResourceManager

KIB, MIB = 2**10, 2**20
SIZES = {
    BOX: (8, 4 * KIB, 12 * KIB),
    PACKET: (8, 4 * KIB),
    MESSAGE: (KIB, 16 * KIB, 128 * KIB, MIB, 4 * MIB),
    WINDOW: (16 * KIB, 128 * KIB, MIB, 4 * MIB),
    PRODUCED: (16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB),
}
FANS = (
    *((BOX, nbytes) for nbytes in SIZES[BOX]),
    *((PACKET, nbytes) for nbytes in SIZES[PACKET]),
    *((MESSAGE, nbytes) for nbytes in (KIB, 128 * KIB)),
    (PRODUCED, 16 * KIB),
)
MEETINGS = {WHOLE: (KIB, 32 * KIB), IN_PARTS: (64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB)}
LATE = 25  # percentile: of sleeps neither the luckiest nor one that others have made longer
WAITS_S = (20e-6, 100e-6, 300e-6, 1e-3, 3e-3, 10e-3)  # after which a rank finds what has come
MANY, LATE_ROUNDS = 24, 12
HOPS, RELAYED_NBYTES = 4, MIB  # of a relay at most, and how many bytes may be in it: a core's own cache holds no more; but one hop
SAMPLES = 3  # that count: the last ones
FEWEST, MOST, SECONDS = 4, 12, 3e-3  # how often a step runs at a time: for so long, but not more or less often
_WARM_UP = 4
_SETTLE_S = 1e-3

Array = npt.NDArray[np.float64]


class MessageCosts:
    """The measurements. Every rank makes the same calls; what they give is the same on all.

    Parameters
    ----------
    cluster : with a worker task on each rank
    comm : of all ranks, of its own
    """

    def __init__(self, cluster: tf.Cluster, comm: Any) -> None:
        self._cluster = cluster
        self._comm = comm
        takes_part = cluster.rank < 2
        pair = comm.Split(0 if takes_part else 1, cluster.rank)
        bound_fans = [self._bound(lambda way=way, n=n: fan(way, n, False), way) for way, n in FANS]
        bound_fans.append(self._bound(lambda: fan(BOX, 8, True), BOX))
        fans = [_Fan(pair, cluster.rank, *each) for each in bound_fans] if takes_part else []
        relays = [(way, nbytes) for way, sizes in (SIZES | MEETINGS).items() for nbytes in sizes]
        bound = [self._bound(lambda way=way, n=n: relay(way, n, hops_of(n)), way) for way, n in relays]
        self._steps: list[_Fan | _Relay] = [*fans]
        if takes_part:
            for (way, _), each in zip(relays, bound, strict=True):
                self._steps.append(_Relay(pair, cluster.rank, *each, at_once=way in MEETINGS))
        self._relays = relays
        self._late_executor = self._bound(lambda: relay(BOX, 8, 1), BOX)[2]
        self._pair = pair
        self._samples = 0
        self._tables: list[deque[Any]] = [deque(maxlen=SAMPLES) for _ in range(len(bound_fans) + len(relays))]
        self.together()
        self._late = self._measure_late()

    def together(self) -> None:
        """Wait for all ranks, asleep."""
        request = self._comm.Ibarrier()
        while not request.Test():
            time.sleep(5e-4)

    def sample(self) -> None:
        """Measure once more; what takes long every third time."""
        turn, self._samples = self._samples, self._samples + 1
        found = [step.sample() if not step.long or turn < SAMPLES or (turn + i) % 3 == 0 else None for i, step in enumerate(self._steps)]
        for table, *sides in zip(self._tables, *self._comm.allgather(found)[:2], strict=True):
            if sides[0] is not None:
                table.append(sides)
        self.together()

    def costs(self) -> Costs:
        """What the last samples say, but for the beginning of a step and for cores."""
        fans = [_joined([side for sides in table for side in sides]) for table in self._tables[: len(FANS) + 1]]
        post, take = ({way: {} for way in SIZES} for _ in range(2))  # type: tuple[dict[str, dict[int, float]], ...]
        for (way, nbytes), found in zip(FANS, fans, strict=False):
            post[way][nbytes], take[way][nbytes] = float(quiet(found["post"])) / MANY, float(np.mean(quiet(found["take"])))
        one, packet = fans[FANS.index((BOX, 8))], fans[-1]
        put_s, get_s = (
            max(0.0, sum(quiet(packet[part])) - len(packet[part][0]) * np.mean(quiet(one[part]))) / (MANY - len(packet[part][0]))
            for part in ("send", "take")
        )
        send, hop, write, read, meet = ({way: {} for way in SIZES | MEETINGS} for _ in range(5))  # type: tuple[dict[str, dict[int, float]], ...]
        for (way, nbytes), table in zip(self._relays, self._tables[len(FANS) + 1 :], strict=True):
            sides = [[both[rank] for both in table] for rank in (0, 1)]
            if way in MEETINGS:
                meet[way][nbytes] = float(np.median(quiet(np.concatenate([met_in(both) for both in table]))))
            else:
                hop[way][nbytes] = float(np.median(quiet(np.concatenate([hops_in(both) for both in table]))))
                sends = [quiet(np.concatenate([each["send"] for each in side])) for side in sides]
                send[way][nbytes] = float(np.median(np.concatenate(sends)))
            if way != WHOLE:
                hops = hops_of(nbytes)
                ranks, ends = (2, sides) if way in MEETINGS else (1, sides[hops % 2 :][:1])
                hop_s = longer(sides, "kernels") / hops / ranks  # to write and to read, once for each hop
                read[way][nbytes] = min(hop_s, longer(ends, "last") / ranks)
                write[way][nbytes] = hop_s - read[way][nbytes]
        tested_s = float(quiet(fans[FANS.index((PACKET, 8))]["tested"])) / MANY
        send[PACKET] = {n: send_s + tested_s for n, send_s in send[PACKET].items()}
        takes = {BOX: take[BOX], PACKET: take[PACKET], MESSAGE: dict.fromkeys(SIZES[MESSAGE], take[MESSAGE][KIB])}
        least = min(SIZES[PRODUCED])
        takes |= dict.fromkeys((WINDOW, PRODUCED, STAYS), dict.fromkeys(SIZES[PRODUCED], take[PRODUCED][least]))
        # From the beginning of a send until the message can be taken: what the sender does behind its start goes on meanwhile.
        flights = {way: {n: max(0.0, hop_s - take[way][n]) for n, hop_s in hop[way].items()} for way in (BOX, PACKET)}
        flights[MESSAGE] = dict.fromkeys(SIZES[MESSAGE], max(0.0, hop[MESSAGE][KIB] - take[MESSAGE][KIB]))
        word_s = hop[PRODUCED][least] - take[PRODUCED][least] - send[PRODUCED][least]  # may leave before its send is over
        send[STAYS] = send[PRODUCED]
        flights |= {way: {n: max(0.0, send_s + word_s) for n, send_s in send[way].items()} for way in (WINDOW, PRODUCED, STAYS)}
        post[WINDOW] = post[STAYS] = post[PRODUCED]
        pair_s = curves({way: meet[way] for way in MEETINGS})
        beside = {PRODUCED: read[PRODUCED], WINDOW: read[PRODUCED], IN_PARTS: read[IN_PARTS]}
        return Costs(
            0.0,
            post_s=curves(post),
            send_s=curves(send),
            take_s=curves(takes),
            put_s=put_s,
            get_s=get_s,
            meet_s=lambda ranks, nbytes, whole: meeting_s(pair_s, ranks, nbytes, whole),
            flight_s=curves(flights),
            copy_s=curves({MESSAGE: {n: max(0.0, hop_s - hop[MESSAGE][KIB]) for n, hop_s in hop[MESSAGE].items()}}),
            read_s=curves({way: {0: 0.0, **found} for way, found in beside.items()}),
            write_s=curves({way: {0: 0.0, **write[way]} for way in (PRODUCED, IN_PARTS)}),
            late_s=self._late,
        )

    def _bound(self, build: Callable[[], Any], way: str) -> tuple[tf.Graph, Program, Executor]:
        """A step, bound to the messages of this job. Nobody is told of its end. Its packets go through boxes, but those of `PACKET`."""
        cluster = self._cluster
        with tf.Graph().as_default() as graph:
            fetch = build()
        plan = make_plan(graph, [fetch], (), cluster.inventory, PlacementRules(Task("worker", 0)), {})
        memory = None if way == PACKET else cluster.transport.memory
        program = link(plan, cluster.rank_of, cluster.rank, cluster.size, 0, memory)
        state = SessionState(ResourceManager(), cluster.devices)
        initialize(graph, program, state, {i.device.task for i in program.instructions if isinstance(i, Run)})
        first_tag = cluster.reserve_tags(len(program.transfers))
        return graph, program, Executor(program, state, cluster.transport, first_tag, cluster.plane.wait)

    def _measure_late(self) -> Callable[[float], float]:
        """How much later a rank finds what it has waited for so long."""
        delays: dict[float, float] = {}
        for wait_s in WAITS_S:
            clocks = []
            if self._cluster.rank < 2:
                for number in range(LATE_ROUNDS):
                    self._pair.Barrier()
                    start = time.perf_counter()
                    while self._cluster.rank == 0 and time.perf_counter() < start + wait_s * (1 + number / LATE_ROUNDS / 2):
                        pass
                    self._late_executor.run({})
                    clocks.append(time.perf_counter())
            sides = self._comm.allgather(clocks)
            delays[wait_s] = float(np.percentile(np.subtract(sides[1], sides[0]), LATE))
        self.together()
        # Who has waited longer looks more rarely, so nothing is found sooner than after a longer wait.
        late = np.minimum.accumulate(list(delays.values())[::-1])[::-1]
        return lambda waited_s: float(np.interp(waited_s, list(delays), late - late[0]))


class _Fan:
    """Some tensors from rank 0 to rank 1, which are there when rank 1 takes them."""

    def __init__(self, pair: Any, rank: int, graph: tf.Graph, program: Program, executor: Executor) -> None:
        self._pair, self._rank, self._executor = pair, rank, executor
        self.long = False
        self._stamped = Stamped(executor)
        kind = (Send, Recv)[rank]
        positions = self._stamped.positions  # a packet is one
        self._mine = [number for number, p in enumerate(positions) if isinstance(program.instructions[p], kind)]
        self.sample()

    def sample(self) -> dict[str, Array]:
        """By part a row for each time."""
        posts, items = [], []
        for _ in range(FEWEST):
            self._pair.Barrier()
            start = time.perf_counter()
            self._executor._post()
            posts.append(time.perf_counter() - start)
            self._pair.Barrier()
            start = time.perf_counter()
            while self._rank == 1 and time.perf_counter() < start + _SETTLE_S:
                pass  # awake, so that it is as warm as in a step
            seconds = self._stamped.run({})
            items.append([seconds[number] for number in self._mine])
        prepared = "tested" if self._rank == 0 else "post"  # before a step the requests of the last one's sends are looked at
        return {prepared: np.array(posts), "send" if self._rank == 0 else "take": np.array(items)}


class _Relay:
    """A step of both ranks, of which each looks at the clock, and the same kernels alone."""

    def __init__(self, pair: Any, rank: int, graph: tf.Graph, program: Program, executor: Executor, at_once: bool) -> None:
        self._pair, self._rank, self._executor, self._at_once = pair, rank, executor, at_once
        self._stamped = Stamped(executor)
        self._alone = Alone(graph, program, (0,) * pair.Get_size())
        kinds = [type(program.instructions[p]) for p in self._stamped.positions]
        self._sends, self._takes, self._meets = ([n for n, kind in enumerate(kinds) if kind is which] for which in (Send, Recv, Meet))
        self._kernels = [n for n, kind in enumerate(kinds) if kind not in (Send, Recv, Meet)]
        self._behind = max(self._takes + self._meets, default=len(kinds))
        self._parts = {"kernels": self._kernels, "last": [n for n in self._kernels if n > self._behind]}
        self._count = FEWEST
        start = time.perf_counter()
        for _ in range(_WARM_UP):
            self._sample_once()
            self._run_alone()
        took_s = pair.bcast((time.perf_counter() - start) / _WARM_UP)
        self._count = max(FEWEST, min(MOST, int(SECONDS / took_s)))
        self.long = self._count * took_s > SECONDS

    def sample(self) -> dict[str, Array]:
        """By part a row for each time."""
        beside = [self._sample_once() for _ in range(self._count)]
        alone = np.array([self._run_alone() for _ in range(self._count)])
        clock_s = self._stamped.clock_s
        clocks = np.array(beside)
        found = {"begin": clocks[:, self._sends], "end": clocks[:, [n + 1 for n in self._takes]] - clock_s}
        found["send"] = clocks[:, [n + 1 for n in self._sends]] - found["begin"] - clock_s
        found["come"], found["met"] = clocks[:, self._meets], clocks[:, [n + 1 for n in self._meets]] - clock_s
        took = np.diff(clocks, axis=1) - clock_s
        for part, numbers in self._parts.items():
            found[part], found[f"{part} alone"] = took[:, numbers], alone[:, [self._stamped.positions[n] for n in numbers]]
        return found

    def _sample_once(self) -> list[float]:
        self._pair.Barrier()
        self._executor._post()
        self._pair.Barrier()
        return self._stamped.clocks({})

    def _run_alone(self) -> list[float]:
        """The kernels at the same time on both ranks, if they meet; else by turns."""
        found: list[float] = []
        for turn in (None,) if self._at_once else (0, 1):
            self._pair.Barrier()
            if turn in (None, self._rank):
                found = self._alone.run()
        return found


def _joined(found: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {part: np.concatenate([each[part] for each in found if part in each]) for part in ("post", "tested", "send", "take")}


def hops_in(sides: Sequence[Mapping[str, Array]]) -> Array:
    """From the beginning of a send until it was taken, by hop."""
    found = []
    for src in (0, 1):
        found.append(sides[1 - src]["end"] - sides[src]["begin"])
    return np.concatenate(found, axis=1)


def met_in(sides: Sequence[Mapping[str, Array]]) -> Array:
    """From when both ranks have come to a meeting until both have the result."""
    return np.maximum(sides[0]["met"], sides[1]["met"]) - np.maximum(sides[0]["come"], sides[1]["come"])


def longer(sides: Sequence[Sequence[Mapping[str, Array]]], part: str) -> float:
    """How much longer kernels of some ranks take than alone."""
    seconds = 0.0
    for side in sides:
        beside, alone = (quiet(np.concatenate([each[which] for each in side])) for which in (part, f"{part} alone"))
        seconds += float(np.sum(beside) - np.sum(alone))
    return max(0.0, seconds)


def hops_of(nbytes: int) -> int:
    """How many hops a relay has."""
    return max(1, min(HOPS, RELAYED_NBYTES // nbytes))


def meeting_s(pair_s: Cost, ranks: int, nbytes: int, whole: bool) -> float:
    """Seconds of a reduction of ``ranks`` ranks on a board, from those of two."""
    way = WHOLE if whole else IN_PARTS
    seconds = pair_s(way, nbytes)
    # Whoever reads all reads as much again of each further rank; in parts every element is read once for each rank in all.
    return seconds + max(0, ranks - 2) * max(0.0, seconds - pair_s(way, MEETINGS[way][0])) * whole


def curves(found: Mapping[str, Mapping[int, float]]) -> Cost:
    """Straight lines between what was found for some sizes, by the way of a message; beyond the largest the last slope goes on."""

    def cost(way: str, nbytes: int) -> float:
        if way not in found:
            return 0.0
        sizes, seconds = list(found[way]), list(found[way].values())
        slope = max(0.0, seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else 0.0
        return float(np.interp(nbytes, sizes, seconds)) + max(0, nbytes - sizes[-1]) * slope

    return cost


# ---------------------------------------------------------------------------------------------------------------- steps


def _on(task: int) -> Any:
    return tf.device(f"/job:worker/task:{task}")


def fan(way: str, nbytes: int, together: bool) -> Any:
    """Some tensors from task 0 to task 1."""
    count = nbytes // 4
    with _on(0):
        x = tf.exp(tf.constant(np.ones(count, np.float32)))  # which is not folded while planning
        if way in (BOX, PACKET) and together:
            values = [tf.add(x, float(number)) for number in range(MANY)]
        elif way in (BOX, PACKET):
            rows = tf.exp(
                tf.constant(np.ones([-(-2 * 4 * KIB // nbytes), count], np.float32))
            )  # too large to be quick, so each leaves alone
            values = [tf.reduce_sum(rows, 0) for _ in range(MANY)]
        else:
            values = [tf.add(x, float(number)) for number in range(MANY)]
    if way == MESSAGE:
        with _on(1):
            own = tf.constant(np.ones(1, np.float32))
        values = [tf.collective.all_gather([value, own])[1] for value in values]
    with _on(1):
        return tf.group([tf.identity(value).op for value in values])


def relay(way: str, nbytes: int, hops: int) -> Any:
    """A tensor that goes to and fro, made anew on each side; or one of each rank, reduced again and again."""
    both = []
    for task in range(2 if way in MEETINGS else 1):
        with _on(task):
            both.append(tf.add(tf.Variable(tf.fill([nbytes // 4], np.float32(1.0))), 1.0))
    if way in MEETINGS:
        for _ in range(hops):
            reduced, both = tf.collective.all_reduce(both, "max"), []
            for task, value in enumerate(reduced):
                with _on(task):
                    both.append(tf.add(value, 1.0))
        with _on(0):
            return tf.group([value.op for value in both])
    (value,) = both
    for hop in range(hops):
        if way == MESSAGE:  # what is gathered is received in its place, so it travels in a message, whatever its size
            with _on((hop + 1) % 2):
                own = tf.constant(np.ones(1, np.float32))
            value = tf.collective.all_gather([value, own])[1]
        elif way == WINDOW:
            with _on(hop % 2):
                value = tf.reshape(value, [-1, 1])  # which is not made in a window, but copied there
        with _on((hop + 1) % 2):
            value = tf.add(value, 1.0)
    return value.op
