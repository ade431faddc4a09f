"""Softmax, cross entropies, biases, dropout, normalization: what ``tf.nn`` has beside activations.

Owns: the hot kernels of a classifier's last layer; each makes as few temporaries as it can.
Neighbours: activations are in ``activation_ops``, whole losses with weights in ``losses``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mpirt import dtypes, errors
from mpirt.dtypes import FLOATING, INDEX, NUMERIC
from mpirt.graph.graph import Operation, Tensor, get_default_graph
from mpirt.graph.op_def import KernelContext, ShapeContext, fitting, register_gradient, register_kernel, register_op
from mpirt.graph.shapes import Shape, broadcast, compatible, is_static, merge, text, with_rank
from mpirt.ops.activation_ops import relu
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.broadcasting import unbroadcast
from mpirt.ops.cast_ops import cast
from mpirt.ops.matmul_ops import matmul
from mpirt.ops.random_ops import random_uniform
from mpirt.ops.reduction_ops import column_sums, first_given, reduce_sum

__all__ = [
    "bias_add", "dropout", "l2_loss", "log_softmax", "relu_layer", "sigmoid_cross_entropy_with_logits", "softmax",
    "softmax_cross_entropy_with_logits", "softmax_cross_entropy_with_logits_v2", "sparse_softmax_cross_entropy_with_logits",
    "weighted_cross_entropy_with_logits", "xw_plus_b",
]  # fmt: skip

Grads = list[Tensor | None]


def _apply(op_type: str, *args: Any, name: str | None = None) -> Tensor:
    result: Tensor = apply_op(op_type, *args, name=name)
    return result


# ---------------------------------------------------------------------------------------------- softmax


def softmax(logits: Any, axis: Any = None, name: str | None = None, dim: Any = None) -> Tensor:
    """``exp(x) / sum(exp(x))`` along ``axis`` (the last by default)."""
    return _along("Softmax", logits, first_given("axis", axis, "dim", dim), name)


def log_softmax(logits: Any, axis: Any = None, name: str | None = None, dim: Any = None) -> Tensor:
    """Logarithm of ``softmax`` along ``axis`` (the last by default), accurate for small probabilities."""
    return _along("LogSoftmax", logits, first_given("axis", axis, "dim", dim), name)


def _along(op_type: str, logits: Any, axis: Any, name: str | None) -> Tensor:
    """Apply an op of the last axis along another one."""
    x = convert_to_tensor(logits, name="logits")
    ndim = None if x.static_shape is None else len(x.static_shape)
    axis = -1 if axis is None else int(axis)
    if axis == -1 or (ndim is not None and axis == ndim - 1):
        return _apply(op_type, x, name=name)
    if ndim is None:
        raise ValueError(f"{op_type} along axis {axis} needs a tensor whose number of dimensions is known, not {x!r}.")
    if not -ndim <= axis < ndim:
        raise ValueError(f"`axis` must be in the range [{-ndim}, {ndim}) where {ndim} is the number of dimensions, not {axis}.")
    with get_default_graph().name_scope(name or op_type) as scope:
        order = np.arange(ndim, dtype=np.int32)
        order[[axis, -1]] = order[[-1, axis]]
        return _apply("Transpose", _apply(op_type, _apply("Transpose", x, order)), order, name=scope)


def _softmax_shape(ctx: ShapeContext) -> list[Shape]:
    shape = ctx.shape("logits")
    if shape == ():
        raise ValueError("logits must have at least one dimension")
    return [shape]


register_op("Softmax", inputs=["logits: T"], outputs=["softmax: T"], T=FLOATING)(_softmax_shape)
register_op("LogSoftmax", inputs=["logits: T"], outputs=["logsoftmax: T"], T=FLOATING)(_softmax_shape)


def _shifted(ctx: KernelContext, x: Any) -> Any:
    """``x`` less its largest along the last axis, so that no exponential overflows."""
    if x.ndim == 0:
        raise errors.InvalidArgumentError(f"{ctx.op.name!r}: logits must have at least one dimension.", op=ctx.op)
    return ctx.xp.subtract(x, _row_max(ctx, x)) if x.size else x.copy()


def _row_max(ctx: KernelContext, x: Any) -> Any:
    """Largest along the last axis, which is kept. numpy starts a loop for each row: 3 times slower for 10 classes."""
    if ctx.xp is np and x.ndim == 2 and x.shape[1] <= 32:
        return np.maximum.reduce(np.ascontiguousarray(x.T), 0)[:, None]
    return x.max(axis=-1, keepdims=True)


def _row_sum(ctx: KernelContext, x: Any) -> Any:
    """Sum along the last axis, which is kept. For rows of a matrix einsum takes half the time of sum."""
    if ctx.xp is np and x.ndim == 2 and x.dtype != np.float16:
        return np.einsum("ij->i", x)[:, None]
    return x.sum(axis=-1, keepdims=True)


@register_kernel("Softmax", memory="own")
def _softmax(ctx: KernelContext, x: Any) -> Any:
    y = _shifted(ctx, x)
    ctx.xp.exp(y, out=y)
    y /= _row_sum(ctx, y)
    return y


@register_kernel("LogSoftmax", memory="own")
def _log_softmax(ctx: KernelContext, x: Any) -> Any:
    y = _shifted(ctx, x)
    y -= ctx.xp.log(_row_sum(ctx, ctx.xp.exp(y)))
    return y


@register_gradient("Softmax")
def _softmax_grad(op: Operation, dy: Tensor) -> Grads:
    y = op.outputs[0]
    return [(dy - reduce_sum(dy * y, -1, keepdims=True)) * y]


@register_gradient("LogSoftmax")
def _log_softmax_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy - reduce_sum(dy, -1, keepdims=True) * _apply("Exp", op.outputs[0])]


# ---------------------------------------------------------------------------------------------- cross entropies


def softmax_cross_entropy_with_logits_v2(labels: Any, logits: Any, axis: Any = None, name: str | None = None, dim: Any = None) -> Tensor:
    """Cross entropy of the softmax of ``logits`` and of probabilities ``labels``.

    Parameters
    ----------
    labels, logits : Tensor of one shape, floating; each row of ``labels`` sums to 1
    axis : axis of the classes, the last by default
    name : name of the operation
    dim : older name of ``axis``

    Returns
    -------
    Tensor with ``axis`` taken out; gradients go to both arguments
    """
    axis = first_given("axis", axis, "dim", dim)
    return _softmax_cross_entropy(labels, logits, -1 if axis is None else axis, name, "softmax_cross_entropy_with_logits")


def softmax_cross_entropy_with_logits(
    labels: Any = None, logits: Any = None, dim: Any = -1, name: str | None = None, axis: Any = None
) -> Tensor:
    """As ``softmax_cross_entropy_with_logits_v2``, but no gradient goes to ``labels``."""
    if labels is None or logits is None:
        raise ValueError("Both `labels` and `logits` must be provided.")
    axis = dim if axis is None else axis
    fixed = _apply("StopGradient", convert_to_tensor(labels, name="labels"))
    return _softmax_cross_entropy(fixed, logits, axis, name, "softmax_cross_entropy_with_logits_sg")


def _softmax_cross_entropy(labels: Any, logits: Any, axis: int, name: str | None, default: str) -> Tensor:
    with get_default_graph().name_scope(name or default):
        x = convert_to_tensor(logits, name="logits")
        narrow = x.dtype.base_dtype is dtypes.float16
        wide: Tensor = cast(x, dtypes.float32) if narrow else x
        p: Tensor = cast(convert_to_tensor(labels, None, "labels", preferred_dtype=wide.dtype), wide.dtype)
        shape = merge(wide.static_shape, p.static_shape) if _same_rank(wide, p) else wide.static_shape
        if axis != -1 and (shape is None or axis != len(shape) - 1):
            if shape is None:
                raise ValueError(f"a cross entropy along axis {axis} needs logits whose number of dimensions is known.")
            order = [i for i in range(len(shape)) if i != axis % len(shape)] + [axis % len(shape)]
            wide, p = (_apply("Transpose", t, np.array(order, np.int32)) for t in (wide, p))
            shape = tuple(shape[i] for i in order)
        if shape is not None and len(shape) == 2:
            loss: Tensor = apply_op("SoftmaxCrossEntropyWithLogits", wide, p)[0]
        else:
            outer = _outer_shape(wide, shape)
            classes = shape[-1] if shape is not None and shape[-1] is not None else _last_size(wide)
            flat = [_apply("Reshape", t, [-1, classes]) for t in (wide, p)]
            loss = _apply("Reshape", apply_op("SoftmaxCrossEntropyWithLogits", *flat)[0], outer)
            if shape is not None:
                loss.set_shape(shape[:-1])
        result: Tensor = cast(loss, dtypes.float16) if narrow else loss
        return result


def _same_rank(a: Tensor, b: Tensor) -> bool:
    """Whether the shapes can be told to be of one tensor: labels may also be broadcast, as in TensorFlow."""
    return compatible(a.static_shape, b.static_shape)


def _last_size(x: Tensor) -> Tensor:
    result: Tensor = apply_op("StridedSlice", _apply("Shape", x), [-1], [0], [1], shrink_axis_mask=1)
    return result


def _outer_shape(x: Tensor, shape: Shape) -> Any:
    """The shape of ``x`` without its last size."""
    if shape is not None and is_static(shape[:-1]):
        return np.array(shape[:-1], np.int32)
    return apply_op("StridedSlice", _apply("Shape", x), [0], [-1], [1], begin_mask=1)


@register_op("SoftmaxCrossEntropyWithLogits", inputs=["features: T", "labels: T"], outputs=["loss: T", "backprop: T"], T=FLOATING)
def _softmax_cross_entropy_shape(ctx: ShapeContext) -> list[Shape]:
    rows, classes = with_rank(broadcast(ctx.shape("features"), ctx.shape("labels")), 2, "logits and labels")
    return [(rows,), (rows, classes)]


@register_kernel("SoftmaxCrossEntropyWithLogits", memory="own")
def _softmax_cross_entropy_kernel(ctx: KernelContext, x: Any, labels: Any) -> Any:
    xp = ctx.xp
    if x.shape != labels.shape:
        try:
            x, labels = xp.broadcast_arrays(x, labels)
        except ValueError:
            raise errors.InvalidArgumentError(
                f"{ctx.op.name!r}: logits and labels must be broadcastable: {tuple(x.shape)} and {tuple(labels.shape)}.",
                op=ctx.op,
            ) from None
    shifted = _shifted(ctx, x)
    backprop = xp.exp(shifted)
    total = _row_sum(ctx, backprop)
    backprop /= total
    backprop -= labels
    if xp is np:
        # log(total) sum(labels) - sum(labels shifted): no pass that writes a matrix.
        loss = np.log(total[:, 0])
        loss *= np.einsum("ij->i", labels)
        loss -= np.einsum("ij,ij->i", labels, shifted)
        if np.isfinite(loss).all():
            return loss, backprop
    shifted -= xp.log(total)
    # A class of probability 0 costs nothing, even where its logit is -inf and the product would be NaN.
    return -xp.where(labels == 0, x.dtype.type(0), labels * shifted).sum(axis=-1), backprop


@register_gradient("SoftmaxCrossEntropyWithLogits")
def _softmax_cross_entropy_grad(op: Operation, d_loss: Tensor | None, d_backprop: Tensor | None) -> Grads:
    """The second output is the first's gradient by the logits, so its own gradient is the loss's second derivative."""
    x, labels = op.inputs
    grad = _cross_entropy_grad(op, d_loss, d_backprop)
    grad_labels = None
    if d_loss is not None:
        grad_labels = _column(d_loss) * _apply("Neg", log_softmax(x))
    if d_backprop is not None:
        grad_labels = _apply("Neg", d_backprop) if grad_labels is None else grad_labels - d_backprop
    if grad is None or grad_labels is None or compatible(x.static_shape, labels.static_shape):
        return [grad, grad_labels]
    return unbroadcast(x, labels, grad, grad_labels)


def _column(d_loss: Tensor) -> Tensor:
    return _apply("ExpandDims", d_loss, -1)


def _cross_entropy_grad(op: Operation, d_loss: Tensor | None, d_backprop: Tensor | None) -> Tensor | None:
    """Gradient by the logits of a cross entropy op: of its loss, and of its output ``softmax - labels``."""
    grad = None if d_loss is None else _column(d_loss) * op.outputs[1]
    if d_backprop is None:
        return grad
    p = softmax(op.inputs[0])
    second = (d_backprop - reduce_sum(d_backprop * p, -1, keepdims=True)) * p
    return second if grad is None else grad + second


def sparse_softmax_cross_entropy_with_logits(labels: Any = None, logits: Any = None, name: str | None = None) -> Tensor:
    """Cross entropy of the softmax of ``logits`` and of the right class' number.

    Parameters
    ----------
    labels : integer Tensor, shape [...], numbers from 0 to C - 1
    logits : floating Tensor, shape [..., C]
    name : name of the operation

    Returns
    -------
    Tensor of the shape of ``labels``

    Raises
    ------
    ValueError
        If the shapes don't fit; InvalidArgumentError when it runs, for a number outside the classes.
    """
    if labels is None or logits is None:
        raise ValueError("Both `labels` and `logits` must be provided.")
    default = "SparseSoftmaxCrossEntropyWithLogits"
    with get_default_graph().name_scope(name or default):
        classes = convert_to_tensor(labels, name="labels")
        x = convert_to_tensor(logits, name="logits")
        narrow = x.dtype.base_dtype is dtypes.float16
        wide: Tensor = cast(x, dtypes.float32) if narrow else x
        shape, label_shape = wide.static_shape, classes.static_shape
        if shape == ():
            raise ValueError("Logits cannot be scalars.")
        if shape is not None and label_shape is not None and len(label_shape) != len(shape) - 1:
            raise ValueError(f"`labels` must have one dimension less than `logits`: shapes {text(label_shape)} and {text(shape)}.")
        if shape is not None and not compatible(label_shape, shape[:-1]):
            raise ValueError(f"`labels` of shape {text(label_shape)} don't fit `logits` of shape {text(shape)}.")
        if shape is not None and len(shape) == 2:
            loss: Tensor = apply_op("SparseSoftmaxCrossEntropyWithLogits", wide, classes, name=name or default)[0]
        else:
            count = shape[-1] if shape is not None and shape[-1] is not None else _last_size(wide)
            flat = _apply("Reshape", wide, [-1, count])
            flat_loss = apply_op("SparseSoftmaxCrossEntropyWithLogits", flat, _apply("Reshape", classes, [-1]))[0]
            loss = _apply("Reshape", flat_loss, _apply("Shape", classes))
            loss.set_shape(label_shape if label_shape is not None else None if shape is None else shape[:-1])
        result: Tensor = cast(loss, dtypes.float16) if narrow else loss
        return result


@register_op(
    "SparseSoftmaxCrossEntropyWithLogits", inputs=["features: T", "labels: Tlabels"], outputs=["loss: T", "backprop: T"],
    attrs={"Tlabels": ("type", dtypes.int64)}, T=FLOATING, Tlabels=INDEX,
)  # fmt: skip
def _sparse_cross_entropy_shape(ctx: ShapeContext) -> list[Shape]:
    rows, classes = with_rank(ctx.shape("features"), 2, "logits")
    merged = merge((rows,), with_rank(ctx.shape("labels"), 1, "labels"))
    assert merged is not None
    return [merged, (merged[0], classes)]


_UNSIGNED = {size: np.dtype(f"u{size}") for size in (4, 8)}


@register_kernel("SparseSoftmaxCrossEntropyWithLogits", memory="own")
def _sparse_cross_entropy_kernel(ctx: KernelContext, x: Any, labels: Any) -> Any:
    xp = ctx.xp
    if x.ndim != 2 or labels.shape != x.shape[:1]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: labels of shape {tuple(labels.shape)} don't fit logits of shape {tuple(x.shape)}.", op=ctx.op
        )
    classes = x.shape[1]
    # On a GPU looking at the labels would stop the stream: there a label out of range makes its row NaN, as in TensorFlow.
    # Seen without a sign, a negative label is larger than any class.
    if xp is np and labels.size and np.maximum.reduce(labels.view(_UNSIGNED[labels.itemsize])) >= classes:
        bad = labels[(labels < 0) | (labels >= classes)]
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: received a label value of {bad[0]} which is outside the valid range of [0, {classes}). "
            f"Label values: {' '.join(map(str, labels[:32].tolist()))}{' ...' if labels.size > 32 else ''}",
            op=ctx.op,
        )
    if xp is np and x.dtype != np.float16 and 0 < x.size <= _MOST_BY_CLASS and classes <= 32:
        return _sparse_cross_entropy_by_class(x, labels)
    shifted = _shifted(ctx, x)
    # One index for each row is less work than two; but only where a label can't point into another row.
    single = xp is np and shifted.flags.c_contiguous and shifted.size
    table = shifted.reshape(-1) if single else shifted
    where = xp.arange(0, shifted.size, classes) + labels if single else (xp.arange(len(labels)), labels)
    chosen = table[where]
    backprop = xp.exp(shifted, out=shifted)
    total = _row_sum(ctx, backprop)
    backprop /= total
    table[where] -= x.dtype.type(1)
    loss = xp.log(total[:, 0])
    loss -= chosen
    if xp is not np:
        known = (labels >= 0) & (labels < classes)
        nan = x.dtype.type("nan")
        loss, backprop = xp.where(known, loss, nan), xp.where(known[:, None], backprop, nan)
    return loss, backprop


_MOST_BY_CLASS = 1 << 16


@functools.cache
def _count() -> Any:
    return np.arange(_MOST_BY_CLASS)


def _sparse_cross_entropy_by_class(x: Any, labels: Any) -> tuple[Any, Any]:
    """The same with a row for each class: numpy goes along rows, and a batch is longer than a few classes."""
    rows, kind = x.shape[0], x.dtype.type
    y = x.T.copy()
    y -= np.maximum.reduce(y, 0)
    table = y.reshape(-1)
    where = labels * rows
    where += _count()[:rows]
    chosen = table[where]
    np.exp(y, y)
    loss = np.add.reduce(y, 0)
    y /= loss
    table[where] -= kind(1)
    np.log(loss, loss)
    loss -= chosen
    return loss, y.T.copy()


@register_gradient("SparseSoftmaxCrossEntropyWithLogits")
def _sparse_cross_entropy_grad(op: Operation, d_loss: Tensor | None, d_backprop: Tensor | None) -> Grads:
    return [_cross_entropy_grad(op, d_loss, d_backprop), None]


def sigmoid_cross_entropy_with_logits(labels: Any = None, logits: Any = None, name: str | None = None) -> Tensor:
    """Cross entropy of ``sigmoid(logits)`` and of probabilities ``labels``, for classes that don't exclude each other.

    Parameters
    ----------
    labels, logits : Tensor of one shape and dtype
    name : name of the operation

    Raises
    ------
    ValueError
        If an argument is missing or the shapes differ.
    """
    with get_default_graph().name_scope(name or "logistic_loss") as scope:
        x, z = _logits_and_labels(logits, labels)
        # max(x, 0) - x z + log(1 + exp(-|x|)): no exponential of a positive number.
        positive = _apply("GreaterEqual", x, 0)
        zeros = _apply("ZerosLike", x)
        negative_size = _apply("SelectV2", positive, _apply("Neg", x), x)
        return _apply("AddV2", _apply("SelectV2", positive, x, zeros) - x * z, _apply("Log1p", _apply("Exp", negative_size)), name=scope)


def weighted_cross_entropy_with_logits(
    labels: Any = None, logits: Any = None, pos_weight: Any = None, name: str | None = None, targets: Any = None
) -> Tensor:
    """As ``sigmoid_cross_entropy_with_logits``, with positive examples weighted by ``pos_weight``."""
    labels = first_given("labels", labels, "targets", targets)
    with get_default_graph().name_scope(name or "logistic_loss") as scope:
        x, z = _logits_and_labels(logits, labels)
        # (1 - z) x + (1 + (q - 1) z) log(1 + exp(-x)).
        weight = z * (convert_to_tensor(pos_weight, x.dtype.base_dtype) - 1) + 1
        soft = _apply("Log1p", _apply("Exp", _apply("Neg", _apply("Abs", x)))) + relu(_apply("Neg", x))
        return _apply("AddV2", (1 - z) * x, weight * soft, name=scope)


def _logits_and_labels(logits: Any, labels: Any) -> tuple[Tensor, Tensor]:
    if labels is None or logits is None:
        raise ValueError("Both `labels` and `logits` must be provided.")
    x = convert_to_tensor(logits, name="logits")
    z = convert_to_tensor(labels, x.dtype.base_dtype, "labels")
    if not compatible(x.static_shape, z.static_shape):
        raise ValueError(f"`logits` and `labels` must have the same shape, not {x.shape} and {z.shape}.")
    return x, z


# ---------------------------------------------------------------------------------------------- biases


def bias_add(value: Any, bias: Any, data_format: str | None = None, name: str | None = None) -> Tensor:
    """``value`` with the vector ``bias`` added along the channels.

    Parameters
    ----------
    value : Tensor, shape [N, ..., C], or [N, C, ...] with ``data_format="NCHW"``
    bias : Tensor, shape [C]
    data_format : "NHWC" (also "N...C") or "NCHW" (also "NC...")
    name : name of the operation
    """
    if data_format is None or data_format in ("NHWC", "NDHWC", "NWC") or data_format.startswith("N..."):
        layout = "NHWC"
    elif data_format in ("NCHW", "NCDHW", "NCW") or data_format.startswith("NC"):
        layout = "NCHW"
    else:
        raise ValueError(f"`data_format` must be of the form `N...C` or `NC...`, not {data_format!r}.")
    result: Tensor = apply_op("BiasAdd", value, bias, data_format=layout, name=name or "BiasAdd")
    return result


_LAYOUT = {"data_format": ("string", "NHWC")}


def _bias_add_shape(ctx: ShapeContext) -> list[Shape]:
    value, (channels,) = ctx.shape("value"), with_rank(ctx.shape("bias"), 1, "bias")
    if value is None:
        return [None]
    if len(value) < 2:
        raise ValueError(f"Shape must be at least rank 2 but is {text(value)}")
    axis = 1 if ctx.attrs.get("data_format") == "NCHW" else len(value) - 1
    if value[axis] is not None and channels is not None and value[axis] != channels:
        raise ValueError(f"Dimensions must be equal, but are {value[axis]} channels and {channels} biases")
    size = channels if value[axis] is None else value[axis]
    return [(*value[:axis], size, *value[axis + 1 :])]


register_op("BiasAdd", inputs=["value: T", "bias: T"], outputs=["output: T"], attrs=_LAYOUT, T=NUMERIC)(_bias_add_shape)
register_op("BiasAddV1", inputs=["value: T", "bias: T"], outputs=["output: T"], T=NUMERIC)(_bias_add_shape)


@register_kernel("BiasAdd", memory="own")
def _bias_add(ctx: KernelContext, x: Any, bias: Any, *, data_format: str, out: Any = None) -> Any:
    axis = 1 if data_format == "NCHW" else x.ndim - 1
    if bias.ndim != 1 or x.ndim < 2 or x.shape[axis] != bias.shape[0]:
        raise errors.InvalidArgumentError(
            f"{ctx.op.name!r}: a bias of shape {tuple(bias.shape)} doesn't fit {data_format} values of shape {tuple(x.shape)}.",
            op=ctx.op,
        )
    if axis < x.ndim - 1:
        bias = bias.reshape((-1,) + (1,) * (x.ndim - 2))
    if out is not None:
        out = fitting(out, x.shape, x, bias)
    return ctx.xp.add(x, bias, out=out)


@register_kernel("BiasAddV1", memory="own")
def _bias_add_v1(ctx: KernelContext, x: Any, bias: Any, *, out: Any = None) -> Any:
    return _bias_add(ctx, x, bias, data_format="NHWC", out=out)


@register_gradient("BiasAdd", "BiasAddV1")
def _bias_add_grad(op: Operation, dy: Tensor) -> Grads:
    return [dy, apply_op("BiasAddGrad", dy, data_format=op.attrs.get("data_format", "NHWC"))]


@register_op("BiasAddGrad", inputs=["out_backprop: T"], outputs=["output: T"], attrs=_LAYOUT, T=NUMERIC)
def _bias_add_grad_shape(ctx: ShapeContext) -> list[Shape]:
    shape = ctx.shape("out_backprop")
    if shape is None:
        return [(None,)]
    if len(shape) < 2:
        raise ValueError(f"Shape must be at least rank 2 but is {text(shape)}")
    return [(shape[1 if ctx.attr("data_format") == "NCHW" else -1],)]


@register_kernel("BiasAddGrad", memory="own")
def _bias_add_grad_kernel(ctx: KernelContext, dy: Any, *, data_format: str, out: Any = None) -> Any:
    if dy.ndim == 2 and ctx.xp is np:
        return column_sums(dy, out)
    channel = 1 if data_format == "NCHW" else dy.ndim - 1
    if out is not None:
        out = fitting(out, (dy.shape[channel],), dy)
    return dy.sum(axis=tuple(i for i in range(dy.ndim) if i != channel), dtype=dy.dtype, out=out)


@register_gradient("BiasAddGrad")
def _bias_add_grad_grad(op: Operation, dz: Tensor) -> Grads:
    return [apply_op("BiasAdd", _apply("ZerosLike", op.inputs[0]), dz, data_format=op.get_attr("data_format"))]


def xw_plus_b(x: Any, weights: Any, biases: Any, name: str | None = None) -> Tensor:
    """``matmul(x, weights) + biases``."""
    return _layer("xw_plus_b", x, weights, biases, name, lambda product, b, scope: bias_add(product, b, name=scope))


def relu_layer(x: Any, weights: Any, biases: Any, name: str | None = None) -> Tensor:
    """``relu(matmul(x, weights) + biases)``."""
    return _layer("relu_layer", x, weights, biases, name, lambda product, b, scope: relu(bias_add(product, b), name=scope))


def _layer(default: str, x: Any, weights: Any, biases: Any, name: str | None, finish: Callable[[Tensor, Any, str], Tensor]) -> Tensor:
    with get_default_graph().name_scope(name or default) as scope:
        return finish(matmul(x, weights), biases, scope)


# ---------------------------------------------------------------------------------------------- regularization


def l2_loss(t: Any, name: str | None = None) -> Tensor:
    """Half the sum of squares, without a root."""
    return _apply("L2Loss", t, name=name)


@register_op("L2Loss", inputs=["t: T"], outputs=["output: T"], T=FLOATING)
def _l2_loss_shape(ctx: ShapeContext) -> list[Shape]:
    return [()]


@register_kernel("L2Loss", memory="own")
def _l2_loss(ctx: KernelContext, t: Any) -> Any:
    flat = t.ravel() if t.dtype != np.float16 else t.ravel().astype(np.float32)
    return (ctx.xp.dot(flat, flat) * flat.dtype.type(0.5)).astype(t.dtype, copy=False)


@register_gradient("L2Loss")
def _l2_loss_grad(op: Operation, dy: Tensor) -> Grads:
    return [op.inputs[0] * dy]


def dropout(
    x: Any,
    keep_prob: Any = None,
    noise_shape: Any = None,
    seed: int | None = None,
    name: str | None = None,
    rate: Any = None,
) -> Tensor:
    """``x`` with elements set to 0 at random and the others scaled up, so that the expected sum stays.

    Parameters
    ----------
    x : Tensor, floating
    keep_prob : probability that an element is kept; ``1 - rate``, the older way to say it
    noise_shape : shape of the random choices, broadcast to that of ``x``
    seed : seed of the operation
    name : name of the operation
    rate : probability that an element is set to 0, in [0, 1); a number or a scalar tensor

    Raises
    ------
    ValueError
        If neither or both of ``rate`` and ``keep_prob`` are given, or a number is out of range, or ``x`` isn't floating.
    """
    if (rate is None) == (keep_prob is None):
        raise ValueError("`dropout` needs exactly one of `rate` and `keep_prob`.")
    if rate is None:
        rate = 1 - keep_prob
    with get_default_graph().name_scope(name or "dropout") as scope:
        tensor = convert_to_tensor(x, name="x")
        if not tensor.dtype.is_floating:
            raise ValueError(f"dropout scales x, so it must be floating, not {tensor.dtype.name}.")
        kept: Any
        if isinstance(rate, int | float | np.floating):
            if not 0 <= rate < 1:
                raise ValueError(f"`rate` must be a scalar tensor or a float in the range [0, 1). Received: rate={rate}")
            if rate == 0:
                return tensor
            scaled = tensor * (1.0 / (1.0 - float(rate)))
            kept = float(rate)
        else:
            kept = convert_to_tensor(rate, tensor.dtype.base_dtype)
            scaled = tensor / (1 - kept)
        shape = noise_shape if noise_shape is not None else tensor.shape if is_static(tensor.static_shape) else _apply("Shape", tensor)
        drawn = random_uniform(shape, seed=seed, dtype=tensor.dtype.base_dtype)
        result = _apply("Mul", scaled, cast(_apply("GreaterEqual", drawn, kept), tensor.dtype), name=scope)
        if noise_shape is not None:
            result.set_shape(tensor.shape)
        return result
