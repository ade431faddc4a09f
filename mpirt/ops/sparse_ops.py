"""What can be done with sparse tensors: to and from dense ones, products, order, other shapes, some of their elements.

Coordinates are int64 and live where the step computes; the kernels work on the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import ALL, INDEX, int64
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, no_gradient, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, as_shape, merge, text, with_rank
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.arguments import sizes_of
from mpirt.ops.array_ops import invert_permutation, reshape, shape, size
from mpirt.ops.broadcasting import unbroadcast
from mpirt.ops.gather_ops import check_indices, gather, gather_nd
from mpirt.ops.indexed_slices import IndexedSlices
from mpirt.ops.logic_ops import not_equal
from mpirt.ops.partition_ops import setdiff1d
from mpirt.ops.reduction_ops import reduce_sum
from mpirt.ops.segment_ops import reduce_unsorted
from mpirt.ops.select_ops import where
from mpirt.ops.sparse_tensor import SparseTensor, SparseTensorValue

__all__ = [
    "from_dense", "sparse_fill_empty_rows", "sparse_mask", "sparse_reorder", "sparse_reshape", "sparse_retain",
    "sparse_tensor_dense_matmul", "sparse_tensor_to_dense", "sparse_to_dense",
]  # fmt: skip


def _sparse(value: Any) -> SparseTensor:
    """The sparse tensor of an argument; TypeError if it is none."""
    if isinstance(value, SparseTensorValue):
        return SparseTensor.from_value(value)
    if not isinstance(value, SparseTensor):
        raise TypeError(f"Input must be a SparseTensor, not {value!r}.")
    return value


# ------------------------------------------------------------------------------------------------- to and from dense


def sparse_to_dense(
    sparse_indices: Any, output_shape: Any, sparse_values: Any, default_value: Any = 0, validate_indices: bool = True,
    name: str | None = None,
) -> Tensor:  # fmt: skip
    """The tensor of shape ``output_shape`` with ``sparse_values`` at ``sparse_indices``, else ``default_value``.

    Parameters
    ----------
    sparse_indices : coordinates, shape [N, ndim]; [N] or a scalar for a vector
    output_shape : shape of the result
    sparse_values : shape [N], or a scalar for all
    default_value : scalar
    validate_indices : whether coordinates must be in order and different, which is an error in the step if they aren't
    name : name of the operation
    """
    dense: Tensor = apply_op(
        "SparseToDense", sparse_indices, output_shape, sparse_values, default_value, name=name, validate_indices=validate_indices
    )
    return dense


def sparse_tensor_to_dense(
    sp_input: Any, default_value: Any = None, validate_indices: bool = True, name: str | None = None
) -> Tensor:
    """The dense tensor of a sparse one; see ``sparse_to_dense``."""
    sp = _sparse(sp_input)
    if default_value is None:
        default_value = np.zeros((), sp.dtype.np_dtype) if sp.dtype is not dtypes.string else b""
    dense = sparse_to_dense(sp.indices, sp.dense_shape, sp.values, default_value, validate_indices, name)
    dense.set_shape(sp.shape)
    return dense


@register_op(
    "SparseToDense",
    inputs=["sparse_indices: Tindices", "output_shape: Tindices", "sparse_values: T", "default_value: T"],
    outputs=["dense: T"], attrs={"validate_indices": ("bool", True)}, T=ALL, Tindices=INDEX,
)  # fmt: skip
def _sparse_to_dense_shape(ctx: ShapeContext) -> list[Shape]:
    with_rank(ctx.shape("default_value"), 0, "default_value")
    return [ctx.const_shape("output_shape")]


@register_kernel("SparseToDense", devices=("CPU",))
def _sparse_to_dense(
    ctx: KernelContext, indices: Any, output_shape: Any, values: Any, default: Any, *, validate_indices: bool
) -> Any:
    sizes = sizes_of(ctx, output_shape, "output_shape")
    rows = indices if indices.ndim == 2 else indices.reshape(-1, 1)
    if indices.ndim > 2 or rows.shape[1] != len(sizes) or values.shape not in ((), rows.shape[:1]):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: coordinates of shape {text(indices.shape)} and values of shape {text(values.shape)} don't fit"
            f" the shape {list(sizes)}.",
            op=ctx.op,
        )
    flat = _flat(ctx, rows, sizes)
    steps = np.diff(flat)
    if validate_indices and steps.size and steps.min() <= 0:
        first = int((steps <= 0).argmax())
        what = "repeated" if steps[first] == 0 else "out of order"
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: indices[{first + 1}] = {rows[first + 1].tolist()} is {what}.",
            op=ctx.op, hint="put them in order with sparse_reorder, or pass validate_indices=False.",
        )  # fmt: skip
    out = np.full(sizes, default, default.dtype)
    out.reshape(-1)[flat] = values
    return out


def _flat(ctx: KernelContext, rows: Any, sizes: tuple[int, ...]) -> Any:
    """Position of each coordinate in the flat tensor; InvalidArgumentError for one outside."""
    outside = np.flatnonzero(((rows < 0) | (rows >= np.array(sizes, np.int64))).any(axis=1))
    if len(outside):
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: indices[{outside[0]}] = {rows[outside[0]].tolist()} is outside of the shape {list(sizes)}.", op=ctx.op
        )
    return rows @ _strides(sizes)


def _strides(sizes: tuple[int, ...]) -> Any:
    """Elements from one index to the next, for each dimension of a flat tensor in C order."""
    return np.array([int(np.prod(sizes[i + 1 :], dtype=np.int64)) for i in range(len(sizes))], np.int64)


@register_gradient("SparseToDense")
def _sparse_to_dense_grad(op: Operation, dy: Tensor) -> list[Any]:
    indices, output_shape, values, _ = op.inputs
    d_values = gather_nd(dy, reshape(indices, [-1, size(output_shape)]))  # numbers or one scalar are coordinates of a vector
    d_default = reduce_sum(dy) - reduce_sum(d_values)
    return [None, None, unbroadcast(values, d_values, d_values, d_values)[0], d_default]


def from_dense(tensor: Any, name: str | None = None) -> SparseTensor:
    """The sparse tensor of the elements that aren't 0 (False, empty)."""
    with get_default_graph().name_scope(name or "dense_to_sparse"):
        dense = convert_to_tensor(tensor)
        zero = b"" if dense.dtype.base_dtype is dtypes.string else np.zeros((), dense.dtype.np_dtype)
        indices = where(not_equal(dense, zero))
        return SparseTensor(indices, gather_nd(dense, indices), shape(dense, out_type=int64))


# ----------------------------------------------------------------------------------------------------------- product


def sparse_tensor_dense_matmul(
    sp_a: Any, b: Any, adjoint_a: bool = False, adjoint_b: bool = False, name: str | None = None
) -> Tensor:
    """The matrix product of a sparse and a dense matrix; ``adjoint_...`` takes the conjugate transpose of one first."""
    sp = _sparse(sp_a)
    product: Tensor = apply_op(
        "SparseTensorDenseMatMul", sp.indices, sp.values, sp.dense_shape, b, name=name, adjoint_a=adjoint_a, adjoint_b=adjoint_b
    )
    return product


@register_op(
    "SparseTensorDenseMatMul", inputs=["a_indices: Tindices", "a_values: T", "a_shape: int64", "b: T"], outputs=["product: T"],
    attrs={"Tindices": ("type", int64), "adjoint_a": ("bool", False), "adjoint_b": ("bool", False)}, T=ALL, Tindices=INDEX,
)  # fmt: skip
def _matmul_shape(ctx: ShapeContext) -> list[Shape]:
    a, b = with_rank(ctx.const_shape("a_shape"), 2, "a"), with_rank(ctx.shape("b"), 2, "b")
    a, b = a[::-1] if ctx.attr("adjoint_a") else a, b[::-1] if ctx.attr("adjoint_b") else b
    merge(a[1:], b[:1])
    return [(a[0], b[1])]


@register_kernel("SparseTensorDenseMatMul", devices=("CPU",))
def _matmul(ctx: KernelContext, indices: Any, values: Any, a_shape: Any, b: Any, *, adjoint_a: bool, adjoint_b: bool) -> Any:
    rows, columns = indices[:, 0], indices[:, 1]
    count, inner = (int(n) for n in a_shape)
    _flat(ctx, indices, (count, inner))
    if adjoint_a:
        rows, columns, values, count, inner = columns, rows, values.conj(), inner, count
    dense = b.conj().T if adjoint_b else b
    if dense.shape[0] != inner:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: a matrix of {count} x {inner} can't be multiplied by one of {dense.shape[0]} x {dense.shape[1]}.",
            op=ctx.op,
        )
    return reduce_unsorted(ctx, "add", values[:, None] * dense[columns], rows, count, 0)


@register_gradient("SparseTensorDenseMatMul")
def _matmul_grad(op: Operation, dy: Tensor) -> list[Any]:
    indices, values, a_shape, b = op.inputs
    adjoint_a, adjoint_b = op.get_attr("adjoint_a"), op.get_attr("adjoint_b")
    d_b = apply_op("SparseTensorDenseMatMul", indices, values, a_shape, dy, adjoint_a=not adjoint_a)
    if adjoint_b:
        d_b = apply_op("Transpose", _conj(d_b), [1, 0])
    # Of each kept element a[i, j] of a @ b: row i of dy times row j of the conjugate of b.
    rows, columns = indices[:, 0], indices[:, 1]
    rows, columns = (columns, rows) if adjoint_a else (rows, columns)
    other = apply_op("Transpose", b, [1, 0]) if adjoint_b else _conj(b)
    d_values = reduce_sum(gather(dy, rows) * gather(other, columns), 1)
    return [None, _conj(d_values) if adjoint_a else d_values, None, d_b]


def _conj(x: Tensor) -> Tensor:
    conjugate: Tensor = apply_op("Conj", x) if x.dtype.is_complex else x
    return conjugate


# --------------------------------------------------------------------------------------------------- order and shape


def sparse_reorder(sp_input: Any, name: str | None = None) -> SparseTensor:
    """The same with its elements in the order of rows (the last dimension changes fastest)."""
    sp = _sparse(sp_input)
    indices, values = apply_op("SparseReorder", sp.indices, sp.values, sp.dense_shape, name=name)
    return _like(indices, values, sp)


def _like(indices: Tensor, values: Tensor, sp: SparseTensor) -> SparseTensor:
    """These elements in the shape of ``sp``."""
    made = SparseTensor(indices, values, sp.dense_shape)
    made.set_shape(sp.shape)
    return made


@register_op(
    "SparseReorder", inputs=["input_indices: int64", "input_values: T", "input_shape: int64"],
    outputs=["output_indices: int64", "output_values: T"], T=ALL,
)  # fmt: skip
def _reorder_shape(ctx: ShapeContext) -> list[Shape]:
    return [with_rank(ctx.shape("input_indices"), 2, "input_indices"), with_rank(ctx.shape("input_values"), 1, "input_values")]


@register_kernel("SparseReorder", devices=("CPU",))
def _reorder(ctx: KernelContext, indices: Any, values: Any, dense_shape: Any) -> Any:
    order = np.argsort(_flat(ctx, indices, sizes_of(ctx, dense_shape)), kind="stable")
    return [indices[order], values[order]]


@register_gradient("SparseReorder")
def _reorder_grad(op: Operation, d_indices: Any, d_values: Any) -> list[Any]:
    if d_values is None:
        return [None, None, None]
    indices, values, dense_shape = op.inputs
    _, order = apply_op("SparseReorder", indices, apply_op("Range", 0, size(values), 1), dense_shape)
    return [None, gather(d_values, invert_permutation(order)), None]


def sparse_reshape(sp_input: Any, shape: Any, name: str | None = None) -> SparseTensor:
    """The same elements in another shape, of which one size may be -1: whatever fits.

    Raises
    ------
    InvalidArgumentError
        In the step, if the shapes have different numbers of elements.
    """
    sp = _sparse(sp_input)
    wanted = convert_to_tensor(shape, int64)
    indices, dense_shape = apply_op("SparseReshape", sp.indices, sp.dense_shape, wanted, name=name)
    return SparseTensor(indices, sp.values, dense_shape)


@register_op(
    "SparseReshape", inputs=["input_indices: int64", "input_shape: int64", "new_shape: int64"],
    outputs=["output_indices: int64", "output_shape: int64"],
)  # fmt: skip
def _reshape_shape(ctx: ShapeContext) -> list[Shape]:
    (count, _), new = with_rank(ctx.shape("input_indices"), 2, "input_indices"), with_rank(ctx.shape("new_shape"), 1, "new_shape")
    return [(count, new[0]), new]


@register_kernel("SparseReshape", devices=("CPU",))
def _reshape(ctx: KernelContext, indices: Any, old_shape: Any, new_shape: Any) -> Any:
    old, new = sizes_of(ctx, old_shape), new_shape.copy()
    total, rest = int(np.prod(old, dtype=np.int64)), int(np.prod(new[new != -1]))
    if (new == -1).sum() == 1 and rest > 0:
        new[new == -1] = total // rest
    if (new < 0).any() or int(np.prod(new)) != total:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: a sparse tensor of shape {list(old)} can't be one of shape {new_shape.tolist()}.", op=ctx.op
        )
    flat = _flat(ctx, indices, old)
    strides = _strides(tuple(new.tolist()))
    return [flat[:, None] // np.maximum(strides, 1) % np.maximum(new, 1), new]


no_gradient("SparseReshape", reason="coordinates and sizes are integers; the values pass by it")


# ------------------------------------------------------------------------------------------------- some of the elements


def sparse_retain(sp_input: Any, to_retain: Any) -> SparseTensor:
    """The elements for which the bool vector ``to_retain`` is true; ValueError if its length isn't their number."""
    sp, keep = _sparse(sp_input), convert_to_tensor(to_retain)
    merge(with_rank(keep.static_shape, 1, "to_retain"), sp.values.static_shape)
    chosen = reshape(where(keep), [-1])
    return _like(gather(sp.indices, chosen), gather(sp.values, chosen), sp)


def sparse_fill_empty_rows(sp_input: Any, default_value: Any, name: str | None = None) -> tuple[SparseTensor, Tensor]:
    """The same with ``default_value`` at the begin of each row that has no element, and which rows these are."""
    sp = _sparse(sp_input)
    default = convert_to_tensor(default_value, sp.dtype.base_dtype)
    indices, values, empty, _ = apply_op("SparseFillEmptyRows", sp.indices, sp.values, sp.dense_shape, default, name=name)
    return _like(indices, values, sp), empty


@register_op(
    "SparseFillEmptyRows", inputs=["indices: int64", "values: T", "dense_shape: int64", "default_value: T"],
    outputs=["output_indices: int64", "output_values: T", "empty_row_indicator: bool", "reverse_index_map: int64"], T=ALL,
)  # fmt: skip
def _fill_shape(ctx: ShapeContext) -> list[Shape]:
    indices = with_rank(ctx.shape("indices"), 2, "indices")
    with_rank(ctx.shape("default_value"), 0, "default_value")
    dense = as_shape(ctx.const_shape("dense_shape"))
    return [(None, indices[1]), (None,), (dense[0] if dense else None,), indices[:1]]


@register_kernel("SparseFillEmptyRows", devices=("CPU",))
def _fill(ctx: KernelContext, indices: Any, values: Any, dense_shape: Any, default: Any) -> Any:
    rows = int(dense_shape[0])
    _flat(ctx, indices, sizes_of(ctx, dense_shape))
    empty = np.bincount(indices[:, 0], minlength=rows) == 0
    added = np.zeros((int(empty.sum()), indices.shape[1]), np.int64)
    added[:, 0] = np.flatnonzero(empty)
    merged = np.concatenate([indices, added])
    order = np.argsort(merged[:, 0], kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    filled = np.concatenate([values, np.full(len(added), default, values.dtype)])
    return [merged[order], filled[order], empty, places[: len(indices)]]


@register_gradient("SparseFillEmptyRows")
def _fill_grad(op: Operation, d_indices: Any, d_values: Any, d_empty: Any, d_map: Any) -> list[Any]:
    if d_values is None:
        return [None] * 4
    own, default = apply_op("SparseFillEmptyRowsGrad", op.outputs[3], d_values)
    return [None, own, None, default]


@register_op(
    "SparseFillEmptyRowsGrad", inputs=["reverse_index_map: int64", "grad_values: T"],
    outputs=["d_values: T", "d_default_value: T"], T=ALL,
)  # fmt: skip
def _fill_grad_shape(ctx: ShapeContext) -> list[Shape]:
    return [with_rank(ctx.shape("reverse_index_map"), 1, "reverse_index_map"), ()]


@register_kernel("SparseFillEmptyRowsGrad", devices=("CPU",))
def _fill_grad_kernel(ctx: KernelContext, places: Any, grad: Any) -> Any:
    check_indices(ctx, places, grad.shape[0], "reverse_index_map")
    filled = np.ones(grad.shape, bool)
    filled[places] = False
    return [grad[places], grad[filled].sum(dtype=grad.dtype)]


no_gradient("SparseFillEmptyRowsGrad", reason="TensorFlow has no second gradient of it either")


def sparse_mask(a: IndexedSlices, mask_indices: Any, name: str | None = None) -> IndexedSlices:
    """The rows of ``a`` without those of the numbers ``mask_indices``."""
    with get_default_graph().name_scope(name or "sparse_mask"):
        indices, kept = setdiff1d(a.indices, mask_indices)
        return IndexedSlices(gather(a.values, kept), indices, a.dense_shape)
