"""Losses with weights, collected in the graph: ``tf.losses``.

Every loss is a mean or sum of element losses times ``weights`` (broadcast), is added to the collection ``losses`` and
returned. Owns: the reductions and the collection; the element losses of classifiers are in ``nn_ops``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpirt import dtypes
from mpirt.graph.graph import Graph, GraphKeys, Tensor, add_to_collection, get_collection, get_default_graph
from mpirt.graph.shapes import as_shape, compatible, merge, text
from mpirt.ops.apply import apply_op, convert_to_tensor
from mpirt.ops.cast_ops import cast
from mpirt.ops.math_ops import add_n, div_no_nan, minimum, squared_difference
from mpirt.ops.nn_ops import (
    sigmoid_cross_entropy_with_logits,
    softmax_cross_entropy_with_logits_v2,
    sparse_softmax_cross_entropy_with_logits,
)
from mpirt.ops.reduction_ops import first_given, reduce_sum

__all__ = [
    "Reduction", "absolute_difference", "add_loss", "compute_weighted_loss", "cosine_distance", "get_losses",
    "get_regularization_loss", "get_regularization_losses", "get_total_loss", "hinge_loss", "huber_loss", "log_loss",
    "mean_squared_error", "sigmoid_cross_entropy", "softmax_cross_entropy", "sparse_softmax_cross_entropy",
]  # fmt: skip


class Reduction:
    """How the weighted element losses become one."""

    NONE = "none"
    SUM = "weighted_sum"
    SUM_OVER_BATCH_SIZE = "weighted_sum_over_batch_size"
    MEAN = "weighted_mean"
    SUM_OVER_NONZERO_WEIGHTS = "weighted_sum_by_nonzero_weights"
    SUM_BY_NONZERO_WEIGHTS = SUM_OVER_NONZERO_WEIGHTS

    @classmethod
    def all(cls) -> tuple[str, ...]:
        """All reductions."""
        return (cls.NONE, cls.SUM, cls.MEAN, cls.SUM_OVER_BATCH_SIZE, cls.SUM_BY_NONZERO_WEIGHTS)

    @classmethod
    def validate(cls, key: str) -> None:
        """Raise ValueError unless ``key`` is a reduction."""
        if key not in cls.all():
            raise ValueError(f"Invalid Reduction Key {key}; there are {', '.join(cls.all())}.")


def _apply(op_type: str, *args: Any) -> Tensor:
    result: Tensor = apply_op(op_type, *args)
    return result


def _scope(scope: str | None, default: str) -> Any:
    graph: Graph = get_default_graph()
    return graph.name_scope(scope or default)


def compute_weighted_loss(
    losses: Any,
    weights: Any = 1.0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """Element losses times weights, reduced to one.

    Parameters
    ----------
    losses : Tensor, shape [N, ...]
    weights : number or Tensor of as many dimensions as ``losses``, each of the same size or 1; float32
    scope : name scope of the operations
    loss_collection : collection that the loss is added to, or None
    reduction : one of ``Reduction``; by default the sum over the number of weights that aren't 0

    Returns
    -------
    Tensor in the dtype of ``losses``, a scalar unless ``reduction`` is NONE

    Raises
    ------
    ValueError
        If ``reduction`` is none of these or ``weights`` don't fit.
    """
    Reduction.validate(reduction)
    with _scope(scope, "weighted_loss"):
        values = convert_to_tensor(losses)
        target = values.dtype.base_dtype
        values = cast(values, dtypes.float32)
        w: Tensor = cast(convert_to_tensor(weights), dtypes.float32)
        _check_weights(w, values)
        weighted = values * w
        if reduction == Reduction.NONE:
            loss = weighted
        else:
            loss = reduce_sum(weighted)
            if reduction == Reduction.MEAN:
                loss = div_no_nan(loss, reduce_sum(_spread(w, values)))
            elif reduction == Reduction.SUM_BY_NONZERO_WEIGHTS:
                loss = div_no_nan(loss, _present(w, values))
            elif reduction == Reduction.SUM_OVER_BATCH_SIZE:
                loss = div_no_nan(loss, cast(_apply("Size", values), dtypes.float32))
        result: Tensor = cast(loss, target)
        add_loss(result, loss_collection)
        return result


def _check_weights(weights: Tensor, values: Tensor) -> None:
    w, v = weights.static_shape, values.static_shape
    if w is None or v is None or w == ():
        return
    if len(w) != len(v) or any(a not in (None, 1, b) and b is not None for a, b in zip(w, v, strict=True)):
        raise ValueError(f"weights can not be broadcast to values: weights have shape {text(w)}, values {text(v)}.")


def _spread(weights: Tensor, values: Tensor) -> Tensor:
    """The weights, each as often as it is used."""
    return weights * _apply("OnesLike", values)


def _present(weights: Tensor, values: Tensor) -> Tensor:
    """How many elements have a weight that isn't 0."""
    nonzero: Tensor = cast(_apply("NotEqual", weights, 0.0), dtypes.float32)
    if weights.static_shape == ():
        count: Tensor = cast(_apply("Size", values), dtypes.float32)
        return nonzero * count
    return reduce_sum(_spread(nonzero, values))


def _loss(
    scope: str | None,
    default: str,
    labels: Any,
    predictions: Any,
    weights: Any,
    collection: str | None,
    reduction: str,
    element_loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """A loss of two float32 tensors of one shape."""
    if labels is None or predictions is None:
        raise ValueError("labels and predictions must not be None.")
    with _scope(scope, default):
        p: Tensor = cast(convert_to_tensor(predictions), dtypes.float32)
        y: Tensor = cast(convert_to_tensor(labels), dtypes.float32)
        merge(p.static_shape, y.static_shape)
        return compute_weighted_loss(element_loss(y, p), weights, None, collection, reduction)


def mean_squared_error(
    labels: Any,
    predictions: Any,
    weights: Any = 1.0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """Squares of the differences; weights and reduction as in ``compute_weighted_loss``."""

    def element(y: Tensor, p: Tensor) -> Tensor:
        return squared_difference(p, y)

    return _loss(scope, "mean_squared_error", labels, predictions, weights, loss_collection, reduction, element)


def absolute_difference(
    labels: Any,
    predictions: Any,
    weights: Any = 1.0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """Absolute differences; weights and reduction as in ``compute_weighted_loss``."""

    def element(y: Tensor, p: Tensor) -> Tensor:
        return _apply("Abs", p - y)

    return _loss(scope, "absolute_difference", labels, predictions, weights, loss_collection, reduction, element)


def huber_loss(
    labels: Any,
    predictions: Any,
    weights: Any = 1.0,
    delta: float = 1.0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """Half squares of differences up to ``delta``, straight beyond (Huber 1964)."""

    def element(y: Tensor, p: Tensor) -> Tensor:
        error = _apply("Abs", p - y)
        quadratic = minimum(error, delta)
        return _apply("Square", quadratic) * 0.5 + (error - quadratic) * delta

    return _loss(scope, "huber_loss", labels, predictions, weights, loss_collection, reduction, element)


def log_loss(
    labels: Any,
    predictions: Any,
    weights: Any = 1.0,
    epsilon: float = 1e-7,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """``-y log(p + epsilon) - (1 - y) log(1 - p + epsilon)``."""

    def element(y: Tensor, p: Tensor) -> Tensor:
        return _apply("Neg", y * _apply("Log", p + epsilon)) - (1 - y) * _apply("Log", 1 - p + epsilon)

    return _loss(scope, "log_loss", labels, predictions, weights, loss_collection, reduction, element)


def hinge_loss(
    labels: Any,
    logits: Any,
    weights: Any = 1.0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """``max(0, 1 - y x)`` with labels 0 and 1 read as y = -1 and 1."""

    def element(y: Tensor, x: Tensor) -> Tensor:
        return _apply("Relu", 1 - (y * 2 - 1) * x)

    return _loss(scope, "hinge_loss", labels, logits, weights, loss_collection, reduction, element)


def cosine_distance(
    labels: Any,
    predictions: Any,
    axis: Any = None,
    weights: Any = 1.0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
    dim: Any = None,
) -> Tensor:
    """``1 - sum(y p)`` along ``axis``, for vectors of length 1."""
    axis = first_given("axis", axis, "dim", dim)
    if axis is None:
        raise ValueError("You must specify argument `axis`.")

    def element(y: Tensor, p: Tensor) -> Tensor:
        return 1 - reduce_sum(p * y, axis, keepdims=True)

    return _loss(scope, "cosine_distance_loss", labels, predictions, weights, loss_collection, reduction, element)


def sigmoid_cross_entropy(
    multi_class_labels: Any,
    logits: Any,
    weights: Any = 1.0,
    label_smoothing: float = 0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """Cross entropy of independent classes; ``label_smoothing`` moves the labels that far towards 1/2."""
    with _scope(scope, "sigmoid_cross_entropy_loss"):
        x = convert_to_tensor(logits)
        y: Tensor = cast(convert_to_tensor(multi_class_labels), x.dtype)
        merge(x.static_shape, y.static_shape)
        if label_smoothing > 0:
            y = y * (1 - label_smoothing) + 0.5 * label_smoothing
        elements = sigmoid_cross_entropy_with_logits(labels=y, logits=x, name="xentropy")
        return compute_weighted_loss(elements, weights, None, loss_collection, reduction)


def softmax_cross_entropy(
    onehot_labels: Any,
    logits: Any,
    weights: Any = 1.0,
    label_smoothing: float = 0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """Cross entropy of exclusive classes; ``label_smoothing`` moves the labels that far towards 1 / number of classes."""
    with _scope(scope, "softmax_cross_entropy_loss"):
        x = convert_to_tensor(logits)
        y: Tensor = cast(convert_to_tensor(onehot_labels), x.dtype)
        merge(x.static_shape, y.static_shape)
        if label_smoothing > 0:
            last = apply_op("StridedSlice", _apply("Shape", y), [-1], [0], [1], shrink_axis_mask=1)
            classes: Tensor = cast(last, x.dtype)
            y = y * (1 - label_smoothing) + label_smoothing / classes
        elements = softmax_cross_entropy_with_logits_v2(labels=_apply("StopGradient", y), logits=x, name="xentropy")
        return compute_weighted_loss(elements, weights, None, loss_collection, reduction)


def sparse_softmax_cross_entropy(
    labels: Any,
    logits: Any,
    weights: Any = 1.0,
    scope: str | None = None,
    loss_collection: str | None = GraphKeys.LOSSES,
    reduction: str = Reduction.SUM_BY_NONZERO_WEIGHTS,
) -> Tensor:
    """Cross entropy of exclusive classes given by number; labels and weights may have a last dimension of 1."""
    with _scope(scope, "sparse_softmax_cross_entropy_loss"):
        x, y = convert_to_tensor(logits), convert_to_tensor(labels)
        w = convert_to_tensor(weights)
        y, w = _drop_last(y, x), _drop_last(w, x)
        elements = sparse_softmax_cross_entropy_with_logits(labels=y, logits=x, name="xentropy")
        return compute_weighted_loss(elements, w, None, loss_collection, reduction)


def _drop_last(y: Tensor, logits: Tensor) -> Tensor:
    """``y`` without a last dimension of 1 if it has as many dimensions as the logits."""
    shape, full = y.static_shape, logits.static_shape
    if shape is not None and full is not None and len(shape) == len(full) and shape and compatible(as_shape(shape[-1:]), (1,)):
        squeezed: Tensor = apply_op("Squeeze", y, squeeze_dims=[-1])
        return squeezed
    return y


# ---------------------------------------------------------------------------------------------- the collection


def add_loss(loss: Any, loss_collection: str | None = GraphKeys.LOSSES) -> None:
    """Add a loss of the user's own to a collection; nothing for None."""
    if loss_collection:
        add_to_collection(loss_collection, loss)


def get_losses(scope: str | None = None, loss_collection: str = GraphKeys.LOSSES) -> list[Any]:
    """Losses in a collection, those below the name scope ``scope`` if it is given."""
    return get_collection(loss_collection, scope)


def get_regularization_losses(scope: str | None = None) -> list[Any]:
    """Losses that regularizers added."""
    return get_collection(GraphKeys.REGULARIZATION_LOSSES, scope)


def get_regularization_loss(scope: str | None = None, name: str = "total_regularization_loss") -> Tensor:
    """Sum of the regularization losses, 0 if there are none."""
    found = get_regularization_losses(scope)
    return add_n(found, name=name) if found else convert_to_tensor(0.0)


def get_total_loss(add_regularization_losses: bool = True, name: str = "total_loss", scope: str | None = None) -> Tensor:
    """Sum of all losses of the graph, with those of regularizers unless they are declined; ValueError if there are none."""
    found = get_losses(scope=scope)
    if add_regularization_losses:
        found += get_regularization_losses(scope)
    if not found:
        raise ValueError("there are no losses in the graph to add up.")
    return add_n(found, name=name)
