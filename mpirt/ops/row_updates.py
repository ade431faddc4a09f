"""Rows of an array set or changed by number, where numbers may repeat: what numpy's indexing and ``ufunc.at`` do, on a GPU too.

A GPU writes in no order, and cupy's atomic updates know few types. Guarantee: the last of the rows that are set under one number
stays, every row that is added (or compared) takes part, and all but sums of floats comes out to the bit, on all devices. Floats
are added on a GPU in no fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any

_SIGN, _ALL = np.uint64(1 << 63), np.uint64((1 << 64) - 1)


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
    if ufunc == "subtract":
        ufunc, updates = "add", xp.negative(updates)
    changed = _atomic(xp, ufunc, target)
    getattr(xp, ufunc).at(changed, xp.asarray(rows), _atomic(xp, ufunc, xp.ascontiguousarray(updates)))
    if changed is not target:
        target[...] = _of_atomic(xp, ufunc, changed, target.dtype)


def _atomic(xp: Any, ufunc: str, x: Array) -> Array:
    """``x`` in a type that ``ufunc`` of cupy can change atomically and that holds it exactly; ``x`` itself where it is one.

    Sums of integers wrap alike with and without a sign. 64-bit numbers are compared as unsigned integers of the same order:
    cupy knows no signed ones, and compares float64 in float32.
    """
    dtype = x.dtype
    if dtype.kind == "c":
        return x[..., None].view(f"f{dtype.itemsize // 2}")
    if dtype.itemsize == 8:
        if ufunc == "add":
            return x.view(np.uint64) if dtype == np.int64 else x
        if dtype.kind == "f":
            bits = x.view(np.uint64)
            return bits ^ xp.where(bits >= _SIGN, _ALL, _SIGN)
        return x.view(np.uint64) ^ _SIGN if dtype == np.int64 else x
    return x if dtype.itemsize == 4 else x.astype({"i": np.int32, "u": np.uint32, "f": np.float32}[dtype.kind])


def _of_atomic(xp: Any, ufunc: str, x: Array, dtype: np.dtype[Any]) -> Array:
    """What `_atomic` made ``x`` of."""
    if dtype.kind == "c":
        return x.view(dtype)[..., 0]
    if dtype.itemsize == 8:
        if ufunc != "add":
            x = x ^ (xp.where(x >= _SIGN, _SIGN, _ALL) if dtype.kind == "f" else _SIGN)
        return x.view(dtype)
    return x.astype(dtype)
