"""Sessions: check what is asked for, have a runner run it, shape the result.

``Session()`` under ``mpirun`` is collective: every rank calls ``run`` with the same fetches in the same order. Guarantees:

- after the first step of a signature (fetches and feed keys) no control message is sent;
- what is fetched arrives on every rank (``fetch_on="owner"``: only where it lives);
- a failure on any rank raises the same error on every rank, and the session can be used again;
- ranks that don't run the same calls, and ranks that die, end in one error that names them, not in a hang.

``Session(server.target)`` belongs to the one thread or process that made it: its master runs the graph on the ranks that it
needs, which run servers (``train.Server``). Without a launcher ``Session()`` has a master too, and state of its own.

Threads may call ``run`` at once; whether their steps wait for each other is the runner's matter.
Data flows: fetches, feeds -> ``distributed.runner`` (compile once for each signature, run) -> result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tensorboard.compat.proto.config_pb2 import ConfigProto

from mpirt import errors
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.device_spec import DeviceSpec
from mpirt.cluster.task import Task
from mpirt.compiler.placer import Inventory, PlacementRules, default_master
from mpirt.distributed.cluster import Cluster, cluster
from mpirt.distributed.collective_session import CollectiveSession
from mpirt.distributed.master_session import MasterSession
from mpirt.distributed.runner import Deadline, Leaves, Runner, closed_error
from mpirt.distributed.server import TARGET_SCHEME
from mpirt.fetches import FetchMapper
from mpirt.graph.default_session import default_session_stack
from mpirt.graph.graph import Graph, Operation, Tensor, get_default_graph
from mpirt.runtime.feeds import feed_tensors


class BaseSession:
    """What ``Session`` and ``InteractiveSession`` share."""

    def __init__(
        self,
        target: str = "",
        graph: Graph | None = None,
        config: Any = None,
        *,
        fetch_on: str = "all",
        task_default: str | None = None,
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
        default = task_default or ("master" if target else "zero")
        rules = PlacementRules(_master_task(target, master, self._cluster), bool(self._config.allow_soft_placement), default)
        self._timeout_ms: int = self._config.operation_timeout_in_ms
        self._mappers: dict[Any, FetchMapper] = {}
        self._runner = self._make_runner(rules)
        self._closed = False

    def _make_runner(self, rules: PlacementRules) -> Runner:
        """What runs the steps of this session: all ranks together, or a master."""
        here, log_placement = self._cluster, bool(self._config.log_device_placement)
        if not self._target and here.size > 1:
            return CollectiveSession(here.next_session(), self._graph, here, rules, self._fetch_on, log_placement)
        inventory = _visible(here.inventory, self._config.device_filters, rules.master)
        rules = replace(rules, hidden=frozenset(here.inventory.keys() - inventory.keys()))
        target = here.rank_of(rules.master) if self._target else None
        isolate = not self._target or bool(self._config.isolate_session_state)
        return MasterSession(here.master, self._graph, rules, inventory, isolate=isolate, log_placement=log_placement, target=target)

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
        found = self._runner.placement()
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
        if self._closed:
            raise closed_error()
        mapper = self._mappers.get(fetches) if fetches.__class__ is Tensor or fetches.__class__ is Operation else None
        if mapper is None:
            if self._graph.version == 0:
                raise RuntimeError("The Session graph is empty. Add operations to the graph before calling run().")
            mapper = self._mapper(fetches)
        feeds = feed_tensors(self._graph, feed_dict) if feed_dict else {}
        if not mapper.leaves:
            return mapper.rebuild(())
        deadline = None if options is None and not self._timeout_ms else self._deadline(options)
        return mapper.rebuild(self._runner.run(mapper.leaves, feeds, deadline))

    def _deadline(self, options: Any) -> Deadline | None:
        timeout_ms = (options.timeout_in_ms if options is not None else 0) or self._timeout_ms
        return Deadline.after(timeout_ms / 1000) if timeout_ms > 0 else None

    def make_callable(self, fetches: Any, feed_list: Sequence[Any] | None = None, accept_options: bool = False) -> Callable[..., Any]:
        """A function that runs ``fetches`` with the values of ``feed_list`` as its positional arguments.

        Faster than ``run`` where fetches are nested or much is fed: names and structure are looked up here, once.
        """
        if self._closed:
            raise closed_error()
        keys: list[Any] = [self._graph.as_graph_element(k, allow_operation=False) for k in feed_list or ()]
        mapper = self._mapper(fetches)
        leaves, rebuild, num_values, timeout_ms = mapper.leaves, mapper.rebuild, len(keys), self._timeout_ms
        run = self._runner.run if leaves else self._run_nothing

        def call(*values: Any, options: Any = None, run_metadata: Any = None) -> Any:
            if len(values) != num_values:
                raise TypeError(f"this callable takes {num_values} value(s), not {len(values)}.")
            feeds = dict(zip(keys, values, strict=True)) if values else {}
            return rebuild(run(leaves, feeds, None if options is None and not timeout_ms else self._deadline(options)))

        return call

    def _run_nothing(self, leaves: Leaves, feeds: dict[Tensor, Any], deadline: Deadline | None) -> list[Any]:
        if self._closed:
            raise closed_error()
        return []

    def _mapper(self, fetches: Any) -> FetchMapper:
        if type(fetches) is not Tensor and type(fetches) is not Operation:
            return FetchMapper(self._graph, fetches)
        mapper = self._mappers.get(fetches)
        if mapper is None:
            mapper = self._mappers[fetches] = FetchMapper(self._graph, fetches)
        return mapper

    def traffic(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> dict[str, int]:
        """Messages and bytes that cross ranks in one step of a signature that has run; unknown sizes count as 0.

        Returns
        -------
        dict with ``messages``, ``nbytes`` (in messages) and ``window_nbytes`` (of tensors in memory that ranks share), over all ranks
        """
        leaves = FetchMapper(self._graph, fetches).leaves
        feeds = feed_tensors(self._graph, feed_dict or {})
        return self._runner.traffic(leaves, feeds.keys())

    # ---- the end

    def close(self) -> None:
        """Free the session's variables and programs. Closing twice is fine."""
        self._closed = True
        self._mappers.clear()
        self._runner.close()

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
        state = "closed" if self._closed else f"{self._runner.num_signatures} signatures"
        return f"<mpirt.Session {f'on {self._target} ' if self._target else ''}of {self._graph!r}, {state}>"

    @staticmethod
    def reset(target: str, containers: Sequence[str] | None = None, config: Any = None, *, cluster: Cluster | None = None) -> None:
        """Forget the state in some containers, on all ranks. Sessions live on and find their variables there uninitialised.

        Parameters
        ----------
        target : of a server
        containers : names, as given to ``tf.container``; none: the default container
        config : ConfigProto, of which ``operation_timeout_in_ms`` is used

        Raises
        ------
        OpError
            DeadlineExceededError with the ranks that didn't answer in time.
        """
        here = cluster if cluster is not None else _default_cluster(config if config is not None else ConfigProto())
        _master_task(target, None, here)
        timeout_ms = 0 if config is None else config.operation_timeout_in_ms
        here.master.reset(containers or (), Deadline.after(timeout_ms / 1000) if timeout_ms > 0 else None)


class Session(BaseSession):
    """Runs a graph; see the module's text for what holds under ``mpirun``.

    Parameters
    ----------
    target : ``""`` - all ranks make this session together; else a server: its ``target``, ``"mpi:///job:ps/task:0"``, or
        the address of its task in the ClusterSpec, with or without ``grpc://``
    graph : Graph, by default the current one; it may grow between steps
    config : ConfigProto; ``allow_soft_placement``, ``log_device_placement``, ``operation_timeout_in_ms``, ``cluster_def``, and
        with a target ``device_filters`` and ``isolate_session_state`` are used
    fetch_on : of a collective session: ``"all"`` - fetched values arrive on every rank; ``"owner"`` - only where they live,
        None elsewhere
    task_default : ``"zero"`` - a job without a task means its task 0 (the default without a target); ``"master"`` - the
        master's task if it is in that job (the default with a target)
    master : of a session without a target: device of the master task, by default ``/job:chief/task:0``, else
        ``/job:worker/task:0``, else the first task
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


def _visible(inventory: Inventory, filters: Sequence[str], master: Task) -> Inventory:
    """The devices that a session may use: its master's and those of tasks that one of the filters allows; all without filters."""
    specs = [DeviceSpec.from_string(f) for f in filters]

    def allowed(task: Task) -> bool:
        return not specs or task == master or any(s.job in (None, task.job) and s.task in (None, task.index) for s in specs)

    return {task: devices for task, devices in inventory.items() if allowed(task)}


def _master_task(target: str, master: str | None, cluster: Cluster) -> Task:
    if target.startswith(TARGET_SCHEME):
        spec = DeviceSpec.from_string(target.removeprefix(TARGET_SCHEME))
        task = Task(spec.job or "", spec.task or 0)
        if task not in cluster.inventory:
            raise errors.NotFoundError(f"session target {target!r}: the cluster's tasks are {', '.join(map(str, cluster.inventory))}.")
        return task
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
