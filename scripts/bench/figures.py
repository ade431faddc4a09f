"""Samples of a benchmark: medians with their spread, ratios that compare like with like, and how far others disturbed them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Measured:
    """What one case gave: the samples of each round. A round of one case ran next to the same round of the others."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of all samples."""
        return float(np.median(np.concatenate(self.rounds)))

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """``median (p10 - p90)`` of all samples, each times ``scale``."""
        return spread(np.concatenate(self.rounds) * scale, digits)

    def ratios_to(self, other: Measured) -> list[float]:
        """For each round, this case's median divided by the other's."""
        return [float(np.median(a) / np.median(b)) for a, b in zip(self.rounds, other.rounds, strict=True)]


def spread(samples: npt.ArrayLike, digits: int) -> str:
    """``median (p10 - p90)``."""
    low, middle, high = np.percentile(samples, (10, 50, 90))
    return f"{middle:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"


def timed(call: Callable[[], object], count: int, warmup: int = 0) -> list[float]:
    """Seconds of each of ``count`` calls."""
    for _ in range(warmup):
        call()
    clock, samples = time.perf_counter, []
    for _ in range(count):
        start = clock()
        call()
        samples.append(clock() - start)
    return samples


def throughput(call: Callable[[int], object], threads: int, seconds: float) -> tuple[int, float]:
    """How often ``threads`` threads made ``call(number of the thread)``, and the seconds it took them; raises what one raised."""
    counts, failures, started, over = [0] * threads, [], threading.Event(), threading.Event()

    def work(number: int) -> None:
        started.wait()
        count = 0
        try:
            while not over.is_set():
                call(number)
                count += 1
        except Exception as error:
            failures.append(error)
        counts[number] = count

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    start = time.perf_counter()
    started.set()
    time.sleep(seconds)
    over.set()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(counts), time.perf_counter() - start


class Disturbance:
    """Share of the cores that processes other than ``ours`` used while this was entered. Linux only; elsewhere nan."""

    def __init__(self, ours: Sequence[int]) -> None:
        self._ours = ours
        self._foreign = 0
        self._seconds = 0.0
        self._start = (0, 0.0)

    def __enter__(self) -> Disturbance:
        self._start = self._foreign_ticks(), time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self._foreign += self._foreign_ticks() - self._start[0]
        self._seconds += time.perf_counter() - self._start[1]

    @property
    def share(self) -> float:
        """From 0 to 1, of all cores."""
        if not self._seconds:
            return float("nan")
        return max(0, self._foreign) / (self._seconds * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1))

    def _foreign_ticks(self) -> int:
        try:
            with open("/proc/stat") as lines:
                user, nice, system, _, _, interrupts, soft, stolen = map(int, lines.readline().split()[1:9])
            own = 0
            for pid in self._ours:
                with open(f"/proc/{pid}/stat") as line:
                    own += sum(map(int, line.read().rpartition(")")[2].split()[11:13]))
        except OSError:
            return 0
        return user + nice + system + interrupts + soft + stolen - own
