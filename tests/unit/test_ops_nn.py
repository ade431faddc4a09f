"""Softmax, cross entropies, biases, dropout, moments, losses: against numpy, derivatives against differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops import losses, moments_ops, nn_ops
from mpirt.ops.apply import apply_op, constant
from tests.gradient_checker import check_gradient
from tests.reference import Reference

LOGITS = np.array([[0.5, -1.25, 2.0], [3.0, 0.25, -2.0], [1.0, 1.0, 1.0], [-0.5, 4.0, 0.1]])
LABELS = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 0.6, 0.4], [0.1, 0.1, 0.8]])
CLASSES = np.array([2, 0, 1, 1])


def value(build: Callable[[], Any]) -> Any:
    """Value of what ``build`` builds in a graph of its own."""
    graph = Graph()
    with graph.as_default():
        fetches = build()
    return Reference(graph).run(fetches)


def placeholder(shape: Any, dtype: Any = tf.float64) -> Any:
    return apply_op("Placeholder", dtype=dtype, shape=shape)


def softmax_of(x: Any, axis: int = -1) -> Any:
    e = np.exp(np.asarray(x, np.float64))
    return e / e.sum(axis, keepdims=True)


# ------------------------------------------------------------------------------------------------------- softmax


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [None, -1, 0, 1])
def test_softmax_agrees_with_its_definition_along_any_axis(dtype: Any, axis: Any) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(dtype)
    got = value(lambda: [nn_ops.softmax(constant(x), axis), nn_ops.log_softmax(constant(x), dim=axis)])
    tolerance = {2: 1e-2, 4: 1e-6, 8: 1e-14}[np.dtype(dtype).itemsize]
    expected = softmax_of(x, -1 if axis is None else axis)
    np.testing.assert_allclose(got[0], expected, rtol=tolerance)
    np.testing.assert_allclose(got[1], np.log(expected), rtol=tolerance)
    assert all(g.dtype == dtype for g in got)


def test_softmax_of_large_numbers_does_not_overflow() -> None:
    x = np.float32([[1e4, 0, -1e4], [-np.inf, 0, 0]])
    got = value(lambda: [nn_ops.softmax(constant(x)), nn_ops.log_softmax(constant(x))])
    np.testing.assert_allclose(got[0], [[1, 0, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(got[1], [[0, -1e4, -2e4], [-np.inf, -math.log(2), -math.log(2)]], rtol=1e-6)


def test_softmax_has_first_and_second_derivatives() -> None:
    check_gradient(lambda x: nn_ops.softmax(x), LOGITS)
    check_gradient(lambda x: nn_ops.log_softmax(x), LOGITS)
    check_gradient(lambda x: nn_ops.softmax(x, 0), LOGITS, unknown_shapes=False)
    for function in (nn_ops.softmax, nn_ops.log_softmax):
        check_gradient(lambda x, f=function: tf.gradients(tf.reduce_sum(f(x) * x), x)[0], LOGITS, rtol=1e-4)


def test_softmax_never_changes_its_input() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder(LOGITS.shape)
        outputs = [nn_ops.softmax(x), nn_ops.log_softmax(x), nn_ops.softmax_cross_entropy_with_logits_v2(LABELS, x)]
        outputs.append(nn_ops.sparse_softmax_cross_entropy_with_logits(labels=CLASSES, logits=x))
    fed = LOGITS.copy()
    fed.flags.writeable = False
    Reference(graph).run(outputs, {x: fed})


# ------------------------------------------------------------------------------------------------------- cross entropies


def cross_entropy_of(labels: Any, logits: Any) -> Any:
    return -(labels * np.log(softmax_of(logits))).sum(-1)


@pytest.mark.parametrize("classes", [2, 32, 33, 200])
def test_narrow_and_wide_rows_have_one_answer(classes: int) -> None:
    x = np.random.default_rng(classes).normal(size=(5, classes)) * 10
    y = softmax_of(np.random.default_rng(0).normal(size=(5, classes)))

    def build() -> list[Any]:
        t = constant(x)
        return [nn_ops.softmax(t), nn_ops.log_softmax(t), *apply_op("SoftmaxCrossEntropyWithLogits", t, constant(y))]

    p = softmax_of(x)
    for got, expected in zip(value(build), [p, np.log(p), cross_entropy_of(y, x), p - y], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_cross_entropies_agree_with_their_definition(dtype: Any) -> None:
    x, y = LOGITS.astype(dtype), LABELS.astype(dtype)

    def build() -> list[Any]:
        dense = nn_ops.softmax_cross_entropy_with_logits_v2(labels=y, logits=constant(x))
        sparse = nn_ops.sparse_softmax_cross_entropy_with_logits(labels=CLASSES, logits=constant(x))
        return [dense, sparse]

    dense, sparse = value(build)
    tolerance = {2: 5e-3, 4: 1e-6, 8: 1e-14}[np.dtype(dtype).itemsize]
    np.testing.assert_allclose(dense, cross_entropy_of(LABELS, LOGITS), rtol=tolerance, atol=1e-7)
    np.testing.assert_allclose(sparse, cross_entropy_of(np.eye(3)[CLASSES], LOGITS), rtol=tolerance, atol=1e-7)
    assert dense.dtype == sparse.dtype == dtype


def test_the_second_output_of_a_cross_entropy_is_its_gradient() -> None:
    def build() -> list[Any]:
        dense = apply_op("SoftmaxCrossEntropyWithLogits", constant(LOGITS), constant(LABELS))
        sparse = apply_op("SparseSoftmaxCrossEntropyWithLogits", constant(LOGITS), constant(CLASSES.astype(np.int32)))
        return [dense[1], sparse[1]]

    got = value(build)
    np.testing.assert_allclose(got[0], softmax_of(LOGITS) - LABELS, atol=1e-15)
    np.testing.assert_allclose(got[1], softmax_of(LOGITS) - np.eye(3)[CLASSES], atol=1e-15)


def test_cross_entropies_have_first_and_second_derivatives() -> None:
    def dense(x: Any, y: Any) -> Any:
        return nn_ops.softmax_cross_entropy_with_logits_v2(labels=y, logits=x)

    def sparse(x: Any) -> Any:
        return nn_ops.sparse_softmax_cross_entropy_with_logits(labels=constant(CLASSES), logits=x)

    check_gradient(dense, LOGITS, LABELS)
    check_gradient(sparse, LOGITS)
    # Second derivatives go through the op's second output; labels must be fixed for softmax - labels to be the gradient.
    check_gradient(lambda x: tf.gradients(tf.square(dense(x, constant(LABELS))), x)[0], LOGITS, rtol=1e-4)
    check_gradient(lambda x: tf.gradients(tf.square(sparse(x)), x)[0], LOGITS, rtol=1e-4)


def test_the_older_cross_entropy_gives_labels_no_gradient() -> None:
    with Graph().as_default():
        x, y = constant(LOGITS), constant(LABELS)
        loss = nn_ops.softmax_cross_entropy_with_logits(labels=y, logits=x)
        assert [g is None for g in tf.gradients(loss, [x, y])] == [False, True]


def test_a_class_of_probability_zero_costs_nothing_even_at_minus_infinity() -> None:
    x, y = np.float32([[0, -np.inf, 1]]), np.float32([[0.5, 0, 0.5]])
    got = value(lambda: nn_ops.softmax_cross_entropy_with_logits_v2(labels=y, logits=constant(x)))
    np.testing.assert_allclose(got, [math.log(1 + math.e) - 0.5], rtol=1e-6)


def test_cross_entropies_of_more_dimensions_and_other_axes() -> None:
    x = np.random.default_rng(1).normal(size=(2, 5, 3))
    y = softmax_of(np.random.default_rng(2).normal(size=(2, 5, 3)))
    classes = np.array([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    graph = Graph()
    with graph.as_default():
        unknown = placeholder(None)
        by_last = nn_ops.softmax_cross_entropy_with_logits_v2(labels=y, logits=constant(x))
        by_middle = nn_ops.softmax_cross_entropy_with_logits_v2(labels=y.swapaxes(1, 2), logits=constant(x.swapaxes(1, 2)), axis=1)
        sparse = nn_ops.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=constant(x))
        dynamic = nn_ops.softmax_cross_entropy_with_logits_v2(labels=y, logits=unknown)
        sparse_dynamic = nn_ops.sparse_softmax_cross_entropy_with_logits(labels=classes, logits=unknown)
        assert by_last.static_shape == by_middle.static_shape == sparse.static_shape == sparse_dynamic.static_shape == (2, 5)
    got = Reference(graph).run([by_last, by_middle, dynamic, sparse, sparse_dynamic], {unknown: x})
    for array in got[:3]:
        np.testing.assert_allclose(array, cross_entropy_of(y, x), rtol=1e-13)
    for array in got[3:]:
        np.testing.assert_allclose(array, cross_entropy_of(np.eye(3)[classes], x), rtol=1e-13)


def test_labels_outside_the_classes_are_refused_with_their_values() -> None:
    def build() -> Any:
        return nn_ops.sparse_softmax_cross_entropy_with_logits(labels=constant([0, 3, 1, -1]), logits=constant(LOGITS))

    message = r"received a label value of 3 which is outside the valid range of \[0, 3\)\. Label values: 0 3 1 -1"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        value(build)


def test_labels_of_an_unfit_shape_are_refused() -> None:
    with Graph().as_default():
        x = constant(LOGITS)
        with pytest.raises(ValueError, match="one dimension less than `logits`"):
            nn_ops.sparse_softmax_cross_entropy_with_logits(labels=constant([[0]]), logits=x)
        with pytest.raises(ValueError, match=r"`labels` of shape \(3,\) don't fit"):
            nn_ops.sparse_softmax_cross_entropy_with_logits(labels=constant([0, 1, 2]), logits=x)
        with pytest.raises(ValueError, match="Both `labels` and `logits`"):
            nn_ops.softmax_cross_entropy_with_logits(logits=x)


def test_sigmoid_cross_entropies() -> None:
    x, z = LOGITS, LABELS
    p = 1 / (1 + np.exp(-x))

    def build() -> list[Any]:
        plain = nn_ops.sigmoid_cross_entropy_with_logits(labels=z, logits=constant(x))
        weighted = nn_ops.weighted_cross_entropy_with_logits(labels=z, logits=constant(x), pos_weight=3.0)
        steep = nn_ops.sigmoid_cross_entropy_with_logits(labels=constant([0.0, 1.0]), logits=constant([1e4, 1e4]))
        return [plain, weighted, steep]

    plain, weighted, steep = value(build)
    np.testing.assert_allclose(plain, -z * np.log(p) - (1 - z) * np.log(1 - p), rtol=1e-13)
    np.testing.assert_allclose(weighted, -3 * z * np.log(p) - (1 - z) * np.log(1 - p), rtol=1e-13)
    assert steep.tolist() == [1e4, 0]
    check_gradient(lambda a, b: nn_ops.sigmoid_cross_entropy_with_logits(labels=b, logits=a), x, z)
    check_gradient(lambda a: nn_ops.weighted_cross_entropy_with_logits(labels=z, logits=a, pos_weight=3.0), x)


# ------------------------------------------------------------------------------------------------------- biases


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 3), (2, 3, 4, 3)])
@pytest.mark.parametrize("data_format", [None, "NHWC", "NCHW", "NC..."])
def test_biases_are_added_along_the_channels(shape: tuple[int, ...], data_format: Any) -> None:
    x, b = np.random.default_rng(0).normal(size=shape), np.array([1.0, -2.0, 0.5])
    axis = 1 if data_format in ("NCHW", "NC...") else len(shape) - 1
    expected = x + b.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    np.testing.assert_allclose(value(lambda: nn_ops.bias_add(constant(x), b, data_format)), expected)
    check_gradient(lambda t, u: nn_ops.bias_add(t, u, data_format), x, b)
    layout = "NCHW" if axis == 1 else "NHWC"
    check_gradient(lambda t: apply_op("BiasAddGrad", t, data_format=layout), x, unknown_shapes=False)


def test_a_bias_of_the_wrong_size_is_refused() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match="3 channels and 2 biases"):
        nn_ops.bias_add(constant(LOGITS), [1.0, 2.0])
    graph = Graph()
    with graph.as_default():
        b = placeholder((None,))
        y = nn_ops.bias_add(constant(LOGITS), b)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"a bias of shape \(1,\) doesn't fit NHWC values of shape \(4, 3\)"):
        Reference(graph).run(y, {b: [1.0]})


def test_layers_are_products_with_a_bias() -> None:
    w, b = np.ones((3, 2)), np.array([-2.0, 1.0])
    got = value(lambda: [f(constant(LOGITS), constant(w), constant(b)) for f in (nn_ops.xw_plus_b, nn_ops.relu_layer)])
    np.testing.assert_allclose(got[0], LOGITS @ w + b)
    np.testing.assert_allclose(got[1], np.maximum(LOGITS @ w + b, 0))


# ------------------------------------------------------------------------------------------------------- regularization


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_l2_loss_is_half_the_sum_of_squares(dtype: Any) -> None:
    for x in (LOGITS.astype(dtype), LOGITS.astype(dtype).T, np.array(3, dtype)):
        got = value(lambda x=x: nn_ops.l2_loss(constant(x)))
        assert got.dtype == dtype and got.shape == ()
        np.testing.assert_allclose(got, np.sum(x.astype(np.float64) ** 2) / 2, rtol=2e-3 if dtype == np.float16 else 1e-6)
    check_gradient(nn_ops.l2_loss, LOGITS)


def test_dropout_keeps_the_share_and_the_mean_and_its_gradient_uses_the_same_choice() -> None:
    graph = Graph()
    with graph.as_default():
        x = constant(np.ones((100, 100), np.float32))
        y = nn_ops.dropout(x, rate=0.25, seed=1)
        rows = nn_ops.dropout(x, keep_prob=0.5, noise_shape=[100, 1], seed=2)
        by_tensor = nn_ops.dropout(x, rate=constant(0.25), seed=3)
        grad = tf.gradients(y, x)[0]
        assert nn_ops.dropout(x, rate=0.0) is x
        assert rows.static_shape == (100, 100)
    got, got_rows, got_tensor, slope = Reference(graph).run([y, rows, by_tensor, grad])
    for array in (got, got_tensor):
        np.testing.assert_allclose(np.unique(array), [0, 1 / 0.75], rtol=1e-6)
        assert abs(np.mean(array != 0) - 0.75) < 0.02
    assert np.all(got_rows == got_rows[:, :1]) and set(np.unique(got_rows)) == {0.0, 2.0}
    np.testing.assert_array_equal(slope, got)


def test_dropout_refuses_rates_that_are_none() -> None:
    with Graph().as_default():
        x = constant([1.0])
        for rate in (1.0, -0.1, 2):
            with pytest.raises(ValueError, match=r"in the range \[0, 1\)"):
                nn_ops.dropout(x, rate=rate)
        with pytest.raises(ValueError, match="exactly one of `rate` and `keep_prob`"):
            nn_ops.dropout(x)
        with pytest.raises(ValueError, match="must be floating, not int32"):
            nn_ops.dropout(constant([1]), rate=0.5)


# ------------------------------------------------------------------------------------------------------- moments


@pytest.mark.parametrize("axes", [[0], [0, 1], 1, (-1,)], ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_moments_are_mean_and_variance(axes: Any, keepdims: bool) -> None:
    over = tuple(axes) if isinstance(axes, list) else axes
    for dtype in (np.float64, np.float32, np.float16):
        mean, variance = value(lambda dtype=dtype: moments_ops.moments(constant(LOGITS.astype(dtype)), axes, keepdims=keepdims))
        tolerance = 5e-3 if dtype == np.float16 else 1e-6
        np.testing.assert_allclose(mean, LOGITS.mean(over, keepdims=keepdims), rtol=tolerance)
        np.testing.assert_allclose(variance, LOGITS.var(over, keepdims=keepdims), rtol=tolerance, atol=tolerance)
        assert mean.dtype == variance.dtype == dtype
    check_gradient(lambda x: moments_ops.moments(x, axes, keepdims=keepdims), LOGITS)


def test_variance_survives_a_large_mean() -> None:
    x = (np.arange(100) % 2 + 1e4).astype(np.float32)
    np.testing.assert_allclose(value(lambda: moments_ops.moments(constant(x), [0])[1]), 0.25, rtol=1e-4)


def test_moments_from_sufficient_statistics_and_with_weights() -> None:
    w = np.array([[1.0], [2.0], [0.0], [3.0]])

    def build() -> list[Any]:
        x = constant(LOGITS)
        plain = moments_ops.normalize_moments(*moments_ops.sufficient_statistics(x, [0]))
        shifted = moments_ops.normalize_moments(*moments_ops.sufficient_statistics(x, [0], shift=0.5))
        return [*plain, *shifted, *moments_ops.weighted_moments(x, [0], w), *moments_ops.weighted_moments(x, [0, 1], w)]

    got = value(build)
    for mean, variance in (got[:2], got[2:4]):
        np.testing.assert_allclose(mean, LOGITS.mean(0), rtol=1e-13)
        np.testing.assert_allclose(variance, LOGITS.var(0), rtol=1e-12)
    mean = (w * LOGITS).sum(0) / w.sum()
    np.testing.assert_allclose(got[4], mean, rtol=1e-13)
    np.testing.assert_allclose(got[5], (w * (LOGITS - mean) ** 2).sum(0) / w.sum(), rtol=1e-13)
    np.testing.assert_allclose(got[6], (w * LOGITS).sum() / (3 * w.sum()), rtol=1e-13)


@pytest.mark.parametrize("with_scale", [False, True])
@pytest.mark.parametrize("with_offset", [False, True])
def test_batch_normalization_agrees_with_its_definition(with_scale: bool, with_offset: bool) -> None:
    mean, variance = LOGITS.mean(0), LOGITS.var(0)
    scale, offset = (np.array([1.0, 2.0, 3.0]) if with_scale else None), (np.array([0.5, 0.0, -1.0]) if with_offset else None)
    expected = (LOGITS - mean) / np.sqrt(variance + 1e-3)
    expected = expected * (1 if scale is None else scale) + (0 if offset is None else offset)
    got = value(lambda: moments_ops.batch_normalization(constant(LOGITS), constant(mean), constant(variance), offset, scale, 1e-3))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_vectors_are_brought_to_length_one_and_zeros_counted() -> None:
    got = value(lambda: [moments_ops.l2_normalize(constant(LOGITS), 1), moments_ops.zero_fraction(constant([0, 1, 0, 2]))])
    np.testing.assert_allclose(got[0], LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True), rtol=1e-13)
    assert got[1] == 0.5 and got[1].dtype == np.float32
    assert value(lambda: moments_ops.l2_normalize(constant([0.0, 0.0]), 0)).tolist() == [0, 0]


# ------------------------------------------------------------------------------------------------------- losses

Y, P = LABELS.astype(np.float32), softmax_of(LOGITS).astype(np.float32)
ELEMENTS: dict[str, tuple[Any, Any, Any]] = {
    "mean_squared_error": ((P - Y) ** 2, Y, P),
    "absolute_difference": (abs(P - Y), Y, P),
    "huber_loss": (np.where(abs(LOGITS - Y) < 1, (LOGITS - Y) ** 2 / 2, abs(LOGITS - Y) - 0.5), Y, LOGITS),
    "log_loss": (-Y * np.log(P + 1e-7) - (1 - Y) * np.log(1 - P + 1e-7), Y, P),
    "hinge_loss": (np.maximum(0, 1 - (2 * np.eye(3)[CLASSES] - 1) * LOGITS), np.eye(3)[CLASSES], LOGITS),
    "sigmoid_cross_entropy": (np.log1p(np.exp(LOGITS)) - Y * LOGITS, Y, LOGITS),
    "softmax_cross_entropy": (cross_entropy_of(LABELS, LOGITS), LABELS, LOGITS),
    "sparse_softmax_cross_entropy": (cross_entropy_of(np.eye(3)[CLASSES], LOGITS), CLASSES, LOGITS),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_losses_are_means_of_their_elements_and_are_collected(name: str) -> None:
    elements, labels, predictions = ELEMENTS[name]
    graph = Graph()
    with graph.as_default():
        loss = getattr(losses, name)(labels, constant(predictions))
        assert losses.get_losses() == [loss]
        assert loss.dtype in (tf.float32, tf.float64)
    np.testing.assert_allclose(Reference(graph).run(loss), np.mean(elements), rtol=2e-6)


@pytest.mark.parametrize("weights", [0.5, 0.0, np.float32([[1], [0], [2], [3]]), np.float32([[1, 0, 2]] * 4)], ids=str)
def test_weighted_losses_are_reduced_as_asked(weights: Any) -> None:
    elements = np.abs(LOGITS).astype(np.float32)
    spread = np.broadcast_to(weights, elements.shape)

    def ratio(a: float, b: float) -> float:
        return a / b if b else 0.0

    total = float((spread * elements).sum())
    expected = {
        losses.Reduction.NONE: spread * elements,
        losses.Reduction.SUM: total,
        losses.Reduction.MEAN: ratio(total, spread.sum()),
        losses.Reduction.SUM_OVER_BATCH_SIZE: total / elements.size,
        losses.Reduction.SUM_BY_NONZERO_WEIGHTS: ratio(total, np.count_nonzero(spread)),
    }
    got = value(lambda: [losses.compute_weighted_loss(constant(elements), weights, reduction=r) for r in expected])
    for array, answer in zip(got, expected.values(), strict=True):
        np.testing.assert_allclose(array, answer, rtol=1e-6)


def test_losses_refuse_unfit_weights_and_reductions() -> None:
    with Graph().as_default():
        with pytest.raises(ValueError, match="weights can not be broadcast to values"):
            losses.mean_squared_error(Y, constant(P), weights=np.ones(3))
        with pytest.raises(ValueError, match="Invalid Reduction Key average"):
            losses.compute_weighted_loss(constant(P), reduction="average")
        with pytest.raises(ValueError, match="not compatible"):
            losses.mean_squared_error(Y, constant(P[:2]))


def test_label_smoothing_moves_labels_towards_the_mean() -> None:
    onehot = np.eye(3)[CLASSES]

    def build() -> list[Any]:
        soft = losses.softmax_cross_entropy(onehot, constant(LOGITS), label_smoothing=0.3)
        return [soft, losses.sigmoid_cross_entropy(onehot, constant(LOGITS), label_smoothing=0.3)]

    soft, single = value(build)
    np.testing.assert_allclose(soft, cross_entropy_of(onehot * 0.7 + 0.1, LOGITS).mean(), rtol=1e-6)
    smooth = onehot * 0.7 + 0.15
    np.testing.assert_allclose(single, (np.log1p(np.exp(LOGITS)) - smooth * LOGITS).mean(), rtol=1e-6)


def test_sparse_labels_may_have_a_last_dimension_of_one() -> None:
    got = value(lambda: losses.sparse_softmax_cross_entropy(CLASSES[:, None], constant(LOGITS), weights=np.ones((4, 1))))
    np.testing.assert_allclose(got, cross_entropy_of(np.eye(3)[CLASSES], LOGITS).mean(), rtol=1e-6)


def test_total_loss_adds_the_collected_ones() -> None:
    graph = Graph()
    with graph.as_default():
        losses.add_loss(constant(2.0))
        losses.add_loss(constant(5.0), None)
        graph.add_to_collection(tf.GraphKeys.REGULARIZATION_LOSSES, constant(0.5))
        totals = [losses.get_total_loss(), losses.get_total_loss(False), losses.get_regularization_loss()]
    assert Reference(graph).run(totals) == [2.5, 2.0, 0.5]
    with Graph().as_default(), pytest.raises(ValueError, match="no losses"):
        losses.get_total_loss()


def test_cosine_distance_of_unit_vectors() -> None:
    unit = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)
    got = value(lambda: losses.cosine_distance(unit, constant(unit[::-1].copy()), axis=1))
    np.testing.assert_allclose(got, np.mean(1 - (unit * unit[::-1]).sum(1)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (1024,), (64, 256), (3, 11_000), (0, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
@pytest.mark.parametrize("transposed", [False, True])
def test_relu_is_the_larger_of_each_number_and_zero_at_every_size_and_in_every_layout(shape: Any, dtype: Any, transposed: bool) -> None:
    values = (np.random.default_rng(0).normal(size=shape) * 10).astype(dtype)
    if values.size > 4 and values.dtype.kind == "f":
        values.reshape(-1)[:4] = np.nan, np.inf, -np.inf, -1e-7
    x = tf.placeholder(dtype, [None] * values.ndim)
    with tf.Session() as session:
        found = session.run(tf.nn.relu(tf.transpose(x) if transposed else x), {x: values})
    wanted = np.where(values < 0, np.zeros((), dtype), values)
    np.testing.assert_array_equal(found, wanted.T if transposed else wanted)


@pytest.mark.parametrize("transposed", [False, True])
def test_sparse_cross_entropy_takes_the_labelled_class_of_its_own_row_in_every_layout(transposed: bool) -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(7, 5)), np.array([4, 0, 4, 1, 0, 3, 2])
    x = tf.placeholder(tf.float64, [None, None])
    rows = tf.transpose(x) if transposed else x
    loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=tf.reshape(rows, [7, 5]) if not transposed else rows)
    (slope,) = tf.gradients(loss, x)
    with tf.Session() as session:
        found, gradient = session.run([loss, slope], {x: logits.T if transposed else logits})
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, [-np.log(chances[i, label]) for i, label in enumerate(labels)], rtol=1e-12)
    np.testing.assert_allclose(gradient.T if transposed else gradient, chances - np.eye(5)[labels], rtol=1e-12, atol=1e-15)
