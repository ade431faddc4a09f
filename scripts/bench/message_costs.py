"""What messages between ranks cost, measured between ranks 0 and 1 of this job while the others sleep.

Processors' parts - to post, send and take - come from steps that do nothing else, with the clock looked at behind each instruction
(``rehearsal.Stamped``): one rank sends, the other takes what is there already. What is left of a hop in a relay, by the slope
between a few and many of them, is latency. How late a rank finds what it has waited for is the time between two ranks' clocks,
which on one host are one.
Sizes in between are interpolated, beyond the largest the last slope goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rehearsal import Rehearsal, Stamped, quiet
from replay import MESSAGE, PACKET, PRODUCED, WINDOW, Cost, Costs

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import Program, Recv, Send
from mpirt.runtime.executor import Executor, SessionState
from mpirt.runtime.resources import ResourceManager

KIB, MIB = 2**10, 2**20
SIZES = {
    PACKET: (8, 4 * KIB),
    MESSAGE: (KIB, 16 * KIB, 128 * KIB, MIB, 4 * MIB),
    WINDOW: (16 * KIB, 128 * KIB, MIB, 4 * MIB),
    PRODUCED: (16 * KIB, 128 * KIB, MIB, 4 * MIB),
}
WHOLE, IN_PARTS = "each reads all", "in parts"
MEETINGS = {WHOLE: (KIB, 64 * KIB), IN_PARTS: (256 * KIB, MIB, 4 * MIB)}
LATE = 25  # percentile: of sleeps neither the luckiest nor one that others have made longer
WAITS_S = (20e-6, 100e-6, 300e-6, 1e-3, 3e-3, 10e-3)  # after which a rank finds what has come
MANY, ROUNDS = 24, 20
FEW_HOPS, MOST_HOPS, RELAYED_NBYTES = 2, 26, MIB  # as many hops as fit into a core's cache, if that is more than two
_SETTLE_S = 2e-3


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
        self._takes_part = cluster.rank < 2
        self._pair = comm.Split(0 if self._takes_part else 1, cluster.rank)

    def together(self) -> None:
        """Wait for all ranks, asleep."""
        request = self._comm.Ibarrier()
        while not request.Test():
            time.sleep(5e-4)

    def measure(self) -> Costs:
        """The table of costs, but for the beginning of a step and for cores."""
        post, send, take, hop = ({way: {} for way in SIZES} for _ in range(4))  # type: tuple[dict[str, dict[int, float]], ...]
        for way, sizes in SIZES.items():
            for nbytes in sizes:
                found = self._ends(way, nbytes)
                post[way][nbytes], send[way][nbytes], take[way][nbytes] = (float(np.median(f)) for f in found)
                if way != WINDOW:
                    hop[way][nbytes] = self._hop_s(way, nbytes)
        more = self._ends(PACKET, 8, together=True)
        put_s, get_s = (max(0.0, sum(f) - len(f) * one[PACKET][8]) / (MANY - len(f)) for f, one in zip(more[1:], (send, take), strict=True))
        posts, sends = curves(post), curves(send)
        # From the beginning of a send until it can be taken: what the sender does behind its start goes on meanwhile.
        flight = {nbytes: max(0.0, hop_s - take[PACKET][nbytes] - posts(PACKET, nbytes) / 2) for nbytes, hop_s in hop[PACKET].items()}
        word_s = max(0.0, flight[SIZES[PACKET][0]] - send[PACKET][SIZES[PACKET][0]])  # may leave before its send is over
        least = min(SIZES[MESSAGE])
        plain_s = max(0.0, hop[MESSAGE][least] - take[MESSAGE][least] - posts(MESSAGE, least) / 2)
        flights = {PACKET: flight, MESSAGE: dict.fromkeys(SIZES[MESSAGE], plain_s)}
        flights |= {way: {nbytes: seconds + word_s for nbytes, seconds in send[way].items()} for way in (WINDOW, PRODUCED)}
        # What is left of a hop is what the receiver's processor does to get at the bytes: it copies them, or reads another one's cache.
        reading = {
            way: {n: max(0.0, hop[way][n] - flights[way][n] - take[way][min(take[way])] - posts(way, n) / 2) for n in SIZES[way]}
            for way in (MESSAGE, PRODUCED)
        }
        takes = {PACKET: take[PACKET], MESSAGE: dict.fromkeys(SIZES[MESSAGE], take[MESSAGE][least])}
        takes |= {way: {n: take[way][min(take[way])] + reading[PRODUCED][n] for n in SIZES[way]} for way in (WINDOW, PRODUCED)}
        return Costs(
            0.0,
            post_s=posts,
            send_s=sends,
            take_s=curves(takes),
            put_s=put_s,
            get_s=get_s,
            meet_s=self._meetings(),
            flight_s=curves(flights),
            copy_s=curves({MESSAGE: reading[MESSAGE]}),
            late_s=self._late(),
        )

    # ---- ends

    def _ends(self, way: str, nbytes: int, together: bool = False) -> tuple[Sequence[float], Sequence[float], Sequence[float]]:
        """Seconds that posting takes for each receive, and of each send and each take."""
        graph, program, executor = self._bound(lambda: _fan(way, nbytes, together))
        rank, found = self._cluster.rank, ([], [], [])  # type: tuple[int, tuple[Any, Any, Any]]
        if self._takes_part:
            stamped = Stamped(executor)
            at = {position: number for number, position in enumerate(stamped.positions)}
            kind = (Send, Recv)[rank]
            mine = [at[p] for p, i in enumerate(program.instructions) if isinstance(i, kind) and p in at]  # a packet is one
            posts, items = [], []
            for _ in range(ROUNDS):
                self._pair.Barrier()
                start = time.perf_counter()
                executor._post()
                posts.append(time.perf_counter() - start)
                self._pair.Barrier()
                start = time.perf_counter()
                while rank == 1 and time.perf_counter() < start + _SETTLE_S:
                    pass  # awake, so that it is as warm as in a step
                seconds = stamped.run({})
                items.append([seconds[number] for number in mine])
            own = quiet(items[3:])
            if rank == 1:  # who looks for one message moves what has come of all
                own = np.full(len(mine), np.mean(own))
            found = ([float(quiet(posts)) / MANY], own.tolist() if rank == 0 else [], own.tolist() if rank == 1 else [])
        sides = self._comm.allgather(found)
        self.together()
        return sides[1][0], sides[0][1], sides[1][2]

    def _bound(self, build: Callable[[], Any]) -> tuple[tf.Graph, Program, Executor]:
        """A step, bound to the messages of this job. Nobody is told of its end."""
        cluster = self._cluster
        with tf.Graph().as_default() as graph:
            fetch = build()
        plan = make_plan(graph, [fetch], (), cluster.inventory, PlacementRules(Task("worker", 0)), {})
        program = link(plan, cluster.rank_of, cluster.rank, cluster.size, 0, cluster.transport.memory)
        state = SessionState(ResourceManager(), cluster.devices)
        first_tag = cluster.reserve_tags(len(program.transfers))
        return graph, program, Executor(program, state, cluster.transport, first_tag, cluster.plane.wait)

    # ---- hops

    def _hop_s(self, way: str, nbytes: int) -> float:
        """Seconds of one more hop of a relay, without what is computed on the way."""
        found, most = [], max(FEW_HOPS + 2, min(MOST_HOPS, RELAYED_NBYTES // nbytes))
        for hops in (FEW_HOPS, most):
            graph, program, executor = self._bound(lambda hops=hops: _relay(way, nbytes, hops))
            seconds = self._run_s(executor)
            rehearsal = Rehearsal(self._cluster.size)
            if self._takes_part:
                rehearsal.learn(graph, program)
                own = self._pair.allgather(sum(rehearsal(program)))
                seconds -= max(own) if way in MEETINGS else sum(own)  # in a relay one behind the other
            found.append(seconds)
            self.together()
        return float(self._comm.bcast(max(0.0, found[1] - found[0]) / (most - FEW_HOPS)))

    def _run_s(self, executor: Executor) -> float:
        """Seconds of a step on rank 0."""
        samples = []
        if self._takes_part:
            for _ in range(4 * ROUNDS):
                self._pair.Barrier()
                start = time.perf_counter()
                executor.run({})
                samples.append(time.perf_counter() - start)
        self.together()
        return float(quiet(samples[5:])) if samples else 0.0

    # ---- meetings

    def _meetings(self) -> Callable[[int, int, bool], float]:
        """Seconds of a reduction on a board."""
        found: dict[str, dict[int, float]] = {way: {n: self._hop_s(way, n) for n in sizes} for way, sizes in MEETINGS.items()}
        pair = curves(found)

        def meet_s(ranks: int, nbytes: int, whole: bool) -> float:
            way = WHOLE if whole else IN_PARTS
            seconds = pair(way, nbytes)
            # Whoever reads all reads as much again of each further rank; in parts every element is read once for each rank in all.
            return seconds + max(0, ranks - 2) * max(0.0, seconds - pair(way, MEETINGS[way][0])) * whole

        return meet_s

    # ---- waits

    def _late(self) -> Callable[[float], float]:
        """How much later a rank finds what it has waited for so long."""
        _, _, executor = self._bound(lambda: _relay(PACKET, 8, 1))
        delays: dict[float, float] = {}
        for wait_s in WAITS_S:
            clocks = []
            if self._takes_part:
                for number in range(ROUNDS):
                    self._pair.Barrier()
                    start = time.perf_counter()
                    while self._cluster.rank == 0 and time.perf_counter() < start + wait_s * (1 + number / ROUNDS / 2):
                        pass
                    executor.run({})
                    clocks.append(time.perf_counter())
            sides = self._comm.allgather(clocks)
            delays[wait_s] = float(np.percentile(np.subtract(sides[1], sides[0]), LATE))
        self.together()
        # Who has waited longer looks more rarely, so nothing is found sooner than after a longer wait.
        late = np.minimum.accumulate(list(delays.values())[::-1])[::-1]
        return lambda waited_s: float(np.interp(waited_s, list(delays), late - late[0]))


def curves(found: Mapping[str, Mapping[int, float]]) -> Cost:
    """Straight lines between what was found for some sizes, by the way of a message; beyond the largest the last slope goes on."""

    def cost(way: str, nbytes: int) -> float:
        if way not in found:
            return 0.0
        sizes, seconds = list(found[way]), list(found[way].values())
        beyond = max(0, nbytes - sizes[-1]) * max(0.0, seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
        return float(np.interp(nbytes, sizes, seconds)) + beyond

    return cost


# ---------------------------------------------------------------------------------------------------------------- steps


def _on(task: int) -> Any:
    return tf.device(f"/job:worker/task:{task}")


def _fan(way: str, nbytes: int, together: bool) -> Any:
    """Some tensors from task 0 to task 1."""
    count = nbytes // 4
    with _on(0):
        x = tf.exp(tf.constant(np.ones(count, np.float32)))  # which is not folded while planning
        if way == PACKET and together:
            values = [tf.add(x, float(number)) for number in range(MANY)]
        elif way == PACKET:
            rows = tf.exp(
                tf.constant(np.ones([-(-2 * 4 * KIB // nbytes), count], np.float32))
            )  # too large to be quick, so each leaves alone
            values = [tf.reduce_sum(rows, 0) for _ in range(MANY)]
        elif way == PRODUCED:
            values = [tf.add(x, float(number)) for number in range(MANY)]
        else:
            values = [tf.reshape(x, [count]) for _ in range(MANY)]
    if way == MESSAGE:
        with _on(1):
            own = tf.constant(np.ones(1, np.float32))
        values = [tf.collective.all_gather([value, own])[1] for value in values]
    with _on(1):
        return tf.group([tf.identity(value).op for value in values])


def _relay(way: str, nbytes: int, hops: int) -> Any:
    """A tensor that goes to and fro, made anew on each side; or one of each rank, reduced again and again."""
    if way in MEETINGS:
        both = []
        for task in range(2):
            with _on(task):
                both.append(tf.exp(tf.constant(np.zeros(nbytes // 4, np.float32))))
        for _ in range(hops):
            both = [tf.add(value, 1.0) for value in tf.collective.all_reduce(both, "max")]
        with _on(0):
            return tf.group([value.op for value in both])
    with _on(0):
        value = tf.exp(tf.constant(np.zeros(nbytes // 4, np.float32)))
    for hop in range(hops):
        if way == MESSAGE:  # what is gathered is received in its place, so it travels in a message, whatever its size
            with _on((hop + 1) % 2):
                own = tf.constant(np.ones(1, np.float32))
            value = tf.collective.all_gather([value, own])[1]
        with _on((hop + 1) % 2):
            value = tf.add(value, 1.0)
    return value.op
