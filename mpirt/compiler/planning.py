"""From fetches to a proven plan: all passes of a step that don't know ranks, in their order.

Guarantee: a pure function; the same graph, fetches, feeds and places give the same plan in every process. Whoever runs the
plan (a collective session, a master) binds it with ``program.link``.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from mpirt import errors
from mpirt.compiler.fold import fold_constants
from mpirt.compiler.partition import Plan, partition
from mpirt.compiler.placer import DeviceName, Inventory, PlacementRules, place
from mpirt.compiler.prune import PLACEHOLDERS, prune
from mpirt.compiler.schedule import schedule
from mpirt.compiler.verify import verify
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.shapes import text


@contextmanager
def collecting_later() -> Iterator[None]:
    """Inside, or during a function that this decorates, nobody looks for reference cycles.

    A plan of many operations makes many objects and no cycles; looking for some takes a third of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def make_plan(
    graph: Graph,
    leaves: Sequence[Tensor | Operation],
    fed: Collection[Tensor],
    inventory: Inventory,
    rules: PlacementRules,
    pinned: Mapping[Operation, DeviceName],
    client: DeviceName | None = None,
) -> Plan:
    """The plan of the step that fetches ``leaves`` when ``fed`` are given.

    Parameters
    ----------
    graph : the whole graph, see ``place``
    leaves : what is fetched, each once
    fed : tensors that values stand for, in any order; the plan has them by name
    inventory : devices of every task
    rules : master task, soft placement, meaning of a missing task
    pinned : operations with state that have a place already
    client : where all feeds come in; None - each where its operation is placed

    Raises
    ------
    InvalidArgumentError
        If the step needs a placeholder that is not fed, or an operation can't be placed.
    """
    feeds = sorted(fed, key=lambda t: t.name)
    known = set(feeds)
    needed = prune(leaves, known)
    _check_placeholders(needed)
    placing = sorted({*needed, *(t.op for t in feeds)}, key=lambda op: op.index)
    placement = place(graph, placing, inventory, rules, pinned)
    constants = fold_constants(needed, leaves, known, placement)
    if constants:
        known |= constants.keys()
        needed = prune(leaves, known)
    plan = partition(schedule(needed, placement, known), placement, leaves, feeds, client, constants)
    verify(plan)
    return plan


def _check_placeholders(needed: Sequence[Operation]) -> None:
    for op in needed:
        if op.type in PLACEHOLDERS:
            dtype, shape = op.outputs[0].dtype.name, text(op.outputs[0].static_shape)
            raise errors.InvalidArgumentError(
                f"You must feed a value for placeholder tensor {op.name!r} with dtype {dtype} and shape {shape}.",
                op=op,
                hint=f"pass feed_dict={{{op.name}: value}} to run().",
            )
