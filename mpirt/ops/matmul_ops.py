"""Products of matrices, single and in batches, and contractions over given axes.

Kernels hand transposed views to BLAS, which reads them in place. float16 is computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import COMPLEX, FLOATING, DType
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, fitting, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, broadcast, is_static, merge, text, with_rank
from mpirt.ops.apply import apply_op, convert_to_tensor, is_tensor, set_operator
from mpirt.ops.cast_ops import cast
from mpirt.ops.complex_ops import conj

__all__ = ["matmul", "tensordot"]

Grads = list[Tensor | None]

_INTEGERS = (dtypes.int32, dtypes.int64, dtypes.uint8, dtypes.uint16, dtypes.uint32, dtypes.uint64)


def matmul(
    a: Any,
    b: Any,
    transpose_a: bool = False,
    transpose_b: bool = False,
    adjoint_a: bool = False,
    adjoint_b: bool = False,
    a_is_sparse: bool = False,
    b_is_sparse: bool = False,
    output_type: Any = None,
    grad_a: bool = False,
    grad_b: bool = False,
    name: str | None = None,
) -> Tensor:
    """Product of matrices, or of stacks of matrices in the last two dimensions.

    Parameters
    ----------
    a, b : Tensor, shape [..., m, k] and [..., k, n] after transposition; the outer dimensions are broadcast
    transpose_a, transpose_b : swap the last two dimensions first
    adjoint_a, adjoint_b : swap them and take the complex conjugate first
    a_is_sparse, b_is_sparse : hints of TensorFlow's that change nothing here
    output_type : type of the result for integers (``tf.int32`` for int8)
    grad_a, grad_b : marks of TensorFlow's gradients, kept as attributes
    name : name of the operation

    Raises
    ------
    ValueError
        If the shapes don't fit, or an operand is to be transposed and adjoined.
    """
    if transpose_a and adjoint_a:
        raise ValueError("Only one of transpose_a and adjoint_a can be True.")
    if transpose_b and adjoint_b:
        raise ValueError("Only one of transpose_b and adjoint_b can be True.")
    a, b = _both(a, b)
    name = name or "MatMul"
    batched = any(t.static_shape is None or len(t.static_shape) > 2 for t in (a, b))
    result: Tensor
    if batched or output_type is not None:
        if transpose_a:
            a, adjoint_a = conj(a), True
        if transpose_b:
            b, adjoint_b = conj(b), True
        if output_type is not None and dtypes.as_dtype(output_type) is not a.dtype.base_dtype:
            wanted = dtypes.as_dtype(output_type)
            result = apply_op(
                "BatchMatMulV3", a, b, Tout=wanted, adj_x=adjoint_a, adj_y=adjoint_b, grad_x=grad_a, grad_y=grad_b, name=name
            )
            return result
        result = apply_op("BatchMatMulV2", a, b, adj_x=adjoint_a, adj_y=adjoint_b, grad_x=grad_a, grad_y=grad_b, name=name)
        return result
    if adjoint_a:
        a, transpose_a = conj(a), True
    if adjoint_b:
        b, transpose_b = conj(b), True
    result = apply_op("MatMul", a, b, transpose_a=transpose_a, transpose_b=transpose_b, grad_a=grad_a, grad_b=grad_b, name=name)
    return result


def _both(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    if is_tensor(b) and not is_tensor(a):
        b = convert_to_tensor(b)
        return convert_to_tensor(a, b.dtype.base_dtype, "a"), b
    a = convert_to_tensor(a, name="a")
    return a, convert_to_tensor(b, None if is_tensor(b) else a.dtype.base_dtype, "b")


@register_op(
    "MatMul", inputs=["a: T", "b: T"], outputs=["product: T"],
    attrs={name: ("bool", False) for name in ("transpose_a", "transpose_b", "grad_a", "grad_b")},
    T=FLOATING + _INTEGERS + COMPLEX,
)  # fmt: skip
def _matmul_shape(ctx: ShapeContext) -> list[Shape]:
    m, k = with_rank(ctx.shape("a"), 2, "the first matrix")
    k_b, n = with_rank(ctx.shape("b"), 2, "the second matrix")
    if ctx.attr("transpose_a"):
        m, k = k, m
    if ctx.attr("transpose_b"):
        k_b, n = n, k_b
    _check_inner(k, k_b, ctx.shape("a"), ctx.shape("b"))
    return [(m, n)]


def _check_inner(k_a: int | None, k_b: int | None, a: Shape, b: Shape) -> None:
    if k_a is not None and k_b is not None and k_a != k_b:
        raise ValueError(
            f"Dimensions must be equal, but are {k_a} and {k_b}, for the product of shapes {text(a)} and {text(b)}"
        )


@register_kernel("MatMul", memory="own")
def _matmul(ctx: KernelContext, a: Any, b: Any, *, transpose_a: bool, transpose_b: bool, out: Any = None) -> Any:
    if transpose_a:
        a = a.T
    if transpose_b:
        b = b.T
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: matrices of shapes {tuple(a.shape)} and {tuple(b.shape)} have no product.", op=ctx.op
        )
    if a.dtype == np.float16:
        return ctx.xp.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.float16)
    if out is not None:
        out = fitting(out, (a.shape[0], b.shape[1]), a, b)
    return ctx.xp.matmul(a, b, out=out)


@register_gradient("MatMul")
def _matmul_grad(op: Operation, dy: Tensor) -> Grads:
    a, b = conj(op.inputs[0]), conj(op.inputs[1])
    ta, tb = op.get_attr("transpose_a"), op.get_attr("transpose_b")
    # With A = op(a), B = op(b): dA = dy B', dB = A' dy; a transposed operand takes the transposed product.
    ga = _product(b, dy, tb, True, grad_b=True) if ta else _product(dy, b, False, not tb, grad_b=True)
    gb = _product(dy, a, True, ta, grad_a=True) if tb else _product(a, dy, not ta, False, grad_a=True)
    return [ga, gb]


def _product(a: Tensor, b: Tensor, transpose_a: bool, transpose_b: bool, grad_a: bool = False, grad_b: bool = False) -> Tensor:
    result: Tensor = apply_op("MatMul", a, b, transpose_a=transpose_a, transpose_b=transpose_b, grad_a=grad_a, grad_b=grad_b)
    return result


# ---------------------------------------------------------------------------------------------- batches

_BATCH_TYPES = (*FLOATING, dtypes.int16, *_INTEGERS, *COMPLEX)
_MIXED_TYPES = (*FLOATING, dtypes.uint8, dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64, *COMPLEX)
_BATCH_ATTRS = {"adj_x": ("bool", False), "adj_y": ("bool", False), "grad_x": ("bool", False), "grad_y": ("bool", False)}


def _batch_shape(ctx: ShapeContext) -> list[Shape]:
    x, y = ctx.shape("x"), ctx.shape("y")
    for shape in (x, y):
        if shape is not None and len(shape) < 2:
            raise ValueError(f"Shape {text(shape)} must have rank at least 2")
    if x is None or y is None:
        return [None]
    m, k = x[-2:] if not ctx.attr("adj_x") else x[:-3:-1]
    k_y, n = y[-2:] if not ctx.attr("adj_y") else y[:-3:-1]
    _check_inner(k, k_y, x, y)
    join = merge if ctx.definition.name == "BatchMatMul" else broadcast
    outer = join(x[:-2], y[:-2])
    return [None if outer is None else (*outer, m, n)]


register_op(
    "BatchMatMul", inputs=["x: T", "y: T"], outputs=["output: T"], attrs=_BATCH_ATTRS, T=FLOATING + _INTEGERS[:2] + COMPLEX
)(_batch_shape)
register_op("BatchMatMulV2", inputs=["x: T", "y: T"], outputs=["output: T"], attrs=_BATCH_ATTRS, T=_BATCH_TYPES)(_batch_shape)
register_op(
    "BatchMatMulV3", inputs=["x: Ta", "y: Tb"], outputs=["output: Tout"], attrs={**_BATCH_ATTRS, "Tout": "type"},
    Ta=_MIXED_TYPES, Tb=_MIXED_TYPES, Tout=tuple(t for t in _MIXED_TYPES if t not in (dtypes.uint8, dtypes.int8)),
)(_batch_shape)  # fmt: skip


@register_kernel("BatchMatMul", "BatchMatMulV2", memory="own")
def _batch_matmul(ctx: KernelContext, x: Any, y: Any, *, adj_x: bool, adj_y: bool, out: Any = None) -> Any:
    if adj_x:
        x = _adjoint(ctx, x)
    if adj_y:
        y = _adjoint(ctx, y)
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2] or not _outer_fit(x.shape[:-2], y.shape[:-2]):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: stacks of matrices of shapes {tuple(x.shape)} and {tuple(y.shape)} have no product.", op=ctx.op
        )
    if x.dtype == np.float16:
        return ctx.xp.matmul(x.astype(np.float32), y.astype(np.float32)).astype(np.float16)
    if out is not None:
        out = fitting(out, (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]), x, y)
    return ctx.xp.matmul(x, y, out=out)


@register_kernel("BatchMatMulV3", memory="own")
def _batch_matmul_v3(ctx: KernelContext, x: Any, y: Any, *, Tout: DType, adj_x: bool, adj_y: bool) -> Any:
    return _batch_matmul(
        ctx, x.astype(Tout.np_dtype, copy=False), y.astype(Tout.np_dtype, copy=False), adj_x=adj_x, adj_y=adj_y
    )


def _outer_fit(x: tuple[int, ...], y: tuple[int, ...]) -> bool:
    return all(a == b or a == 1 or b == 1 for a, b in zip(reversed(x), reversed(y), strict=False))


def _adjoint(ctx: KernelContext, x: Any) -> Any:
    x = ctx.xp.swapaxes(x, -1, -2)
    return ctx.xp.conjugate(x) if x.dtype.kind == "c" else x


@register_gradient("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def _batch_matmul_grad(op: Operation, dy: Tensor) -> Grads:
    x, y = op.inputs
    adj_x, adj_y = op.get_attr("adj_x"), op.get_attr("adj_y")
    wide_x, wide_y = cast(x, dy.dtype), cast(y, dy.dtype)
    gx = _batch(wide_y, dy, adj_y, True, grad_y=True) if adj_x else _batch(dy, wide_y, False, not adj_y, grad_y=True)
    gy = _batch(dy, wide_x, True, adj_x, grad_x=True) if adj_y else _batch(wide_x, dy, not adj_x, False, grad_x=True)
    gx, gy = cast(gx, x.dtype), cast(gy, y.dtype)
    if op.type == "BatchMatMul" or _same_outer(x.static_shape, y.static_shape):
        return [gx, gy]
    return _unbroadcast_outer(x, y, gx, gy)


def _batch(x: Tensor, y: Tensor, adj_x: bool, adj_y: bool, grad_x: bool = False, grad_y: bool = False) -> Tensor:
    result: Tensor = apply_op("BatchMatMulV2", x, y, adj_x=adj_x, adj_y=adj_y, grad_x=grad_x, grad_y=grad_y)
    return result


def _same_outer(x: Shape, y: Shape) -> bool:
    return x is not None and y is not None and x[:-2] == y[:-2] and None not in x[:-2]


def _unbroadcast_outer(x: Tensor, y: Tensor, gx: Tensor, gy: Tensor) -> Grads:
    """Sum over the outer dimensions that were broadcast; the last two are kept as they are."""
    shape_x, shape_y = apply_op("Shape", x), apply_op("Shape", y)
    outer_x = apply_op("StridedSlice", shape_x, [0], [-2], [1], begin_mask=1)
    outer_y = apply_op("StridedSlice", shape_y, [0], [-2], [1], begin_mask=1)
    rx, ry = apply_op("BroadcastGradientArgs", outer_x, outer_y)
    return [apply_op("Reshape", apply_op("Sum", gx, rx), shape_x), apply_op("Reshape", apply_op("Sum", gy, ry), shape_y)]


# ---------------------------------------------------------------------------------------------- contractions


def tensordot(a: Any, b: Any, axes: Any, name: str | None = None) -> Tensor:
    """Sum of products over ``axes`` of ``a`` and of ``b``.

    Parameters
    ----------
    a, b : Tensor of one floating or complex dtype
    axes : a number n: the last n axes of ``a`` and the first n of ``b``; or two lists (or numbers) of axes
    name : name of the operation

    Returns
    -------
    Tensor with the other axes of ``a``, then those of ``b``

    Raises
    ------
    ValueError
        If the axes don't fit, or the number of dimensions of an operand isn't known.
    """
    with get_default_graph().name_scope(name or "Tensordot") as scope:
        a, b = _both(a, b)
        axes_a, axes_b = _contraction_axes(a, b, axes)
        if a.static_shape is None or b.static_shape is None:
            raise ValueError(f"tensordot needs the number of dimensions of its operands, not shapes {a.shape} and {b.shape}.")
        matrix_a, outer_a, shape_a = _as_matrix(a, axes_a, last=True)
        matrix_b, outer_b, shape_b = _as_matrix(b, axes_b, last=False)
        product = _product(matrix_a, matrix_b, False, False)
        if is_static(shape_a) and is_static(shape_b):
            shape: Any = np.array(shape_a + shape_b, np.int32)
        else:
            shape = apply_op("ConcatV2", [outer_a, outer_b], 0)
        result: Tensor = apply_op("Reshape", product, shape, name=scope)
        return result


def _contraction_axes(a: Tensor, b: Tensor, axes: Any) -> tuple[list[int], list[int]]:
    if is_tensor(axes):
        raise errors.UnimplementedError("tensordot takes axes as Python numbers, not as a tensor.")
    if isinstance(axes, int | np.integer):
        if axes < 0:
            raise ValueError(f"`axes` must be at least 0. Received: {axes}.")
        ndim = len(a.static_shape or ())
        if axes > ndim:
            raise ValueError(f"`axes` must not be larger than the number of dimensions of tensor {a!r}. Received {axes}.")
        return list(range(ndim - int(axes), ndim)), list(range(int(axes)))
    if not isinstance(axes, Sequence | np.ndarray) or len(axes) != 2:
        raise ValueError(f"`axes` must be an integer or have length 2. Received {axes!r}.")
    first, second = ([int(v) for v in np.atleast_1d(part)] for part in axes)
    if len(first) != len(second):
        raise ValueError(f"Different number of contraction axes `a` and `b`, {len(first)} != {len(second)}.")
    return first, second


def _as_matrix(x: Tensor, axes: list[int], last: bool) -> tuple[Tensor, Any, tuple[int | None, ...]]:
    """``x`` as a matrix with the ``axes`` as columns (``last``) or rows; the other sizes as a tensor and as known."""
    shape = x.static_shape
    assert shape is not None
    ndim = len(shape)
    if any(not -ndim <= i < ndim for i in axes):
        raise ValueError(f"axes {axes} are outside the {ndim} dimensions of {x!r}.")
    axes = [i % ndim for i in axes]
    outer = [i for i in range(ndim) if i not in axes]
    order = outer + axes if last else axes + outer
    moved: Tensor = x if order == list(range(ndim)) else apply_op("Transpose", x, np.array(order, np.int32))
    sizes = tuple(shape[i] for i in outer)
    inner = tuple(shape[i] for i in axes)
    if is_static(sizes) and is_static(inner):
        rows, columns = int(np.prod(sizes, dtype=np.int64)), int(np.prod(inner, dtype=np.int64))  # type: ignore[arg-type]
        flat = apply_op("Reshape", moved, [rows, columns] if last else [columns, rows])
        return flat, np.array(sizes, np.int32), sizes
    dynamic = apply_op("Shape", x)
    outer_sizes = apply_op("GatherV2", dynamic, np.array(outer, np.int32), 0)
    rows_tensor = apply_op("Prod", outer_sizes, 0)
    columns_tensor = apply_op("Prod", apply_op("GatherV2", dynamic, np.array(axes, np.int32), 0), 0)
    flat = apply_op("Reshape", moved, [rows_tensor, columns_tensor] if last else [columns_tensor, rows_tensor])
    return flat, outer_sizes, sizes


set_operator("matmul", matmul)
