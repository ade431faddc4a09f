"""Which task gets which variable: ``replica_device_setter`` and the strategies it takes.

The setter is a device function: the graph calls it for each operation made inside ``with device(setter)`` with what the
blocks further in ask for as ``op.device``, and takes its answer instead. Variables go to the parameter-server tasks in
turn, everything else to the worker.
Background: TensorFlow 1's device_setter as observed. Mended here: a setter with nothing to do keeps the outer blocks
(TensorFlow returns None, which forgets them); a job with gaps in its task numbers uses the tasks that exist; local
variables stay with the worker; a strategy's answer is checked.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from warnings import warn

from mpirt import dtypes
from mpirt.cluster import device_spec
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.graph.device_scope import merge_devices
from mpirt.graph.shapes import num_elements, text
from mpirt.ops.variables import LOCAL_VARIABLE_ATTR

if TYPE_CHECKING:
    from mpirt.graph.graph import Operation

__all__ = ["GreedyLoadBalancingStrategy", "NameHashStrategy", "byte_size_load_fn", "replica_device_setter"]

# Operation types that hold parameters, TensorFlow's list.
STANDARD_PS_OPS = (
    "Variable", "VariableV2", "AutoReloadVariable", "MutableHashTable", "MutableHashTableV2", "MutableHashTableOfTensors",
    "MutableHashTableOfTensorsV2", "MutableDenseHashTable", "MutableDenseHashTableV2", "VarHandleOp",
    "BoostedTreesEnsembleResourceHandleOp", "BoostedTreesQuantileStreamResourceHandleOp", "ResourceConditionalAccumulator",
    "DecisionTreeResource",
)  # fmt: skip


def replica_device_setter(
    ps_tasks: int = 0,
    ps_device: str | None = "/job:ps",
    worker_device: str | None = "/job:worker",
    merge_devices: bool = True,
    cluster: Any = None,
    ps_ops: Sequence[str] | None = None,
    ps_strategy: Callable[[Operation], int] | None = None,
) -> Callable[[Operation], str]:
    """A device function that spreads variables over the parameter servers and puts the rest on the worker.

    Parameters
    ----------
    ps_tasks : number of tasks of the ps job; not looked at when ``cluster`` is given
    ps_device : device of the variables; its task is chosen by the strategy. Without a job it is taken as it is
    worker_device : device of all other operations
    merge_devices : put what inner device blocks ask for over the setter's choice, field by field; False (deprecated): an
        operation with any inner device is left alone
    cluster : ClusterSpec, dict or ClusterDef: the tasks of the job named in ``ps_device`` are used
    ps_ops : operation types that count as variables; by default variables, mutable tables and accumulators
    ps_strategy : ``strategy(op)`` gives the position (0 to n - 1) of the ps task for ``op``; by default each in turn.
        It is not asked when an inner block names another job

    Returns
    -------
    A device function. With no ps task it changes nothing.

    Raises
    ------
    TypeError
        If ``cluster`` is none of these, or ``ps_strategy`` can't be called.

    Notes
    -----
    The turn depends on the order in which variables are made. A setter used in several blocks goes on counting; a new one
    starts again. Variables in LOCAL_VARIABLES count as the worker's unless ``ps_ops`` is given.
    """
    if cluster is not None:
        spec = ClusterSpec(cluster)
        job = device_spec.parse(ps_device or "").job
        tasks = spec.task_indices(job) if job in spec.jobs and job is not None else []
    else:
        tasks = list(range(ps_tasks))
    if ps_strategy is not None and not callable(ps_strategy):
        raise TypeError(f"ps_strategy must be callable, not {ps_strategy!r}.")
    if not tasks:
        return _keep
    if not merge_devices:
        warn(
            "replica_device_setter(merge_devices=False) is deprecated: inner devices are merged.",
            DeprecationWarning,
            stacklevel=2,
        )
    strategy = ps_strategy or _RoundRobinStrategy(len(tasks))
    return _ReplicaDevices(tasks, ps_device or "", worker_device or "", merge_devices, ps_ops, strategy)


def _keep(op: Operation) -> str:
    return op.device


class _ReplicaDevices:
    """The device function of ``replica_device_setter``; the graph calls it once for each new operation."""

    def __init__(
        self,
        tasks: Sequence[int],
        ps_device: str,
        worker_device: str,
        merge: bool,
        ps_ops: Sequence[str] | None,
        strategy: Callable[[Operation], int],
    ) -> None:
        self._tasks = tasks
        self._ps = device_spec.parse(ps_device)
        self._worker = device_spec.parse(worker_device).to_string()
        self._merge = merge
        self._ps_ops = frozenset(STANDARD_PS_OPS if ps_ops is None else ps_ops)
        self._keep_local = ps_ops is None
        self._strategy = strategy

    def __call__(self, op: Operation) -> str:
        inner = op.device
        if inner and not self._merge:
            return inner
        if op.type not in self._ps_ops or not self._ps.to_string() or (self._keep_local and op.attrs.get(LOCAL_VARIABLE_ATTR)):
            return merge_devices(self._worker, inner)
        base = self._ps
        if base.job is not None and device_spec.parse(inner).job in (None, base.job):
            base = base.replace(task=self._task(op))
        return merge_devices(base.to_string(), inner)

    def _task(self, op: Operation) -> int:
        position = self._strategy(op)
        if not 0 <= position < len(self._tasks):
            raise ValueError(
                f"ps_strategy chose {position!r} for {op.name!r}, but job {self._ps.job!r} has {len(self._tasks)} task(s): "
                f"answers are 0 to {len(self._tasks) - 1}."
            )
        return self._tasks[position]


class _RoundRobinStrategy:
    """Each task in turn."""

    def __init__(self, num_tasks: int) -> None:
        self._num_tasks = num_tasks
        self._next = 0

    def __call__(self, op: Operation) -> int:
        position = self._next
        self._next = (position + 1) % self._num_tasks
        return position


class GreedyLoadBalancingStrategy:
    """The task with the least load so far, the first of them if several; for ``ps_strategy``.

    Parameters
    ----------
    num_tasks : number of ps tasks
    load_fn : load of one variable, for example ``byte_size_load_fn``
    """

    def __init__(self, num_tasks: int, load_fn: Callable[[Operation], float]) -> None:
        self._load_fn = load_fn
        self._loads: list[float] = [0] * num_tasks

    def __call__(self, op: Operation) -> int:
        """Position of the task for ``op``; its load is added there."""
        position = self._loads.index(min(self._loads))
        self._loads[position] += self._load_fn(op)
        return position


class NameHashStrategy:
    """The task that the variable's name hashes to; for ``ps_strategy``.

    Does not depend on the order in which variables are made, so workers that build different graphs still agree.
    """

    def __init__(self, num_tasks: int) -> None:
        self._num_tasks = num_tasks

    def __call__(self, op: Operation) -> int:
        """Position of the task for ``op``."""
        return zlib.crc32(op.name.encode()) % self._num_tasks


def byte_size_load_fn(op: Operation) -> int:
    """Size in bytes of the variable that ``op`` makes, a reference or a resource; for ``GreedyLoadBalancingStrategy``.

    Raises
    ------
    ValueError
        If ``op`` has not exactly one output, or its shape isn't fully known.
    """
    if len(op.outputs) != 1:
        raise ValueError(f"byte_size_load_fn: {op.name!r} ({op.type}) has {len(op.outputs)} outputs; a variable has one.")
    output = op.outputs[0]
    dtype, shape = output.dtype.base_dtype, output.static_shape
    if dtype is dtypes.resource:  # the output is a handle; what it stands for is in the attributes
        dtype, shape = op.attrs.get("dtype", dtype), op.attrs.get("shape")
    elif num_elements(shape) is None:
        shape = op.attrs.get("shape")
    count = num_elements(shape)
    if count is None:
        raise ValueError(f"byte_size_load_fn: the shape of {op.name!r} is not fully known: {text(shape)}.")
    return count * int(dtype.size)
