"""The runner of one collective session: every rank runs the same steps, each its own part of them.

Guarantees: after the first step of a signature (fetches and feed keys) no control message is sent; a failure on any rank
raises the same error on every rank, and the session can be used again. One step at a time: threads wait for each other.
Data flows: leaves, feeds -> agreement of all ranks (``collective``) -> compiler -> runtime.executor -> ``results``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mpirt import errors
from mpirt.compiler.linker import link
from mpirt.compiler.partition import Plan
from mpirt.compiler.placer import DeviceName, PlacementRules
from mpirt.compiler.planning import collecting_later, make_plan
from mpirt.compiler.program import Program
from mpirt.compiler.prune import PLACEHOLDERS, prune
from mpirt.distributed.cluster import Cluster
from mpirt.distributed.collective import Call, Opened, Wanted
from mpirt.distributed.reports import dump_program, print_placement
from mpirt.distributed.results import as_results
from mpirt.distributed.runner import Deadline, Leaves, Places, not_run_error, traffic_of
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.graph.op_def import Pending
from mpirt.graph.user_code import caller
from mpirt.runtime.executor import Executor, Failure, SessionState, StepFailed
from mpirt.runtime.feeds import feed_array
from mpirt.runtime.rendezvous import Abandoned
from mpirt.runtime.resources import ResourceManager

_NO_FEEDS: tuple[Mapping[int, Any], None] = MappingProxyType({}), None


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
        self.gives_values = any(isinstance(fetch, Tensor) for fetch in plan.fetches)
        self.fed_fetches = tuple(fetch in self.feeds for fetch in plan.fetches)
        self.received = program.received()
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


class _Steps:
    """The steps of a session with the same fetches.

    Attributes
    ----------
    wanted : how calls of them are known to all ranks
    known : all of them
    by_keys : those that this rank knows to be meant by its feed keys
    """

    __slots__ = ("wanted", "known", "by_keys")

    def __init__(self, session: Opened, leaves: Leaves) -> None:
        self.wanted = Wanted(session, tuple([leaf.name for leaf in leaves]))
        self.known: list[_Step] = []
        self.by_keys: dict[frozenset[Tensor], _Step] = {}


class CollectiveSession:
    """A ``Runner``: this rank's part of a session that every rank makes.

    Parameters
    ----------
    number : of the session, the same on every rank (``Cluster.next_session``)
    graph : the session's graph
    cluster : the ranks
    rules : what the session chose about placement
    fetch_on : ``"all"`` - values arrive on every rank; ``"owner"`` - only where they live
    log_placement : rank 0 prints where operations are placed
    """

    def __init__(
        self, number: int, graph: Graph, cluster: Cluster, rules: PlacementRules, fetch_on: str = "all", log_placement: bool = False
    ) -> None:
        self.num_signatures = 0
        self._session = Opened(number)
        self._graph = graph
        self._cluster = cluster
        self._collective = cluster.collective
        self._rules = rules
        self._fetch_on = fetch_on
        self._log_placement = log_placement
        self._state = SessionState(ResourceManager(), cluster.devices)
        self._steps: dict[Leaves, _Steps] = {}
        self._places = Places()
        self._deadline: Deadline | None = None  # of the step under way
        self._waits_for_kernels = self._block

    # ---- running

    def run(self, leaves: Leaves, feeds: dict[Tensor, Any], deadline: Deadline | None) -> list[Any]:
        """One step; see ``Runner.run``. Under ``mpirun`` every rank must make the same call."""
        steps = self._steps.get(leaves)
        if steps is None:
            steps = self._steps.setdefault(leaves, _Steps(self._session, leaves))
        collective = self._collective
        try:
            collective.begin(steps.wanted, caller(2))
            try:
                self._deadline = deadline
                step = steps.by_keys.get(frozenset(feeds)) or self._find_step(steps, leaves, feeds)
                arrays, failure = self._arrays(step, feeds) if step.feed_slots else _NO_FEEDS
                try:
                    values = step.executor.run(arrays, failure, self._waits_for_kernels)
                except StepFailed as failed:
                    raise self._settled(step, failed) from failed.__cause__
                return as_results(values, step.fed_fetches, step.received) if step.gives_values else values
            finally:
                collective.end()
        except Abandoned as abandoned:
            raise abandoned.error.with_traceback(None) from None  # all later calls raise the same one

    def _arrays(self, step: _Step, feeds: Mapping[Tensor, Any]) -> tuple[Mapping[int, Any], Failure | None]:
        """Values of the feeds that count here, by slot; or why one doesn't fit."""
        try:
            return {slot: feed_array(tensor, feeds[tensor]) for tensor, slot in step.feed_slots}, None
        except (TypeError, ValueError) as error:
            return {}, Failure(error, None, None, "")

    # ---- failures

    def _settled(self, step: _Step, failed: StepFailed) -> Exception:
        """The error that all ranks report for a failed step."""
        call, failure = self._collective.current(), failed.failure
        error = None if failure is None else self._with_origin(failure)
        position = 0 if failure is None else _position(step.plan, failure.op)
        trace = "" if failure is None else failure.traceback
        collective = self._collective
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
        origin = self._cluster.plane.origin(failure.device)
        if isinstance(failure.error, errors.OpError):
            failure.error.origin = failure.error.origin or origin
            return failure.error
        kind = TypeError if isinstance(failure.error, TypeError) else ValueError
        return kind(f"{failure.error}\n  failed on {origin}.")

    def _wait(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
        """How this session's steps wait: under the job's control plane, and no longer than the user allows."""
        plane = self._cluster.plane
        deadline = self._deadline
        if deadline is None:
            plane.wait(ready, what)
            return
        try:
            plane.progress.wait(ready, what, deadline.remaining_s, plane.watch(what))
        except errors.DeadlineExceededError:
            raise deadline.exceeded(what()) from None

    def _block(self, pending: Pending) -> None:
        """How this session's kernels wait."""
        pending.on_ready = self._cluster.plane.progress.ring
        try:
            self._wait(pending.ready, pending.describe)
        except errors.DeadlineExceededError:
            if pending.cancel():
                raise

    # ---- compiling

    def _find_step(self, steps: _Steps, leaves: Leaves, feeds: dict[Tensor, Any]) -> _Step:
        """The step that all ranks mean; agreed upon with them if this rank can't know it."""
        candidates = [s for s in steps.known if s.admits(feeds)]
        if len(candidates) == 1 and not candidates[0].confusable:
            step = steps.by_keys[frozenset(feeds)] = candidates[0]
            return step
        return self._agreed_step(self._collective.current(), steps, leaves, feeds)

    def _agreed_step(self, call: Call, steps: _Steps, leaves: Leaves, feeds: dict[Tensor, Any]) -> _Step:
        rules = self._rules
        options = f"master={rules.master} soft={rules.soft} task_default={rules.task_default} fetch_on={self._fetch_on}"
        agreed = self._collective.agree(call, sorted(t.name for t in feeds), prune(leaves), options, self._knows)
        union = {self._fed_tensor(name, ranks): ranks for name, ranks in agreed.items()}
        step = next((known for known in steps.known if known.feeds == union.keys()), None)
        if step is None:
            step = self._compile(steps, leaves, union)
        else:
            self._check_feeders(step.host_of, union)
        if any(_is_optional(t) and len(ranks) < self._cluster.size for t, ranks in union.items()):
            # A rank that may leave the key out can't tell a step with this feed from one without: all steps are agreed upon.
            for known in steps.known:
                known.confusable = True
            steps.by_keys.clear()
        return step

    def _knows(self, name: str) -> bool:
        try:
            self._graph.get_tensor_by_name(name)
        except KeyError:
            return False
        return True

    def _fed_tensor(self, name: str, ranks: Sequence[int]) -> Tensor:
        """The tensor that some ranks feed; the job can't go on if it is not in this rank's graph."""
        try:
            return self._graph.get_tensor_by_name(name)
        except KeyError:
            plane = self._cluster.plane
            plane.break_job(self._collective.unknown_feed(name, ranks))
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

    @collecting_later()
    def _compile(self, steps: _Steps, leaves: Leaves, feeds: Mapping[Tensor, Any]) -> _Step:
        cluster = self._cluster
        plan = make_plan(self._graph, leaves, feeds.keys(), cluster.inventory, self._rules, self._places.pinned)
        memory = cluster.transport.memory
        program = link(plan, cluster.rank_of, cluster.rank, cluster.size, self._fetch_on, memory)

        def host_of(tensor: Tensor) -> int:
            return cluster.rank_of(plan.device_of(tensor).task)

        self._check_feeders(host_of, feeds)
        executor = Executor(program, self._state, cluster.transport, cluster.reserve_tags(len(program.transfers)), self._wait)
        step = _Step(self.num_signatures, plan, program, executor, host_of)
        self._report(step, program)
        self._remember(steps, step)
        return step

    def _remember(self, steps: _Steps, step: _Step) -> None:
        for other in steps.known:
            if step.confusable_with(other, self._cluster.size):
                step.confusable = other.confusable = True
        steps.known.append(step)
        steps.by_keys.clear()  # what this rank's feed keys mean may have changed
        self.num_signatures += 1
        self._places.add(step.plan.placement)

    def _report(self, step: _Step, program: Program) -> None:
        dump_program(program, self._session.number, step.number, self._cluster.transport.memory)
        if self._log_placement and self._cluster.rank == 0:
            print_placement(step.plan.placement, self._places.known)

    # ---- looking

    def placement(self) -> dict[Operation, DeviceName]:
        """Device of every operation of the graph; see ``Runner.placement``."""
        return self._places.of(self._graph, self._cluster.inventory, self._rules)

    def traffic(self, leaves: Leaves, feed_keys: Collection[Tensor]) -> dict[str, int]:
        """Messages and bytes of one step, over all ranks; see ``Runner.traffic``."""
        feeds = set(feed_keys)
        steps = self._steps.get(leaves)
        step = next((s for s in steps.known if feeds <= s.feeds), None) if steps is not None else None
        if step is None:
            raise not_run_error()
        memory = self._cluster.transport.memory
        program = link(step.plan, self._cluster.rank_of, self._cluster.rank, self._cluster.size, self._fetch_on, memory)
        return traffic_of(program, memory)

    # ---- the end

    def close(self) -> None:
        """Free the session's variables and programs. Closing again does nothing."""
        with self._collective.between_calls():
            if self._session.closed:
                return
            self._session.closed = True
            self._steps.clear()
            self._state = SessionState(ResourceManager(), self._cluster.devices)


def _is_optional(tensor: Tensor) -> bool:
    """Whether a step can do without feeding ``tensor``."""
    return tensor.op.type not in PLACEHOLDERS


def _position(plan: Plan, op: Operation | None) -> int:
    return next((i for i, node in enumerate(plan.nodes) if node.op is op), 0)
