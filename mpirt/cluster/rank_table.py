"""The rank table: which MPI rank hosts which tasks, and which devices and cores each task has.

Guarantees: every task is on exactly one rank; a rank may host many tasks (folding) or none (a spare); the order of tasks is the
same on every rank, and ``from_text(table.to_text()) == table``.
Owns: the map that binds plans, which speak of tasks, to ranks. Does not own: the spelling of the files (table_file) or where
MPI really put a rank (transport tells, ``check_hosts`` compares).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mpirt.cluster import hostlist, table_file
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.launchers import Host
from mpirt.cluster.table_file import Entry, Layout
from mpirt.cluster.task import Task
from mpirt.errors import InvalidArgumentError, NotFoundError


@dataclass(frozen=True, slots=True)
class RankTable:
    """Tasks -> ranks, as a value: equal tables are equal objects, wherever they came from.

    Made by ``from_file``, ``from_text`` and ``default``.

    Attributes
    ----------
    entries : tuple of Entry
        One for each task, by rank; the tasks of one rank in the order given.
    hosts : tuple of (str or None)
        Host of each rank; None = any host, not checked.
    source : str
        The file, or ``"default"``; for error messages.
    tasks : tuple of Task
        Canonical order: jobs in the order in which ``entries`` first names them, task numbers ascending.
    """

    entries: tuple[Entry, ...]
    hosts: tuple[str | None, ...]
    source: str = field(default="default", compare=False)
    tasks: tuple[Task, ...] = field(init=False, compare=False, repr=False)
    _entry_of: dict[tuple[str, int], Entry] = field(init=False, compare=False, repr=False)
    _tasks_of: tuple[tuple[Task, ...], ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        entry_of = {entry.task: entry for entry in self.entries}
        assert len(entry_of) == len(self.entries), f"{self.source}: a task on two ranks"
        jobs = {job: i for i, job in enumerate(dict.fromkeys(entry.task.job for entry in self.entries))}
        tasks_of: list[list[Task]] = [[] for _ in self.hosts]
        for entry in self.entries:
            tasks_of[entry.rank].append(entry.task)
        object.__setattr__(self, "tasks", tuple(sorted(entry_of, key=lambda task: (jobs[task.job], task.index))))
        object.__setattr__(self, "_entry_of", entry_of)
        object.__setattr__(self, "_tasks_of", tuple(map(tuple, tasks_of)))

    @staticmethod
    def from_file(path: str | Path, world_size: int, hosts: Sequence[Host] | None = None) -> RankTable:
        """The table in a file, TOML or flat text (by its content), for ``world_size`` ranks.

        Parameters
        ----------
        path : str or Path
        world_size : int
            How many ranks MPI started; see ``from_text``.
        hosts : sequence of Host, optional
            The scheduler's allocation (``launchers.from_env``), for a table that leaves hosts to it.

        Raises
        ------
        NotFoundError
            If the file can't be opened.
        InvalidArgumentError
            As ``from_text``.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise NotFoundError(
                f"rank table {str(path)!r} can't be read: {error.strerror}.",
                hint="correct the path, or the setting MPIRT_RANK_TABLE.",
            ) from None
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"{path}: not text in UTF-8: {error}.", hint="save the file as UTF-8.") from None
        return RankTable.from_text(text, world_size, hosts, source=str(path))

    @staticmethod
    def from_text(
        text: str, world_size: int | None = None, hosts: Sequence[Host] | None = None, source: str = "rank table"
    ) -> RankTable:
        """The table that ``text`` describes, for ``world_size`` ranks; None = for as many as it names.

        One rank may run any table: it hosts every task. Fewer ranks than the table names may run it if it says ``fold = true``.

        Raises
        ------
        InvalidArgumentError
            If the table is malformed, contradicts itself or the hosts, or is for another number of ranks.
        """
        layout: Layout = table_file.read(text, source, hosts)
        table = RankTable(layout.entries, layout.hosts, source)
        if world_size is None or world_size == table.num_ranks:
            return table
        if world_size == 1 or (layout.fold and world_size < table.num_ranks):
            return table.folded(world_size)
        other = "fold = true" if world_size < table.num_ranks else "a spare rank for each rank too many"
        raise InvalidArgumentError(
            f"{source}: the table is for {table.num_ranks} ranks, but {world_size} started.",
            hint=f"start {table.num_ranks} ranks, or one, which hosts every task; or write {other} in the table.",
        )

    @staticmethod
    def default(cluster_spec: ClusterSpec | None, world_size: int) -> RankTable:
        """One task a rank in the order of the spec; too few ranks host balanced runs of tasks, ranks too many are spares.

        Without a spec: job ``worker``, one task a rank.

        Raises
        ------
        InvalidArgumentError
            If the spec has no task.
        """
        tasks = (ClusterSpec({"worker": world_size}) if cluster_spec is None else cluster_spec).tasks()
        if not tasks:
            raise InvalidArgumentError(f"{cluster_spec} has no task.", hint='give at least one job a task: {"worker": 1}.')
        entries = tuple(Entry(_block(i, len(tasks), world_size), task) for i, task in enumerate(tasks))
        return RankTable(entries, (None,) * world_size)

    def folded(self, num_ranks: int) -> RankTable:
        """The same tasks on fewer ranks: each new rank hosts what a run of neighbours hosted.

        Hosts and cores are dropped, for they were given to other processes; devices stay.
        """
        hosting = [rank for rank, tasks in enumerate(self._tasks_of) if tasks]
        new_rank = {rank: _block(i, len(hosting), num_ranks) for i, rank in enumerate(hosting)}
        entries = tuple(replace(entry, rank=new_rank[entry.rank], cores=None) for entry in self.entries)
        return RankTable(entries, (None,) * num_ranks, self.source)

    @property
    def num_ranks(self) -> int:
        """How many ranks the table is for, spares included."""
        return len(self.hosts)

    @property
    def spares(self) -> tuple[int, ...]:
        """The ranks that host no task."""
        return tuple(rank for rank, tasks in enumerate(self._tasks_of) if not tasks)

    def rank_of(self, job: str, index: int) -> int:
        """The rank that hosts the task.

        Raises
        ------
        InvalidArgumentError
            If the table has no such task; so do ``devices_of`` and ``cores_of``.
        """
        return self._entry(job, index).rank

    def tasks_of(self, rank: int) -> tuple[Task, ...]:
        """The tasks that the rank hosts, in the order of the table; empty for a spare."""
        self._check_rank(rank)
        return self._tasks_of[rank]

    def devices_of(self, job: str, index: int) -> tuple[str, ...] | None:
        """The devices of the task, as ``("CPU:0", "GPU:1")``, numbered as on its host; None = whatever its rank has."""
        return self._entry(job, index).devices

    def cores_of(self, job: str, index: int) -> tuple[int, ...] | None:
        """The cores of the task, ascending, numbered as on its host; None = whatever its rank has."""
        return self._entry(job, index).cores

    def host_of_rank(self, rank: int) -> str | None:
        """The host that the rank must be on; None = any."""
        self._check_rank(rank)
        return self.hosts[rank]

    def cluster_spec(self) -> ClusterSpec:
        """The jobs and tasks of the table, in canonical order; the addresses are the labels ``"job:index"``."""
        jobs: dict[str, dict[int, str]] = {}
        for job, index in self.tasks:
            jobs.setdefault(job, {})[index] = f"{job}:{index}"
        return ClusterSpec(jobs)

    def to_text(self) -> str:
        """Flat form, one line a task; reading it back gives an equal table."""
        lines = [f"{flag} = true" for flag, needed in (("share", self._shares_gpu()), ("sparse", self._is_sparse())) if needed]
        for rank, (host, tasks) in enumerate(zip(self.hosts, self._tasks_of, strict=True)):
            start = f"rank {rank} = {host or '*'}"
            if not tasks:
                lines.append(f"{start} spare")
            for task in tasks:
                entry = self._entry_of[task]
                line = f"{start} {task}"
                if entry.devices is not None:
                    line += f" devices={','.join(entry.devices)}"
                if entry.cores is not None:
                    line += f" cores={hostlist.ranges(entry.cores)}"
                lines.append(line)
        return "\n".join(lines) + "\n"

    def fingerprint(self) -> str:
        """Sha256 of the flat form, in hex: equal on every rank, or the ranks read different tables."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()

    def check_hosts(self, actual_hosts: Sequence[str]) -> None:
        """Refuses a start that put a rank on another host than the table says.

        Parameters
        ----------
        actual_hosts : sequence of str
            Host name of each rank, with or without domain.

        Raises
        ------
        InvalidArgumentError
            Naming each rank that is elsewhere.
        """
        assert len(actual_hosts) == self.num_ranks, f"{len(actual_hosts)} host names for {self.num_ranks} ranks"
        wrong = [
            f"rank {rank} must be on {host!r} but is on {actual!r}"
            for rank, (host, actual) in enumerate(zip(self.hosts, actual_hosts, strict=True))
            if host is not None and hostlist.short_name(host) != hostlist.short_name(actual)
        ]
        if wrong:
            raise InvalidArgumentError(
                f"{self.source}: {'; '.join(wrong)}.",
                hint="make the launcher place ranks as the table says (a rankfile or a hostfile in rank order), "
                "or leave the host out of the table (or write *) where any will do.",
            )

    def _entry(self, job: str, index: int) -> Entry:
        entry = self._entry_of.get((job, index))
        if entry is None:
            indices = hostlist.ranges(task.index for task in self.tasks if task.job == job)
            jobs = ", ".join(dict.fromkeys(task.job for task in self.tasks))
            raise InvalidArgumentError(
                f"{self.source}: there is no task /job:{job}/task:{index}: "
                + (f"the tasks of job {job!r} are {indices}." if indices else f"the jobs are {jobs}."),
                hint="name a task of the rank table, or add this one to it.",
            )
        return entry

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.num_ranks:
            raise InvalidArgumentError(
                f"{self.source}: there is no rank {rank}: the table has ranks 0-{self.num_ranks - 1}.", hint="name one of them."
            )

    def _shares_gpu(self) -> bool:
        """Whether two ranks of one host have the same GPU."""
        owner: dict[tuple[str, str], int] = {}
        return any(
            owner.setdefault((hostlist.short_name(host), device), entry.rank) != entry.rank
            for entry in self.entries
            if (host := self.hosts[entry.rank]) is not None
            for device in entry.devices or ()
            if device.startswith("GPU:")
        )

    def _is_sparse(self) -> bool:
        counts: dict[str, int] = {}
        for job, index in self.tasks:  # ascending in each job
            if counts.setdefault(job, 0) != index:
                return True
            counts[job] += 1
        return False


def _block(i: int, items: int, blocks: int) -> int:
    """The block of item ``i`` when ``items`` are cut into balanced runs, longer ones first: 5 in 2 blocks = 3 + 2."""
    size, longer = divmod(items, blocks)
    return i // (size + 1) if i < longer * (size + 1) else (i - longer) // size
