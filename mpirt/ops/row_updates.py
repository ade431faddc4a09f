"""Rows of an array set or changed by number, where numbers may repeat: what numpy's indexing and ``ufunc.at`` do, on a GPU too.

A GPU writes in no order, and its atomic updates know few types. Guarantee: the last of the rows that are set under one number
stays, every row that is added (or compared) takes part, and integers come out to the bit, on all devices. Sums of floats are
added on a GPU in no fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def set_rows(xp: Any, target: Array, rows: Array, updates: Array) -> None:
    """``target[rows] = updates``; the last of equal ``rows`` stays.

    Parameters
    ----------
    xp : array namespace of ``target`` and ``updates``; ``rows`` may also be in host memory
    target : array, shape [N, ...]
    rows : integers, shape [n], in [0, N)
    updates : array, shape [n, ...]
    """
    if xp is not np:
        space = np if isinstance(rows, np.ndarray) else xp
        last = len(rows) - 1 - space.unique(rows[::-1], return_index=True)[1]
        if len(last) < len(rows):
            rows, updates = rows[last], updates[xp.asarray(last)]
        rows = xp.asarray(rows)
    target[rows] = updates


def change_rows(xp: Any, ufunc: str, target: Array, rows: Array, updates: Array) -> None:
    """``xp.<ufunc>.at(target, rows, updates)``; see ``set_rows``.

    Parameters
    ----------
    ufunc : "add", "subtract", "maximum" or "minimum"; on a CPU any
    """
    if xp is np:
        getattr(np, ufunc).at(target, rows, updates)
        return
    rows = xp.asarray(rows)
    if ufunc == "subtract":
        ufunc, updates = "add", xp.negative(updates)
    wide, bias = _atomic_type(ufunc, target.dtype)
    if wide == target.dtype:
        getattr(xp, ufunc).at(target, rows, updates)
    elif bias is not None:
        changed = target.view(wide) ^ bias
        getattr(xp, ufunc).at(changed, rows, xp.ascontiguousarray(updates).view(wide) ^ bias)
        target[...] = (changed ^ bias).view(target.dtype)
    else:
        changed = target.astype(wide)
        getattr(xp, ufunc).at(changed, rows, updates.astype(wide))
        target[...] = changed.astype(target.dtype)


_ATOMIC = {"add": "iIQefdFD", "maximum": "iIQfd", "minimum": "iIQfd"}  # type codes that cupy's ``at`` takes


def _atomic_type(ufunc: str, dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.uint64 | None]:
    """The type that rows of type ``dtype`` are changed in, and what to flip in their bits if that is another view of them.

    Sums wrap alike with and without a sign; with the sign bit flipped, signed numbers keep their order as unsigned ones.
    """
    if dtype in [np.dtype(code) for code in _ATOMIC[ufunc]]:
        return dtype, None
    if dtype == np.int64:
        return np.dtype(np.uint64), np.uint64(0 if ufunc == "add" else 1 << 63)
    return np.dtype({"i": np.int32, "u": np.uint32, "f": np.float32}[dtype.kind]), None
