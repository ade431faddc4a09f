"""BLAS threads of this process: its cores, shared by all that compute on them at the same time.

More BLAS threads than cores are not a little slower but twenty times: each product waits for all of its threads, and those for a core.
Who shares: the ranks of a host, unless each is bound to cores of its own, and the servers of a process, each of which may compute for a
client in a thread of its own. The user's setting stays: ``MPIRT_THREADS``, the libraries' own variables, and what the script itself
has set lower meanwhile.
"""

from __future__ import annotations

import os

from threadpoolctl import ThreadpoolController

from mpirt import config

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class BlasThreads:
    """How many threads the BLAS libraries of this process use.

    Parameters
    ----------
    neighbours : ranks of this host, this one among them
    """

    def __init__(self, neighbours: int) -> None:
        self._neighbours = neighbours
        self._last = 0  # what was set last; 0 - nothing yet

    def share(self, servers: int) -> None:
        """Share the cores anew: ``servers`` run in this process."""
        wanted = config.get("MPIRT_THREADS")
        if not wanted:
            if any(os.environ.get(name) for name in _THREAD_VARIABLES):
                return
            cores, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
            sharers = self._neighbours if cores == all_cores else 1  # bound ranks have their cores to themselves
            wanted = max(1, cores // (sharers * max(1, servers)))
        if wanted == self._last:
            return
        for library in ThreadpoolController().lib_controllers:
            if not self._last or library.num_threads == self._last or library.num_threads > wanted:
                library.set_num_threads(wanted)
        self._last = wanted
