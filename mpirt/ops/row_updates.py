"""Rows of an array set or changed by number, where numbers may repeat: what numpy's indexing and ``ufunc.at`` do, on a GPU too.

A GPU writes in no order, and cupy's atomic updates know few types. Guarantee: the last of the rows that are set under one number
stays, every row that is added (or compared) takes part, and all but sums of floats comes out to the bit, on all devices. Floats
are added on a GPU in no fixed order.
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
    if ufunc == "subtract":
        ufunc, updates = "add", xp.negative(updates)
    changed = _atomic(xp, ufunc, target)
    getattr(xp, ufunc).at(changed, xp.asarray(rows), _atomic(xp, ufunc, xp.ascontiguousarray(updates)))
    if changed is not target:
        target[...] = _of_atomic(xp, ufunc, changed, target.dtype)


def _atomic(xp: Any, ufunc: str, x: Array) -> Array:
    """``x`` in a type that ``ufunc`` of cupy can change atomically and that holds it exactly; ``x`` itself where it is one.

    Sums of integers wrap alike with and without a sign. Floats and signed 64-bit integers are compared as unsigned integers of
    the same order: cupy compares float64 in float32, takes tiny float32 for zero, and knows no signed 64-bit ones.
    """
    if x.dtype.kind == "c":
        return x[..., None].view(f"f{x.dtype.itemsize // 2}")
    dtype = _wide(x.dtype)
    x = x.astype(dtype, copy=False)
    if dtype == np.int64 or (dtype.kind == "f" and ufunc != "add"):
        bits = x.view(f"u{dtype.itemsize}")
        sign = _sign(bits)
        if dtype.kind == "f":
            return bits ^ xp.where(bits >= sign, ~bits.dtype.type(0), sign)
        return bits if ufunc == "add" else bits ^ sign
    return x


def _of_atomic(xp: Any, ufunc: str, x: Array, dtype: np.dtype[Any]) -> Array:
    """What `_atomic` made ``x`` of."""
    if dtype.kind == "c":
        return x.view(dtype)[..., 0]
    wide = _wide(dtype)
    if x.dtype != wide and ufunc != "add":
        sign = _sign(x)
        x = x ^ (xp.where(x >= sign, sign, ~x.dtype.type(0)) if dtype.kind == "f" else sign)
    return x.view(wide).astype(dtype, copy=False)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.itemsize >= 4 else np.dtype(f"{dtype.kind}4")


def _sign(bits: Array) -> Any:
    return bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
