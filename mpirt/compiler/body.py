"""The program of a body: the passes of a step, for one task and without messages.

A body runs inside one operation (If, While). Its arguments are fed, variables among them are where that operation is; the
rest of it is placed on the devices of the same task by the ordinary rules.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.placer import DeviceName, PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import Program, is_state
from mpirt.graph.function import Function
from mpirt.graph.graph import Operation, Tensor


def compile_body(body: Function, device: DeviceName, devices: Sequence[str]) -> Program:
    """The program of ``body`` for an operation on ``device``, whose task has ``devices``.

    Its fetches are the outputs of the body, then its control outputs.
    """
    fetches: tuple[Tensor | Operation, ...] = (*body.outputs, *body.control_outputs)
    beside = {t.op: device for t in body.inputs if is_state(t)}
    plan = make_plan(body.graph, fetches, body.inputs, {device.task: devices}, PlacementRules(device.task), beside)
    return link(plan, _this_rank, 0, 1)


def _this_rank(task: Task) -> int:
    return 0
