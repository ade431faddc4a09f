"""The proof that a plan can't deadlock, made on the finished plan.

A plan is safe if its order is topological, every dependency between tasks has exactly one edge, and each edge starts
once, behind its producer, and is awaited later by its destination: then the task that is furthest behind in the global order
can always go on, since sends never block. A collective is one place in that order for all tasks that take part: they come with
what they give before they wait for the others, so the same holds. ``verify`` checks these, then runs the programs of all
tasks in the mind, each blocked on every receive and in every collective until all have come with their inputs, until all have
ended. A failure is an error of mpirt, not of its user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

from mpirt import errors
from mpirt.cluster.task import Task
from mpirt.compiler.partition import Node, Plan
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.prune import control_producers
from mpirt.graph.graph import Operation, Tensor

_NOTHING: frozenset[Any] = frozenset()


def verify(plan: Plan) -> None:
    """Refuse a plan that could deadlock or lose a tensor.

    Raises
    ------
    InternalError
        Naming the operation or edge that is wrong.
    """
    _check_order(plan)
    _check_edges(plan)
    _check_progress(plan)


def _check_order(plan: Plan) -> None:
    fed = set(plan.feeds)
    known = fed | plan.constants.keys()
    done: set[Operation] = set()
    for node in plan.nodes:
        if node.fed is not None:
            continue
        op = node.op
        for tensor in op.inputs:
            if tensor.op not in done and tensor not in known:
                raise _refuse(f"{op.name!r} comes before {tensor.op.name!r}, which it depends on")
        for producer in control_producers(op, fed) if op.control_inputs else ():
            if producer not in done:
                raise _refuse(f"{op.name!r} comes before {producer.name!r}, which it depends on")
        done.add(op)


def _check_edges(plan: Plan) -> None:
    seen: set[tuple[Tensor | Operation, Operation, Task]] = set()
    for edge in plan.edges:
        if (edge.source, edge.after, edge.dst) in seen:
            raise _refuse(f"{edge} is sent twice")
        seen.add((edge.source, edge.after, edge.dst))
        if edge.src == edge.dst:
            raise _refuse(f"{edge} doesn't leave its task")
    fed = set(plan.feeds)
    place = {node.op: at for at, node in enumerate(plan.nodes) if node.fed is None}
    starts: Counter[int] = Counter()
    awaited: set[int] = set()
    for node in plan.nodes:
        for index in node.sends:
            edge = plan.edges[index]
            given = edge.source is node.fed if node.fed is not None else edge.after is node.op and edge.source not in fed
            if not given or edge.src != node.device.task:
                raise _refuse(f"{edge} can't start at {node.op.name!r} on {node.device.task}")
            starts[index] += 1
        awaited.update(node.waits)
        _check_waits(node, plan, fed, place)
    for edge in plan.edges:
        if starts[edge.index] != 1:
            raise _refuse(f"{edge} is started {starts[edge.index]} times")
        if edge.index not in awaited:
            raise _refuse(f"nobody waits for {edge}")


def _check_waits(node: Node, plan: Plan, fed: Set[Tensor], place: Mapping[Operation, int]) -> None:
    """An operation waits for all that it needs from other tasks."""
    op, here = node.op, node.device.task
    edges = plan.edges
    for index in node.waits:
        if edges[index].dst != here:
            raise _refuse(f"{op.name!r} on {here} can't wait for {edges[index]}")
    if node.fed is not None:
        return
    placement, client, collectives = plan.placement, plan.client, plan.collectives
    brought = {edges[index].source for index in node.waits} if node.waits else _NOTHING
    collective = collectives.get(op) if collectives else None
    for position, tensor in enumerate(op.inputs):
        there = client.task if client is not None and tensor in fed else placement[tensor.op].task
        if there == here and not collectives:
            continue  # nothing has to bring it
        reader = here if collective is None else collective.sources[position]
        origin = None if tensor in fed else collectives.get(tensor.op)
        if origin is not None:
            if reader not in origin.targets[tensor.value_index]:
                raise _refuse(f"{tensor.name!r} is not given to {reader}, where {op.name!r} needs it")
        elif collective is not None:
            if reader != there:
                raise _refuse(f"{reader} can't give {tensor.name!r} to {op.name!r}: it is on {there}")
        elif there != here and tensor not in brought and tensor not in plan.constants:
            raise _refuse(f"nothing brings {tensor.name!r} to {op.name!r} on {here}")
    if not op.control_inputs:
        return
    told: dict[DeviceName, int] = {}  # the last place that each device is known to have come to
    for edge in [edges[index] for index in node.waits if edges[index].source not in fed]:
        device = placement[edge.after]
        told[device] = max(told.get(device, -1), place[edge.after])
    for control in control_producers(op, fed):
        device = placement[control]
        if device.task != here and told.get(device, -1) < place[control]:
            raise _refuse(f"nothing tells {op.name!r} on {here} that {control.name!r} has run")


def _check_progress(plan: Plan) -> None:
    """Run all tasks' lists, each blocked on its receives and in its collectives."""
    lists: dict[Task, list[Node]] = {}
    for node in plan.nodes:
        lists.setdefault(node.device.task, []).append(node)
        if plan.collectives and _is_collective(node, plan):
            for task in plan.collectives[node.op].tasks:
                if task != node.device.task:
                    lists.setdefault(task, []).append(node)
    absent = {op: set(collective.sources) for op, collective in plan.collectives.items()}
    meeting: dict[Operation, list[Task]] = {}
    position = dict.fromkeys(lists, 0)
    arrived: set[int] = set()
    waiting: dict[int, list[Task]] = {}
    ready = list(lists)
    while ready:
        task = ready.pop()
        nodes = lists[task]
        for at in range(position[task], len(nodes)):
            node = nodes[at]
            if node.waits:
                missing = next((i for i in _waits(node, task) if i not in arrived), None)
                if missing is not None:
                    waiting.setdefault(missing, []).append(task)
                    position[task] = at
                    break
            if absent and _is_collective(node, plan):
                absent[node.op].discard(task)
                if absent[node.op]:
                    meeting.setdefault(node.op, []).append(task)
                    position[task] = at
                    break
                ready.extend(meeting.pop(node.op, ()))
            if node.sends and task == node.device.task:
                for index in node.sends:
                    arrived.add(index)
                    ready.extend(waiting.pop(index, ()))
        else:
            position[task] = len(nodes)
    for task, nodes in lists.items():
        if position[task] < len(nodes):
            node = nodes[position[task]]
            edge = next((plan.edges[i] for i in _waits(node, task) if i not in arrived), None)
            what = f"{edge} before" if edge else f"{' and '.join(map(str, sorted(absent[node.op])))} in the collective"
            raise _refuse(f"{task} would wait for ever for {what} {node.op.name!r}")


def _is_collective(node: Node, plan: Plan) -> bool:
    return node.fed is None and node.op in plan.collectives


def _waits(node: Node, task: Task) -> tuple[int, ...]:
    """Edges that ``task`` waits for at ``node``: the others that take part in a collective wait for none."""
    return node.waits if task == node.device.task else ()


def _refuse(what: str) -> errors.InternalError:
    return errors.InternalError(f"the plan of this step is not safe: {what}.", hint="this is an error of mpirt; please report it.")
