"""Sessions: check what is asked for, compile it once for each signature, run it, shape the result.

Under ``mpirun`` a session is collective: every rank calls ``run`` with the same fetches in the same order. Guarantees:

- after the first step of a signature (fetches and feed keys) no control message is sent;
- what is fetched arrives on every rank (``fetch_on="owner"``: only where it lives);
- a failure on any rank raises the same error on every rank, and the session can be used again;
- ranks that don't run the same calls, and ranks that die, end in one error that names them, not in a hang.

Data flows: fetches, feeds -> compiler (prune, place, schedule, partition, verify, link) -> runtime.executor -> result.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.config_pb2 import ConfigProto

from mpirt import config as settings
from mpirt import errors
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.cluster.task import Task
from mpirt.compiler.partition import Plan, partition
from mpirt.compiler.placer import DeviceName, PlacementRules, default_master, place
from mpirt.compiler.program import Program, link
from mpirt.compiler.prune import PLACEHOLDERS, prune
from mpirt.compiler.schedule import schedule
from mpirt.compiler.verify import verify
from mpirt.distributed.cluster import Cluster, cluster
from mpirt.distributed.collective import Call
from mpirt.feeds import feed_array, feed_tensors
from mpirt.fetches import FetchMapper
from mpirt.graph.default_session import default_session_stack
from mpirt.graph.graph import Graph, Operation, Tensor, get_default_graph
from mpirt.graph.shapes import text
from mpirt.graph.user_code import caller_line
from mpirt.runtime.device import is_emulated
from mpirt.runtime.executor import Executor, Failure, SessionState, StepFailed
from mpirt.runtime.rendezvous import Abandoned
from mpirt.runtime.resources import ResourceManager
from mpirt.transport.base import wait_until

_Leaves = tuple[Tensor | Operation, ...]


class _Step:
    """A compiled signature: the plan, this rank's program and its executor."""

    def __init__(self, number: int, plan: Plan, program: Program, executor: Executor, host_of: Callable[[Tensor], int]) -> None:
        self.number = number
        self.plan = plan
        self.executor = executor
        self.feeds = frozenset(plan.feeds)
        self.feed_slots = tuple(program.feeds.items())  # those that count on this rank
        optional = {t for t in self.feeds if _is_optional(t)}
        self._telling = frozenset(t for t, _ in self.feed_slots) | optional  # without these it could be another step
        self.fed_fetches = tuple(fetch in self.feeds for fetch in plan.fetches)
        self.host_of = host_of
        self.confusable = False

    def admits(self, feeds: Mapping[Tensor, Any]) -> bool:
        """Whether this rank's feed keys are those of this step: none unknown, none missing of those that tell steps apart."""
        return feeds.keys() <= self.feeds and self._telling <= feeds.keys()

    def confusable_with(self, other: _Step, num_ranks: int) -> bool:
        """Whether some rank could pass the same feed keys in both steps, and so not know which one the others mean."""
        for rank in range(num_ranks):
            mine = {t for t in self.feeds if self.host_of(t) == rank}
            theirs = {t for t in other.feeds if other.host_of(t) == rank}
            if mine <= other.feeds and theirs <= self.feeds:
                return True
        return False


class BaseSession:
    """What ``Session`` and ``InteractiveSession`` share."""

    def __init__(
        self,
        target: str = "",
        graph: Graph | None = None,
        config: Any = None,
        *,
        fetch_on: str = "all",
        task_default: str = "zero",
        master: str | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        if not isinstance(target, str):
            raise TypeError(f"target must be a string, but got {target!r}")
        if target and master is not None:
            raise ValueError(f"target {target!r} and master {master!r} both name the master task; give one of them.")
        if config is not None and not hasattr(config, "allow_soft_placement"):
            raise TypeError(f"config must be a ConfigProto, but got {config!r}")
        if fetch_on not in ("all", "owner"):
            raise ValueError(f"fetch_on must be 'all' or 'owner', not {fetch_on!r}.")
        self._target = target
        self._config = config if config is not None else ConfigProto()
        self._graph = graph if graph is not None else get_default_graph()
        if not isinstance(self._graph, Graph):
            raise TypeError(f"graph must be a mpirt.Graph, but got {graph!r}")
        self._cluster = cluster if cluster is not None else _default_cluster(self._config)
        self._fetch_on = fetch_on
        self._rules = PlacementRules(_master_task(target, master, self._cluster), bool(self._config.allow_soft_placement), task_default)
        self._state = SessionState(ResourceManager(), self._cluster.devices)
        self._number = self._cluster.next_session()
        self._steps: dict[_Leaves, list[_Step]] = {}
        self._by_key: dict[tuple[_Leaves, frozenset[Tensor]], _Step] = {}
        self._mappers: dict[Any, FetchMapper] = {}
        self._num_steps = 0
        self._placed: dict[Operation, DeviceName] = {}
        self._pinned: dict[Operation, DeviceName] = {}
        self._deadline: tuple[float, float] | None = None  # end of the current step by its timeout, and that timeout, in seconds
        self._lock = threading.RLock()
        self._closed = False

    # ---- looking

    @property
    def graph(self) -> Graph:
        """The graph that this session runs."""
        return self._graph

    @property
    def graph_def(self) -> Any:
        """The graph as a GraphDef."""
        return self._graph.as_graph_def()

    @property
    def sess_str(self) -> str:
        """The target as it was given."""
        return self._target

    def placement(self) -> dict[str, str]:
        """Device of every operation of the graph: name -> ``/job:ps/task:0/device:CPU:0``, sorted by name.

        Operations of steps that have run have the place they ran in.

        Raises
        ------
        InvalidArgumentError
            If an operation can't be placed.
        """
        found = place(self._graph, self._graph.get_operations(), self._cluster.inventory, self._rules, self._pinned)
        found.update(self._placed)
        return {op.name: str(found[op]) for op in sorted(found, key=lambda o: o.name)}

    # ---- running

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None, options: Any = None, run_metadata: Any = None) -> Any:
        """Run what ``fetches`` need and return their values.

        Parameters
        ----------
        fetches : a tensor, operation, variable or name, or lists, tuples and dicts of these
        feed_dict : values that stand for tensors; each counts on the rank that hosts the tensor and may be left out elsewhere
        options : RunOptions, of which ``timeout_in_ms`` is used
        run_metadata : accepted as in TensorFlow, not filled

        Returns
        -------
        The structure of ``fetches`` with numpy values; None for operations

        Raises
        ------
        RuntimeError
            If the session is closed or the graph is empty.
        TypeError, ValueError
            If fetches or feeds don't fit.
        OpError
            If an operation failed, on whatever rank.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("Attempted to use a closed Session.")
            if self._graph.version == 0:
                raise RuntimeError("The Session graph is empty. Add operations to the graph before calling run().")
            mapper = self._mapper(fetches)
            feeds = feed_tensors(self._graph, feed_dict) if feed_dict else {}
            if not mapper.leaves:
                return mapper.rebuild(())
            timeout_ms = (options.timeout_in_ms if options is not None else 0) or self._config.operation_timeout_in_ms
            deadline = (time.perf_counter() + timeout_ms / 1000, timeout_ms / 1000) if timeout_ms > 0 else None
            try:
                return mapper.rebuild(self._run(mapper.leaves, feeds, deadline))
            except Abandoned as abandoned:
                raise abandoned.error.with_traceback(None) from None  # all later calls raise the same one

    def make_callable(self, fetches: Any, feed_list: Sequence[Any] | None = None, accept_options: bool = False) -> Callable[..., Any]:
        """A function that runs ``fetches`` with the values of ``feed_list`` as its positional arguments."""
        keys = [self._graph.as_graph_element(k, allow_operation=False) for k in feed_list or ()]

        def call(*values: Any, options: Any = None, run_metadata: Any = None) -> Any:
            if len(values) != len(keys):
                raise TypeError(f"this callable takes {len(keys)} value(s), not {len(values)}.")
            return self.run(fetches, dict(zip(keys, values, strict=True)), options, run_metadata)

        return call

    def _mapper(self, fetches: Any) -> FetchMapper:
        if type(fetches) is not Tensor and type(fetches) is not Operation:
            return FetchMapper(self._graph, fetches)
        mapper = self._mappers.get(fetches)
        if mapper is None:
            mapper = self._mappers[fetches] = FetchMapper(self._graph, fetches)
        return mapper

    def _run(self, leaves: _Leaves, feeds: dict[Tensor, Any], deadline: tuple[float, float] | None) -> list[Any]:
        if self._cluster.size == 1:
            step = self._by_key.get((leaves, frozenset(feeds))) or self._compile(leaves, feeds)
            arrays, failure = self._arrays(step, feeds)
            if failure is not None:
                raise failure.error
            try:
                return _results(step.executor.run(arrays), step.fed_fetches)
            except StepFailed as failed:
                assert failed.failure is not None
                raise failed.failure.error from failed.__cause__
        collective = self._cluster.collective
        call = collective.begin(self._number, tuple(f.name for f in leaves), caller_line())
        self._deadline = deadline
        try:
            step = self._find_step(call, leaves, feeds)
            arrays, failure = self._arrays(step, feeds)
            try:
                return _results(step.executor.run(arrays, failure), step.fed_fetches)
            except StepFailed as failed:
                raise self._settled(call, step, failed) from failed.__cause__
        finally:
            collective.end()

    def _arrays(self, step: _Step, feeds: Mapping[Tensor, Any]) -> tuple[dict[int, Any], Failure | None]:
        """Values of the feeds that count here, by slot; or why one doesn't fit."""
        try:
            return {slot: feed_array(tensor, feeds[tensor]) for tensor, slot in step.feed_slots}, None
        except (TypeError, ValueError) as error:
            return {}, Failure(error, None, None, "")

    # ---- failures

    def _settled(self, call: Call, step: _Step, failed: StepFailed) -> Exception:
        """The error that all ranks report for a failed step."""
        failure = failed.failure
        error = None if failure is None else self._with_origin(failure)
        position = 0 if failure is None else _position(step.plan, failure.op)
        trace = "" if failure is None else failure.traceback
        collective = self._cluster.collective
        collective.fail(call, error, position, trace)

        def finish() -> Exception:
            step.executor.drain()
            return collective.settle(call, self._graph, self._wait)

        def rest() -> None:
            self._deadline = None
            finish()

        if self._deadline is None or not isinstance(error, errors.DeadlineExceededError):
            try:
                return finish()
            except errors.DeadlineExceededError as late:
                error = error or self._with_origin(Failure(late, None, None, ""))
        # On time for the user; the messages still under way are taken in before the next call.
        collective.postpone(rest)
        return error

    def _with_origin(self, failure: Failure) -> Exception:
        """This rank's error, saying where it is."""
        where = f", {failure.device}" if failure.device is not None else ""
        origin = f"{self._cluster.describe_rank(self._cluster.rank)}{where}"
        if isinstance(failure.error, errors.OpError):
            failure.error.origin = failure.error.origin or origin
            return failure.error
        kind = TypeError if isinstance(failure.error, TypeError) else ValueError
        return kind(f"{failure.error}\n  failed on {origin}.")

    def _wait(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
        """How this session's steps wait: under the job's control plane, and no longer than the user allows."""
        plane = self._cluster.plane
        if self._deadline is None:
            plane.wait(ready, what)
            return
        end, timeout_s = self._deadline
        try:
            wait_until(ready, what, timeout_s=max(end - time.perf_counter(), 1e-6), on_idle=plane.watch(what))
        except errors.DeadlineExceededError:
            raise errors.DeadlineExceededError(
                f"the step did not end within its timeout of {timeout_s:g} s; it was waiting for {what()}.",
                hint="find out what the other side does meanwhile, or allow more time (operation_timeout_in_ms of the session's"
                " config, timeout_in_ms of RunOptions).",
            ) from None

    # ---- compiling

    def _find_step(self, call: Call, leaves: _Leaves, feeds: dict[Tensor, Any]) -> _Step:
        """The step that all ranks mean; agreed upon with them if this rank can't know it."""
        key = (leaves, frozenset(feeds))
        step = self._by_key.get(key)
        if step is None:
            candidates = [s for s in self._steps.get(leaves, ()) if s.admits(feeds)]
            if len(candidates) == 1 and not candidates[0].confusable:
                step = self._by_key[key] = candidates[0]
        if step is not None and not step.confusable:
            return step
        rules = self._rules
        options = f"master={rules.master} soft={rules.soft} task_default={rules.task_default} fetch_on={self._fetch_on}"
        agreed = self._cluster.collective.agree(call, sorted(t.name for t in feeds), prune(leaves), options)
        union = {self._fed_tensor(name, ranks): ranks for name, ranks in agreed.items()}
        step = next((known for known in self._steps.get(leaves, ()) if known.feeds == union.keys()), None)
        if step is None:
            step = self._compile(leaves, union)
        else:
            self._check_feeders(step.host_of, union)
        if any(_is_optional(t) and len(ranks) < self._cluster.size for t, ranks in union.items()):
            # A rank that may leave the key out can't tell a step with this feed from one without: all steps are agreed upon.
            for known in self._steps[leaves]:
                known.confusable = True
        return step

    def _fed_tensor(self, name: str, ranks: Sequence[int]) -> Tensor:
        """The tensor that some ranks feed; the job can't go on if it is not in this rank's graph."""
        try:
            return self._graph.get_tensor_by_name(name)
        except KeyError:
            plane = self._cluster.plane
            plane.break_job(errors.InvalidArgumentError(
                f"ranks built different graphs: {name!r}, which is fed on rank(s) {', '.join(map(str, ranks))}, is not in the graph"
                f" of {self._cluster.describe_rank(self._cluster.rank)}.",
                hint="build the same graph on every rank.",
            ))  # fmt: skip
            assert plane.broken is not None
            raise Abandoned(plane.broken) from None

    def _check_feeders(self, host_of: Callable[[Tensor], int], feeders: Mapping[Tensor, Sequence[int]]) -> None:
        for tensor, ranks in feeders.items():
            host = host_of(tensor)
            if host not in ranks:
                raise errors.InvalidArgumentError(
                    f"{tensor.name!r} is fed on rank(s) {', '.join(map(str, ranks))}, but it lives on {self._cluster.describe_rank(host)},"
                    " which doesn't feed it.",
                    op=tensor.op,
                    hint=f"feed {tensor.name!r} on rank {host} (or on every rank: values count only there), or pin it to another task.",
                )

    def _compile(self, leaves: _Leaves, feeds: Mapping[Tensor, Any]) -> _Step:
        cluster = self._cluster
        fed = sorted(feeds, key=lambda t: t.name)
        needed = prune(leaves, set(fed))
        _check_placeholders(needed)
        placing = sorted({*needed, *(t.op for t in fed)}, key=lambda op: op.index)
        placement = place(self._graph, placing, cluster.inventory, self._rules, self._pinned)
        plan = partition(schedule(needed, placement, set(fed)), placement, leaves, fed)
        verify(plan)
        program = link(plan, cluster.rank_of, cluster.rank, cluster.size, self._fetch_on)

        def host_of(tensor: Tensor) -> int:
            return cluster.rank_of(plan.device_of(tensor).task)

        if cluster.size > 1:
            self._check_feeders(host_of, feeds)
        executor = Executor(program, self._state, cluster.transport, cluster.reserve_tags(len(program.transfers)), self._wait)
        step = _Step(self._num_steps, plan, program, executor, host_of)
        self._report(step, program)
        self._remember(leaves, step)
        return step

    def _remember(self, leaves: _Leaves, step: _Step) -> None:
        same = self._steps.setdefault(leaves, [])
        for other in same:
            if step.confusable_with(other, self._cluster.size):
                step.confusable = other.confusable = True
        same.append(step)
        if self._cluster.size == 1:
            self._by_key[leaves, step.feeds] = step
        else:  # what this rank's feed keys mean may have changed
            self._by_key = {k: s for k, s in self._by_key.items() if k[0] != leaves}
        self._num_steps += 1
        for op, device in step.plan.placement.items():
            self._placed[op] = device
            if op.definition.stateful:
                self._pinned[op] = device

    def _report(self, step: _Step, program: Program) -> None:
        folder = settings.get("MPIRT_DUMP_PROGRAM")
        if folder:
            path = Path(folder)
            path.mkdir(parents=True, exist_ok=True)
            (path / f"session-{self._number}-step-{step.number}-rank-{self._cluster.rank}.txt").write_text(program.text())
        if self._config.log_device_placement and self._cluster.rank == 0:
            for op in sorted(step.plan.placement.keys() - self._placed.keys(), key=lambda o: o.name):
                device = step.plan.placement[op]
                print(f"{op.name}: ({op.type}): {device}{' (emulated)' if is_emulated(device.local) else ''}", file=sys.stderr)
            sys.stderr.flush()

    def traffic(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> dict[str, int]:
        """Messages and bytes that cross ranks in one step of a signature that has run; unknown sizes count as 0.

        Returns
        -------
        dict with ``messages`` and ``nbytes``, over all ranks
        """
        leaves = FetchMapper(self._graph, fetches).leaves
        feeds = feed_tensors(self._graph, feed_dict or {})
        step = next((s for s in self._steps.get(leaves, ()) if feeds.keys() <= s.feeds), None)
        if step is None:
            raise errors.FailedPreconditionError("this signature has not run in this session yet.", hint="run it once first.")
        transfers = link(step.plan, self._cluster.rank_of, self._cluster.rank, self._cluster.size, self._fetch_on).transfers
        return {"messages": len(transfers), "nbytes": sum(t.nbytes or 0 for t in transfers)}

    # ---- the end

    def close(self) -> None:
        """Free the session's variables and programs. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._steps.clear()
            self._by_key.clear()
            self._mappers.clear()
            self._state = SessionState(ResourceManager(), self._cluster.devices)

    def as_default(self) -> Any:
        """Make this the default session of this thread inside the block; it is not closed at the end."""
        return self._as_default()

    @contextmanager
    def _as_default(self) -> Iterator[BaseSession]:
        stack = default_session_stack()
        stack.append(self)
        try:
            yield self
        finally:
            if stack[-1] is not self:
                raise AssertionError("Nesting violated for default sessions: leave `as_default` blocks in reverse order.")
            stack.pop()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._num_steps} signatures"
        return f"<mpirt.Session {self._number} of {self._graph!r}, {state}>"


class Session(BaseSession):
    """Runs a graph; see the module's text for what holds under ``mpirun``.

    Parameters
    ----------
    target : ``""``, or the address of the master task, as a label: a session is collective in either case
    graph : Graph, by default the current one
    config : ConfigProto; ``allow_soft_placement``, ``log_device_placement``, ``operation_timeout_in_ms`` and ``cluster_def`` are used
    fetch_on : ``"all"`` - fetched values arrive on every rank; ``"owner"`` - only where they live, None elsewhere
    task_default : ``"zero"`` - a job without a task means its task 0; ``"master"`` - the master's task if it is in that job
    master : device of the master task, by default ``/job:chief/task:0``, else ``/job:worker/task:0``, else the first task
    cluster : the cluster to run on, by default the process's (``mpirt.cluster()``)

    Examples
    --------
    >>> import mpirt as tf
    >>> with tf.Session() as sess:
    ...     print(sess.run(tf.constant(20) + 22))
    42
    """

    def __enter__(self) -> Session:
        self._graph_block = self._graph.as_default()
        self._graph_block.__enter__()
        self._session_block = self._as_default()
        self._session_block.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        try:
            self._session_block.__exit__(*exc)
            self._graph_block.__exit__(*exc)
        finally:
            self.close()


class InteractiveSession(BaseSession):
    """A session that is the default one from the start, for shells and notebooks; ``close`` it."""

    def __init__(self, target: str = "", graph: Graph | None = None, config: Any = None, **kwargs: Any) -> None:
        super().__init__(target, graph, config, **kwargs)
        default_session_stack().append(self)

    def close(self) -> None:
        """Close it and stop being the default session."""
        stack = default_session_stack()
        if self in stack:
            stack.remove(self)
        super().close()


def get_default_session() -> Any:
    """The default session of this thread, or None."""
    stack = default_session_stack()
    return stack[-1] if stack else None


def _default_cluster(config: Any) -> Cluster:
    return cluster(ClusterSpec(config.cluster_def) if config.cluster_def.job else None)


def _master_task(target: str, master: str | None, cluster: Cluster) -> Task:
    if target:
        try:
            return cluster.spec.task_of_address(target)
        except ValueError as error:
            hint = "give the address of a task, as in the ClusterSpec, or leave the target out."
            raise errors.NotFoundError(f"session target {target!r}: {error}", hint=hint) from None
    if master is None:
        return default_master(cluster.inventory)
    spec = DeviceSpec.from_string(master)
    tasks = sorted(t for t in cluster.inventory if t.job == spec.job and spec.task in (None, t.index))
    if not tasks:
        raise errors.InvalidArgumentError(
            f"master={master!r} names no task of the cluster; its tasks are {', '.join(map(str, cluster.inventory))}.",
            hint="name one of them.",
        )
    return tasks[0]


def _check_placeholders(needed: Sequence[Operation]) -> None:
    for op in needed:
        if op.type in PLACEHOLDERS:
            dtype, shape = op.outputs[0].dtype.name, text(op.outputs[0].static_shape)
            raise errors.InvalidArgumentError(
                f"You must feed a value for placeholder tensor {op.name!r} with dtype {dtype} and shape {shape}.",
                op=op,
                hint=f"pass feed_dict={{{op.name}: value}} to run().",
            )


def _is_optional(tensor: Tensor) -> bool:
    """Whether a step can do without feeding ``tensor``."""
    return tensor.op.type not in PLACEHOLDERS


def _position(plan: Plan, op: Operation | None) -> int:
    return next((i for i, node in enumerate(plan.nodes) if node.op is op), 0)


def _results(values: list[Any], fed: Sequence[bool]) -> list[Any]:
    """Fetched values as the user gets them: arrays of his own, numpy scalars for single values."""
    for i in range(len(values)):
        if values[i] is None or isinstance(values[i], np.generic):
            continue
        if fed[i]:
            values[i] = np.array(values[i])
        elif values[i].ndim == 0:
            values[i] = values[i][()]
        elif values[i].base is not None or not values[i].flags.writeable or _references(values, i) != _SOLE_HOLDER:
            values[i] = np.array(values[i])
    return values


def _references(values: list[Any], i: int) -> int:
    return sys.getrefcount(values[i])


_SOLE_HOLDER = _references([np.zeros(1)], 0)  # what it is while only the list of results holds an array
