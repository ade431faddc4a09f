"""What a rank table file says: TOML with patterns, or one line a task.

Both spellings become one model, a ``Layout``, and every refusal reads ``file: entry: reason`` with its mend.

TOML (keys of one table may come in any order; jobs and ranks count in the order of the file)::

    version = 1                  # needed
    fold = true                  # may run on fewer ranks than it names (one rank is always allowed)
    share = true                 # two ranks of a host may have the same GPU
    sparse = true                # the task numbers of a job may have holes
    spares = 1                   # ranks without a task, after the others
    [[hosts]]                    # left out: the scheduler's hosts
    name = "h[1-3]"              # hostlist expression
    slots = 2                    # most ranks of each; gpus, cores: what each has; what is left out is not checked
    [[rank]]                     # explicit: a task on a rank; one rank may be named by several (folding)
    rank = 0
    job = "ps"
    task = 0                     # or spare = true instead of job and task
    host = "h1"                  # left out or "*": any host, not checked
    devices = ["cpu:0"]          # left out: whatever the rank has. gpu:1, gpu:0-3, gpu:* (all of the host),
    cores = "0-1"                # gpu:local (the next GPU of the host, counting the tasks that say so)
    [[job]]                      # by pattern: ranks numbered on, after the explicit ones
    name = "worker"
    count = 4                    # how many tasks in all; or per_host = 2
    hosts = ["h2", "h3*"]        # names or globs over the hosts; left out without [[hosts]]: any host, not checked
    place = "pack"               # fill host after host; or "spread": one on each in turn (with count)
    devices = ["cpu:0", "gpu:local"]
    cores_per_task = 1           # the next free cores of the host

Flat form (what ``RankTable.to_text`` writes; several lines with one rank are folding; ``*`` = any host)::

    rank 0 = h1 /job:ps/task:0 devices=CPU:0 cores=0-1
    rank 1 = * /job:worker/task:0
    rank 2 = h2 spare
    fold = true                  # and share, sparse: as above
"""

from __future__ import annotations

import fnmatch
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mpirt.cluster import hostlist
from mpirt.cluster.launchers import Host
from mpirt.cluster.task import JOB_NAME, Task
from mpirt.errors import InvalidArgumentError

_FLAGS = ("fold", "share", "sparse")
_HOST = r"[A-Za-z0-9_.:-]+"
_FLAT_RANK = re.compile(
    rf"rank +(?P<rank>[0-9]+) *= *(?:(?P<host>\*|{_HOST}) +)?(?:spare|/job:(?P<job>{JOB_NAME})/task:(?P<task>[0-9]+))"
    r"(?: +devices=(?P<devices>\S+))?(?: +cores=(?P<cores>\S+))?"
)
_DEVICE = re.compile(r"(?:(cpu|gpu):([0-9]+(?:-[0-9]+)?)|gpu:(local|\*))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One task of a rank table, and what of its rank it may use; None = whatever the rank has."""

    rank: int
    task: Task
    devices: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """A checked rank table: its entries by rank, the host of each rank (None = any), and whether fewer ranks may run it."""

    entries: tuple[Entry, ...]
    hosts: tuple[str | None, ...]
    fold: bool


def read(text: str, source: str, allocation: Sequence[Host] | None = None) -> Layout:
    """The layout that a rank table in either spelling describes.

    Parameters
    ----------
    text : str
        The table; a line ``rank N = ...`` makes it the flat form.
    source : str
        File name for messages.
    allocation : sequence of Host, optional
        The hosts that the scheduler gave: the table's hosts must be among them.

    Raises
    ------
    InvalidArgumentError
        If the table is malformed or contradicts itself or the allocation.
    """
    flat = any(re.match(r"\s*rank\s+\S+\s*=", line) for line in text.splitlines())
    table = _read_flat(text, source) if flat else _read_toml(text, source)
    table.allow("version", "hosts", "job", "rank", "spares", *_FLAGS)
    if table.number("version") != 1:
        raise table.refuse("no version = 1, the only version there is", "write version = 1 at the top")
    builder = _Builder(table, allocation)
    for entry in table.sections("rank"):
        builder.add_rank(entry)
    for job in table.sections("job"):
        builder.add_job(job)
    first = builder.next_rank
    for rank in range(first, first + (table.number("spares") or 0)):
        builder.put_spare(table, rank, None)
    return builder.finish()


class _Section:
    """One table of the file: its keys by type, and errors that name it."""

    def __init__(self, data: Mapping[str, object], source: str, name: str = "") -> None:
        self.data = data
        self.source = source
        self.name = name

    def refuse(self, reason: str, mend: str) -> InvalidArgumentError:
        """The error ``file: entry: reason`` with its mend, to raise."""
        return InvalidArgumentError(": ".join(filter(None, (self.source, self.name, f"{reason}."))), hint=f"{mend}.")

    def allow(self, *keys: str) -> None:
        """Refuses any other key."""
        for key in self.data:
            if key not in keys:
                raise self.refuse(f"unknown key {key!r}", f"use only {', '.join(keys)}")

    def sections(self, key: str) -> list[_Section]:
        """The entries of the array of tables ``key``; a flat line brings its own name."""
        value = self.data.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, (Mapping, _Section)) for item in value):
            raise self.refuse(f"{key} is not a list of tables", f"write [[{key}]] above each")
        return [
            item if isinstance(item, _Section) else _Section(item, self.source, f"{key}[{i}]") for i, item in enumerate(value)
        ]

    def text(self, key: str) -> str | None:
        value = self.data.get(key)
        if value is not None and not (isinstance(value, str) and value):
            raise self.refuse(f"{key} = {value!r} is not a name", f'write {key} = "..."')
        return value

    def texts(self, key: str) -> list[str] | None:
        """A list of strings, which may be written as one string."""
        value = self.data.get(key)
        items = [value] if isinstance(value, str) else value
        if items is not None and not (isinstance(items, list) and items and all(isinstance(item, str) for item in items)):
            raise self.refuse(f"{key} = {value!r} is not a list of names", f'write {key} = ["...", "..."]')
        return items

    def number(self, key: str, least: int = 0) -> int | None:
        value = self.data.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise self.refuse(f"{key} = {value!r} is not a whole number from {least} up", f"write {key} = {least} or more")
        return value

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise self.refuse(f"{key} = {value!r} is neither true nor false", f"write {key} = true, or leave it out")
        return value


def _read_toml(text: str, source: str) -> _Section:
    try:
        return _Section(tomllib.loads(text), source)
    except tomllib.TOMLDecodeError as error:
        mend = "correct the TOML, or write lines like 'rank 0 = h1 /job:ps/task:0'"
        raise _Section({}, source).refuse(str(error), mend) from None


def _read_flat(text: str, source: str) -> _Section:
    ranks: list[_Section] = []
    table: dict[str, object] = {"version": 1, "rank": ranks}
    for number, line in enumerate(text.splitlines(), 1):
        content = line.split("#")[0].strip()
        if not content:
            continue
        name = f"line {number}"
        key, _, value = (part.strip() for part in content.partition("="))
        match = _FLAT_RANK.fullmatch(content)
        if match:
            data: dict[str, object] = {k: v for k, v in match.groupdict().items() if v is not None}
            data |= {k: int(match[k]) for k in ("rank", "task") if match[k]}
            if match["devices"]:
                data["devices"] = match["devices"].split(",")
            if not match["job"]:
                data["spare"] = True
            ranks.append(_Section(data, source, name))
        elif key in _FLAGS and value in ("true", "false"):
            table[key] = value == "true"
        else:
            raise _Section({}, source, name).refuse(
                f"can't read {content!r}",
                "write 'rank N = HOST /job:NAME/task:N [devices=...] [cores=...]', 'rank N = HOST spare', "
                "or 'fold = true', 'share = true', 'sparse = true'; HOST may be *",
            )
    return _Section(table, source)


@dataclass(slots=True)
class _Place:
    """A host while ranks are put on it."""

    host: Host
    ranks: set[int] = field(default_factory=set)
    gpu_owner: dict[str, int] = field(default_factory=dict)
    core_owner: dict[int, int] = field(default_factory=dict)
    local_gpus: int = 0

    @property
    def free_slots(self) -> float:
        return float("inf") if self.host.slots is None else self.host.slots - len(self.ranks)


class _Builder:
    """The table so far; each addition is checked against what is there."""

    def __init__(self, table: _Section, allocation: Sequence[Host] | None) -> None:
        self.table = table
        self.share = table.flag("share")
        self.listed = "hosts" in table.data
        self.places = {hostlist.short_name(host.name): _Place(host) for host in _hosts(table, allocation)}
        self.closed = bool(self.places)  # else any host may be named, and nothing is known of it
        self.entries: list[Entry] = []
        self.section_of: dict[Task, _Section] = {}
        self.place_of: dict[int, _Place | None] = {}  # by rank
        self.spares: set[int] = set()

    @property
    def next_rank(self) -> int:
        return max(self.place_of, default=-1) + 1

    def add_rank(self, section: _Section) -> None:
        """An explicit entry: a task, or a spare."""
        section.allow("rank", "job", "task", "host", "devices", "cores", "spare")
        rank = self._needed(section, "rank", section.number("rank"))
        host = section.text("host") or "*"
        place = None if host == "*" else self._place(section, host)
        if section.flag("spare"):
            section.allow("rank", "host", "spare")
            self.put_spare(section, rank, place)
            return
        task = Task(_job_name(section, "job"), self._needed(section, "task", section.number("task")))
        self._put_task(section, rank, task, place, section.texts("devices"), self._cores(section))

    def add_job(self, section: _Section) -> None:
        """A job by pattern: its tasks get the next ranks."""
        section.allow("name", "count", "per_host", "hosts", "place", "devices", "cores_per_task")
        name = _job_name(section, "name")
        section.name += f" {name}"
        cores_each = section.number("cores_per_task", least=1)
        first = self.next_rank
        for index, place in enumerate(self._places_for_job(section)):
            cores = None if cores_each is None else self._next_cores(section, place, cores_each)
            self._put_task(section, first + index, Task(name, index), place, section.texts("devices"), cores)

    def put_spare(self, section: _Section, rank: int, place: _Place | None) -> None:
        """A rank that hosts no task."""
        if rank in self.place_of:
            raise self._spare_twice(section, rank)
        self._put_rank(section, rank, place)
        self.spares.add(rank)

    def finish(self) -> Layout:
        """The layout, once the numbers of ranks and tasks are found to have no holes."""
        if self.next_rank != len(self.place_of):
            missing = next(rank for rank in itertools.count() if rank not in self.place_of)
            raise self.table.refuse(
                f"the ranks must be 0-{self.next_rank - 1}, but rank {missing} is missing", "number the ranks without holes"
            )
        if not self.entries:
            raise self.table.refuse("no rank has a task", "add a [[job]] with a count, or [[rank]] entries")
        if not self.table.flag("sparse"):
            for job in dict.fromkeys(entry.task.job for entry in self.entries):
                indices = sorted(entry.task.index for entry in self.entries if entry.task.job == job)
                if indices != list(range(len(indices))):
                    raise self.table.refuse(
                        f"the tasks of job {job!r} must be 0-{len(indices) - 1}, but they are {hostlist.ranges(indices)}",
                        "number the tasks without holes, or write sparse = true",
                    )
        hosts = [self.place_of[rank] for rank in range(self.next_rank)]
        return Layout(
            tuple(sorted(self.entries, key=lambda entry: entry.rank)),  # stable: folded tasks stay in the order of the file
            tuple(None if place is None else place.host.name for place in hosts),
            self.table.flag("fold"),
        )

    def _place(self, section: _Section, name: str) -> _Place:
        short = hostlist.short_name(_host_name(section, name))
        if short not in self.places:
            if self.closed:
                raise section.refuse(
                    f"host {name!r} is not among the hosts ({self._host_names()})",
                    "use one of these hosts, or add it under [[hosts]] or to the allocation",
                )
            self.places[short] = _Place(Host(name))
        return self.places[short]

    def _host_names(self) -> str:
        return ", ".join(place.host.name for place in self.places.values())

    @staticmethod
    def _spare_twice(section: _Section, rank: int) -> InvalidArgumentError:
        return section.refuse(f"rank {rank} is a spare, and is also named by another entry", "give the spare a rank of its own")

    def _put_rank(self, section: _Section, rank: int, place: _Place | None) -> None:
        if rank in self.spares:
            raise self._spare_twice(section, rank)
        if rank in self.place_of and self.place_of[rank] is not place:
            names = ["any host" if p is None else p.host.name for p in (self.place_of[rank], place)]
            raise section.refuse(f"rank {rank} is on {names[0]} and on {names[1]}", "give all entries of a rank the same host")
        self.place_of[rank] = place
        if place is not None and rank not in place.ranks:
            if place.free_slots <= 0:
                takers = hostlist.ranges(sorted(place.ranks))
                raise section.refuse(
                    f"host {place.host.name} has {place.host.slots} slot(s), all taken (rank {takers})",
                    "use another host, or give this one more slots",
                )
            place.ranks.add(rank)

    def _put_task(
        self,
        section: _Section,
        rank: int,
        task: Task,
        place: _Place | None,
        devices: list[str] | None,
        cores: list[int] | None,
    ) -> None:
        self._put_rank(section, rank, place)
        if task in self.section_of:
            raise section.refuse(f"{task} is given twice (first in {self.section_of[task].name})", "give each task one rank")
        self.section_of[task] = section
        names = None if devices is None else tuple(self._devices(section, rank, place, devices))
        if cores is not None and place is not None:
            self._take_cores(section, rank, place, cores)
        self.entries.append(Entry(rank, task, names, None if cores is None else tuple(sorted(cores))))

    def _devices(self, section: _Section, rank: int, place: _Place | None, specs: list[str]) -> list[str]:
        """The devices named, patterns expanded: ``["CPU:0", "GPU:2"]``."""
        found: list[str] = []
        for spec in specs:
            match = _DEVICE.fullmatch(spec)
            if match is None:
                raise section.refuse(f"bad device {spec!r}", "write cpu:0, gpu:1, gpu:0-3, gpu:local or gpu:*")
            if match[3]:
                found += [f"GPU:{index}" for index in self._gpus_by_pattern(section, place, spec)]
            else:
                found += [f"{match[1].upper()}:{index}" for index in _numbers(section, match[2])]
        if len(set(found)) < len(found):
            raise section.refuse(f"a device twice in {', '.join(found)}", "name each device once")
        for device in found:
            if place is not None and device.startswith("GPU:"):
                self._take_gpu(section, rank, place, device)
        return found

    def _gpus_by_pattern(self, section: _Section, place: _Place | None, spec: str) -> Iterable[int]:
        if place is None:
            mend = "name hosts for it, or leave devices out: then a task has what its rank has"
            raise section.refuse(f"device {spec!r} needs a host, and this task may run on any", mend)
        if spec.endswith("*"):
            if not place.host.gpus:
                mend = "give the host gpus = N under [[hosts]]"
                raise section.refuse(f"device {spec!r} on {place.host.name}, of which no GPUs are known", mend)
            return range(place.host.gpus)
        place.local_gpus += 1
        return [place.local_gpus - 1]

    def _take_gpu(self, section: _Section, rank: int, place: _Place, device: str) -> None:
        host = place.host
        if host.gpus is not None and int(device.removeprefix("GPU:")) >= host.gpus:
            raise section.refuse(f"{device} on {host.name}, which has {host.gpus} GPU(s)", "use a GPU that the host has")
        owner = place.gpu_owner.setdefault(device, rank)
        if owner != rank and not self.share:
            raise section.refuse(
                f"{device} of {host.name} is given to ranks {owner} and {rank}",
                "give each rank a GPU of its own, or write share = true at the top to mean it",
            )

    def _cores(self, section: _Section) -> list[int] | None:
        value = section.data.get("cores")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise section.refuse(f"cores = {value!r} is not a core list", 'write cores = "0-1,4"')
        return None if value is None else _numbers(section, value)

    def _next_cores(self, section: _Section, place: _Place | None, count: int) -> list[int]:
        if place is None:
            raise section.refuse("cores_per_task needs a host, and these tasks may run on any", "name hosts, or leave it out")
        first = max(place.core_owner, default=-1) + 1
        return list(range(first, first + count))

    def _take_cores(self, section: _Section, rank: int, place: _Place, cores: list[int]) -> None:
        host = place.host
        for core in cores:
            if host.cores is not None and core >= host.cores:
                raise section.refuse(f"core {core} on {host.name}, which has {host.cores}", "use fewer cores or another host")
            owner = place.core_owner.setdefault(core, rank)
            if owner != rank:
                mend = "give each core to one rank"
                raise section.refuse(f"core {core} of {host.name} is given to ranks {owner} and {rank}", mend)

    def _places_for_job(self, section: _Section) -> list[_Place | None]:
        """The place of each task of a job, in task order; None = any host."""
        count, per_host = section.number("count", least=1), section.number("per_host", least=1)
        if (count is None) == (per_host is None):
            raise section.refuse("count and per_host: give one of them", "write count = N (in all) or per_host = N (each host)")
        order = section.text("place") or "pack"
        if order not in ("pack", "spread"):
            raise section.refuse(f"place = {order!r}", 'write place = "pack" or "spread"')
        patterns = section.texts("hosts") or []
        needs_hosts = per_host is not None or patterns not in ([], ["*"])
        if needs_hosts and not self.closed:
            raise section.refuse("the hosts are not known", "list them under [[hosts]], or start inside a job of the scheduler")
        wants_hosts = needs_hosts or self.listed or patterns == ["*"] or "place" in section.data
        if count is not None and not (wants_hosts and self.closed):
            return [None] * count
        globs = patterns or ["*"]
        candidates = [p for p in self.places.values() if any(fnmatch.fnmatchcase(p.host.name, glob) for glob in globs)]
        if not candidates:
            raise section.refuse(f"no host matches {', '.join(globs)}", f"the hosts are {self._host_names()}")
        if per_host is not None:
            return [place for place in candidates for _ in range(per_host)]
        assert count is not None
        return self._spend_slots(section, candidates, count, order)

    def _spend_slots(self, section: _Section, candidates: list[_Place], count: int, order: str) -> list[_Place | None]:
        free = {place.host.name: place.free_slots for place in candidates}
        chosen: list[_Place | None] = []
        while len(chosen) < count and any(slots > 0 for slots in free.values()):
            for place in candidates:
                most = free[place.host.name] if order == "pack" else min(1, free[place.host.name])
                take = int(min(most, count - len(chosen)))
                chosen += [place] * take
                free[place.host.name] -= take
        if len(chosen) < count:
            names = ", ".join(place.host.name for place in candidates)
            mend = "ask for fewer tasks or more slots"
            raise section.refuse(f"{count} tasks, but {names} have {len(chosen)} free slot(s)", mend)
        return chosen

    @staticmethod
    def _needed(section: _Section, key: str, value: int | None) -> int:
        if value is None:
            raise section.refuse(f"no {key}", f"write {key} = N")
        return value


def _hosts(table: _Section, allocation: Sequence[Host] | None) -> list[Host]:
    """The hosts of the table, completed from the allocation; without [[hosts]], the allocation."""
    if "hosts" not in table.data:
        return list(allocation or ())
    given = {hostlist.short_name(host.name): host for host in allocation or ()}
    found: dict[str, Host] = {}
    for section in table.sections("hosts"):
        section.allow("name", "slots", "gpus", "cores")
        slots, gpus, cores = section.number("slots", least=1), section.number("gpus"), section.number("cores", least=1)
        expression = section.text("name")
        if expression is None:
            raise section.refuse("no name", 'write name = "h1" or name = "h[1-3]"')
        try:
            names = hostlist.expand(expression)
        except ValueError as error:
            raise section.refuse(str(error), "write names and ranges like h[1-3,7]") from None
        for name in names:
            short = hostlist.short_name(_host_name(section, name))
            if short in found:
                raise section.refuse(f"host {name!r} twice", "list each host once")
            if given and short not in given:
                allocated = ", ".join(host.name for host in given.values())
                raise section.refuse(f"host {name!r} is not in the allocation ({allocated})", "ask the scheduler for this host")
            other = given.get(short, Host(name))
            found[short] = Host(
                name,
                other.slots if slots is None else slots,
                other.gpus if gpus is None else gpus,
                other.cores if cores is None else cores,
            )
    return list(found.values())


def _job_name(section: _Section, key: str) -> str:
    name = section.text(key)
    if name is None:
        raise section.refuse(f"no {key}", f'write {key} = "worker"')
    if not re.fullmatch(JOB_NAME, name):
        raise section.refuse(f"bad job name {name!r}", "use a letter, then letters, digits, '_', '.', '-'")
    return name


def _host_name(section: _Section, name: str) -> str:
    if not re.fullmatch(_HOST, name):
        raise section.refuse(f"bad host name {name!r}", "use letters, digits, '_', '.', ':', '-'")
    return name


def _numbers(section: _Section, text: str) -> list[int]:
    """A list of different numbers, ``0-3,7``."""
    try:
        found = hostlist.numbers(text)
    except ValueError as error:
        raise section.refuse(str(error), "write numbers and ranges like 0-3,7") from None
    if len(set(found)) < len(found):
        raise section.refuse(f"a number twice in {text!r}", "name each once")
    return found
