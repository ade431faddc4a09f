"""Operations that change some rows, or some entries, of a variable.

Rows are named by the first index (``scatter_*``) or by several first indices (``scatter_nd_*``). A row that is named
twice takes part twice; for an update the last one stays. An index out of range fails the step and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpirt import errors
from mpirt.dtypes import ALL, FLOATING, INDEX, NUMERIC, DType, int32, int64
from mpirt.graph.graph import Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, compatible, text
from mpirt.ops.apply import apply_op
from mpirt.ops.row_updates import change_rows, set_rows
from mpirt.ops.state_ops import VariableCell

__all__ = [
    "scatter_add", "scatter_div", "scatter_max", "scatter_min", "scatter_mul", "scatter_nd_add", "scatter_nd_sub",
    "scatter_nd_update", "scatter_sub", "scatter_update",
]  # fmt: skip

_ORDERED = (*FLOATING, int32, int64)  # what TensorFlow's ScatterMin and ScatterMax take


def scatter_update(ref: Any, indices: Any, updates: Any, use_locking: bool = True, name: str | None = None) -> Tensor:
    """Set the rows ``indices`` of the variable ``ref`` to ``updates``.

    Parameters
    ----------
    ref : Variable or its reference tensor, shape [N, ...]
    indices : int32 or int64 tensor of any shape
    updates : tensor of shape ``indices.shape + ref.shape[1:]``, or a scalar
    use_locking : accepted for TensorFlow's sake; a change always excludes other changes and readers

    Returns
    -------
    Tensor
        ``ref``, for those who want the value after the change.

    Raises
    ------
    InvalidArgumentError
        In the step, if an index is outside [0, N).
    """
    return _scatter("ScatterUpdate", ref, indices, updates, use_locking, name)


def scatter_add(ref: Any, indices: Any, updates: Any, use_locking: bool = False, name: str | None = None) -> Tensor:
    """Add ``updates`` to the rows ``indices`` of the variable ``ref``; see ``scatter_update``."""
    return _scatter("ScatterAdd", ref, indices, updates, use_locking, name)


def scatter_sub(ref: Any, indices: Any, updates: Any, use_locking: bool = False, name: str | None = None) -> Tensor:
    """Subtract ``updates`` from the rows ``indices`` of the variable ``ref``; see ``scatter_update``."""
    return _scatter("ScatterSub", ref, indices, updates, use_locking, name)


def scatter_mul(ref: Any, indices: Any, updates: Any, use_locking: bool = False, name: str | None = None) -> Tensor:
    """Multiply the rows ``indices`` of the variable ``ref`` by ``updates``; see ``scatter_update``."""
    return _scatter("ScatterMul", ref, indices, updates, use_locking, name)


def scatter_div(ref: Any, indices: Any, updates: Any, use_locking: bool = False, name: str | None = None) -> Tensor:
    """Divide the rows ``indices`` of the variable ``ref`` by ``updates``; see ``scatter_update``."""
    return _scatter("ScatterDiv", ref, indices, updates, use_locking, name)


def scatter_min(ref: Any, indices: Any, updates: Any, use_locking: bool = False, name: str | None = None) -> Tensor:
    """Lower the rows ``indices`` of the variable ``ref`` to ``updates`` where these are smaller; see ``scatter_update``."""
    return _scatter("ScatterMin", ref, indices, updates, use_locking, name)


def scatter_max(ref: Any, indices: Any, updates: Any, use_locking: bool = False, name: str | None = None) -> Tensor:
    """Raise the rows ``indices`` of the variable ``ref`` to ``updates`` where these are larger; see ``scatter_update``."""
    return _scatter("ScatterMax", ref, indices, updates, use_locking, name)


def _scatter(op_type: str, ref: Any, indices: Any, updates: Any, use_locking: bool, name: str | None) -> Tensor:
    ref_out: Tensor = apply_op(op_type, ref, indices, updates, name=name, use_locking=bool(use_locking))
    return ref_out


# ------------------------------------------------------------------------------------------------ op types and shapes


def _ref_shape(ctx: ShapeContext) -> list[Shape]:
    shape, indices, updates = ctx.shape("ref"), ctx.shape("indices"), ctx.shape("updates")
    _check_static(shape, indices, updates, None if shape is None else shape[1:])
    return [shape]


def _resource_shape(ctx: ShapeContext) -> list[Shape]:
    return []


def _check_static(shape: Shape, indices: Shape, updates: Shape, inner: Shape) -> None:
    if shape == ():
        raise ValueError("a scalar has no rows to change")
    if indices is None or inner is None or updates == ():
        return
    if not compatible(updates, indices + inner):
        raise ValueError(f"updates of shape {text(updates)} don't fit {text(indices + inner)}: indices' shape and a row's")


_HOW = ("Update", "Add", "Sub", "Mul", "Div", "Min", "Max")

for _how in _HOW:
    _types = ALL if _how == "Update" else _ORDERED if _how in ("Min", "Max") else NUMERIC
    register_op(
        f"Scatter{_how}",
        inputs=["ref: Ref(T)", "indices: Tindices", "updates: T"],
        outputs=["output_ref: Ref(T)"],
        attrs={"use_locking": ("bool", _how == "Update")},
        T=_types,
        Tindices=INDEX,
    )(_ref_shape)
    register_op(
        f"ResourceScatter{_how}",
        inputs=["resource: resource", "indices: Tindices", "updates: dtype"],
        stateful=True,
        dtype=ALL if _how == "Update" else NUMERIC,
        Tindices=INDEX,
    )(_resource_shape)


# --------------------------------------------------------------------------------------------------------- kernels


def check_indices(ctx: KernelContext, indices: Any, rows: int) -> None:
    """InvalidArgumentError if one of ``indices`` (in host memory) is outside [0, rows)."""
    bad = (indices < 0) | (indices >= rows)
    if bad.any():
        at = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(bad)))
        where = list(at) if indices.ndim else ""
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): indices{where} = {int(np.atleast_1d(indices)[at])} is not in [0, {rows}).",
            op=ctx.op,
        )


def update_rows(xp: Any, target: Any, rows: Any, updates: Any, how: str) -> None:
    """Change ``target[rows]`` in place.

    Parameters
    ----------
    xp : array namespace of ``target`` and ``updates``
    target : array, shape [N, ...]
    rows : numpy integers, shape [n], in [0, N), may repeat
    updates : array, shape [n, ...]
    how : "Update", "Add", "Sub", "Mul", "Div", "Min" or "Max"
    """
    if not rows.size:
        return
    if how == "Update":
        set_rows(xp, target, rows, updates)
        return
    if xp is not np:  # a GPU has no atomic product, so Mul and Div have no kernel there
        change_rows(xp, _UFUNC[how], target, rows, updates)
        return
    if how == "Div" and target.dtype.kind in "iu":
        for row, update in zip(rows.tolist(), updates, strict=True):
            target[row] = _truncated_quotient(target[row], update)
        return
    # Repeated rows are combined first: ten times as fast as numpy's ``ufunc.at`` for rows of some length.
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    if len(starts) < len(rows):
        combine = getattr(np, _COMBINE.get(how) or _UFUNC[how])
        rows, updates = ordered[starts], combine.reduceat(updates[order], starts, axis=0, dtype=target.dtype)
    target[rows] = getattr(np, _UFUNC[how])(target[rows], updates)


_UFUNC = {"Add": "add", "Sub": "subtract", "Mul": "multiply", "Div": "divide", "Min": "minimum", "Max": "maximum"}
_COMBINE = {"Sub": "add", "Div": "multiply"}


def _truncated_quotient(a: Any, b: Any) -> Any:
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(quotient.dtype)


def _change(ctx: KernelContext, cell: VariableCell, indices: Any, updates: Any, how: str) -> None:
    with cell.lock:
        shape = cell.read().shape
        check_indices(ctx, indices, shape[0])
        _change_flat(ctx, cell, indices.reshape(-1), indices.shape, updates, shape[1:], how)


def _change_flat(
    ctx: KernelContext, cell: VariableCell, rows: Any, lead: tuple[int, ...], updates: Any, inner: tuple[int, ...], how: str
) -> None:
    """Change the rows (entries of shape ``inner``) of the cell; ``updates`` must be a scalar or of shape ``lead + inner``."""
    xp = ctx.xp
    if updates.shape not in ((), lead + inner):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): updates of shape {text(updates.shape)} don't fit {text(lead + inner)}:"
            f" indices' shape and a row's of the variable {cell.name!r}.",
            op=ctx.op,
        )
    if how == "Div" and cell.dtype.is_integer and not updates.all():
        raise errors.InvalidArgumentError(f"{ctx.op.name!r} ({ctx.op.type}): integer division by zero.", op=ctx.op)
    flat = xp.broadcast_to(updates, lead + inner).reshape((len(rows), *inner))
    target = cell.writable()
    # Not -1: it can't be told for rows of no entries.
    number = int(np.prod(target.shape[: target.ndim - len(inner)], dtype=np.int64))
    update_rows(xp, target.reshape((number, *inner)), rows, flat, how)


def _ref_kernel(how: str) -> Callable[..., VariableCell]:
    def kernel(ctx: KernelContext, ref: VariableCell, indices: Any, updates: Any) -> VariableCell:
        _change(ctx, ref, indices, updates, how)
        return ref

    return kernel


def _resource_kernel(how: str) -> Callable[..., None]:
    def kernel(ctx: KernelContext, cell: VariableCell, indices: Any, updates: Any) -> None:
        _change(ctx, cell, indices, updates, how)

    return kernel


for _how in _HOW:
    _devices = ("CPU",) if _how in ("Mul", "Div") else ("CPU", "GPU")
    register_kernel(f"Scatter{_how}", devices=_devices, host=("indices",))(_ref_kernel(_how))
    register_kernel(f"ResourceScatter{_how}", devices=_devices, host=("indices",))(_resource_kernel(_how))
    no_gradient(f"Scatter{_how}", f"ResourceScatter{_how}", reason="a change of state is not a function of its inputs")


# ------------------------------------------------------------------------------------------------------- scatter_nd


def scatter_nd_update(ref: Any, indices: Any, updates: Any, use_locking: bool = True, name: str | None = None) -> Tensor:
    """Set entries or slices of the variable ``ref``.

    Parameters
    ----------
    ref : Variable or its reference tensor, shape [N1, ..., Nk, ...]
    indices : int32 or int64 tensor, shape [..., k]: the first k indices of each slice
    updates : tensor of shape ``indices.shape[:-1] + ref.shape[k:]``

    Returns
    -------
    Tensor
        ``ref``, for those who want the value after the change.

    Raises
    ------
    InvalidArgumentError
        In the step, if an index is out of range.
    """
    return _scatter("ScatterNdUpdate", ref, indices, updates, use_locking, name)


def scatter_nd_add(ref: Any, indices: Any, updates: Any, use_locking: bool = False, name: str | None = None) -> Tensor:
    """Add ``updates`` to entries or slices of the variable ``ref``; see ``scatter_nd_update``."""
    return _scatter("ScatterNdAdd", ref, indices, updates, use_locking, name)


def scatter_nd_sub(ref: Any, indices: Any, updates: Any, use_locking: bool = False, name: str | None = None) -> Tensor:
    """Subtract ``updates`` from entries or slices of the variable ``ref``; see ``scatter_nd_update``."""
    return _scatter("ScatterNdSub", ref, indices, updates, use_locking, name)


def _nd_ref_shape(ctx: ShapeContext) -> list[Shape]:
    shape, indices, updates = ctx.shape("ref"), ctx.shape("indices"), ctx.shape("updates")
    if shape is not None and indices and indices[-1] is not None:
        if indices[-1] > len(shape):
            raise ValueError(f"an index of {indices[-1]} numbers is too long for a variable of shape {text(shape)}")
        _check_static(shape, indices[:-1], updates, shape[indices[-1] :])
    return [shape]


def flat_index(ctx: KernelContext, indices: Any, shape: tuple[int, ...]) -> Any:
    """Row numbers, in an array of ``shape`` with its first k dimensions made one, of the k-long ``indices``.

    Raises
    ------
    InvalidArgumentError
        If an index is out of range or longer than ``shape``.
    """
    if not indices.ndim or indices.shape[-1] > len(shape):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): indices of shape {text(indices.shape)} don't fit a variable"
            f" of shape {text(shape)}.",
            op=ctx.op,
        )
    depth = indices.shape[-1]
    entries = indices.reshape(-1, depth) if depth else np.zeros((int(np.prod(indices.shape[:-1])), 0), indices.dtype)
    bad = ((entries < 0) | (entries >= np.array(shape[:depth], np.int64))).any(axis=1)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r} ({ctx.op.type}): index {entries[at].tolist()} (number {at}) is outside"
            f" a variable of shape {text(shape)}.",
            op=ctx.op,
        )
    if not depth:
        return np.zeros(len(entries), np.int64)
    return np.ravel_multi_index(tuple(entries.T), shape[:depth]) if len(entries) else np.zeros(0, np.int64)


def _change_nd(ctx: KernelContext, cell: VariableCell, indices: Any, updates: Any, how: str) -> None:
    with cell.lock:
        shape = cell.read().shape
        rows = flat_index(ctx, indices, shape)
        _change_flat(ctx, cell, rows, indices.shape[:-1], updates, shape[indices.shape[-1] :], how)


def _nd_ref_kernel(how: str) -> Callable[..., VariableCell]:
    def kernel(ctx: KernelContext, ref: VariableCell, indices: Any, updates: Any) -> VariableCell:
        _change_nd(ctx, ref, indices, updates, how)
        return ref

    return kernel


def _nd_resource_kernel(how: str) -> Callable[..., None]:
    def kernel(ctx: KernelContext, cell: VariableCell, indices: Any, updates: Any) -> None:
        _change_nd(ctx, cell, indices, updates, how)

    return kernel


for _how in ("Update", "Add", "Sub"):
    _nd_types: tuple[DType, ...] = ALL if _how == "Update" else NUMERIC
    register_op(
        f"ScatterNd{_how}",
        inputs=["ref: Ref(T)", "indices: Tindices", "updates: T"],
        outputs=["output_ref: Ref(T)"],
        attrs={"use_locking": ("bool", _how == "Update"), "bad_indices_policy": ("string", "")},
        T=_nd_types,
        Tindices=INDEX,
    )(_nd_ref_shape)
    register_op(
        f"ResourceScatterNd{_how}",
        inputs=["ref: resource", "indices: Tindices", "updates: T"],
        attrs={"use_locking": ("bool", True), "bad_indices_policy": ("string", "")},
        stateful=True,
        T=ALL,
        Tindices=INDEX,
    )(_resource_shape)
    register_kernel(f"ScatterNd{_how}", host=("indices",))(_nd_ref_kernel(_how))
    register_kernel(f"ResourceScatterNd{_how}", host=("indices",))(_nd_resource_kernel(_how))
    no_gradient(f"ScatterNd{_how}", f"ResourceScatterNd{_how}", reason="a change of state is not a function of its inputs")
