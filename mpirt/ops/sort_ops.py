"""Sorting along a dimension, made of ``top_k``: gradients follow the elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt.graph.graph import Tensor
from mpirt.graph.shapes import normalize_axis
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.array_ops import shape, transpose
from mpirt.ops.slice_ops import strided_slice
from mpirt.ops.topk_ops import top_k

__all__ = ["argsort", "sort"]


def sort(values: Any, axis: int = -1, direction: str = "ASCENDING", name: str | None = None) -> Tensor:
    """``values`` sorted along dimension ``axis``.

    Parameters
    ----------
    values : Tensor of real numbers with at least one dimension
    axis : dimension to sort
    direction : "ASCENDING" or "DESCENDING"
    name : name of the last operation
    """
    return _sorted(values, axis, direction, False, name)


def argsort(values: Any, axis: int = -1, direction: str = "ASCENDING", stable: bool = False, name: str | None = None) -> Tensor:
    """The positions (int32) of the elements of ``values`` in sorted order; equal elements keep theirs, ``stable`` or not."""
    return _sorted(values, axis, direction, True, name)


def _sorted(values: Any, axis: int, direction: str, positions: bool, name: str | None) -> Tensor:
    values = convert_to_tensor(values)
    if direction not in ("ASCENDING", "DESCENDING"):
        raise ValueError(f"direction must be 'ASCENDING' or 'DESCENDING', not {direction!r}.")
    if not isinstance(axis, int | np.integer):
        raise ValueError(f"axis must be a constant int, not {axis!r}.")
    if values.static_shape is None:
        if axis != -1:
            raise ValueError("sort along another dimension than the last needs values of a known number of dimensions.")
        at = ndim = -1
    else:
        ndim = len(values.static_shape)
        at = normalize_axis(int(axis), ndim)
    moved = at not in (-1, ndim - 1)
    swap = [*np.arange(at).tolist(), ndim - 1, *np.arange(at + 1, ndim - 1).tolist(), at] if moved else []
    if moved:
        values = transpose(values, swap)
    if direction == "ASCENDING":
        values = _reversed_order(values)
    known = values.static_shape
    count: Any = known[-1] if known is not None else None
    if count is None:
        count = strided_slice(shape(values), [-1], [0], [1], shrink_axis_mask=1)
    found, indices = top_k(values, count)
    out = indices if positions else _reversed_order(found) if direction == "ASCENDING" else found
    if moved:
        out = transpose(out, swap)
    if name:
        out = apply_op("Identity", out, name=name)
    return out


def _reversed_order(values: Tensor) -> Tensor:
    """Values whose descending order is the ascending order of ``values``; its own inverse.

    Integers need more than a sign: the smallest one has no negative, unsigned ones have none at all.
    """
    dtype = values.dtype.base_dtype
    out: Tensor
    if dtype.is_integer:
        top = np.array(dtype.max if dtype.is_unsigned else -1, dtype.np_dtype)
        out = apply_op("Sub", top, values)
    else:
        out = apply_op("Neg", values)
    return out
