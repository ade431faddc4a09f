"""Slices, joins and pieces: against numpy's indexing, gradients against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpirt import errors
from mpirt.graph.graph import Graph
from mpirt.ops.apply import apply_op, constant
from mpirt.ops.array_ops import shape, zeros
from mpirt.ops.concat_ops import concat, split, stack, unstack
from mpirt.ops.getitem import newaxis
from mpirt.ops.identity_ops import placeholder
from mpirt.ops.slice_ops import slice as slice_
from mpirt.ops.slice_ops import strided_slice
from tests.evaluate import evaluate
from tests.gradient_checker import check_gradient
from tests.reference import Reference

X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
INDICES: list[Any] = [
    0, -1, slice(1, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1), (slice(1, 3), 2), (..., 0),
    (0, ..., slice(1, 4, 2)), (slice(None), newaxis, ..., -1), (slice(2, 0, -1), slice(None, None, -2)), slice(5, None),
    slice(1, 1), (slice(None, 100), slice(-100, None)), (..., newaxis), (0, 1, 2), (..., slice(1, 2), slice(None)),
    (2, newaxis, slice(1, None), 0, newaxis), slice(-1, -10, -1), ...,
]  # fmt: skip


# --- x[...]


@settings(max_examples=200)
@given(hnp.basic_indices((3, 4, 5), allow_newaxis=True))
def test_indexing_a_tensor_means_what_it_means_in_numpy(index: Any) -> None:
    got = evaluate(lambda x: x[index], X)
    assert np.array_equal(got, X[index])


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_the_static_shape_of_a_slice_is_the_shape_of_its_value(index: Any) -> None:
    with Graph().as_default():
        assert placeholder("float32", X.shape)[index].static_shape == X[index].shape
        partly = placeholder("float32", [None, 4, None])[index].static_shape
    assert partly is not None and len(partly) == X[index].ndim
    assert all(s in (None, d) for s, d in zip(partly, X[index].shape, strict=True))


@pytest.mark.parametrize("index", [i for i in INDICES if i not in (slice(5, None), slice(1, 1))], ids=str)
def test_gradient_of_a_slice(index: Any) -> None:
    check_gradient(lambda x: x[index], X[:, :3, :3] / 10)


def test_scalar_tensors_count_as_numbers_in_an_index() -> None:
    for kind in (np.int32, np.int64, np.uint8):
        i, j = kind(1), kind(3)
        got = evaluate(lambda x, i, j: [x[i], x[i:j], x[:, i, ::j], x[0, i:, 2]], X, i, j)
        for a, b in zip(got, [X[1], X[1:3], X[:, 1, ::3], X[0, 1:, 2]], strict=True):
            assert np.array_equal(a, b)
    check_gradient(lambda x, i: [x[i], x[:, i:]], X[:, :2, :2], np.int32(1))


def test_numbers_that_need_64_bits_are_taken() -> None:
    assert np.array_equal(evaluate(lambda x: x[: 2**40], X), X)
    assert np.array_equal(evaluate(lambda x, j: x[:j], X, np.int64(2**40)), X)


def test_a_boolean_mask_takes_the_elements_where_it_is_true() -> None:
    mask = X[:, :, 0] % 2 == 0
    with Graph().as_default() as graph:
        x = constant(X)
        got = Reference(graph).run([x[mask], x[constant(mask)]])
    assert np.array_equal(got[0], X[mask]) and np.array_equal(got[1], X[mask])


@pytest.mark.parametrize("key", [1.5, "a", [0, 1], (0, [1]), np.array([1, 2])], ids=str)
def test_other_kinds_of_index_are_refused_with_the_way_out(key: Any) -> None:
    with Graph().as_default():
        x = constant(X)
        with pytest.raises(TypeError, match="Only integers, slices .* use tf.gather"):
            x[key]


def test_a_number_outside_is_refused_while_building_or_in_the_step() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match="slice index 3 of dimension 0 out of bounds: its size is 3"):
        constant(X)[3]
    with pytest.raises(errors.InvalidArgumentError, match=r"slice index -4 of dimension 0 out of bounds .*shape \(3, 4, 5\)"):
        evaluate(lambda x, i: x[i], X, np.int32(-4))
    with pytest.raises(errors.InvalidArgumentError, match="slice index 3 of dimension 0 out of bounds"):
        evaluate(lambda x, i: x[i], X, np.int32(3))
    with pytest.raises(errors.InvalidArgumentError, match="slice index 5 of dimension 2 out of bounds"):
        evaluate(lambda x, i: x[0, ..., i], X, np.int32(5))
    assert np.array_equal(evaluate(lambda x, i: x[..., i], X, np.int32(4)), X[..., 4])
    with pytest.raises(errors.InvalidArgumentError, match="strides must be non-zero"):
        evaluate(lambda x, i: x[::i], X, np.int32(0))
    with Graph().as_default(), pytest.raises(ValueError, match="strides.0. must be non-zero"):
        constant(X)[::0]


def test_more_entries_than_dimensions_are_refused() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match="input has only 3 dims"):
        constant(X)[0, 0, 0, 0]
    graph = Graph()
    with graph.as_default():
        x = placeholder("float32")
        y = x[0, 0, 0, 0]
    with pytest.raises(errors.InvalidArgumentError, match="it names 4 dimensions, the tensor has 3"):
        Reference(graph).run(y, {x: X})
    with Graph().as_default(), pytest.raises(ValueError, match="Multiple ellipses"):
        constant(X)[..., 0, ...]


def test_a_slice_of_strings_is_an_array_of_strings() -> None:
    words = np.array([[b"a", b"bc"], [b"", b"d"]], object)
    got = evaluate(lambda x: [x[0, 1], x[1], x[:, newaxis, 0]], words)
    assert got[0].item() == b"bc" and got[1].tolist() == [b"", b"d"] and got[2].tolist() == [[b"a"], [b""]]


def test_masks_mean_what_tensorflow_says() -> None:
    got = evaluate(lambda x: strided_slice(x, [0, 1, 0], [2, 3, 4], [1, 1, 2], begin_mask=2, end_mask=4), X)
    assert np.array_equal(got, X[0:2, :3, 0::2])
    assert np.array_equal(evaluate(lambda x: strided_slice(x, [0, 1], [0, 2], ellipsis_mask=1), X), X[..., 1:2])
    # An ellipsis wins over a new axis, and that over a dropped dimension.
    got = evaluate(lambda x: strided_slice(x, [0], [0], new_axis_mask=1, ellipsis_mask=1, shrink_axis_mask=1), X)
    assert np.array_equal(got, X)
    got = evaluate(lambda x: strided_slice(x, [0], [1], new_axis_mask=1, shrink_axis_mask=1), X)
    assert np.array_equal(got, X[None])


def test_second_gradient_of_a_strided_slice() -> None:
    def build(dy: Any) -> Any:
        return apply_op("StridedSliceGrad", [3, 4], [0, 1], [3, 4], [2, 1], dy)

    check_gradient(build, np.arange(6.0).reshape(2, 3))


def test_strided_slice_grad_refuses_a_gradient_of_another_shape() -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"dy has shape \(1,\), but the slice has shape \(3,\)"):
        evaluate(lambda dy: apply_op("StridedSliceGrad", [4], [1], [4], [1], dy), np.ones(1, np.float32))


# --- slice


@given(st.data())
def test_slice_takes_size_elements_from_begin(data: Any) -> None:
    begin = [data.draw(st.integers(0, d)) for d in X.shape]
    size = [data.draw(st.integers(-1, d - b)) for d, b in zip(X.shape, begin, strict=True)]
    index = tuple(slice(b, None if n == -1 else b + n) for b, n in zip(begin, size, strict=True))
    assert np.array_equal(evaluate(lambda x: slice_(x, begin, size), X), X[index])
    dynamic = evaluate(lambda x, b, n: slice_(x, b, n), X, np.array(begin), np.array(size))
    assert np.array_equal(dynamic, X[index])


def test_gradient_of_slice() -> None:
    x = X[0, :3]
    check_gradient(lambda t: [slice_(t, [1, 0], [2, 3]), slice_(t, [0, 2], [-1, -1])], x)
    check_gradient(lambda t, b: slice_(t, b, [2, 2]), x, np.array([1, 2], np.int32))


def test_slice_outside_is_refused_while_building_or_in_the_step() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match="outside dimension 1"):
        slice_(zeros([2, 3]), [0, 1], [1, 3])
    with pytest.raises(errors.InvalidArgumentError, match=r"begin \[0, 4, 0\] and size \[1, 1, 1\] reach outside dimension 1"):
        evaluate(lambda x, b: slice_(x, b, [1, 1, 1]), X, np.array([0, 4, 0], np.int32))


def test_static_shape_of_slice_with_what_is_known() -> None:
    with Graph().as_default():
        x = placeholder("float32", [None, 3])
        assert slice_(x, [0, 1], [-1, 2]).static_shape == (None, 2)
        assert slice_(x, placeholder("int32", [2]), [2, -1]).static_shape == (2, None)
        assert slice_(x, [0, 1], [shape(x)[0], 2]).static_shape == (None, 2)


# --- concat


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(-3, 2))
def test_split_undoes_concat(sizes: list[int], axis: int) -> None:
    form = [2, 3, 2]
    parts = []
    for i, n in enumerate(sizes):
        form[axis] = n
        parts.append(np.full(form, i, np.float32) + np.arange(n).reshape([-1 if a == axis % 3 else 1 for a in range(3)]) / 10)
    whole = evaluate(lambda *p: concat(p, axis), *parts)
    assert np.array_equal(whole, np.concatenate(parts, axis))
    for piece, part in zip(evaluate(lambda x: split(x, sizes, axis), whole), parts, strict=True):
        assert np.array_equal(piece, part)


def test_gradients_of_concat_split_stack_and_unstack() -> None:
    a, b = X[0, :2, :3], X[1, :2, :1]
    check_gradient(lambda a, b: [concat([a, b], 1), concat([b, a, b], -1)], a, b)
    check_gradient(lambda a, b, axis: concat([a, b], axis), a, b, np.int32(1))
    check_gradient(lambda a, b: apply_op("Concat", 1, [a, b]), a, b)
    check_gradient(lambda a, b: [stack([a, b], 1), stack([a, b], -1)], a, X[2, :2, :3])
    check_gradient(lambda a: unstack(a, 3, axis=1)[1:] + split(a, [2, 1], 1)[:1] + split(a, 2)[1:], a)


def test_concat_of_one_tensor_is_that_tensor() -> None:
    with Graph().as_default():
        assert concat([constant(1.0)], 0).op.type == "Identity"


def test_static_shape_of_concat_joins_what_is_known() -> None:
    with Graph().as_default():
        a, b = placeholder("float32", [None, 2]), placeholder("float32", [4, None])
        assert concat([a, b], 1).static_shape == (4, None)
        assert concat([a, b], 0).static_shape == (None, 2)
        assert concat([a, placeholder("float32")], 0).static_shape == (None, 2)
        assert concat([a, b], placeholder("int32", [])).static_shape == (None, None)


def test_shapes_that_can_not_be_joined_are_refused_while_building_or_in_the_step() -> None:
    with Graph().as_default():
        with pytest.raises(ValueError, match="not compatible"):
            concat([zeros([2, 3]), zeros([3, 3])], 1)
        with pytest.raises(ValueError, match=r"shapes \(2, 3\), \(3,\)"):
            concat([zeros([2, 3]), zeros([3])], 0)
        with pytest.raises(ValueError, match="use stack"):
            concat([constant(1), constant(2)], 0)
    graph = Graph()
    with graph.as_default():
        a, b = placeholder("float32"), placeholder("float32")
        joined, stacked = concat([a, b], 1), stack([a, b])
    feeds = {a: np.zeros((2, 3)), b: np.zeros((3, 3))}
    with pytest.raises(errors.InvalidArgumentError, match=r"shapes \(2, 3\), \(3, 3\) can't be concatenated along dimension 1"):
        Reference(graph).run(joined, feeds)
    with pytest.raises(errors.InvalidArgumentError, match=r"shapes \(2, 3\), \(3, 3\) can't be stacked"):
        Reference(graph).run(stacked, feeds)


def test_concat_offset_gives_where_each_part_begins() -> None:
    shapes = [np.array(s, np.int32) for s in ([2, 3], [2, 1], [2, 5])]
    got = evaluate(lambda *s: apply_op("ConcatOffset", -1, list(s)), *shapes)
    assert [o.tolist() for o in got] == [[0, 0], [0, 3], [0, 4]]
    with pytest.raises(errors.InvalidArgumentError, match=r"shape 1 is \[2, 1\]; all but entry 0 must be as in \[2, 3\]"):
        evaluate(lambda *s: apply_op("ConcatOffset", 0, list(s)), *shapes)


# --- stack and unstack


@pytest.mark.parametrize("axis", range(-3, 3))
def test_unstack_undoes_stack(axis: int) -> None:
    parts = [X[0], X[1], X[2]]
    whole = evaluate(lambda *p: stack(p, axis), *parts)
    assert np.array_equal(whole, np.stack(parts, axis))
    for piece, part in zip(evaluate(lambda x: unstack(x, 3, axis), whole), parts, strict=True):
        assert np.array_equal(piece, part)


def test_stack_of_numbers_is_a_constant_and_of_tensors_an_operation() -> None:
    with Graph().as_default() as graph:
        assert stack([1, 2]).op.type == "Const"
        mixed = stack([constant(2.5), 4])
        assert mixed.op.type == "Pack"
    assert Reference(graph).run(mixed).tolist() == [2.5, 4]


def test_unstack_needs_to_know_how_many() -> None:
    with Graph().as_default():
        assert len(unstack(placeholder("float32", [None, 3]), axis=1)) == 3
        with pytest.raises(ValueError, match="Cannot infer argument `num`"):
            unstack(placeholder("float32", [None, 3]))
    with pytest.raises(errors.InvalidArgumentError, match="can't be unstacked into 2 tensors"):
        graph = Graph()
        with graph.as_default():
            x = placeholder("float32")
            y = unstack(x, 2)
        Reference(graph).run(y, {x: X})


def test_iteration_over_a_tensor_gives_its_rows() -> None:
    with Graph().as_default() as graph:
        rows = list(constant(X[0]))
    for row, expected in zip(Reference(graph).run(rows), X[0], strict=True):
        assert np.array_equal(row, expected)


# --- split


def test_split_into_equal_parts_or_given_sizes() -> None:
    for axis, n in ((1, 2), (-1, 5), (0, 1)):
        for got, expected in zip(evaluate(lambda x, a=axis, n=n: split(x, n, a), X), np.split(X, n, axis), strict=True):
            assert np.array_equal(got, expected)
    got = evaluate(lambda x: split(x, [1, -1, 2], 2), X)
    assert [g.shape[2] for g in got] == [1, 2, 2] and np.array_equal(np.concatenate(got, 2), X)
    got = evaluate(lambda x, sizes: split(x, sizes, 1, num=2), X, np.array([3, 1], np.int64))
    assert [g.shape[1] for g in got] == [3, 1]


def test_sizes_that_do_not_fit_are_refused_while_building_or_in_the_step() -> None:
    with Graph().as_default():
        x = constant(X)
        with pytest.raises(ValueError, match="evenly divisible by 2 but is 5"):
            split(x, 2, 2)
        for sizes in ([1, 1], [3, -1, 2], [6]):
            with pytest.raises(ValueError, match="don't fit dimension 1"):
                split(x, sizes, 1)
    for sizes in ([1, 1], [3, -1, 2], [-1, -1], [6]):
        with pytest.raises(errors.InvalidArgumentError, match="don't fit dimension 1"):
            evaluate(lambda x, s, parts=sizes: split(x, s, 1, num=len(parts)), X, np.array(sizes, np.int32))
    graph = Graph()
    with graph.as_default():
        x = placeholder("float32")
        parts = split(x, 2, 2)
    with pytest.raises(errors.InvalidArgumentError, match="can't be split evenly into 2 pieces"):
        Reference(graph).run(parts, {x: X})


def test_static_shape_of_split_with_what_is_known() -> None:
    with Graph().as_default():
        x, axis = placeholder("float32", [None, 6]), placeholder("int32", [])
        assert [t.static_shape for t in split(x, 2, 0)] == [(None, 6)] * 2
        assert [t.static_shape for t in split(x, 2, 1)] == [(None, 3)] * 2
        assert [t.static_shape for t in split(x, [2, -1], 1)] == [(None, 2), (None, 4)]
        assert [t.static_shape for t in split(x, [2, 4], axis)] == [(None, None)] * 2
        assert [t.static_shape for t in split(zeros([4, 6]), [2, 4], axis)] == [(4, 2), (4, 4)]
