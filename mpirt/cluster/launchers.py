"""What the environment says about how this process was started.

Two questions, answered from variables alone and so without MPI:

- ``from_env``: which hosts did the scheduler (Slurm, PBS, LSF) give this job, with how many slots each?
- ``detect``: which launcher started this process, as which rank of how many? MPI itself may say otherwise: a launcher of
  another MPI gives N processes that each believe to be rank 0 of 1. The caller compares and refuses.

A variable that is there but can't be read is refused; a partial environment (an ssh shell into a job, say) counts as none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpirt.cluster import hostlist
from mpirt.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Host:
    """A host that tasks may be put on; None = not known, and then not checked."""

    name: str
    slots: int | None = None
    gpus: int | None = None
    cores: int | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """The hosts a scheduler gave, in its order."""

    scheduler: str
    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class LaunchInfo:
    """What a launcher says about this process.

    Attributes
    ----------
    name : str
        The launcher: ``"mpirun (Open MPI)"``, ``"mpiexec (hydra)"``, ``"srun"``, ``"jsrun"``, ``"a PMI launcher"``.
    rank, size : int
        Rank of this process and number of processes. In a heterogeneous Slurm job without PMI these are of one component:
        compare with MPI only to find "N processes, each alone".
    local_rank : int or None
        As the launcher numbers; hydra gives 0 twice when a host is listed twice with others between, so trust host names more.
    """

    name: str
    rank: int
    size: int
    local_rank: int | None


# First match wins; an entry matches when all its variables are there. mpirun inside a Slurm job starts its daemons by srun,
# whose variables the ranks inherit: hence mpirun before srun. Hydra and Slurm's PMI-2 differ by MPI_LOCALRANKID.
# SLURM_NTASKS is not used: a batch script has it too, with SLURM_PROCID=0, though it is one process.
_LAUNCHERS = (
    ("mpirun (Open MPI)", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("mpiexec (hydra)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK"),
    ("srun", "PMI_RANK", "PMI_SIZE", "SLURM_LOCALID"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("a PMI launcher", "PMI_RANK", "PMI_SIZE", None),
)


def detect(environ: Mapping[str, str]) -> LaunchInfo | None:
    """The launcher that started this process; None when started by hand or when the variables are incomplete.

    Raises
    ------
    InvalidArgumentError
        If a launcher's variable is no number.
    """
    for name, rank, size, local in _LAUNCHERS:
        if rank in environ and size in environ and (local is None or local in environ):
            local_rank = None if local is None else _count(environ, local)
            return LaunchInfo(name, _count(environ, rank), _count(environ, size), local_rank)
    return None


def from_env(environ: Mapping[str, str]) -> Allocation | None:
    """The hosts that Slurm (a step, else the job; heterogeneous jobs too), PBS or LSF gave; None outside a job.

    Notes
    -----
    Nodes may see different values (SLURM_GPUS_ON_NODE is of the own node): ask on one rank and tell the others.

    Raises
    ------
    InvalidArgumentError
        If a scheduler's variable or file can't be read, or two of them contradict each other.
    """
    if "SLURM_HET_SIZE" in environ:  # the variables without suffix describe component 0 only
        hosts: tuple[Host, ...] = ()
        for component in range(_count(environ, "SLURM_HET_SIZE")):
            suffix = f"_HET_GROUP_{component}"
            hosts += _slurm(environ, f"SLURM_JOB_NODELIST{suffix}", f"SLURM_TASKS_PER_NODE{suffix}", None)
        return Allocation("Slurm", hosts)
    launcher = detect(environ)
    if launcher is not None and launcher.name == "srun" and "SLURM_STEP_NODELIST" in environ:
        counts = "SLURM_STEP_TASKS_PER_NODE"
        return Allocation("Slurm", _slurm(environ, "SLURM_STEP_NODELIST", counts, "SLURM_GPUS_ON_NODE"))
    if "SLURM_JOB_NODELIST" in environ:
        counts = "SLURM_TASKS_PER_NODE" if "SLURM_TASKS_PER_NODE" in environ else "SLURM_JOB_CPUS_PER_NODE"
        return Allocation("Slurm", _slurm(environ, "SLURM_JOB_NODELIST", counts, "SLURM_GPUS_ON_NODE"))
    if "PBS_NODEFILE" in environ:
        return Allocation("PBS", _repeated(_lines(environ, "PBS_NODEFILE")))
    if "LSB_MCPU_HOSTS" in environ:
        return Allocation("LSF", _without_launch_node(_lsf(environ["LSB_MCPU_HOSTS"])))
    if "LSB_HOSTS" in environ:
        return Allocation("LSF", _without_launch_node(_repeated(environ["LSB_HOSTS"].split())))
    if "LSB_DJOB_RANKFILE" in environ:
        names = [re.sub(r"^rank [0-9]+=", "", line).split()[0] for line in _lines(environ, "LSB_DJOB_RANKFILE")]
        return Allocation("LSF", _without_launch_node(_repeated(names)))
    return None


def _slurm(environ: Mapping[str, str], nodes: str, counts: str, gpus: str | None) -> tuple[Host, ...]:
    try:
        names = hostlist.expand(_required(environ, nodes))
    except ValueError as error:
        raise _unreadable(environ, nodes, str(error)) from None
    slots: list[int] = []
    for part in _required(environ, counts).split(","):  # "2(x3),1" = 2, 2, 2, 1
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        if match is None:
            raise _unreadable(environ, counts, f"{part!r} is not a count like 2 or 2(x3)")
        slots += [int(match[1])] * int(match[2] or 1)
    if len(names) != len(slots):
        raise _unreadable(environ, counts, f"it speaks of {len(slots)} hosts, but {nodes}={environ[nodes]!r} of {len(names)}")
    # Slurm tells the GPUs of the own node only; the others are taken to be like it, unless the table's [[hosts]] says more.
    per_node = environ.get(gpus, "") if gpus else ""
    return tuple(Host(name, n, int(per_node) if per_node.isdecimal() else None) for name, n in zip(names, slots, strict=True))


def _lsf(text: str) -> tuple[Host, ...]:
    words = text.split()
    if len(words) % 2 or not all(word.isdecimal() for word in words[1::2]):
        raise _unreadable({"LSB_MCPU_HOSTS": text}, "LSB_MCPU_HOSTS", "expected host and count in turn, like 'h1 4 h2 4'")
    return tuple(Host(name, int(count)) for name, count in zip(words[::2], words[1::2], strict=True))


def _without_launch_node(hosts: tuple[Host, ...]) -> tuple[Host, ...]:
    """LSF on CORAL-like machines lists the node of the batch script first, though no rank can run there."""
    return hosts[1:] if len(hosts) > 1 and re.match("batch|launch", hosts[0].name) else hosts


def _repeated(names: list[str]) -> tuple[Host, ...]:
    """One host for each name, with as many slots as it is listed; Counter keeps the order of the first listing."""
    return tuple(Host(name, slots) for name, slots in Counter(names).items())


def _lines(environ: Mapping[str, str], variable: str) -> list[str]:
    try:
        text = Path(environ[variable]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(environ, variable, str(error)) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _required(environ: Mapping[str, str], variable: str) -> str:
    if variable not in environ:
        raise InvalidArgumentError(f"the scheduler's environment has no {variable}.", hint=_MEND)
    return environ[variable]


def _count(environ: Mapping[str, str], variable: str) -> int:
    text = _required(environ, variable)
    if not text.isdecimal():
        raise _unreadable(environ, variable, "expected a number that is not negative")
    return int(text)


_MEND = "correct or unset the variable, or list the hosts under [[hosts]] in the rank table."


def _unreadable(environ: Mapping[str, str], variable: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"environment variable {variable}={environ[variable]!r} can't be read: {reason}.", hint=_MEND)
