"""Placement: which device of which task runs each operation.

Pure: operations, the cluster's devices and the rules in, a ``Placement`` out. The rules, in order:

1. operations that are colocated (``loc:@`` groups, and whatever touches the same variable) share a device; the
   variable's own request wins over that of an operation that changes it;
2. an operation without inputs or request goes with its consumers where these share a task; one without request that asks
   only for the shape of its input goes with that input;
3. what is still open: no job - the master's job, and without a task the master task itself; no task - task 0;
   no device type - the task's first GPU if the operation has a kernel there, else its CPU.

Source: TensorFlow 1 as observed, except rule 3, which is simpler (``task_default="master"`` gives TensorFlow's).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from mpirt import dtypes, errors
from mpirt.cluster import device_spec
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.cluster.task import Task
from mpirt.graph.function import VARIABLE_HANDLE
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.op_def import arg_ranges


class DeviceName(NamedTuple):
    """One device of the cluster: ``/job:ps/task:0/device:CPU:0``; hashable, ordered by its fields."""

    task: Task
    type: str
    index: int  # type: ignore[assignment]  # hides tuple.index, as in Task

    @property
    def local(self) -> str:
        """The name within its task: ``CPU:0``."""
        return f"{self.type}:{self.index}"

    def __str__(self) -> str:
        return f"{self.task}/device:{self.type}:{self.index}"


Placement = dict[Operation, DeviceName]
Inventory = Mapping[Task, Sequence[str]]  # devices of each task, "CPU:0", "GPU:1"; in the order of the cluster

_METADATA = frozenset(("Shape", "ShapeN", "Size", "Rank"))  # need their input's shape only
_TASK_DEFAULTS = ("zero", "master")
_SPEC_FIELDS = ("job", "replica", "task", "device_type", "device_index")


@dataclass(frozen=True, slots=True)
class PlacementRules:
    """What a session may choose about placement.

    Attributes
    ----------
    master : task of operations that name none
    soft : place an operation elsewhere on its task if it can't be where it asks to
    task_default : what a job without a task means
    hidden : tasks of the cluster that the session's device filters leave out of its inventory, for messages
    """

    master: Task
    soft: bool = False
    task_default: str = "zero"
    hidden: frozenset[Task] = frozenset()

    def __post_init__(self) -> None:
        if self.task_default not in _TASK_DEFAULTS:
            raise ValueError(f"task_default must be one of {', '.join(_TASK_DEFAULTS)}, not {self.task_default!r}.")


def default_master(inventory: Inventory) -> Task:
    """The master task of a collective session: chief 0, else worker 0, else the cluster's first task."""
    for job in ("chief", "worker"):
        tasks = sorted(t for t in inventory if t.job == job)
        if tasks:
            return tasks[0]
    return next(iter(inventory))


def place(
    graph: Graph,
    needed: Sequence[Operation],
    inventory: Inventory,
    rules: PlacementRules,
    pinned: Mapping[Operation, DeviceName] | None = None,
) -> Placement:
    """Devices of the operations ``needed``.

    Parameters
    ----------
    graph : the whole graph; colocation groups are those of the whole graph, so that a variable has one place in all steps
    needed : operations of the step, in creation order; only these can make it fail
    inventory : devices of every task
    rules : master task, soft placement, meaning of a missing task
    pinned : operations with state that have a place already

    Raises
    ------
    InvalidArgumentError
        If an operation asks for a device that doesn't exist or has no kernel for it, or colocated ones contradict each
        other or hold state on different devices.
    """
    return _Placer(graph, needed, inventory, rules, pinned or {}).place()


class _Placer:
    """One placement in the making."""

    def __init__(
        self, graph: Graph, needed: Sequence[Operation], inventory: Inventory, rules: PlacementRules, pinned: Mapping[Operation, DeviceName]
    ) -> None:
        self.groups = _colocated(graph.get_operations())
        self.needed = needed
        self.inventory = inventory
        self.rules = rules
        self.pinned = pinned
        self.placement: Placement = {}
        self.known: dict[tuple[str, str, bool], DeviceName] = {}  # choices for operations that stand alone

    def place(self) -> Placement:
        inside = set(self.needed)
        sources: list[Operation] = []
        metadata: list[Operation] = []
        for op in self.needed:
            if op in self.groups:
                if op not in self.placement:  # else it came with its group
                    self._place_group(self.groups[op], inside)
            elif op.device or op in self.pinned:
                self.placement[op] = self._alone(op)
            elif not op.inputs:
                sources.append(op)
            elif op.type in _METADATA:
                metadata.append(op)
            else:
                self.placement[op] = self._alone(op)
        self._place_sources(sources)
        for op in metadata:
            producer = self.placement.get(op.inputs[0].op)
            self.placement[op] = self._alone(op) if producer is None else self._beside(op, producer)
        return self.placement

    def _place_group(self, group: list[Operation], inside: Set[Operation]) -> None:
        try:
            device = self._group_device(group)
        except errors.InvalidArgumentError:
            members = [op for op in group if op in inside]
            if len(members) == len(group):
                raise
            # What the step doesn't need can't make it fail: only what is colocated within the step counts.
            parts = _colocated(members)
            for op in members:
                if op not in self.placement:
                    part = parts.get(op, [op])
                    self.placement.update(dict.fromkeys(part, self._group_device(part)))
        else:
            self.placement.update((op, device) for op in group if op in inside)

    def _group_device(self, group: Sequence[Operation]) -> DeviceName:
        """The device that all of ``group`` share: where its state is, else what its members ask for together."""
        spec = _group_spec(group, self.rules)
        holders = {self.pinned[op]: op for op in group if op in self.pinned}
        if not holders:
            return choose_device(spec, group, self.inventory, self.rules)
        (device, holder), *others = holders.items()
        if others:
            other, op = others[0]
            raise errors.InvalidArgumentError(
                f"cannot colocate {op.name!r} with {holder.name!r}: an earlier step put the one on {other}, the other on {device}.",
                op=op,
                hint="colocate them before the first step of the session, or not at all.",
            )
        for op in group:
            if not _can_run(op, device.type):
                raise _no_kernel(op, device, f"to be with {holder.name!r}, pin that to a CPU before the first step of the session.")
        return device

    def _alone(self, op: Operation) -> DeviceName:
        """The device of an operation without group."""
        if op in self.pinned:
            return self.pinned[op]
        key = op.device, op.type, _has_strings(op)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = choose_device(device_spec.parse(op.device), (op,), self.inventory, self.rules)
        return found

    def _beside(self, op: Operation, device: DeviceName) -> DeviceName:
        """``device``, or where ``op`` runs on the same task."""
        if _can_run(op, device.type):
            return device
        return choose_device(DeviceSpec(job=device.task.job, task=device.task.index), (op,), self.inventory, self.rules)

    def _place_sources(self, sources: Sequence[Operation]) -> None:
        """Rule 2 for operations without inputs and without request: with their consumers where these share a task."""
        consumers: dict[Operation, set[DeviceName]] = {op: set() for op in sources}
        for op in self.needed:
            if op in self.placement:  # what asks only for a shape comes later, and follows
                for tensor in op.inputs:
                    if tensor.op in consumers:
                        consumers[tensor.op].add(self.placement[op])
        for op, found in consumers.items():
            devices = sorted(found)
            if len({d.task for d in devices}) == 1:
                shared = devices[0] if len(devices) == 1 else next((d for d in devices if d.type == "CPU"), devices[0])
                self.placement[op] = self._beside(op, shared)
            else:
                self.placement[op] = self._alone(op)


# ------------------------------------------------------------------------------------------------------ colocation


def _colocated(operations: Sequence[Operation]) -> dict[Operation, list[Operation]]:
    """The group of each operation that shares its device with others of ``operations`` (in creation order)."""
    parent: dict[Operation, Operation] = {}

    def find(op: Operation) -> Operation:
        root = op
        while parent.setdefault(root, root) is not root:
            root = parent[root]
        while parent[op] is not root:
            parent[op], op = root, parent[op]
        return root

    asking = [op for op in operations if op.definition.takes_handles or "_class" in op.attrs]
    inside = {op.name: op for op in operations} if asking else {}
    for op in asking:
        for other in _asked_groups(op) + [t.op.name for t in resource_inputs(op)]:
            if other in inside:  # a name that isn't in the graph is ignored, as in TensorFlow
                a, b = find(op), find(inside[other])
                parent[max(a, b, key=_index)] = min(a, b, key=_index)
    groups: dict[Operation, list[Operation]] = {}
    for op in sorted(parent, key=_index):
        groups.setdefault(find(op), []).append(op)
    return {op: members for members in groups.values() if len(members) > 1 for op in members}


def _index(op: Operation) -> int:
    return op.index


def _asked_groups(op: Operation) -> list[str]:
    asked = op.attrs.get("_class")
    return [] if not asked else [g[5:] for g in asked if g.startswith("loc:@")]


def ref_inputs(op: Operation) -> list[Tensor]:
    """Inputs that are a variable itself, which the operation may change."""
    if not op.definition.takes_refs:
        return []
    ranges = arg_ranges(op.definition.inputs, op.attrs)
    return [t for arg in op.definition.inputs if arg.is_ref for t in op.inputs[ranges[arg.name]] if t.dtype.is_ref]


def resource_inputs(op: Operation) -> list[Tensor]:
    """Inputs that are a variable or resource itself, not its value; they never cross devices."""
    if not op.definition.takes_handles:
        return []
    return [t for t in op.inputs if t.dtype is dtypes.resource] + ref_inputs(op)


def _group_spec(group: Sequence[Operation], rules: PlacementRules) -> DeviceSpec:
    """What the members ask for together, field by field.

    Raises
    ------
    InvalidArgumentError
        If two members ask for different devices and neither is the variable that the other changes.
    """
    fields: dict[str, tuple[str | int, Operation]] = {}  # what is asked for, and by whom
    owners = [op for op in group if not resource_inputs(op)]
    users = [op for op in group if resource_inputs(op)]
    for op in owners + users:
        spec = device_spec.parse(op.device)
        senseless: tuple[str, ...] = ()  # what a user says of another job, or of another kind of device
        for name in _SPEC_FIELDS:
            mine = getattr(spec, name)
            if mine is None or name in senseless:
                continue
            theirs, asker = fields.setdefault(name, (mine, op))
            if mine != theirs and name in ("job", "task") and _changed_inside(op) and not rules.soft:
                raise errors.InvalidArgumentError(
                    f"{op.name!r} ({op.type}) on {op.device} changes {_changed_inside(op)[0].name!r} in a body, but {asker.name!r} is on"
                    f" {asker.device}: a body can change variables of its own task only.",
                    op=op,
                    hint=f"drop the device block around {op.name!r}, then it goes to the variable; or change the variable outside.",
                )
            if mine != theirs and op in owners and not rules.soft:
                raise errors.InvalidArgumentError(
                    f"cannot colocate {op.name!r} on {op.device} with {asker.name!r} on {asker.device}:"
                    f" their {name.replace('_', ' ')}s {mine!r} and {theirs!r} differ.",
                    op=op,
                    hint=_mend_colocation(group, (op, asker)),
                )
            if mine != theirs and op not in owners:
                senseless += {"job": ("replica", "task"), "device_type": ("device_index",)}.get(name, ())
    return DeviceSpec(**{name: value for name, (value, _) in fields.items()})  # type: ignore[arg-type]  # checked by its maker


def _changed_inside(op: Operation) -> list[Operation]:
    """The variables that a body of ``op`` may change."""
    return [t.op.inputs[0].op for t in op.inputs if t.op.type == VARIABLE_HANDLE]


def _mend_colocation(group: Sequence[Operation], owners: Sequence[Operation]) -> str:
    for op in group:
        if set(owners) <= set(_changed_inside(op)):
            return f"{op.name!r} changes both in its bodies: pin them to the same task, or change one of them outside."
    return "pin both to the same device, drop one of the device blocks, or drop colocate_with."


# ------------------------------------------------------------------------------------------------- choosing a device


def choose_device(spec: DeviceSpec, group: Sequence[Operation], inventory: Inventory, rules: PlacementRules) -> DeviceName:
    """The device for operations that share one and ask for ``spec`` together.

    Raises
    ------
    InvalidArgumentError
        If there is no such device, or it has no kernel for an operation of the group.
    """
    task = _choose_task(spec, group, inventory, rules)
    have = inventory[task]
    kinds = sorted({name.partition(":")[0] for name in have})
    usable = [kind for kind in kinds if all(_can_run(op, kind) for op in group)]
    if not usable:
        raise _nowhere(group, task, have)
    wanted = spec.device_type
    if wanted is None:
        wanted = "GPU" if "GPU" in usable else "CPU"
    index = spec.device_index
    name = f"{wanted}:{_first_index(have, wanted) if index is None else index}"
    if name in have and wanted in usable:
        return device_name(task, name)
    if rules.soft:
        kind = wanted if wanted in usable else "CPU" if "CPU" in usable else usable[0]
        return device_name(task, f"{kind}:{_first_index(have, kind)}")
    op = next((op for op in group if op.device), group[0])
    if name in have:
        lacking = next(op for op in group if not _can_run(op, wanted))
        raise _no_kernel(lacking, device_name(task, name), "pin it to a CPU, or use ConfigProto(allow_soft_placement=True).")
    gpu = " To try GPUs without having one, set MPIRT_EMULATED_GPUS=1." if wanted == "GPU" and "GPU" not in kinds else ""
    raise errors.InvalidArgumentError(
        f"cannot place {op.name!r} ({op.type}) on {op.device or spec}: {task} has no device {wanted}:{'*' if index is None else index};"
        f" it has {', '.join(have)}. All devices: {_all_devices(inventory)}.",
        op=op,
        hint=f"use a device of that list, or ConfigProto(allow_soft_placement=True).{gpu}",
    )


def _choose_task(spec: DeviceSpec, group: Sequence[Operation], inventory: Inventory, rules: PlacementRules) -> Task:
    if spec.replica not in (None, 0):
        op = group[0]
        raise errors.InvalidArgumentError(f"cannot place {op.name!r} on {op.device}: there are no replicas but 0.", op=op)
    if spec.job is None and spec.task is None:
        return rules.master
    job = spec.job if spec.job is not None else rules.master.job
    if spec.task is not None and (asked := Task(job, spec.task)) in inventory:
        return asked
    indices = sorted(t.index for t in inventory if t.job == job)
    if indices and spec.task is None:
        if rules.master.job == job and rules.master.index != indices[0]:
            if rules.task_default == "master":
                return rules.master
            _warn_task_default(group[0], Task(job, indices[0]), rules.master)
        return Task(job, indices[0])
    op = next((op for op in group if op.device), group[0])
    jobs = sorted({t.job for t in inventory})
    if any(t.job == job and spec.task in (None, t.index) for t in rules.hidden):
        what = f"the device_filters of the session hide {job if spec.task is None else Task(job, spec.task)}"
        mend = "add a filter that allows it to the session's ConfigProto"
    elif not indices:
        what, mend = f"there is no job {job!r}; jobs are {', '.join(jobs)}", f"use one of the jobs {', '.join(jobs)}"
    else:
        what = f"job {job!r} has {len(indices)} task(s) ({_span(indices)})"
        mend = f"use task {_span(indices)}, or give job {job!r} more tasks in the rank table or ClusterSpec"
    raise errors.InvalidArgumentError(
        f"cannot place {op.name!r} on {op.device or spec}: {what}. All devices: {_all_devices(inventory)}.", op=op, hint=mend + "."
    )


def check_request(text: str, tasks: Iterable[Task]) -> None:
    """Refuse a device request whose job or task the cluster doesn't have (types may still be placed softly).

    Raises
    ------
    InvalidArgumentError
        Naming what there is; raised at the user's line, in the ``with`` statement.
    """
    spec = device_spec.parse(text)
    if spec.job is None:
        return
    indices = sorted(t.index for t in tasks if t.job == spec.job)
    if not indices:
        jobs = sorted({t.job for t in tasks})
        raise errors.InvalidArgumentError(
            f"device {text!r}: the cluster has no job {spec.job!r}; jobs are {', '.join(jobs)}.",
            hint=f"use one of the jobs {', '.join(jobs)}.",
        )
    if spec.task is not None and spec.task not in indices:
        raise errors.InvalidArgumentError(
            f"device {text!r}: job {spec.job!r} has {len(indices)} task(s) ({_span(indices)}).",
            hint=f"use task {_span(indices)}, or give job {spec.job!r} more tasks in the rank table or ClusterSpec.",
        )


class _Warned:
    task_default = False


def _warn_task_default(op: Operation, chosen: Task, master: Task) -> None:
    if not _Warned.task_default:
        _Warned.task_default = True
        warnings.warn(
            f"{op.name!r} asks for {op.device!r} without a task and goes to {chosen}; TensorFlow would put it on the master's own"
            f' task, {master}. Name the task, or use Session(task_default="master").',
            stacklevel=2,
        )


def _can_run(op: Operation, kind: str) -> bool:
    """Whether the operation has a kernel for this kind of device and its values can live there: strings only in host memory."""
    return kind in op.definition.kernels and (kind == "CPU" or not _has_strings(op))


def _has_strings(op: Operation) -> bool:
    return any([t.dtype.kind == "O" and t.dtype.base_dtype is dtypes.string for t in (*op.inputs, *op.outputs)])


def _no_kernel(op: Operation, device: DeviceName, mend: str) -> errors.InvalidArgumentError:
    lacks = f"it has no kernel for {device.type}"
    why = "its values are strings, which live on CPUs only" if device.type in op.definition.kernels else lacks
    kernels = ", ".join(sorted(op.definition.kernels))
    return errors.InvalidArgumentError(f"cannot place {op.name!r} ({op.type}) on {device}: {why} (kernels: {kernels}).", op=op, hint=mend)


def _nowhere(group: Sequence[Operation], task: Task, have: Sequence[str]) -> errors.InvalidArgumentError:
    """The error for operations for which no kind of device of their task will do."""
    kinds = [sorted(kind for kind in op.definition.kernels if _can_run(op, kind)) for op in group]
    there = {name.partition(":")[0] for name in have}
    op, runs_on = next(((op, k) for op, k in zip(group, kinds, strict=True) if there.isdisjoint(k)), (group[-1], kinds[-1]))
    what = f"cannot place {op.name!r} ({op.type}): it runs on {' and '.join(runs_on) or 'no device'}, {task} has {', '.join(have)}"
    if not there.isdisjoint(runs_on):
        what += f", and {group[0].name!r}, which shares its device, runs on {' and '.join(kinds[0])}"
    return errors.InvalidArgumentError(f"{what}.", op=op, hint="use a task that has such a device.")


def _first_index(have: Sequence[str], kind: str) -> int:
    return min((int(name.partition(":")[2]) for name in have if name.startswith(kind + ":")), default=0)


def device_name(task: Task, local: str) -> DeviceName:
    """The device ``local`` ("CPU:0") of a task."""
    kind, _, index = local.partition(":")
    return DeviceName(task, kind, int(index))


def _span(indices: Sequence[int]) -> str:
    if len(indices) > 1 and indices[-1] - indices[0] == len(indices) - 1:
        return f"{indices[0]}-{indices[-1]}"
    return ", ".join(map(str, indices))


def _all_devices(inventory: Inventory) -> str:
    names = [f"{task}/device:{name}" for task in inventory for name in inventory[task]]
    return ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
