"""Which ranks of this host are still there.

A rank that is killed, or leaves by ``os._exit``, tells nobody, and MPI gives no error for it either. Ranks of one host can see
it from the process table, 1-5 ms after the fact. Of ranks on other hosts nothing is known here.

Guarantee: "gone" is never said of a process that lives, or of another one that has its id now: an open file
``/proc/PID/stat`` stays with the process it was opened for (read after its end: ESRCH), and before it is trusted, host, boot
and start time must agree with what the rank said of itself (ranks in other containers may have the same process ids).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_LOOK_EVERY_S = 0.01
_RECORD = np.dtype([("host", "S256"), ("boot", "S64"), ("pid", "<i8"), ("start", "<i8")])


@dataclass(frozen=True, slots=True)
class Identity:
    """A process among all those of a cluster; ``start`` is its start time in clock ticks since the boot, 0 = not known."""

    host: str
    boot: str
    pid: int
    start: int

    @classmethod
    def of_this_process(cls) -> Identity:
        """The process that asks."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            start = _start(Path("/proc/self/stat").read_bytes())
        except OSError:  # not Linux
            boot, start = "", 0
        return cls(socket.gethostname(), boot, os.getpid(), start)

    @staticmethod
    def empty_records(count: int) -> npt.NDArray[Any]:
        """Room for ``count`` identities in the form in which ranks exchange them."""
        return np.zeros(count, _RECORD)

    def to_record(self) -> npt.NDArray[Any]:
        """One record; the host name is cut at 256 bytes."""
        return np.array([(self.host.encode(), self.boot.encode(), self.pid, self.start)], _RECORD)

    @classmethod
    def from_record(cls, record: Any) -> Identity:
        """What ``to_record`` wrote."""
        host, boot, pid, start = record
        return cls(bytes(host).decode(errors="replace"), bytes(boot).decode(errors="replace"), int(pid), int(start))


class PeerWatch:
    """The processes of all ranks, as far as this rank can see them. Safe from any thread."""

    def __init__(self, rank: int, identities: Sequence[Identity]) -> None:
        own = identities[rank]
        self._stat: dict[int, int] = {}  # rank -> open file /proc/PID/stat
        self._gone: set[int] = set()
        self._next_look = 0.0
        for other, identity in enumerate(identities):
            if other == rank or not own.start or (identity.host, identity.boot) != (own.host, own.boot):
                continue
            try:
                stat = os.open(f"/proc/{identity.pid}/stat", os.O_RDONLY)
            except OSError:
                continue
            if _start(os.pread(stat, 1024, 0)) == identity.start:
                self._stat[other] = stat
            else:
                os.close(stat)

    def alive(self, rank: int) -> bool:
        """False if the process of ``rank`` is gone or a zombie; True if it runs or can't be seen. About 3 us."""
        stat = self._stat.get(rank)
        if stat is None:
            return True
        try:
            return _fields(os.pread(stat, 1024, 0))[0] not in (b"Z", b"X")
        except ProcessLookupError:
            return False

    def check(self, ranks: Iterable[int]) -> int | None:
        """A rank of ``ranks`` that is gone, or None; looks at most every 10 ms, at all (so threads don't starve each other)."""
        now = time.perf_counter()
        if now >= self._next_look:
            self._next_look = now + _LOOK_EVERY_S
            self._gone = {rank for rank in list(self._stat) if not self.alive(rank)}
        return next((rank for rank in ranks if rank in self._gone), None) if self._gone else None

    def close(self) -> None:
        """Look no more: nothing is known of any rank from now on."""
        while self._stat:
            os.close(self._stat.popitem()[1])


def _fields(stat: bytes) -> list[bytes]:
    """The fields after the command, which may contain blanks and brackets; proc(5): state is 0, start time is 19."""
    return stat.rpartition(b")")[2].split()


def _start(stat: bytes) -> int:
    return int(_fields(stat)[19])
