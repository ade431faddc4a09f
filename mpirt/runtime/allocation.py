"""How this process's C library treats the memory of arrays that are freed.

Every step makes arrays of the same sizes and frees them. Left alone, glibc returns large ones to the kernel, which zeroes
their pages anew in the next step: a third of the time of a network with matrices of 4 MB. Here such memory stays with the
process. A setting of the process like the number of BLAS threads; one that the user made in the environment is kept.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_NBYTES = 32 << 20  # of one array; the most that glibc lets its heap hold in one piece
KEPT_NBYTES = 1 << 30  # free at the end of a heap before some of it is returned
_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Let arrays of up to ``LARGEST_NBYTES`` come from memory that the process keeps when they are freed.

    Returns
    -------
    Whether that is so now: not with another C library than glibc, nor where the user's environment sets its allocator
    """
    if any(name in os.environ for name in _VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_THRESHOLD, LARGEST_NBYTES), (_M_TRIM_THRESHOLD, KEPT_NBYTES))
    return all(library.mallopt(name, value) == 1 for name, value in settings)
