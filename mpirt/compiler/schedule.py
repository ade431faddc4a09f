"""The one order of a step: what other tasks compute with, as soon as they need it; the rest while they are waited for.

All programs are projections of this order, which is topological and, since only creation order breaks ties, the same on every rank.

- *Work for others*, operations whose result another task will compute with, comes in the order of the moments at which it is
  needed. These are counted with a processor for each operation: so a task that feeds another one in every row of its work does so
  row by row, and the other one needn't wait until its longest chain has ended. Nothing comes earlier than needed.
- *A task's own work*, all else, comes where work for others must wait for a message, as far as can be foreseen, and behind it.
  It goes depth first: what has just been made is used before anything new is begun, so many independent chains live in the
  memory of one. Of what is ready together the longer way goes first. For `_PATIENCE` operations it gives way to what other tasks
  do for others: two tasks may share a rank, and then other ranks would wait for it, too. That another task is told of its end, but
  computes nothing that anybody reads, doesn't make it work for others.
- *A variable is looked at before own work changes it* (`compiler.variables`), if no dependency says otherwise: so that it needn't be
  copied, and readers that nothing orders see the value from before the step, however tasks are placed. A change waits for those
  who look with as many such changes on the way to them, or fewer. Work for others waits for nobody because of that.

What can be foreseen: that each operation takes 1, and a message `_CROSSING_COST`.

Small reductions of the same kind over the same tasks come next to one another, so that they can share messages
(``compiler.exchange``), if none depends on another: see `bring_together`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence, Set

from mpirt.cluster.task import Task
from mpirt.compiler.buckets import filled, is_collective, kind_of
from mpirt.compiler.placer import Placement
from mpirt.compiler.prune import control_producers
from mpirt.compiler.variables import uses_of_variables
from mpirt.graph.graph import Operation, Tensor
from mpirt.ops.collective_ops import HUBS

_OP_COST = 1
_CROSSING_COST = 4  # a message takes as long as some small operations
_PATIENCE = 32  # so long a task's own work gives way to what other tasks do for others
_NEVER = 1 << 62


def schedule(needed: Sequence[Operation], placement: Placement, feeds: Set[Tensor] = frozenset()) -> list[Operation]:
    """The operations ``needed`` (in creation order) in the order in which a step runs them."""
    return bring_together(_Scheduler(needed, placement, feeds).run(), placement, feeds)


class _Worker:
    """A task as it works in the mind."""

    __slots__ = ("clock", "coming", "left", "number", "ready")

    def __init__(self, number: int) -> None:
        self.number = number
        self.clock = 0
        self.left = 0  # work for others, and collectives that it takes part in
        self.ready: list[int] = []  # own work that can be done, the last one next
        self.coming: list[tuple[int, int]] = []  # own work that only waits for messages: a heap, by when they come


class _Scheduler:
    """Looks at all operations forward, then backward, then has the tasks work. Operations go by their positions in ``needed``."""

    def __init__(self, needed: Sequence[Operation], placement: Placement, feeds: Set[Tensor]) -> None:
        self.needed = needed
        self.placement = placement
        self.feeds = feeds
        self.tasks: dict[Task, _Worker] = {}
        self.workers: list[_Worker]  # who runs each operation
        self.inputs: list[list[int]]  # what makes each one's inputs
        self.controls: dict[int, list[int]] = {}  # what else must have run before
        self.soonest: list[int]  # each one's end if it had a processor to itself and messages took no time
        self.level = [_OP_COST] * len(needed)  # the longest way to the end of the step
        self.due = [_NEVER] * len(needed)  # when work for others should have ended
        self.readers: dict[int, list[int]] = {}  # those that are own work, once for each time that they read
        self.waiting: dict[int, int] = {}  # for how many of these own work waits
        self.senders: dict[int, list[int]] = {}  # what an operation needs from other tasks
        self.ended = [0] * len(needed)
        self.agenda: list[tuple[int, int]] = []  # by time: tasks, by number, that have only own work left and may go on
        self.found: list[int] = []

    def run(self) -> list[Operation]:
        """The order."""
        self._look_forward()
        self._look_backward()
        self._hold_changes()
        self._work()
        assert len(self.found) == len(self.needed), "some operation waits for one that is not part of the step"
        return [self.needed[i] for i in self.found]

    def _look_forward(self) -> None:
        needed, placement, feeds = self.needed, self.placement, self.feeds
        devices = [placement[op] for op in needed]
        known = {}  # by identity: most operations share their devices
        for each, device in {id(device): device for device in devices}.items():
            known[each] = self.tasks.setdefault(device.task, _Worker(len(self.tasks)))
        self.workers = [known[id(device)] for device in devices]
        position = {op: i for i, op in enumerate(needed)}
        self.inputs = [[position[tensor.op] for tensor in op.inputs if tensor not in feeds] for op in needed]
        for i, op in enumerate(needed):
            if op.control_inputs:
                self.controls[i] = [position[each] for each in control_producers(op, feeds)]
        self.soonest = self._longest_ways([_OP_COST] * len(needed))

    def _longest_ways(self, costs: Sequence[int]) -> list[int]:
        """For each operation, what those on the most expensive way to it cost, itself among them."""
        found: list[int] = []
        for i, (inputs, cost) in enumerate(zip(self.inputs, costs, strict=True)):
            most = 0
            for each in inputs:
                if found[each] > most:
                    most = found[each]
            if i in self.controls:
                most = max([most, *[found[each] for each in self.controls[i]]])
            found.append(most + cost)
        return found

    def _look_backward(self) -> None:
        needed, level, due, workers = self.needed, self.level, self.due, self.workers
        controls, readers, waiting = self.controls, self.readers, self.waiting
        leading = {each for before in self.inputs for each in before} if controls else set()  # to something that is read
        backward = zip(range(len(needed) - 1, -1, -1), reversed(workers), reversed(self.inputs), reversed(self.soonest), strict=True)
        for i, worker, inputs, end in backward:
            beside = level[i] + _OP_COST
            own = due[i] == _NEVER and needed[i].type not in HUBS  # nobody runs a collective alone
            if own:
                start = end - _OP_COST
                for each in inputs:
                    if each in readers:
                        readers[each].append(i)
                    else:
                        readers[each] = [i]
                    if workers[each] is not worker:
                        self._cross(each, i, start)
                    elif level[each] < beside:
                        level[each] = beside
                waiting[i] = len(inputs)
            else:
                if not end <= due[i] < _NEVER:
                    due[i] = end
                start = due[i] - _OP_COST
                for each in inputs:
                    if workers[each] is worker:
                        if level[each] < beside:
                            level[each] = beside
                        if due[each] > start:
                            due[each] = start
                    else:
                        self._cross(each, i, start)
            if i in controls:
                self._look_at_controls(i, own, start, leading)

    def _look_at_controls(self, i: int, own: bool, start: int, leading: set[int]) -> None:
        leads = not own or i in leading
        for each in self.controls[i]:
            if leads:
                leading.add(each)
            if self.workers[each] is not self.workers[i]:
                self._cross(each, i, start if leads else None)
            else:
                self.level[each] = max(self.level[each], self.level[i] + _OP_COST)
                if not own:
                    self.due[each] = min(self.due[each], start)
            if own:
                self.readers.setdefault(each, []).append(i)
        if own:
            self.waiting[i] += len(self.controls[i])

    def _cross(self, producer: int, reader: int, start: int | None) -> None:
        """``reader``, on another task, needs ``producer``, and if that is work for others, when that begins at ``start``."""
        self.senders.setdefault(reader, []).append(producer)
        self.level[producer] = max(self.level[producer], self.level[reader] + _OP_COST + _CROSSING_COST)
        if start is not None:
            self.due[producer] = min(self.due[producer], start - _CROSSING_COST)

    def _hold_changes(self) -> None:
        """Let changes of variables that are own work wait for those who look, as far as that makes no cycle.

        There is an order by how many such changes are on the way to an operation, a change behind all else with as many, then as
        they were made. It is topological, and every wait follows it. They wait at gates, which have positions behind all
        operations: what looks opens a gate, which opens changes and the next gate. So there are as many edges as looks and changes.
        """
        uses = uses_of_variables(self.needed, self.placement, self.feeds)
        held = {i for each in uses for i in each.changes if self.due[i] == _NEVER}
        if not held:
            return
        counted = [int(i in held) for i in range(len(self.needed))]
        before = [ways - own for ways, own in zip(self._longest_ways(counted), counted, strict=True)]  # held ones on a way to each
        gate = len(self.needed) - 1
        for looks, changes in uses:
            first, looking = gate + 1, list[int]()
            changing = held.intersection(changes)
            for i in sorted({*looks, *changing}, key=lambda i: (before[i], i in held, i)):
                if i not in changing:
                    looking.append(i)
                    continue
                if looking:
                    gate += 1
                    self._wait(gate, looking if gate == first else [*looking, gate - 1])
                    looking = []
                if gate >= first:
                    self._wait(i, [gate])

    def _wait(self, i: int, first: Sequence[int]) -> None:
        """``i``, own work or a gate, waits for those that come first."""
        self.waiting[i] = self.waiting.get(i, 0) + len(first)
        for each in first:
            self.readers.setdefault(each, []).append(i)

    def _work(self) -> None:
        """Have the tasks run the work for others, in its order, their own while that waits, and the rest behind their last one."""
        workers, senders, readers, found, ended = self.workers, self.senders, self.readers, self.found, self.ended
        agenda = self.agenda
        for_others = [i for i, due in enumerate(self.due) if due < _NEVER]
        for_others.sort(key=self.level.__getitem__, reverse=True)  # equal ones keep their order
        for_others.sort(key=self.due.__getitem__)
        taking_part = {i: {workers[each] for each in self.inputs[i]} - {workers[i]} for i in for_others if self.needed[i].type in HUBS}
        for worker in (*[workers[i] for i in for_others], *[worker for several in taking_part.values() for worker in several]):
            worker.left += 1
        for worker in self.tasks.values():
            self._may_go_on(worker, 0)
        self._begin([i for i, count in self.waiting.items() if not count])
        for i in for_others:
            worker = workers[i]
            moment = worker.clock - _PATIENCE
            if i in senders:
                arrival = self._arrival(i)
                if worker.clock < arrival:
                    moment = arrival
                    self._work_until(arrival, worker)
            if agenda and agenda[0][0] <= moment:
                self._go_on(moment)
            worker.clock = ended[i] = worker.clock + _OP_COST
            found.append(i)
            if i in readers:
                self._hand_on(i)
            for each in (worker, *taking_part[i]) if i in taking_part else (worker,):
                each.left -= 1
                self._may_go_on(each, each.clock)
        self._go_on(_NEVER)

    def _may_go_on(self, worker: _Worker, moment: int) -> None:
        if not worker.left:
            heapq.heappush(self.agenda, (moment, worker.number))

    def _go_on(self, moment: int) -> None:
        """Have the tasks that have only own work left do what they can until then."""
        tasks, agenda = list(self.tasks.values()), self.agenda
        while agenda and agenda[0][0] <= moment:
            now, number = heapq.heappop(agenda)
            worker = tasks[number]
            self._work_until(now, worker)
            self._take_in(worker)
            while worker.ready:
                self._run(worker)
            if worker.coming:
                self._may_go_on(worker, worker.coming[0][0])

    def _work_until(self, moment: int, worker: _Worker) -> None:
        """Have a task do its own work until then, if it has some."""
        while worker.clock < moment:
            self._take_in(worker)
            if worker.ready:
                self._run(worker)
            else:
                worker.clock = min(moment, worker.coming[0][0]) if worker.coming else moment

    def _take_in(self, worker: _Worker) -> None:
        """Own work whose messages have come is next, that of the first ones first."""
        come = []
        while worker.coming and worker.coming[0][0] <= worker.clock:
            come.append(heapq.heappop(worker.coming)[1])
        worker.ready += reversed(come)

    def _run(self, worker: _Worker) -> None:
        """Run the next of a task's own work."""
        i = worker.ready.pop()
        self.found.append(i)
        worker.clock = self.ended[i] = worker.clock + _OP_COST
        if i in self.readers:
            self._hand_on(i)

    def _hand_on(self, i: int) -> None:
        """Tell own work that reads what ``i`` gives out."""
        waiting, ready, gates, open_gates = self.waiting, list[int](), len(self.needed), [i]
        for each in open_gates:
            for reader in self.readers[each]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    (ready if reader < gates else open_gates).append(reader)
        if ready:
            self._begin(ready)
        if len(open_gates) > 1:  # changes on other tasks, which may have nothing else to do
            for worker in [self.workers[each] for each in ready if self.workers[each] is not self.workers[i]]:
                self._may_go_on(worker, worker.clock)

    def _begin(self, ready: list[int]) -> None:
        """Own work that waits for nothing but messages. What is farthest from the end goes first."""
        if len(ready) > 1:
            ready.sort(key=lambda i: (self.level[i], -i))
        for i in ready:
            worker = self.workers[i]
            if i in self.senders:
                arrival = self._arrival(i)
                heapq.heappush(worker.coming, (arrival, i))
                self._may_go_on(worker, arrival)
            else:
                worker.ready.append(i)

    def _arrival(self, i: int) -> int:
        """When all that an operation needs from other tasks is there."""
        return max([self.ended[each] for each in self.senders[i]]) + _CROSSING_COST


def bring_together(order: Sequence[Operation], placement: Placement, feeds: Set[Tensor] = frozenset()) -> list[Operation]:
    """A topological order in which reductions that may share messages are neighbours; otherwise as close to ``order`` as that allows.

    No cycle can come of it: those that are brought together have the same *depth*, the largest number of collectives on a way to
    them. So none is on a way to another; and every way from such a group to a collective behind it leads to a greater depth, so
    none leads from a group, through others, back to it.
    """
    if HUBS.isdisjoint([op.type for op in order]):
        return list(order)
    depth: dict[Operation, int] = {}
    alike: dict[object, list[Operation]] = {}
    for op in order:
        kind = kind_of(op)
        depth[op] = before = max([depth[p] + is_collective(p) for p in _producers(op, feeds)], default=0)
        if kind is not None:
            tasks = tuple([placement[t.op].task for t in op.inputs])
            alike.setdefault((before, kind, tasks), []).append(op)
    units = [unit for group in alike.values() for unit in filled(group) if len(unit) > 1]
    if not units:
        return list(order)
    unit_of = {op: tuple(unit) for unit in units for op in unit}
    position = {op: i for i, op in enumerate(order)}
    waiting: dict[tuple[Operation, ...], int] = {}
    readers: dict[tuple[Operation, ...], list[tuple[Operation, ...]]] = {}
    for op in order:
        unit = unit_of.get(op, (op,))
        producers = {unit_of.get(p, (p,)) for p in _producers(op, feeds)}
        waiting[unit] = waiting.get(unit, 0) + len(producers)
        for producer in producers:
            readers.setdefault(producer, []).append(unit)
    ready = [(position[unit[-1]], unit) for unit, count in waiting.items() if not count]
    heapq.heapify(ready)
    found: list[Operation] = []
    while ready:
        _, unit = heapq.heappop(ready)
        found.extend(unit)
        for reader in readers.get(unit, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, (position[reader[-1]], reader))
    assert len(found) == len(order), "reductions that were brought together depend on one another"
    return found


def _producers(op: Operation, feeds: Set[Tensor]) -> list[Operation]:
    return [t.op for t in op.inputs if t not in feeds] + control_producers(op, feeds)
