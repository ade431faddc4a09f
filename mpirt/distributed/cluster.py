"""The cluster as this process takes part in it: rank table, transport, devices, control plane.

Guarantee: started once, by the first session, server or ``mpirt.cluster()``; after the start every rank knows the same
rank table and the devices of every task. Without a launcher the one process is the whole cluster.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from typing import Any

from mpirt import config, errors
from mpirt.cluster import launchers
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.rank_table import RankTable
from mpirt.cluster.task import Task
from mpirt.compiler.placer import check_request
from mpirt.distributed.blas_threads import BlasThreads
from mpirt.distributed.collective import Collective
from mpirt.distributed.control import ControlPlane, Kind, to_error, to_record
from mpirt.distributed.control_pb2 import Hello, Inventory, Table, TaskDevices
from mpirt.distributed.master import Master
from mpirt.distributed.service import Service
from mpirt.distributed.tags import TagSpace
from mpirt.distributed.worker import Worker
from mpirt.graph.device_scope import set_device_check
from mpirt.runtime.allocation import keep_freed_memory
from mpirt.runtime.device import Device, default_devices, is_emulated, open_device
from mpirt.runtime.executor import SessionState
from mpirt.runtime.rendezvous import Abandoned
from mpirt.runtime.resources import ResourceManager
from mpirt.transport.abort_hook import install_abort_hook
from mpirt.transport.base import Transport
from mpirt.transport.loopback import LoopbackTransport
from mpirt.transport.mpi import MpiTransport
from mpirt.version import __version__

_log = logging.getLogger("mpirt")


class Cluster:
    """This process's part of the cluster.

    Parameters
    ----------
    transport : the ranks
    spec : jobs and tasks that the script asked for, None for the rank table of ``MPIRT_RANK_TABLE`` or the default one

    Attributes
    ----------
    table : RankTable
    rank, size : this rank and the number of ranks
    tasks : tasks of this rank
    inventory : devices of every task, in the order of the table
    devices : this rank's devices by (task, local name)

    Raises
    ------
    InvalidArgumentError
        On every rank, if the rank table is malformed or doesn't fit, or ranks asked for different clusters.
    """

    def __init__(self, transport: Transport, spec: ClusterSpec | RankTable | None = None) -> None:
        self.transport = transport
        self.rank = transport.rank
        self.size = transport.size
        self._described: list[str] = [f"rank {r} (host {transport.hosts[r]}, pid {transport.pids[r]})" for r in range(self.size)]
        self.plane = ControlPlane(transport, self._described.__getitem__)
        self.collective = Collective(self.plane)
        try:
            self.table = self._share_table(spec)
            self._described[:] = [self._describe(r) for r in range(self.size)]
            self.tasks = self.table.tasks_of(self.rank)
            self.inventory = self._share_inventory(spec)
        except Abandoned as abandoned:
            raise abandoned.error from None
        self.devices: dict[tuple[Task, str], Device] = {(t, n): open_device(n) for t in self.tasks for n in self.inventory[t]}
        # As the script gave it, since the table holds no addresses, which are labels of tasks.
        self.spec = spec if isinstance(spec, ClusterSpec) else self.table.cluster_spec()
        self._tags = TagSpace.collective(transport.max_tag)
        self._sessions = 0
        self.closed = False
        shared = SessionState(ResourceManager(), self.devices)
        self.master = Master(self.plane, self.rank_of, self.inventory, shared)
        self.service = Service(self.plane, self.master, Worker(self.plane, self.devices, shared.resources))
        _log.info("[r%d] %s on %s, %d ranks", self.rank, self.describe_tasks(), transport.name, self.size)

    # ---- start

    def _share_table(self, spec: ClusterSpec | RankTable | None) -> RankTable:
        """The rank table, as rank 0 makes it."""
        timeout_s = config.get("MPIRT_START_TIMEOUT_S")
        message = Table()
        if self.rank == 0:
            try:
                table = _make_table(spec, self.size)
                table.check_hosts(self.transport.hosts)
                message.text, message.source = table.to_text(), table.source
            except (errors.OpError, ValueError) as error:
                message.error.CopyFrom(to_record(error))
            self.plane.send_all(Kind.TABLE, message)
        else:
            message = self._receive(Kind.TABLE, "rank 0 to send the rank table", timeout_s)
        if message.HasField("error"):
            raise to_error(message.error, None)
        return RankTable.from_text(message.text, self.size, source=message.source)

    def _share_inventory(self, spec: ClusterSpec | RankTable | None) -> dict[Task, tuple[str, ...]]:
        """The devices of every task; each rank tells its own tasks'."""
        timeout_s = config.get("MPIRT_START_TIMEOUT_S")
        hello = Hello(asked=repr(spec.to_text() if isinstance(spec, RankTable) else spec), version=__version__)
        try:
            for task in self.tasks:
                names = self.table.devices_of(task.job, task.index) or default_devices()
                for name in names:
                    open_device(name)
                hello.tasks.append(TaskDevices(job=task.job, index=task.index, devices=names))
        except errors.OpError as error:
            hello.error.CopyFrom(to_record(error))
            hello.error.origin = self._described[self.rank]
        self.plane.send(0, Kind.HELLO, hello)
        if self.rank == 0:
            self._answer_hellos(timeout_s)
        inventory = self._receive(Kind.INVENTORY, "rank 0 to tell the devices of all tasks", timeout_s)
        if inventory.HasField("error"):
            raise to_error(inventory.error, None)
        found = {Task(t.job, t.index): tuple(t.devices) for t in inventory.tasks}
        return {task: found[task] for task in self.table.tasks}

    def _answer_hellos(self, timeout_s: float) -> None:
        hellos: dict[int, Hello] = {}

        def complete() -> bool:
            self.plane.poll_all()
            hellos.update(self.plane.take(Kind.HELLO, lambda s, m: True))
            return len(hellos) == self.size

        def missing() -> str:
            ranks = [r for r in range(self.size) if r not in hellos]
            return f"{', '.join(self._described[r] for r in ranks[:4])} to start their cluster ({len(ranks)} of {self.size} ranks missing)"

        self.plane.wait(complete, missing, timeout_s)
        answer = Inventory(tasks=[t for r in range(self.size) for t in hellos[r].tasks])
        error = self._compare(hellos)
        if error is not None:
            answer.error.CopyFrom(to_record(error))
        for hello in hellos.values():
            if hello.HasField("error") and error is None:
                answer.error.CopyFrom(hello.error)
        self.plane.send_all(Kind.INVENTORY, answer)
        self.plane.send(0, Kind.INVENTORY, answer)

    def _compare(self, hellos: dict[int, Hello]) -> errors.OpError | None:
        for rank in range(1, self.size):
            if hellos[rank].version != hellos[0].version:
                return errors.FailedPreconditionError(
                    f"{self._described[rank]} runs mpirt {hellos[rank].version}, rank 0 runs {hellos[0].version}.",
                    hint="use one installation on all hosts.",
                )
            if hellos[rank].asked != hellos[0].asked:
                return errors.InvalidArgumentError(
                    f"ranks asked for different clusters: rank 0 for {hellos[0].asked}, {self._described[rank]} for {hellos[rank].asked}.",
                    hint="give every rank the same ClusterSpec.",
                )
        return None

    def _receive(self, kind: Kind, what: str, timeout_s: float) -> Any:
        found: list[tuple[int, Any]] = []

        def arrived() -> bool:
            self.plane.poll_all()
            found.extend(self.plane.take(kind, lambda s, m: True))
            return bool(found)

        self.plane.wait(arrived, lambda: what, timeout_s)
        return found[0][1]

    # ---- use

    def rank_of(self, task: Task) -> int:
        """The rank that hosts ``task``."""
        return self.table.rank_of(task.job, task.index)

    def reserve_tags(self, count: int) -> int:
        """First of ``count`` message tags; every rank reserves alike, so both ends of a transfer have the same."""
        return self._tags.take(count)

    def next_session(self) -> int:
        """Number of a new session; every rank makes its sessions in the same order."""
        self._sessions += 1
        return self._sessions - 1

    def describe_tasks(self) -> str:
        """Tasks of this rank, or that it is a spare."""
        return ", ".join(map(str, self.tasks)) or "spare"

    def describe_rank(self, rank: int) -> str:
        """``rank 2 (host n1, pid 77, /job:worker/task:0)``."""
        return self._described[rank]

    def _describe(self, rank: int) -> str:
        tasks = self.table.tasks_of(rank)
        names = ", ".join(map(str, tasks[:3])) + (f" and {len(tasks) - 3} more tasks" if len(tasks) > 3 else "") if tasks else "spare"
        return f"rank {rank} (host {self.transport.hosts[rank]}, pid {self.transport.pids[rank]}, {names})"

    def describe(self) -> str:
        """The rank table as it runs: a line for each rank with host, tasks and devices."""
        lines = []
        for rank in range(self.size):
            tasks = [f"{t} [{', '.join(map(self._device_text, self.inventory[t]))}]" for t in self.table.tasks_of(rank)]
            lines.append(f"rank {rank}  host {self.transport.hosts[rank]}  {', '.join(tasks) or 'spare'}")
        return "\n".join(lines)

    @staticmethod
    def _device_text(name: str) -> str:
        return f"{name} (emulated)" if is_emulated(name) else name

    def check_request(self, device: str) -> None:
        """Refuse a device request whose job or task doesn't exist."""
        check_request(device, self.inventory)

    def leave(self) -> None:
        """The end of this process's part: waits by name until all ranks have come to theirs. Calling it again does nothing."""
        if self.closed:
            return
        self.closed = True
        self.service.end()
        if self.size > 1:
            try:
                self.collective.leave(self.service.await_end)
            except Abandoned as abandoned:
                print(f"[r{self.rank}] {type(abandoned.error).__name__}: {abandoned.error}", file=sys.stderr, flush=True)
                if self.service.over:  # all that are left have come to their end
                    self.transport.exit(1)
                self.plane.abort(1)
        self.service.close()
        self.transport.finalize()


# ------------------------------------------------------------------------------------------- the process's cluster

_lock = threading.Lock()
_current: Cluster | None = None


def cluster(cluster: ClusterSpec | RankTable | dict[str, Any] | None = None) -> Cluster:
    """The cluster of this process; starts it (and MPI) the first time.

    Parameters
    ----------
    cluster : jobs and their tasks, as a ClusterSpec or what makes one (``{"ps": 2, "worker": 2}``), or a RankTable.
        Tasks are put on ranks in this order, one a rank; fewer ranks than tasks: neighbours share a rank; more: the rest
        are spares. A rank table in ``MPIRT_RANK_TABLE`` takes precedence and must hold the same jobs and tasks.

    Raises
    ------
    FailedPreconditionError
        If the cluster runs already and is another one.
    """
    global _current
    asked = ClusterSpec(cluster) if isinstance(cluster, dict) else cluster
    with _lock:
        if _current is None:
            _configure_logging()
            _current = Cluster(_open_transport(), asked)
            here = _current.transport.hosts[_current.rank]
            _current.service.share_cores = BlasThreads(_current.transport.hosts.count(here)).share
            _current.service.share_cores(0)
            keep_freed_memory()
            set_device_check(_current.check_request)
            install_abort_hook(_current.transport, _current.describe_tasks, _current.plane.abort)
            atexit.register(_current.leave)
        elif asked is not None:
            have = _current.table if isinstance(asked, RankTable) else _current.spec
            if asked != have and not (isinstance(asked, ClusterSpec) and set(asked.tasks()) == set(_current.spec.tasks())):
                raise errors.FailedPreconditionError(
                    f"the cluster of this process runs already: {_current.spec!r}; it can't become {asked!r}.",
                    hint="call mpirt.cluster(...) once, before the first Session.",
                )
        return _current


def _open_transport() -> Transport:
    launched = launchers.detect(os.environ)
    if launched is None and "mpi4py.MPI" not in sys.modules:
        return LoopbackTransport()
    return MpiTransport(expected_size=launched.size if launched is not None else None)


def _make_table(spec: ClusterSpec | RankTable | None, size: int) -> RankTable:
    if isinstance(spec, RankTable):
        return spec
    path = config.get("MPIRT_RANK_TABLE")
    if not path:
        return RankTable.default(spec, size)
    allocation = launchers.from_env(os.environ)
    table = RankTable.from_file(path, size, allocation.hosts if allocation is not None else None)
    if spec is not None and set(spec.tasks()) != set(table.tasks):
        raise errors.InvalidArgumentError(
            f"{path} holds {table.cluster_spec()!r}, but the script asks for {spec!r}.",
            hint="make the rank table and the script's ClusterSpec name the same jobs and tasks.",
        )
    return table


def _configure_logging() -> None:
    level = config.get("MPIRT_LOG").upper()
    if level not in logging.getLevelNamesMapping():
        raise errors.InvalidArgumentError(
            f"environment variable MPIRT_LOG={level!r} is no log level.", hint="use DEBUG, INFO, WARNING or ERROR."
        )
    if _log.level == logging.NOTSET:  # the script has not chosen one itself
        _log.setLevel(level)
