"""``tf.train.Server``: a task of the cluster that clients can open sessions on and whose devices they can use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpirt import errors
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.rank_table import RankTable
from mpirt.cluster.task import Task
from mpirt.distributed.cluster import Cluster, cluster

TARGET_SCHEME = "mpi://"


class Server:
    """Offers the master service and the worker service of a task of this rank.

    Parameters
    ----------
    server_or_cluster_def : ClusterSpec, ClusterDef, dict or RankTable with the jobs and tasks; or the running cluster
        (``mpirt.cluster()``), also if left out. Addresses are labels: nothing listens on them.
    job_name, task_index : the task; may be left out where this rank hosts only one, or one of that job
    protocol, config : accepted as in TensorFlow, not used
    start : start it now; else `start` does

    Raises
    ------
    ValueError
        If the task isn't in the cluster, or is left out where this rank hosts several.
    InvalidArgumentError
        If another rank hosts the task.
    FailedPreconditionError
        If this rank is a spare.
    AlreadyExistsError
        If there is a server for it in this process.

    Notes
    -----
    A rank with a server serves all its tasks: folded on fewer ranks, and in one process, a script that starts only its
    worker's server can use the parameter servers too.

    Examples
    --------
    >>> import mpirt as tf
    >>> server = tf.train.Server.create_local_server()
    >>> with tf.Session(server.target) as sess:
    ...     print(sess.run(tf.constant(20) + 22))
    42
    >>> server.stop()
    """

    def __init__(
        self,
        server_or_cluster_def: ClusterSpec | RankTable | Cluster | Mapping[str, Any] | Any = None,
        job_name: str | None = None,
        task_index: int | None = None,
        protocol: str | None = None,
        config: Any = None,
        start: bool = True,
    ) -> None:
        if isinstance(server_or_cluster_def, Cluster):
            self._cluster = server_or_cluster_def
        elif server_or_cluster_def is None or isinstance(server_or_cluster_def, RankTable):
            self._cluster = cluster(server_or_cluster_def)
        else:
            self._cluster = cluster(ClusterSpec(server_or_cluster_def))
        self._task = self._find_task(job_name or None, task_index)
        self._running = False
        if start:
            self.start()

    @staticmethod
    def create_local_server(config: Any = None, start: bool = True) -> Server:
        """A server for the first task of this rank; in a process of its own, for the only task there is."""
        running = cluster()
        job, index = running.tasks[0] if running.tasks else (None, None)
        return Server(running, job, index, config=config, start=start)

    def _find_task(self, job: str | None, index: int | None) -> Task:
        here = self._cluster
        if not here.tasks:
            raise errors.FailedPreconditionError(
                f"rank {here.rank} is a spare: it hosts no task that a server could serve.",
                hint="let its script end, which waits for the others, or start only as many ranks as the cluster has tasks.",
            )
        mine = [t for t in here.tasks if job in (None, t.job) and index in (None, t.index)]
        if len(mine) == 1:
            return mine[0]
        wanted = [t for t in here.table.tasks if job in (None, t.job) and index in (None, t.index)]
        if len(mine) > 1:
            raise ValueError(
                f"{here.describe_rank(here.rank)} hosts several tasks: {', '.join(map(str, mine))}."
                " Say which one the server is for: Server(cluster, job_name=..., task_index=...)."
            )
        if not wanted:
            asked = f"job {job!r}" if index is None else f"task {index} of job {job!r}" if job is not None else f"task {index}"
            raise ValueError(f"a server for {asked}: the cluster has no such task; its tasks are {', '.join(map(str, here.table.tasks))}.")
        raise errors.InvalidArgumentError(
            f"a server for {wanted[0]} can't run on {here.describe_rank(here.rank)}: rank {here.rank_of(wanted[0])} hosts that task.",
            hint="start the ranks in the order of the cluster's tasks (mpirun -n 1 python x.py --task ... : -n 1 ...), leave job and"
            " index out so that each rank takes its own, or name a rank table in MPIRT_RANK_TABLE.",
        )

    @property
    def target(self) -> str:
        """What a ``Session`` on this server is opened with: ``mpi:///job:ps/task:0``."""
        return f"{TARGET_SCHEME}{self._task}"

    @property
    def job_name(self) -> str:
        """Job of the server's task."""
        return self._task.job

    @property
    def task_index(self) -> int:
        """Number of the server's task."""
        return self._task.index

    def start(self) -> None:
        """Start it. Calling it again does nothing."""
        if not self._running:
            self._cluster.service.start(self._task)
            self._running = True

    def join(self) -> None:
        """Wait for the end of the job: until every session of it is closed, and every rank's script has ended or joined.

        Raises
        ------
        UnavailableError
            If rank 0, which keeps the count, is lost; or what broke the job.
        """
        self._cluster.service.join()

    def stop(self) -> None:
        """Stop serving: with the last server of this rank, its steps are cancelled and what its clients had here is freed.

        The values of variables stay as long as the process. Calling it again does nothing.
        """
        if self._running:
            self._running = False
            self._cluster.service.stop(self._task)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<mpirt.train.Server {self.target}, {'running' if self._running else 'stopped'}>"
