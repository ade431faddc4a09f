"""Diagonals and bands of matrices: the last two dimensions of a tensor.

A band of diagonals ``k = (lowest, highest)`` is stored as rows, the highest first. Shorter diagonals are padded on the side
that ``align`` says: "RIGHT_LEFT" aligns those above the main one to the right and those below to the left.
Neighbours: ``range_ops`` (``diag``, which treats all dimensions as one, and ``eye``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import errors
from mpirt.dtypes import ALL, INDEX, int64
from mpirt.graph.graph import Operation, Tensor
from mpirt.graph.op_def import KernelContext, ShapeContext, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, merge, text
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.array_ops import zeros_like

__all__ = ["matrix_band_part", "matrix_diag", "matrix_diag_part", "matrix_set_diag"]

_ALIGN: dict[str, Any] = {"align": ("string", "RIGHT_LEFT")}
_ALIGNMENTS = ("LEFT_RIGHT", "RIGHT_LEFT", "LEFT_LEFT", "RIGHT_RIGHT")
_V2_ALIGN = "LEFT_LEFT"  # what the ops had before they got the attribute


def _limits(k: Any) -> tuple[int, int]:
    """The lowest and highest diagonal of the input ``k``, one number or two."""
    numbers = np.asarray(k).reshape(-1).tolist()
    if len(numbers) not in (1, 2) or numbers[0] > numbers[-1]:
        raise ValueError(f"k must be one number, or two of which the first isn't larger, not {numbers}")
    return numbers[0], numbers[-1]


def _band(rows: int, cols: int, low: int, high: int, align: str) -> list[tuple[slice, Any, Any]]:
    """For each diagonal, the highest first: its place in a padded row, and the row and column numbers of its elements.

    Raises ValueError if a diagonal is outside the matrix.
    """
    if not (-rows < low <= high < cols or (low == high == 0)):
        raise ValueError(f"diagonals {low} to {high} are outside of a matrix of shape [{rows}, {cols}]")
    longest = _longest(rows, cols, low, high)
    above, below = align.split("_")
    out = []
    for d in range(high, low - 1, -1):
        length = min(rows + min(d, 0), cols - max(d, 0))
        start = 0 if (above if d > 0 else below) == "LEFT" else longest - length
        numbers = np.arange(length)
        out.append((slice(start, start + length), numbers - min(d, 0), numbers + max(d, 0)))
    return out


def _longest(rows: int, cols: int, low: int, high: int) -> int:
    return min(rows + min(high, 0), cols - max(low, 0))


def _check_align(ctx: ShapeContext) -> None:
    if "align" in ctx.attrs and ctx.attr("align") not in _ALIGNMENTS:
        raise ValueError(f"align must be one of {', '.join(_ALIGNMENTS)}, not {ctx.attr('align')!r}")


def _invalid(ctx: KernelContext, problem: Any) -> errors.InvalidArgumentError:
    return errors.InvalidArgumentError(f"{ctx.op.name!r}: {problem}.", op=ctx.op)


# -------------------------------------------------------------------------------------------------------- matrix_diag


def matrix_diag(
    diagonal: Any,
    name: str = "diag",
    k: Any = 0,
    num_rows: Any = -1,
    num_cols: Any = -1,
    padding_value: Any = 0,
    align: str = "RIGHT_LEFT",
) -> Tensor:
    """Matrices with the given diagonals.

    Parameters
    ----------
    diagonal : shape [..., n] for one diagonal, [..., number of diagonals, n] for a band
    name : name of the operation
    k : which diagonal, 0 the main one, positive above it; or the lowest and highest of a band
    num_rows, num_cols : size of the matrices, by default the smallest that holds the diagonals
    padding_value : what is elsewhere
    align : side of each row of ``diagonal`` that is used where a diagonal is shorter
    """
    diagonal = convert_to_tensor(diagonal)
    padding = convert_to_tensor(padding_value, diagonal.dtype.base_dtype)
    out: Tensor = apply_op("MatrixDiagV3", diagonal, k, num_rows, num_cols, padding, name=name, align=align)
    return out


@register_op("MatrixDiag", inputs=["diagonal: T"], outputs=["output: T"], T=ALL)
def _matrix_diag_v1_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.shape("diagonal")
    if known == ():
        raise ValueError("diagonal must have at least 1 dimension")
    return [None if known is None else (*known, known[-1])]


@register_op(
    "MatrixDiagV2",
    inputs=["diagonal: T", "k: int32", "num_rows: int32", "num_cols: int32", "padding_value: T"],
    outputs=["output: T"],
    T=ALL,
)
@register_op(
    "MatrixDiagV3",
    inputs=["diagonal: T", "k: int32", "num_rows: int32", "num_cols: int32", "padding_value: T"],
    outputs=["output: T"],
    attrs=_ALIGN,
    T=ALL,
)
def _matrix_diag_shape(ctx: ShapeContext) -> list[Shape]:
    _check_align(ctx)
    known, k, rows, cols = ctx.shape("diagonal"), ctx.const("k"), ctx.const("num_rows"), ctx.const("num_cols")
    if known == ():
        raise ValueError("diagonal must have at least 1 dimension")
    if known is None or k is None:
        return [None]
    low, high = _limits(k)
    head = known[: -1 if low == high else -2]
    if rows is None or cols is None or known[-1] is None:
        return [(*head, None, None)]
    return [(*head, *_matrix_size(known[-1], low, high, int(rows), int(cols)))]


def _matrix_size(length: int, low: int, high: int, rows: int, cols: int) -> tuple[int, int]:
    """Numbers of rows and columns; -1 means the smallest that will do, and if both are -1, a square."""
    least_rows, least_cols = length - min(high, 0), length + max(low, 0)
    if rows == -1 and cols == -1:
        rows = cols = max(least_rows, least_cols)
    rows, cols = least_rows if rows == -1 else rows, least_cols if cols == -1 else cols
    if rows < least_rows or cols < least_cols or (rows != least_rows and cols != least_cols):
        raise ValueError(f"diagonals {low} to {high} of length {length} don't fit a matrix of shape [{rows}, {cols}]")
    return rows, cols


def _diagonal_matrix(ctx: KernelContext, x: Any, k: Any, rows: int, cols: int, padding: Any, align: str) -> Any:
    try:
        low, high = _limits(k)
        single = low == high
        if x.ndim < (1 if single else 2) or (not single and x.shape[-2] != high - low + 1):
            raise ValueError(f"diagonal of shape {text(x.shape)} doesn't hold the diagonals {low} to {high}")
        rows, cols = _matrix_size(x.shape[-1], low, high, rows, cols)
        band = _band(rows, cols, low, high, align)
    except ValueError as error:
        raise _invalid(ctx, error) from None
    out = ctx.xp.full((*x.shape[: -1 if single else -2], rows, cols), padding, x.dtype)
    for i, (place, r, c) in enumerate(band):
        out[..., r, c] = x if single else x[..., i, place]
    return out


@register_kernel("MatrixDiag")
def _matrix_diag_v1(ctx: KernelContext, x: Any) -> Any:
    return _diagonal_matrix(ctx, x, 0, -1, -1, b"" if x.dtype == object else 0, _V2_ALIGN)


@register_kernel("MatrixDiagV2", host=("k", "num_rows", "num_cols"))
def _matrix_diag_v2(ctx: KernelContext, x: Any, k: Any, rows: Any, cols: Any, padding: Any) -> Any:
    return _diagonal_matrix(ctx, x, k, int(rows), int(cols), padding, _V2_ALIGN)


@register_kernel("MatrixDiagV3", host=("k", "num_rows", "num_cols"))
def _matrix_diag_v3(ctx: KernelContext, x: Any, k: Any, rows: Any, cols: Any, padding: Any, *, align: str) -> Any:
    return _diagonal_matrix(ctx, x, k, int(rows), int(cols), padding, align)


@register_gradient("MatrixDiag")
def _matrix_diag_v1_grad(op: Operation, dy: Any) -> list[Any]:
    return [matrix_diag_part(dy)]


@register_gradient("MatrixDiagV2", "MatrixDiagV3")
def _matrix_diag_grad(op: Operation, dy: Any) -> list[Any]:
    # The padding's value gets no gradient, as in TensorFlow.
    return [matrix_diag_part(dy, k=op.inputs[1], align=op.attrs.get("align", _V2_ALIGN)), None, None, None, None]


# --------------------------------------------------------------------------------------------------- matrix_diag_part


def matrix_diag_part(input: Any, name: str = "diag_part", k: Any = 0, padding_value: Any = 0, align: str = "RIGHT_LEFT") -> Tensor:
    """The diagonal ``k`` of matrices, of shape [..., n]; or a band of them, of shape [..., number of diagonals, longest]."""
    input = convert_to_tensor(input)
    padding = convert_to_tensor(padding_value, input.dtype.base_dtype)
    out: Tensor = apply_op("MatrixDiagPartV3", input, k, padding, name=name, align=align)
    return out


@register_op("MatrixDiagPart", inputs=["input: T"], outputs=["diagonal: T"], T=ALL)
def _matrix_diag_part_v1_shape(ctx: ShapeContext) -> list[Shape]:
    return _part_shape(ctx.shape("input"), 0, 0)


@register_op("MatrixDiagPartV2", inputs=["input: T", "k: int32", "padding_value: T"], outputs=["diagonal: T"], T=ALL)
@register_op("MatrixDiagPartV3", inputs=["input: T", "k: int32", "padding_value: T"], outputs=["diagonal: T"], attrs=_ALIGN, T=ALL)
def _matrix_diag_part_shape(ctx: ShapeContext) -> list[Shape]:
    _check_align(ctx)
    k = ctx.const("k")
    return [None] if k is None else _part_shape(ctx.shape("input"), *_limits(k))


def _part_shape(known: Shape, low: int, high: int) -> list[Shape]:
    if known is None:
        return [None]
    if len(known) < 2:
        raise ValueError(f"input must have at least 2 dimensions, but has shape {text(known)}")
    rows, cols = known[-2:]
    longest = None
    if rows is not None and cols is not None:
        _band(rows, cols, low, high, _V2_ALIGN)
        longest = _longest(rows, cols, low, high)
    return [(*known[:-2], longest) if low == high else (*known[:-2], high - low + 1, longest)]


def _diagonals(ctx: KernelContext, x: Any, k: Any, padding: Any, align: str) -> Any:
    try:
        low, high = _limits(k)
        if x.ndim < 2:
            raise ValueError(f"input must have at least 2 dimensions, but has shape {text(x.shape)}")
        rows, cols = x.shape[-2:]
        band = _band(rows, cols, low, high, align)
    except ValueError as error:
        raise _invalid(ctx, error) from None
    if low == high:
        return x[(..., *band[0][1:])]
    out = ctx.xp.full((*x.shape[:-2], len(band), _longest(rows, cols, low, high)), padding, x.dtype)
    for i, (place, r, c) in enumerate(band):
        out[..., i, place] = x[..., r, c]
    return out


@register_kernel("MatrixDiagPart")
def _matrix_diag_part_v1(ctx: KernelContext, x: Any) -> Any:
    return _diagonals(ctx, x, 0, 0, _V2_ALIGN)


@register_kernel("MatrixDiagPartV2", host=("k",))
def _matrix_diag_part_v2(ctx: KernelContext, x: Any, k: Any, padding: Any) -> Any:
    return _diagonals(ctx, x, k, padding, _V2_ALIGN)


@register_kernel("MatrixDiagPartV3", host=("k",))
def _matrix_diag_part_v3(ctx: KernelContext, x: Any, k: Any, padding: Any, *, align: str) -> Any:
    return _diagonals(ctx, x, k, padding, align)


@register_gradient("MatrixDiagPart")
def _matrix_diag_part_v1_grad(op: Operation, dy: Any) -> list[Any]:
    return [matrix_set_diag(zeros_like(op.inputs[0]), dy)]


@register_gradient("MatrixDiagPartV2", "MatrixDiagPartV3")
def _matrix_diag_part_grad(op: Operation, dy: Any) -> list[Any]:
    align = op.attrs.get("align", _V2_ALIGN)
    return [matrix_set_diag(zeros_like(op.inputs[0]), dy, k=op.inputs[1], align=align), None, None]


# ---------------------------------------------------------------------------------------------------- matrix_set_diag


def matrix_set_diag(input: Any, diagonal: Any, name: str = "set_diag", k: Any = 0, align: str = "RIGHT_LEFT") -> Tensor:
    """``input`` with its diagonal ``k``, or a band, replaced by ``diagonal`` (as ``matrix_diag_part`` gives it)."""
    out: Tensor = apply_op("MatrixSetDiagV3", input, diagonal, k, name=name, align=align)
    return out


@register_op("MatrixSetDiag", inputs=["input: T", "diagonal: T"], outputs=["output: T"], T=ALL)
def _matrix_set_diag_v1_shape(ctx: ShapeContext) -> list[Shape]:
    merge(_part_shape(ctx.shape("input"), 0, 0)[0], ctx.shape("diagonal"))
    return [ctx.shape("input")]


@register_op("MatrixSetDiagV3", inputs=["input: T", "diagonal: T", "k: int32"], outputs=["output: T"], attrs=_ALIGN, T=ALL)
def _matrix_set_diag_shape(ctx: ShapeContext) -> list[Shape]:
    _check_align(ctx)
    k = ctx.const("k")
    if k is not None:
        merge(_part_shape(ctx.shape("input"), *_limits(k))[0], ctx.shape("diagonal"))
    return [ctx.shape("input")]


def _with_diagonals(ctx: KernelContext, x: Any, diagonal: Any, k: Any, align: str) -> Any:
    try:
        low, high = _limits(k)
        (wanted,) = _part_shape(x.shape, low, high)
        if diagonal.shape != wanted:
            raise ValueError(f"diagonal must have shape {text(wanted)}, not {text(diagonal.shape)}")
        rows, cols = x.shape[-2:]
        band = _band(rows, cols, low, high, align)
    except ValueError as error:
        raise _invalid(ctx, error) from None
    out = x.copy()
    for i, (place, r, c) in enumerate(band):
        out[..., r, c] = diagonal if low == high else diagonal[..., i, place]
    return out


@register_kernel("MatrixSetDiag")
def _matrix_set_diag_v1(ctx: KernelContext, x: Any, diagonal: Any) -> Any:
    return _with_diagonals(ctx, x, diagonal, 0, _V2_ALIGN)


@register_kernel("MatrixSetDiagV3", host=("k",))
def _matrix_set_diag_v3(ctx: KernelContext, x: Any, diagonal: Any, k: Any, *, align: str) -> Any:
    return _with_diagonals(ctx, x, diagonal, k, align)


@register_gradient("MatrixSetDiag")
def _matrix_set_diag_v1_grad(op: Operation, dy: Any) -> list[Any]:
    return [matrix_set_diag(dy, zeros_like(op.inputs[1])), matrix_diag_part(dy)]


@register_gradient("MatrixSetDiagV3")
def _matrix_set_diag_grad(op: Operation, dy: Any) -> list[Any]:
    _, diagonal, k = op.inputs
    align = op.get_attr("align")
    return [matrix_set_diag(dy, zeros_like(diagonal), k=k, align=align), matrix_diag_part(dy, k=k, align=align), None]


# --------------------------------------------------------------------------------------------------- matrix_band_part


def matrix_band_part(input: Any, num_lower: Any, num_upper: Any, name: str | None = None) -> Tensor:
    """Matrices with zeros outside the ``num_lower`` diagonals below and ``num_upper`` above the main one; negative: all."""
    out: Tensor = apply_op("MatrixBandPart", input, num_lower, num_upper, name=name)
    return out


@register_op(
    "MatrixBandPart",
    inputs=["input: T", "num_lower: Tindex", "num_upper: Tindex"],
    outputs=["band: T"],
    attrs={"Tindex": ("type", int64)},
    T=ALL,
    Tindex=INDEX,
)
def _matrix_band_part_shape(ctx: ShapeContext) -> list[Shape]:
    known = ctx.shape("input")
    if known is not None and len(known) < 2:
        raise ValueError(f"input must have at least 2 dimensions, but has shape {text(known)}")
    return [known]


@register_kernel("MatrixBandPart", host=("num_lower", "num_upper"))
def _matrix_band_part(ctx: KernelContext, x: Any, lower: Any, upper: Any) -> Any:
    xp = ctx.xp
    offset = xp.arange(x.shape[-1])[None, :] - xp.arange(x.shape[-2])[:, None]
    inside = ((offset >= -int(lower)) | (int(lower) < 0)) & ((offset <= int(upper)) | (int(upper) < 0))
    return xp.where(inside, x, xp.zeros((), x.dtype))


@register_gradient("MatrixBandPart")
def _matrix_band_part_grad(op: Operation, dy: Any) -> list[Any]:
    return [apply_op("MatrixBandPart", dy, *op.inputs[1:]), None, None]
