"""Which jobs a cluster has, and which tasks each job has.

Owns: the user's description of a cluster (public as ``train.ClusterSpec``). Does not own: which rank hosts a task (rank_table).
An address is a label here: MPI knows where its ranks are, so ``"host:port"`` is kept, printed and looked up, never dialled.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mpirt.cluster.task import JOB_NAME, Task

if TYPE_CHECKING:
    from tensorboard.compat.proto.cluster_pb2 import ClusterDef

    JobTasks = int | Sequence[str] | Mapping[int, str]


class ClusterDefLike(Protocol):
    """A ClusterDef message, from whatever package: ``.job`` lists jobs with ``.name`` and ``.tasks`` (a map)."""

    job: Any


class ClusterSpec:
    """Jobs and their tasks, in the order given.

    Parameters
    ----------
    cluster : mapping, ClusterSpec or ClusterDef
        A mapping says for each job how many tasks it has (``2``), or lists their addresses (``["h1:1", "h2:1"]``), or maps
        task numbers to addresses (``{0: "h1:1", 3: "h2:1"}``). The forms may be mixed. Tasks given by count get the label
        ``"job:index"`` as their address.

    Raises
    ------
    TypeError
        If the cluster or a part of it has the wrong type: a list of pairs, a bare string for a job, a number for an address.
    ValueError
        If a job name is not acceptable, a task number or count is negative, or an address appears twice.
    """

    def __init__(self, cluster: Mapping[str, JobTasks] | ClusterSpec | ClusterDefLike) -> None:
        jobs: dict[str, dict[int, str]] = {}
        for job, tasks in _pairs(cluster):
            _check_job_name(job)
            if job in jobs:
                raise ValueError(f"ClusterSpec: job {job!r} is given twice.")
            jobs[job] = _addresses(job, tasks)
        self._jobs = jobs
        self._task_of: dict[str, Task] = {}
        for task in self.tasks():
            label = _bare(jobs[task.job][task.index])
            if label in self._task_of:
                raise ValueError(f"ClusterSpec: {task} and {self._task_of[label]} have the same address {label!r}.")
            self._task_of[label] = task

    @property
    def jobs(self) -> list[str]:
        """Job names, in the order given."""
        return list(self._jobs)

    def tasks(self) -> list[Task]:
        """All tasks: jobs in the order given, task numbers ascending."""
        return [Task(job, index) for job, addresses in self._jobs.items() for index in addresses]

    def num_tasks(self, job_name: str) -> int:
        """How many tasks the job has (not the highest number plus one, when numbers are left out)."""
        return len(self._job(job_name))

    def task_indices(self, job_name: str) -> list[int]:
        """Task numbers of the job, ascending."""
        return list(self._job(job_name))

    def task_address(self, job_name: str, task_index: int) -> str:
        """Address of the task; its label ``"job:index"`` when the job was given by count."""
        addresses = self._job(job_name)
        if task_index not in addresses:
            raise ValueError(f"ClusterSpec: job {job_name!r} has no task {task_index}; it has {list(addresses)}.")
        return addresses[task_index]

    def job_tasks(self, job_name: str) -> list[str | None]:
        """Addresses by task number; None where a number is left out."""
        addresses = self._job(job_name)
        return [addresses.get(index) for index in range(max(addresses, default=-1) + 1)]

    def task_of_address(self, address: str) -> Task:
        """The task whose address this is, with or without ``grpc://``; the look-up of session targets.

        Raises
        ------
        ValueError
            If no task has the address.
        """
        label = _bare(address)
        if label not in self._task_of:
            raise ValueError(f"ClusterSpec: no task has the address {label!r}; there are {', '.join(self._task_of) or 'none'}.")
        return self._task_of[label]

    def as_dict(self) -> dict[str, list[str] | dict[int, str]]:
        """Addresses of each job: a list when the task numbers are 0..n-1, else a map from number to address."""
        return {
            job: list(addresses.values()) if list(addresses) == list(range(len(addresses))) else dict(addresses)
            for job, addresses in self._jobs.items()
        }

    def as_cluster_def(self) -> ClusterDef:
        """The cluster as a ClusterDef message."""
        from tensorboard.compat.proto.cluster_pb2 import ClusterDef, JobDef  # the only message of this layer

        return ClusterDef(job=[JobDef(name=job, tasks=addresses) for job, addresses in self._jobs.items()])

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __eq__(self, other: object) -> bool:
        return self._jobs == other._jobs if isinstance(other, ClusterSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self.tasks()))

    def __repr__(self) -> str:
        return f"ClusterSpec({self.as_dict()!r})"

    def _job(self, name: str) -> dict[int, str]:
        if name not in self._jobs:
            raise ValueError(f"ClusterSpec: no job is named {name!r}; there are {', '.join(self._jobs) or 'none'}.")
        return self._jobs[name]


def _pairs(cluster: object) -> list[tuple[Any, Any]]:
    """(job, tasks) of any accepted form of a cluster, not checked further."""
    if isinstance(cluster, ClusterSpec):
        return list(cluster._jobs.items())
    if isinstance(cluster, Mapping):
        return list(cluster.items())
    if hasattr(cluster, "job"):  # not isinstance: a message's fields are found by asking only (Python 3.12)
        return [(job.name, dict(job.tasks)) for job in cluster.job]
    raise TypeError(
        "ClusterSpec: expected a dict of job names to tasks, a ClusterSpec or a ClusterDef, "
        f"not {type(cluster).__name__}: {cluster!r}."
    )


def _check_job_name(job: object) -> None:
    if not isinstance(job, str):
        raise TypeError(f"ClusterSpec: a job name must be a string, not {job!r}.")
    if not re.fullmatch(JOB_NAME, job):
        raise ValueError(f"ClusterSpec: job name {job!r} must be a letter, then letters, digits, '_', '.', '-'.")


def _addresses(job: str, tasks: object) -> dict[int, str]:
    """Task number -> address, ascending."""
    found: dict[int, str] = {}
    if isinstance(tasks, Mapping):
        for key, address in tasks.items():
            found[_index(job, key)] = _address(job, key, address)
    elif isinstance(tasks, (list, tuple)):
        found = {index: _address(job, index, address) for index, address in enumerate(tasks)}
    elif isinstance(tasks, str):
        raise TypeError(f"ClusterSpec: job {job!r} is given as the string {tasks!r}; write a list: [{tasks!r}].")
    else:
        found = {index: f"{job}:{index}" for index in range(_index(job, tasks))}
    return dict(sorted(found.items()))


def _index(job: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"ClusterSpec: job {job!r}: expected a count, a list of addresses or task numbers, not {value!r}.")
    if number < 0:
        raise ValueError(f"ClusterSpec: job {job!r}: {number} is negative.")
    return number


def _address(job: str, index: object, address: object) -> str:
    if not isinstance(address, str):
        raise TypeError(f"ClusterSpec: the address of task {index} of job {job!r} must be a string, not {address!r}.")
    if not _bare(address):
        raise ValueError(f"ClusterSpec: the address of task {index} of job {job!r} is empty.")
    return address


def _bare(address: str) -> str:
    return address.removeprefix("grpc://")
