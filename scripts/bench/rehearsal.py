"""What the instructions of programs take, measured here: a program runs alone, its messages answered at once, with the clock looked
at behind each instruction.

So each kernel is measured where it stands: in its segment, with the shapes, buffers and neighbours that it has in a step, called
by the executor's own loop. Variables hold ones, and messages bring ones.
Owns: time of instructions. Does not own: messages (``message_costs``), how they meet (``replay``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.exchange import Make
from mpirt.compiler.linker import link
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import NO_SLOT, Meet, Program, Recv, Run, Send, Transfer
from mpirt.runtime.device import open_device
from mpirt.runtime.executor import Executor, SessionState
from mpirt.runtime.resources import ResourceManager
from mpirt.runtime.segments import Lane
from mpirt.transport.base import Counters

QUIET = 10  # percentile
REPEATS, SECONDS = 200, 0.1  # of a program: at most so often, and for so long, but a few times at least
_LEAST, _WARM_UP = 5, 3
_CLOCKS = 200
_OWN_NAMES = ("_class", "container", "shared_name")


def quiet(samples: npt.ArrayLike) -> Any:
    """What is typical of ``samples`` while nobody else uses the cores, item by item: a model can only tell of what nobody disturbed."""
    return np.percentile(samples, QUIET, axis=0)


class Stamped:
    """An executor whose clock is looked at behind each instruction.

    Parameters
    ----------
    executor : whose instructions run
    calls : what to call instead of some of them, by position

    Attributes
    ----------
    positions : of the instructions, in their order; one that stands for several has the position of the first
    clock_s : what it takes to look at the clock
    """

    def __init__(self, executor: Executor, calls: Mapping[int, Callable[..., Any]] | None = None) -> None:
        self._executor = executor
        lane = self._lane = executor._take_lane()
        lane.code = lane.whole
        calls = calls or {}
        first = len(lane.template) - 1
        stamp = time.perf_counter
        code: list[Any] = [(stamp, (), first, ())]
        for number, (position, (call, ins, out, frees)) in enumerate(zip(lane.positions, lane.code, strict=True)):
            if position in calls:
                call, ins = calls[position], ()
            code += [(call, ins, out, frees), (stamp, (), first + 1 + number, ())]
        self.positions = list(lane.positions)
        self._stamps = slice(first, first + 1 + len(self.positions))
        lane.template = [*lane.template[:-1], *[None] * (1 + len(self.positions)), None]
        lane.code = code
        lane.positions = [p for position in lane.positions for p in (position, position)] + [0]
        self.clock_s = _clock_s()

    def run(self, feeds: Mapping[int, Any]) -> list[float]:
        """Seconds of each of the lane's instructions, in their order (``positions``)."""
        clocks = self.clocks(feeds)
        return [after - before - self.clock_s for before, after in zip(clocks, clocks[1:], strict=False)]

    def clocks(self, feeds: Mapping[int, Any]) -> list[float]:
        """What the clock says before the first of them and behind each; all ranks of a host have the same clock."""
        lane: Lane = self._lane
        values = lane.template.copy()
        for slot, value in feeds.items():
            values[slot] = value
        if lane.context is not None:
            lane.context.run(self._executor._run_on, lane, values, None)
        else:
            with np.errstate(all="ignore"):
                self._executor._run_on(lane, values, None)
        found: list[float] = values[self._stamps]
        return found


def _clock_s() -> float:
    """Seconds that looking at the clock takes in the executor's loop."""
    state = SessionState(ResourceManager(), {})
    executor = Executor(Program(0, num_slots=_CLOCKS), state)
    lane = executor._take_lane()
    lane.code = [(time.perf_counter, (), slot, ()) for slot in range(_CLOCKS)]
    lane.positions = [0] * _CLOCKS
    found = []
    for _ in range(20):
        values = lane.template.copy()
        executor._run_on(lane, values, None)
        found.append((values[_CLOCKS - 1] - values[0]) / (_CLOCKS - 1))
    return float(quiet(found))


class Rehearsal:
    """Seconds of the instructions of programs; each kind of program is measured once.

    Parameters
    ----------
    memory : as ``Transport.memory``, for which the programs were linked
    """

    def __init__(self, memory: Sequence[int]) -> None:
        self._known: dict[Any, list[float]] = {}
        self.memory = memory

    def __call__(self, program: Program) -> list[float]:
        """Seconds of each instruction; those of a segment stand at its first one, those of messages are 0."""
        return self._known[kind_of(program)]

    def missing(self, programs: Collection[Program]) -> list[Program]:
        """One program of each kind that is not known."""
        found = {kind_of(program): program for program in programs}
        return [program for kind, program in found.items() if kind not in self._known]

    def learn(self, graph: tf.Graph, program: Program) -> None:
        """Measure a program of ``graph``."""
        self._known[kind_of(program)] = _typical(Alone(graph, program, self.memory).samples())

    def add(self, program: Program, seconds: list[float]) -> None:
        """Note what another rank has measured."""
        self._known[kind_of(program)] = seconds


_kinds: dict[int, tuple[Program, Any]] = {}  # by id; programs are held, so that ids stay theirs


def kind_of(program: Program) -> Any:
    """Equal for programs whose instructions take as long."""
    if id(program) not in _kinds:
        _kinds[id(program)] = program, tuple([_kind(i) for i in program.instructions])
    return _kinds[id(program)][1]


def _kind(instruction: Any) -> Any:
    if isinstance(instruction, Run):
        op = instruction.op
        attrs = tuple(sorted((name, str(value)) for name, value in op.attrs.items() if name not in _OWN_NAMES))
        return op.type, attrs, tuple((t.dtype.name, t.static_shape) for t in op.inputs), instruction.inputs
    if isinstance(instruction, Send | Recv):
        return type(instruction).__name__, instruction.transfer.nbytes, instruction.part
    shape = getattr(instruction, "shape", None), getattr(instruction, "parts", None), getattr(instruction, "part", None)
    return type(instruction).__name__, shape, getattr(instruction, "inputs", None)


class Alone:
    """A program that runs alone on its rank, its messages answered at once, again and again with the same memory.

    Parameters
    ----------
    graph, program : the program, and the graph whose operations it runs
    memory : as ``Transport.memory``, for which the program was linked
    """

    def __init__(self, graph: tf.Graph, program: Program, memory: Sequence[int]) -> None:
        tasks = {i.device.task for i in program.instructions if isinstance(i, Run)} | {device.task for _, _, device in program.constants}
        state = SessionState(ResourceManager(), {(task, "CPU:0"): open_device("CPU:0") for task in tasks})
        initialize(graph, program, state, tasks)
        executor = self._executor = Executor(program, state, _Paper(program.rank, memory), 0, _never)  # type: ignore[arg-type]
        for array in executor._lent.values():
            array[...] = 1
        brought: dict[int, Any] = {}  # arrays that come in messages, by slot
        calls: dict[int, Callable[..., Any]] = {}
        for position, instruction in enumerate(program.instructions):
            if isinstance(instruction, Send):
                calls[position] = _nothing
                if instruction.source in executor._produced:
                    executor._produced[instruction.source] = partial(_itself, _ones(instruction.transfer))
            elif isinstance(instruction, Recv):
                if instruction.target != NO_SLOT and instruction.part is None:
                    brought[instruction.target] = _ones(instruction.transfer)
            elif isinstance(instruction, Meet):
                brought[instruction.target] = np.ones(instruction.shape, instruction.dtype.np_dtype)
                brought[instruction.source] = np.ones(instruction.shape, instruction.dtype.np_dtype)
        for position, instruction in enumerate(program.instructions):
            on_board = isinstance(instruction, Make) and instruction.target in brought
            if isinstance(instruction, Recv | Meet) or on_board:
                out = executor._code[position][2]
                calls[position] = partial(_itself, brought.get(out) if isinstance(out, int) else [brought[slot] for slot in out])
        executor._produce_in_place()
        self._calls = calls
        self._stamped = Stamped(executor, calls)
        self._feeds = {
            slot: np.ones([size or 1 for size in t.static_shape or ()], t.dtype.as_numpy_dtype) for t, slot in program.feeds.items()
        }
        self._size = len(program.instructions)

    def run(self) -> list[float]:
        """Seconds of each instruction; those of a segment stand at its first one, those of messages are 0."""
        for array in self._executor._made:
            array.begin()
        found = [0.0] * self._size
        for position, seconds in zip(self._stamped.positions, self._stamped.run(self._feeds), strict=True):
            if position not in self._calls:
                found[position] = seconds
        return found

    def samples(self, seconds: float = SECONDS) -> list[list[float]]:
        """As `run`, again and again for so long."""
        found: list[list[float]] = []
        end = time.perf_counter() + seconds
        while len(found) < _LEAST + _WARM_UP or (time.perf_counter() < end and len(found) < REPEATS):
            found.append(self.run())
        return found[_WARM_UP:]


class Together:
    """The rehearsals of a step on the ranks of this job, several at the same time, as ranks work in a step. All make the same calls.

    Parameters
    ----------
    rehearsal : learns what it doesn't know
    graph, programs : the step
    comm : of all ranks of this job
    at_once : how many ranks rehearse at the same time; a program each
    """

    def __init__(self, rehearsal: Rehearsal, graph: tf.Graph, programs: Collection[Program], comm: Any, at_once: int) -> None:
        self._rehearsal, self._comm = rehearsal, comm
        missing, rank = rehearsal.missing(programs), comm.Get_rank()
        self._turns = [missing[first : first + at_once] for first in range(0, len(missing), at_once)]
        mine = [turn[rank] if rank < len(turn) else None for turn in self._turns]
        self._mine = [Alone(graph, program, rehearsal.memory) if program is not None else None for program in mine]
        self._found: list[list[list[float]]] = [[] for _ in mine]

    def sample(self, seconds: float) -> None:
        """Run each of them for so long."""
        for alone, found in zip(self._mine, self._found, strict=True):
            self._comm.Barrier()
            if alone is not None:
                found += alone.samples(seconds)

    def learn(self) -> None:
        """Tell what was found."""
        done = self._comm.allgather([_typical(found) if found else None for found in self._found])
        for number, turn in enumerate(self._turns):
            for rank, program in enumerate(turn):
                self._rehearsal.add(program, done[rank][number])


def _typical(samples: Sequence[Sequence[float]]) -> list[float]:
    found: list[float] = np.maximum(0.0, quiet(samples)).tolist()
    return found


def initialize(graph: tf.Graph, program: Program, state: SessionState, tasks: Collection[Task]) -> None:
    """Give the program's variables their initial values, all in one process."""
    mine = {i.op for i in program.instructions if isinstance(i, Run)}
    with graph.as_default():
        variables = [v for v in tf.global_variables() if v.op in mine]
    if not variables:
        return
    first = min(tasks)
    inventory = {task: ("CPU:0",) for task in {first, *tasks}}
    plan = make_plan(graph, [v.initializer for v in variables], (), inventory, PlacementRules(first), {})
    Executor(link(plan, lambda task: 0, 0, 1), state).run({})


def _ones(transfer: Transfer) -> Any:
    assert transfer.dtype is not None and transfer.shape is not None
    return np.ones(transfer.shape, transfer.dtype.np_dtype)


def _nothing(*values: Any) -> None:
    return None


def _itself(value: Any) -> Any:
    return value


def _never(ready: Callable[[], bool], what: Callable[[], str]) -> None:
    raise AssertionError(f"a rehearsal would wait for {what()}")


class _Paper:
    """A transport that carries nothing: both ends of every message can be made, none is used."""

    name, max_tag = "paper", 2**31 - 1

    def __init__(self, rank: int, memory: Sequence[int]) -> None:
        self.rank, self.size, self.memory = rank, len(memory), memory
        self.hosts, self.pids = ("paper",) * self.size, (0,) * self.size
        self.counters = Counters()
        self.crowded = False

    def prepare_send(self, *args: Any) -> _Still:
        return _Still()

    prepare_receive = prepare_send

    def release(self, requests: Any) -> None: ...

    def keep(self, sends: Any) -> None: ...


class _Still:
    def test(self) -> bool:
        return True

    def soon(self, looks: range) -> int:
        return 1

    def nbytes(self) -> int:
        return 1

    def start(self) -> None: ...

    def cancel(self) -> bool:
        return True
