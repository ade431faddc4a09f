"""Kernels of a training step with their ways for this shape or that: sums of columns, cross entropy by class, sums of tensors, updates.

Each is held against the same in float64, at shapes on both sides of where the ways part, with and without an array to write to.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.op_def import op_def
from mpirt.ops import nn_ops, reduction_ops
from mpirt.ops.state_ops import VariableCell

FLOATS = ("float16", "float32", "float64")
ERROR = {"float16": 4e-3, "float32": 2e-5, "float64": 1e-12}


def run(op_type: str, *inputs: Any, **attrs: Any) -> Any:
    """What the CPU's kernel gives."""
    kernel = op_def(op_type).kernels["CPU"].function
    assert kernel is not None
    with np.errstate(all="ignore"):
        return kernel(SimpleNamespace(xp=np, op=SimpleNamespace(name="op", type=op_type)), *inputs, **attrs)


def some(shape: tuple[int, ...], dtype: str) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


# ---------------------------------------------------------------------------------------------- sums of columns


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "complex64"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (7, 1), (64, 10), (33, 257), (reduction_ops._MOST_ROWS + 1, 2)])
@pytest.mark.parametrize("told", [True, False])
def test_sums_of_columns_are_numpys_whatever_the_type_and_shape(dtype: str, shape: tuple[int, int], told: bool) -> None:
    x = some(shape, "float64").astype(dtype) if shape[0] < 1000 else np.ones(shape, dtype)
    wanted = x.astype(np.complex128).sum(axis=0)
    if dtype == "float16" and shape[0] > 2048:
        wanted = None  # beyond its integers
    for result, out in [
        (run("Sum", x, np.array([0], np.int32), keep_dims=False, out=(a := np.empty(shape[1], dtype) if told else None)), a),
        (run("BiasAddGrad", x, data_format="NHWC", out=(b := np.empty(shape[1], dtype) if told else None)), b),
    ]:
        assert result.dtype == dtype
        assert result.shape == shape[1:]
        assert out is None or result is out
        if wanted is not None:
            np.testing.assert_allclose(result, wanted, rtol=0, atol=ERROR.get(dtype, 1e-4) * max(1, shape[0]))


@pytest.mark.parametrize("keep_dims", [True, False])
@pytest.mark.parametrize("axes", [[0], [1], [-1], [0, 1], [1, 0, -1], []])
def test_a_sum_is_written_where_it_is_told_whatever_the_axes(axes: list[int], keep_dims: bool) -> None:
    x = some((3, 4, 5), "float32")
    wanted = x.astype(np.float64).sum(axis=tuple(axes), keepdims=keep_dims) if len({a % 3 for a in axes}) == len(axes) else None
    if wanted is None:
        return
    out = np.empty(wanted.shape, np.float32)
    result = run("Sum", x, np.array(axes, np.int32), keep_dims=keep_dims, out=out)
    assert result is out
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


def test_a_sum_goes_elsewhere_if_the_place_is_of_another_shape_or_type() -> None:
    x = np.ones((4, 3), np.float32)
    for out in (np.zeros(4, np.float32), np.zeros(3, np.float64)):
        for result in (
            run("Sum", x, np.array([0], np.int32), keep_dims=False, out=out),
            run("BiasAddGrad", x, data_format="NHWC", out=out),
            run("AddN", x[0], x[1], out=out) / 2 * 4,
        ):
            assert result.tolist() == [4, 4, 4]
            assert result.dtype == np.float32
        assert not out.any()


@pytest.mark.parametrize("layout", ["C", "F", "every second column"])
def test_sums_of_columns_with_nan_and_infinity_stay_in_their_columns(layout: str) -> None:
    x = np.ones((5, 8), np.float32)
    x[1, 0], x[2, 2], x[3, 2], x[4, 4], x[0, 4] = np.nan, np.inf, np.inf, np.inf, -np.inf
    given = np.asfortranarray(x) if layout == "F" else np.repeat(x, 2, axis=1)[:, ::2] if layout != "C" else x
    found = run("Sum", given, np.array([0], np.int32), keep_dims=False)
    np.testing.assert_array_equal(found, [np.nan, 5, np.inf, 5, np.nan, 5, 5, 5])


def test_biases_of_channels_in_front_get_their_sums_where_they_are_told() -> None:
    x = some((2, 3, 4, 5), "float32")
    out = np.empty(3, np.float32)
    assert run("BiasAddGrad", x, data_format="NCHW", out=out) is out
    np.testing.assert_allclose(out, x.astype(np.float64).sum(axis=(0, 2, 3)), rtol=1e-5)
    square = some((3, 3), "float32")
    np.testing.assert_allclose(run("BiasAddGrad", square, data_format="NCHW"), square.astype(np.float64).sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
@pytest.mark.parametrize("axes", [[0], [1], [0, 1]])
def test_a_mean_is_numpys(dtype: str, axes: list[int]) -> None:
    x = some((7, 9), "float64").astype(dtype)
    found = run("Mean", x, np.array(axes, np.int32), keep_dims=False)
    wanted = x.astype(np.float64).mean(axis=tuple(axes))
    np.testing.assert_allclose(found, np.trunc(wanted) if dtype == "int32" else wanted, rtol=0, atol=ERROR.get(dtype, 0))
    assert found.dtype == dtype
    assert dtype == "int32" or np.isnan(run("Mean", x[:0], np.array([0], np.int32), keep_dims=False)).all()


# ---------------------------------------------------------------------------------------------- sums of tensors


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (5, 7)])
def test_a_sum_of_tensors_is_written_where_it_is_told_and_changes_none_of_them(count: int, shape: tuple[int, ...]) -> None:
    inputs = [np.full(shape, 10.0**i) for i in range(count)]
    for out in (None, np.empty(shape)):
        found = run("AddN", *inputs, out=out)
        assert out is None or found is out
        assert found is not inputs[0]
        np.testing.assert_array_equal(found, np.full(shape, float("1" * count)))
    for i, given in enumerate(inputs):
        np.testing.assert_array_equal(given, np.full(shape, 10.0**i))


def test_a_sum_of_tensors_of_different_shapes_is_refused_wherever_the_other_one_is() -> None:
    same, other = np.zeros((2, 3)), np.zeros(3)
    for inputs in ([same, other], [same, same, other], [same, other, same]):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"must have one shape, not \[\(2, 3\)"):
            run("AddN", *inputs)


# ---------------------------------------------------------------------------------------------- cross entropy


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (64, 10), (3, 32), (3, 33), (7, 2), (nn_ops._MOST_BY_CLASS // 10 + 1, 10)])
def test_sparse_cross_entropy_is_its_formula_in_either_layout(shape: tuple[int, int], dtype: str, index: str) -> None:
    x = (3 * some(shape, "float64")).astype(dtype)
    before = x.copy()
    labels = np.random.default_rng(1).integers(0, shape[1], shape[0]).astype(index)
    loss, backprop = run("SparseSoftmaxCrossEntropyWithLogits", x, labels)
    wide = x.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    p = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    rows = np.arange(shape[0])
    error = 4 * ERROR[dtype]
    np.testing.assert_allclose(loss, -np.log(p[rows, labels]), rtol=error, atol=error)
    p[rows, labels] -= 1
    np.testing.assert_allclose(backprop, p, rtol=error, atol=error)
    assert loss.dtype == backprop.dtype == dtype
    assert backprop.flags.c_contiguous, "what follows is planned for that"
    np.testing.assert_array_equal(x, before)


def test_sparse_cross_entropy_keeps_nan_and_infinity_in_their_rows() -> None:
    x = np.zeros((4, 3), np.float32)
    x[0, 1], x[1, 2], x[2, 0] = np.nan, -np.inf, 1e38
    loss, backprop = run("SparseSoftmaxCrossEntropyWithLogits", x, np.array([0, 0, 0, 2]))
    np.testing.assert_allclose(loss, np.array([np.nan, np.log(2), 0, np.log(3)]), rtol=1e-6)
    np.testing.assert_allclose(3 * backprop[1:], [[-1.5, 1.5, 0], [0, 0, 0], [1, 1, -2]], rtol=1e-6)
    assert np.isnan(backprop[0]).all()


@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1])
def test_sparse_cross_entropy_names_a_label_outside_the_classes(bad: int) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"a label value of {bad} which is outside the valid range of \[0, 3\)"):
        run("SparseSoftmaxCrossEntropyWithLogits", np.zeros((2, 3), np.float32), np.array([0, bad], np.int32))


def test_sparse_cross_entropy_of_no_rows_is_nothing() -> None:
    loss, backprop = run("SparseSoftmaxCrossEntropyWithLogits", np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    assert loss.shape == (0,)
    assert backprop.shape == (0, 3)


def test_the_gradient_of_a_layer_is_that_of_differences_of_its_loss() -> None:
    x, labels = some((5, 4), "float64"), np.array([0, 2, 1, 2, 0])
    with tf.Graph().as_default(), tf.Session() as session:
        weights, biases = tf.placeholder(tf.float64, [4, 3]), tf.placeholder(tf.float64, [3])
        logits = tf.nn.bias_add(tf.matmul(tf.nn.relu(tf.constant(x)), weights), biases)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        at = {weights: some((4, 3), "float64"), biases: some((3,), "float64")}
        gradients = session.run(tf.gradients(loss, [weights, biases]), at)
        for holder, gradient in zip((weights, biases), gradients, strict=True):
            for where in np.ndindex(*gradient.shape):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = at[holder].copy()
                    moved[where] += step
                    ends.append(session.run(loss, {**at, holder: moved}))
                np.testing.assert_allclose(gradient[where], (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------------------------------------- updates


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (0,), (5, 3)])
def test_a_step_of_momentum_is_its_formula_for_any_shape(shape: tuple[int, ...], dtype: str, nesterov: bool) -> None:
    start, accumulated, grad = some(shape, dtype), some((*shape, 1), dtype)[..., 0], np.asarray(some(shape, dtype) / 2, dtype)
    cells = [VariableCell(name, tf.as_dtype(dtype), shape) for name in ("var", "accum")]
    for cell, value in zip(cells, (start, accumulated), strict=True):
        cell.assign(np.array(value, dtype))
    rate, momentum = np.array(0.25, dtype), np.array(0.5, dtype)
    run("ApplyMomentum", *cells, rate, grad, momentum, use_nesterov=nesterov)
    wide = np.asarray(accumulated, np.float64) * 0.5 + grad
    step = np.asarray(grad, np.float64) * 0.25 + wide * 0.5 * 0.25 if nesterov else wide * 0.25
    np.testing.assert_allclose(cells[1].read(), wide, rtol=ERROR[dtype], atol=ERROR[dtype])
    np.testing.assert_allclose(cells[0].read(), np.asarray(start, np.float64) - step, rtol=ERROR[dtype], atol=ERROR[dtype])
    assert cells[0].read().dtype == cells[1].read().dtype == dtype


def test_an_update_that_fails_gives_all_its_locks_back() -> None:
    for op_type, slots in (("ApplyGradientDescent", 0), ("ApplyMomentum", 1), ("ApplyAdam", 2), ("ApplyCenteredRMSProp", 3)):
        cells = [VariableCell(f"v{i}", tf.float32, (2,)) for i in range(1 + slots)]
        args = op_def(op_type).inputs[len(cells) :]
        with pytest.raises(tf.errors.FailedPreconditionError, match="uninitialized"):
            run(op_type, *cells, *[np.zeros((), np.float32) for _ in args])
        for cell in cells:
            assert not cell.lock._is_owned()  # type: ignore[attr-defined]
