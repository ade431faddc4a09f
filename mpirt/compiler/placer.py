"""Placement: which device of which task runs each operation.

Pure: operations, the cluster's devices and the rules in, a ``Placement`` out. The rules, in order:

1. operations that are colocated (``loc:@`` groups, and whatever touches the same variable) share a device; the
   variable's own request wins over that of an operation that changes it;
2. an operation without inputs or request goes with its consumers where these share a device; one that asks only for the
   shape of its input goes with that input;
3. what is still open: no job - the master's job, and without a task the master task itself; no task - task 0;
   no device type - the task's first GPU if the operation has a kernel there, else its CPU.

Source: TensorFlow 1 as observed, except rule 3, which is simpler (``task_default="master"`` gives TensorFlow's).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mpirt import dtypes, errors
from mpirt.cluster import device_spec
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.cluster.task import Task
from mpirt.graph.graph import Graph, Operation, Tensor


@dataclass(frozen=True, slots=True, order=True)
class DeviceName:
    """One device of the cluster: ``/job:ps/task:0/device:CPU:0``."""

    task: Task
    type: str
    index: int

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


@dataclass(frozen=True, slots=True)
class PlacementRules:
    """What a session may choose about placement."""

    master: Task
    soft: bool = False
    task_default: str = "zero"

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
        If an operation asks for a device that doesn't exist or has no kernel for it, or colocated ones contradict.
    """
    groups = _colocation_groups(graph)
    placement: Placement = {}
    done: dict[int, DeviceName] = {}  # by the group's first operation
    consumers: dict[Operation, list[Operation]] = {}
    inside = set(needed)
    for op in needed:
        for tensor in op.inputs:
            if tensor.op in inside:
                consumers.setdefault(tensor.op, []).append(op)
    free_sources: list[Operation] = []
    for op in needed:
        group = groups.get(op.index, [op])
        root = group[0].index
        if root in done:
            placement[op] = done[root]
            continue
        spec = _group_spec(group, rules)
        fixed = next((pinned[member] for member in group if member in pinned), None) if pinned else None
        if fixed is not None:
            placement[op] = done[root] = fixed
        elif len(group) == 1 and not op.inputs and not spec.to_string() and op in consumers:
            free_sources.append(op)
        else:
            if len(group) == 1 and op.type in _METADATA and not spec.to_string() and op.inputs[0].op in placement:
                placement[op] = placement[op.inputs[0].op]
            else:
                placement[op] = choose_device(spec, group, inventory, rules)
            done[root] = placement[op]
    _place_sources(free_sources, consumers, placement, inventory, rules)
    return placement


def _place_sources(
    sources: Sequence[Operation],
    consumers: Mapping[Operation, Sequence[Operation]],
    placement: Placement,
    inventory: Inventory,
    rules: PlacementRules,
) -> None:
    """Rule 2 for operations without inputs and without request: with their consumers where these share a task."""
    for op in sources:
        devices = sorted({placement[c] for c in consumers[op] if c in placement})
        tasks = {d.task for d in devices}
        if len(tasks) == 1:
            shared = devices[0] if len(devices) == 1 else next((d for d in devices if d.type == "CPU"), devices[0])
            if shared.type in op.definition.kernels and _fits(op, shared.type):
                placement[op] = shared
            else:
                placement[op] = choose_device(DeviceSpec(job=shared.task.job, task=shared.task.index), [op], inventory, rules)
        else:
            placement[op] = choose_device(DeviceSpec(), [op], inventory, rules)


# ------------------------------------------------------------------------------------------------------ colocation


def _colocation_groups(graph: Graph) -> dict[int, list[Operation]]:
    """Groups of operations that share a device, by the index of each member; single operations are left out."""
    parent: dict[int, int] = {}

    def find(index: int) -> int:
        root = index
        while parent.setdefault(root, root) != root:
            root = parent[root]
        while parent[index] != root:
            parent[index], index = root, parent[index]
        return root

    operations = graph.get_operations()
    by_name = {op.name: op for op in operations}
    for op in operations:
        for name in _asked_groups(op):
            other = by_name.get(name)  # a name that isn't in the graph is ignored, as in TensorFlow
            if other is not None and other is not op:
                _join(parent, find(op.index), find(other.index))
        for tensor in resource_inputs(op):
            _join(parent, find(op.index), find(tensor.op.index))
    groups: dict[int, list[Operation]] = {}
    for index in sorted(parent):
        groups.setdefault(find(index), []).append(operations[index])
    return {op.index: members for members in groups.values() if len(members) > 1 for op in members}


def _join(parent: dict[int, int], a: int, b: int) -> None:
    parent[max(a, b)] = min(a, b)


def _asked_groups(op: Operation) -> list[str]:
    asked = op.attrs.get("_class")
    return [] if not asked else [g[5:] for g in asked if g.startswith("loc:@")]


def resource_inputs(op: Operation) -> list[Tensor]:
    """Inputs that are a variable or resource itself, not its value; they never cross devices."""
    found = [t for t in op.inputs if t.dtype is dtypes.resource]
    position = 0
    for arg in op.definition.inputs:
        size = len(op.attrs[arg.list_attr]) if arg.list_attr else op.attrs[arg.number_attr] if arg.number_attr else 1
        if arg.is_ref:
            found += [t for t in op.inputs[position : position + size] if t.dtype.is_ref]
        position += size
    return found


def _group_spec(group: Sequence[Operation], rules: PlacementRules) -> DeviceSpec:
    """What the members ask for together, field by field.

    Raises
    ------
    InvalidArgumentError
        If two members ask for different devices and neither is the variable that the other changes.
    """
    total, asker = DeviceSpec(), group[0]
    owners = [op for op in group if not resource_inputs(op)]
    users = [op for op in group if resource_inputs(op)]
    for op in owners + users:
        spec = device_spec.parse(op.device)
        for name in ("job", "task", "device_type", "device_index"):
            mine, theirs = getattr(spec, name), getattr(total, name)
            if mine is None or mine == theirs:
                continue
            if theirs is None:
                total, asker = total.replace(**{name: mine}), op
            elif op in owners and not rules.soft:
                raise errors.InvalidArgumentError(
                    f"cannot colocate {op.name!r} on {op.device} with {asker.name!r} on {asker.device}:"
                    f" their {name.replace('_', ' ')}s {mine!r} and {theirs!r} differ.",
                    op=op,
                    hint="pin both to the same device, drop one of the device blocks, or drop colocate_with.",
                )
    return total


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
    usable = [kind for kind in kinds if all(kind in op.definition.kernels and _fits(op, kind) for op in group)]
    if not usable:
        op = next(op for op in group if not any(kind in op.definition.kernels for kind in kinds))
        raise errors.InvalidArgumentError(
            f"cannot place {op.name!r} ({op.type}): it has kernels for {sorted(op.definition.kernels)}, {task} has {', '.join(have)}.",
            op=op,
        )
    wanted = spec.device_type
    if wanted is None:
        wanted = "GPU" if "GPU" in usable else "CPU"
    index = spec.device_index
    name = f"{wanted}:{_first_index(have, wanted) if index is None else index}"
    if name in have and wanted in usable:
        return _device_name(task, name)
    if rules.soft:
        kind = wanted if wanted in usable else "CPU" if "CPU" in usable else usable[0]
        return _device_name(task, f"{kind}:{_first_index(have, kind)}")
    op = next((op for op in group if op.device), group[0])
    if name in have:
        lacking = next(op for op in group if wanted not in op.definition.kernels or not _fits(op, wanted))
        raise errors.InvalidArgumentError(
            f"cannot place {lacking.name!r} ({lacking.type}) on {task}/device:{name}: it has no kernel for {wanted}"
            f" (kernels: {', '.join(sorted(lacking.definition.kernels))}).",
            op=lacking,
            hint="pin it to a CPU, or use ConfigProto(allow_soft_placement=True).",
        )
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
    indices = sorted(t.index for t in inventory if t.job == job)
    if spec.task is not None and spec.task in indices:
        return Task(job, spec.task)
    if indices and spec.task is None:
        if rules.master.job == job and rules.master.index != indices[0]:
            if rules.task_default == "master":
                return rules.master
            _warn_task_default(group[0], Task(job, indices[0]), rules.master)
        return Task(job, indices[0])
    op = next((op for op in group if op.device), group[0])
    jobs = sorted({t.job for t in inventory})
    if not indices:
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
            f"device {text!r}: the cluster has no job {spec.job!r}; jobs are {', '.join(jobs)}.", hint=f"use one of the jobs {', '.join(jobs)}."
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


def _fits(op: Operation, kind: str) -> bool:
    """Whether values of the operation can live on a device of this kind: strings only in host memory."""
    if kind == "CPU":
        return True
    return not any(t.dtype.base_dtype is dtypes.string for t in (*op.inputs, *op.outputs))


def _first_index(have: Sequence[str], kind: str) -> int:
    return min((int(name.partition(":")[2]) for name in have if name.startswith(kind + ":")), default=0)


def _device_name(task: Task, local: str) -> DeviceName:
    kind, _, index = local.partition(":")
    return DeviceName(task, kind, int(index))


def _span(indices: Sequence[int]) -> str:
    if len(indices) > 1 and indices[-1] - indices[0] == len(indices) - 1:
        return f"{indices[0]}-{indices[-1]}"
    return ", ".join(map(str, indices))


def _all_devices(inventory: Inventory) -> str:
    names = [f"{task}/device:{name}" for task in inventory for name in inventory[task]]
    return ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
