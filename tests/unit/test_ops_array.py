"""Shapes as values, changes of shape, filling, tiling, padding, selecting, diagonals: against numpy and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpirt import dtypes, errors
from mpirt.graph.graph import Graph, Tensor
from mpirt.ops.apply import apply_op, constant
from mpirt.ops.array_ops import (
    expand_dims,
    fill,
    invert_permutation,
    matrix_transpose,
    ones,
    ones_like,
    rank,
    reshape,
    shape,
    shape_n,
    size,
    squeeze,
    transpose,
    zeros,
    zeros_like,
)  # fmt: skip
from mpirt.ops.identity_ops import (
    check_numerics,
    ensure_shape,
    identity,
    identity_n,
    placeholder,
    placeholder_with_default,
    stop_gradient,
)  # fmt: skip
from mpirt.ops.matrix_diag_ops import matrix_band_part, matrix_diag, matrix_diag_part, matrix_set_diag
from mpirt.ops.range_ops import diag, diag_part, eye, linspace, meshgrid, one_hot, sequence_mask
from mpirt.ops.range_ops import range as range_
from mpirt.ops.select_ops import where, where_v2
from mpirt.ops.tile_ops import (
    broadcast_dynamic_shape,
    broadcast_static_shape,
    broadcast_to,
    pad,
    reverse,
    reverse_sequence,
    tile,
)
from tests.evaluate import evaluate
from tests.gradient_checker import check_gradient
from tests.reference import Reference

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7


def static_shape_of(build: Any) -> Any:
    with Graph().as_default():
        return build().static_shape


# --- placeholders and identities


def test_an_unfed_placeholder_names_itself_its_type_and_its_shape() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder("float32", [None, 64], name="x")
    with pytest.raises(errors.InvalidArgumentError) as caught:
        Reference(graph).run(x)
    assert caught.value.message == "You must feed a value for placeholder tensor 'x' with dtype float and shape [?,64]."
    assert "x:0" in caught.value.hint


def test_placeholder_with_default_is_its_default_until_it_is_fed() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder_with_default(constant([1.0, 2.0]), [None])
    assert x.static_shape == (None,)
    assert Reference(graph).run(x).tolist() == [1, 2]
    assert Reference(graph).run(x, {x: [5.0]}).tolist() == [5]


def test_placeholder_with_default_refuses_a_shape_its_default_has_not() -> None:
    with Graph().as_default(), pytest.raises(ValueError, match="not compatible"):
        placeholder_with_default(constant([1.0, 2.0]), [3])


def test_identities_pass_values_and_gradients_on() -> None:
    assert np.array_equal(evaluate(identity, X), X)
    a, b = evaluate(lambda x: identity_n([x, shape(x)]), X)
    assert np.array_equal(a, X) and b.tolist() == [2, 3, 4]
    check_gradient(lambda x, y: [identity(x), *identity_n([y, x])], X[0, :2], X[1, :2])


def test_stop_gradient_is_a_constant_to_gradients() -> None:
    from mpirt.gradients import gradients

    graph = Graph()
    with graph.as_default():
        x = placeholder("float64", [2])
        (g,) = gradients(apply_op("Mul", x, stop_gradient(x)), [x])
    assert Reference(graph).run(g, {x: [3.0, 5.0]}).tolist() == [3, 5]


def test_prevent_gradient_refuses_with_its_message() -> None:
    from mpirt.gradients import gradients

    with Graph().as_default():
        x = placeholder("float64", [2])
        y = apply_op("PreventGradient", x, message="not through here")
        with pytest.raises(LookupError, match="not through here"):
            gradients(y, [x])


@pytest.mark.parametrize(("bad", "what"), [([1, np.nan], "NaN"), ([np.inf, 0], "Inf"), ([np.nan, -np.inf], "Inf and NaN")])
def test_check_numerics_says_what_it_found(bad: list[float], what: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=f"loss is bad : Tensor had {what} values"):
        evaluate(lambda x: check_numerics(x, "loss is bad"), np.array(bad, np.float32))


def test_check_numerics_lets_finite_numbers_pass() -> None:
    assert np.array_equal(evaluate(lambda x: check_numerics(x, "m"), X), X)
    check_gradient(lambda x: check_numerics(x, "m"), X[0])


def test_ensure_shape_adds_what_it_knows_and_checks_it_in_the_step() -> None:
    assert static_shape_of(lambda: ensure_shape(placeholder("float32"), [None, 3])) == (None, 3)
    with pytest.raises(errors.InvalidArgumentError, match=r"has shape \(2, 3, 4\), which is not compatible with \(2, \?\)"):
        graph = Graph()
        with graph.as_default():
            x = placeholder("float32")
            y = ensure_shape(x, [2, None])
        Reference(graph).run(y, {x: X})


# --- shapes as values


def test_shape_size_and_rank_are_constants_where_they_are_known() -> None:
    with Graph().as_default():
        x = placeholder("float32", [2, 3])
        assert [t.op.type for t in (shape(x), size(x), rank(x))] == ["Const"] * 3
        y = placeholder("float32", [None, 3])
        assert [t.op.type for t in (shape(y), size(y), rank(y))] == ["Shape", "Size", "Const"]
        assert [t.op.type for t in (shape(placeholder("float32")), rank(placeholder("float32")))] == ["Shape", "Rank"]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_shape_and_size_come_in_the_type_asked_for(dtype: Any) -> None:
    kind = dtypes.as_dtype(dtype)
    s, n = evaluate(lambda x: [shape(x, out_type=kind), size(x, out_type=kind)], X)
    a, b = evaluate(lambda x: shape_n([x, x], out_type=kind), X)
    assert s.dtype == n.dtype == a.dtype == b.dtype == dtype
    assert s.tolist() == a.tolist() == b.tolist() == [2, 3, 4] and n == 24
    assert evaluate(rank, X) == 3


# --- changes of shape


@given(st.permutations(range(3)), st.integers(0, 2))
def test_transpose_and_reshape_do_what_numpy_does(perm: list[int], open_: int) -> None:
    assert np.array_equal(evaluate(lambda x: transpose(x, perm), X), np.transpose(X, perm))
    target = [X.shape[p] for p in perm]
    target[open_] = -1
    assert np.array_equal(evaluate(lambda x: reshape(x, target), X), X.reshape(target))


def test_transpose_without_a_permutation_reverses_the_dimensions() -> None:
    assert np.array_equal(evaluate(transpose, X), X.T)
    assert np.array_equal(evaluate(matrix_transpose, X), np.swapaxes(X, 1, 2))


def test_conjugate_transpose_conjugates() -> None:
    z = (X[0] + 1j * X[1]).astype(np.complex64)
    assert np.array_equal(evaluate(lambda x: transpose(x, conjugate=True), z), z.conj().T)


def test_static_shape_of_reshape_fills_in_what_the_number_of_elements_says() -> None:
    def build() -> Tensor:
        return reshape(zeros([4, 6]), [-1, 3])

    assert static_shape_of(build) == (8, 3)
    assert static_shape_of(lambda: reshape(placeholder("float32", [None, 6]), [-1, 3])) == (None, 3)
    assert static_shape_of(lambda: reshape(zeros([4, 6]), placeholder("int32", [3]))) == (None, None, None)


def test_a_shape_made_of_tensors_and_numbers_keeps_what_is_known() -> None:
    def build() -> Tensor:
        x = placeholder("float32", [None, 6])
        return reshape(x, [shape(x)[0], 3, 2])

    assert static_shape_of(build) == (None, 3, 2)


@pytest.mark.parametrize("target", [[5, 5], [-1, 7], [-1, -1]])
def test_reshape_to_another_number_of_elements_is_refused_while_building_or_in_the_step(target: list[int]) -> None:
    with Graph().as_default(), pytest.raises(ValueError):
        reshape(zeros([2, 3, 4]), target)
    graph = Graph()
    with graph.as_default():
        x, s = placeholder("float32"), placeholder("int32")
        y = reshape(x, s)
    with pytest.raises(errors.InvalidArgumentError, match=r"shape \(2, 3, 4\) with 24 elements can't be reshaped to \["):
        Reference(graph).run(y, {x: X, s: target})


def test_reshape_infers_a_size_beside_a_zero_as_tensorflow_does() -> None:
    assert evaluate(lambda x: reshape(x, [-1, 0]), np.zeros((2, 0), np.float32)).shape == (2, 0)
    assert evaluate(lambda x: reshape(x, [-1, 3]), np.zeros((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("axis", range(-4, 4))
def test_expand_dims_and_squeeze_undo_each_other(axis: int) -> None:
    wide = np.expand_dims(X, axis)
    assert np.array_equal(evaluate(lambda x: expand_dims(x, axis), X), wide)
    assert np.array_equal(evaluate(lambda x: squeeze(x, [axis]), wide), X)


def test_squeeze_without_axes_drops_all_dimensions_of_size_1() -> None:
    assert evaluate(squeeze, X.reshape(1, 6, 1, 4)).shape == (6, 4)
    with Graph().as_default():
        assert squeeze(placeholder("float32", [1, None])).static_shape is None
        with pytest.raises(ValueError, match=r"Can not squeeze dim\[0\]"):
            squeeze(zeros([2, 1]), [0])
        with pytest.raises(ValueError, match="cannot specify both 'axis' and 'squeeze_dims'"):
            squeeze(zeros([1, 1]), axis=0, squeeze_dims=1)


def test_gradients_of_changes_of_shape() -> None:
    x = X[:1, :, :2]
    check_gradient(lambda t: [reshape(t, [3, -1]), expand_dims(t, 1), squeeze(t, [0]), transpose(t), transpose(t, [1, 2, 0])], x)


def test_gradient_of_transpose_by_a_permutation_known_only_in_the_step() -> None:
    check_gradient(lambda t, p: transpose(t, p), X[:, :2, :2], np.array([2, 0, 1], np.int32))


@given(st.permutations(range(5)))
def test_invert_permutation_undoes_it(perm: list[int]) -> None:
    inverse = evaluate(invert_permutation, np.array(perm, np.int32))
    assert [perm[i] for i in inverse] == sorted(perm) and inverse.dtype == np.int32


def test_invert_permutation_refuses_what_is_none() -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"\[0, 2, 2\] is not a permutation of 0 to 2"):
        evaluate(invert_permutation, np.array([0, 2, 2], np.int32))


# --- tensors of one value


def test_zeros_and_ones_are_constants_when_small_and_fills_when_large() -> None:
    with Graph().as_default():
        assert zeros([3]).op.type == "Const" and ones([1000]).op.type == "Fill"
        assert ones([1000]).static_shape == (1000,)
        assert zeros_like(placeholder("float32", [2, 2])).op.type == "Const"
        assert zeros_like(placeholder("float32", [None, 2])).op.type == "ZerosLike"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint16, np.bool_, np.complex64])
def test_like_tensors_keep_shape_and_type(dtype: Any) -> None:
    x = X.astype(dtype)
    for function, expected in ((zeros_like, np.zeros_like(x)), (ones_like, np.ones_like(x))):
        got = evaluate(function, x)
        assert got.dtype == dtype and np.array_equal(got, expected)
        assert evaluate(lambda t, f=function: f(t, dtype="int64"), x).dtype == np.int64


def test_zeros_of_strings_are_empty_strings() -> None:
    words = np.array([[b"a"], [b"bc"]], object)
    assert evaluate(zeros_like, words).tolist() == [[b""], [b""]]
    with Graph().as_default() as graph:
        empty = zeros([2], "string")
    assert Reference(graph).run(empty).tolist() == [b"", b""]


def test_fill_and_its_gradient() -> None:
    assert np.array_equal(evaluate(lambda v: fill([2, 3], v), np.int64(7)), np.full((2, 3), 7))
    check_gradient(lambda v: fill([2, 3], v), np.array(1.5))
    with Graph().as_default(), pytest.raises(ValueError, match="negative"):
        fill([2, -3], 1.0)


# --- broadcast, tile, pad, reverse


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
def test_broadcasting_of_shapes_agrees_with_numpy(shapes: Any) -> None:
    a, b = shapes.input_shapes
    assert broadcast_static_shape(a, b).as_list() == list(shapes.result_shape)
    got = evaluate(broadcast_dynamic_shape, np.array(a, np.int32), np.array(b, np.int32))
    assert got.tolist() == list(shapes.result_shape)


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
def test_broadcast_gradient_args_are_the_axes_whose_sum_restores_each_operand(shapes: Any) -> None:
    r0, r1 = evaluate(lambda a, b: apply_op("BroadcastGradientArgs", a, b), *(np.array(s, np.int32) for s in shapes.input_shapes))
    whole = np.ones(shapes.result_shape)
    for axes, wanted in zip((r0, r1), shapes.input_shapes, strict=True):
        assert whole.sum(axis=tuple(axes)).size == np.prod(wanted, dtype=int)
        assert list(axes) == sorted(axes)


def test_equal_shapes_have_nothing_to_sum() -> None:
    same = np.array([1, 3, 1], np.int32)
    assert [r.size for r in evaluate(lambda a, b: apply_op("BroadcastGradientArgs", a, b), same, same)] == [0, 0]


def test_broadcast_to_repeats_and_its_gradient_adds_up() -> None:
    x = X[0, :, :1]
    assert np.array_equal(evaluate(lambda t: broadcast_to(t, [2, 3, 4]), x), np.broadcast_to(x, (2, 3, 4)))
    check_gradient(lambda t: broadcast_to(t, [2, 3, 4]), x)
    check_gradient(lambda t: broadcast_to(t, [2]), np.array(3.0))
    with pytest.raises(errors.InvalidArgumentError, match=r"shape \(3, 1\) can't be broadcast to \(2, 2\)"):
        graph = Graph()
        with graph.as_default():
            t = placeholder("float32")
            y = broadcast_to(t, [2, 2])
        Reference(graph).run(y, {t: x})


@given(st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_tile_repeats_along_each_dimension(multiples: list[int]) -> None:
    assert np.array_equal(evaluate(lambda x: tile(x, multiples), X), np.tile(X, multiples))


def test_gradient_of_tile() -> None:
    check_gradient(lambda x: [tile(x, [2, 1]), tile(x, [3, 2])], X[0, :2])
    check_gradient(lambda x, m: tile(x, m), X[0, :2], np.array([2, 3], np.int64))
    with Graph().as_default(), pytest.raises(ValueError, match="multiples"):
        tile(zeros([2]), [-1])


@pytest.mark.parametrize("mode", ["CONSTANT", "reflect", "SYMMETRIC"])
@pytest.mark.parametrize("paddings", [[[1, 0], [0, 2]], [[0, 0], [2, 2]], [[1, 1], [1, 0]]])
def test_pad_and_its_gradient(mode: str, paddings: list[list[int]]) -> None:
    x = X[0]
    expected = np.pad(x, paddings, mode.lower())
    assert np.array_equal(evaluate(lambda t: pad(t, paddings, mode), x), expected)
    check_gradient(lambda t: pad(t, paddings, mode), x)
    check_gradient(lambda t, p: pad(t, p, mode), x, np.array(paddings, np.int32))


def test_second_gradient_of_a_mirror_pad() -> None:
    args = np.array([[1, 1], [2, 0]], np.int32)
    check_gradient(lambda t: apply_op("MirrorPadGrad", t, args, mode="REFLECT"), np.linspace(-1, 2, 30).reshape(5, 6))


def test_pad_with_another_constant_and_with_strings() -> None:
    got = evaluate(lambda t: pad(t, [[1, 0], [0, 0]], constant_values=9), X[0].astype(np.int32))
    assert got.dtype == np.int32 and got[0].tolist() == [9] * 4
    assert evaluate(lambda t: pad(t, [[0, 1]]), np.array([b"a"], object)).tolist() == [b"a", b""]


def test_mirror_pad_refuses_more_than_there_is_to_mirror() -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"at most the size - 1 of each dimension of shape \(3,\)"):
        evaluate(lambda t: pad(t, [[3, 0]], "REFLECT"), np.arange(3))
    assert evaluate(lambda t: pad(t, [[3, 0]], "SYMMETRIC"), np.arange(3)).tolist() == [2, 1, 0, 0, 1, 2]
    with Graph().as_default(), pytest.raises(ValueError, match="Unknown padding mode: 'EDGE'"):
        pad(zeros([3]), [[1, 1]], "EDGE")


@given(st.sets(st.integers(0, 2)))
def test_reverse_turns_each_named_axis_round(axes: set[int]) -> None:
    named = [a - 3 if a % 2 else a for a in sorted(axes)]
    expected = np.flip(X, tuple(axes))
    assert np.array_equal(evaluate(lambda x: reverse(x, named), X), expected)
    dims = np.isin(np.arange(3), sorted(axes))
    assert np.array_equal(evaluate(lambda x, d: apply_op("Reverse", x, d), X, dims), expected)


def test_gradients_of_reverses() -> None:
    check_gradient(lambda x: [reverse(x, [0, -1]), reverse_sequence(x, [1, 3], seq_axis=1)], X[:, :, :2])


def test_reverse_sequence_turns_the_first_elements_of_each_row() -> None:
    got = evaluate(lambda x: reverse_sequence(x, [2, 0, 3], seq_axis=1, batch_axis=0), np.arange(12).reshape(3, 4))
    assert got.tolist() == [[1, 0, 2, 3], [4, 5, 6, 7], [10, 9, 8, 11]]
    with pytest.raises(errors.InvalidArgumentError, match="seq_lengths"):
        evaluate(lambda x: reverse_sequence(x, [5], seq_axis=1), np.zeros((1, 4)))


# --- sequences, one-hot, diagonals


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [((5,), np.int32), ((2, 9, 3), np.int32), ((5, 0, -2), np.int32), ((0, 1, 0.25), np.float32), ((3, 3), np.int32),
     ((5.0, 0.0, -1.5), np.float32), ((2.5,), np.float32)],
)  # fmt: skip
def test_range_counts_as_numpy_does(arguments: Any, dtype: Any) -> None:
    with Graph().as_default() as graph:
        numbers = range_(*arguments)
    got = Reference(graph).run(numbers)
    assert got.dtype == dtype and np.array_equal(got, np.arange(*arguments, dtype=dtype))
    assert numbers.static_shape == got.shape


def test_range_takes_the_type_of_its_tensors() -> None:
    for kind in (np.int8, np.int64, np.float64):
        assert evaluate(lambda n: range_(n), kind(4)).dtype == kind
    assert evaluate(lambda n: range_(0, n, 0.5), np.int32(2)).tolist() == [0, 0.5, 1, 1.5]
    with Graph().as_default(), pytest.raises(ValueError, match="can't count from 0 to 3 in steps of 0"):
        range_(0, 3, 0)
    with pytest.raises(errors.InvalidArgumentError, match="can't count from 0 to -3 in steps of 1"):
        evaluate(lambda n: range_(n), np.int32(-3))


def test_linspace_includes_both_ends() -> None:
    got = evaluate(lambda a, b: linspace(a, b, 7), np.float32(0.1), np.float32(0.9))
    assert got.dtype == np.float32 and got[0] == np.float32(0.1) and got[-1] == np.float32(0.9)
    np.testing.assert_allclose(np.diff(got), 0.8 / 6, rtol=1e-5)
    assert evaluate(lambda a, b: linspace(a, b, 1), np.float64(2), np.float64(5)).tolist() == [2]


@given(hnp.arrays(np.int32, hnp.array_shapes(max_dims=2, max_side=4), elements=st.integers(-2, 5)), st.integers(-1, 2))
def test_one_hot_is_on_at_the_index_and_off_elsewhere(indices: Any, axis: int) -> None:
    axis = min(axis, indices.ndim)
    got = evaluate(lambda i: one_hot(i, 4, axis=axis, on_value=5, off_value=-1), indices)
    expected = np.where(np.expand_dims(indices, -1) == np.arange(4), 5, -1)
    assert got.dtype == np.int32
    assert np.array_equal(got, np.moveaxis(expected, -1, axis))


def test_one_hot_takes_its_type_from_the_values_or_the_argument() -> None:
    i = np.array([1], np.uint8)
    assert evaluate(lambda x: one_hot(x, 2), i).dtype == np.float32
    assert evaluate(lambda x: one_hot(x, 2, True, False), i).dtype == np.bool_
    assert evaluate(lambda x: one_hot(x, 2, dtype=dtypes.complex64), i).dtype == np.complex64
    assert evaluate(lambda x: one_hot(x, 2, on_value=b"y", off_value=b"n"), i).tolist() == [[b"n", b"y"]]


def test_diag_and_diag_part_with_any_number_of_dimensions() -> None:
    x = X[0]
    whole = evaluate(diag, x)
    assert whole.shape == (3, 4, 3, 4) and whole.sum() == x.sum()
    assert np.array_equal(evaluate(diag_part, whole), x)
    assert np.array_equal(np.einsum("ijij->ij", whole), x)
    check_gradient(lambda t: [diag(t), diag_part(apply_op("Mul", diag(t), diag(t)))], x[:2, :2])


def test_eye_meshgrid_and_sequence_mask() -> None:
    with Graph().as_default() as graph:
        matrices = eye(2, 3, batch_shape=[2, 1], dtype="int64")
    got = Reference(graph).run(matrices)
    assert got.dtype == np.int64 and np.array_equal(got, np.broadcast_to(np.eye(2, 3), (2, 1, 2, 3)))
    assert matrices.static_shape == (2, 1, 2, 3)
    x, y, z = np.arange(3.0), np.arange(2.0), np.arange(4.0)
    for indexing in ("xy", "ij"):
        got = evaluate(lambda *a, how=indexing: meshgrid(*a, indexing=how), x, y, z)
        for a, b in zip(got, np.meshgrid(x, y, z, indexing=indexing), strict=True):  # type: ignore[call-overload]
            assert np.array_equal(a, b)
    lengths = np.array([[1, 3], [0, 2]])
    expected = np.arange(4) < lengths[..., None]
    assert np.array_equal(evaluate(lambda n: sequence_mask(n, 4), lengths), expected)
    assert np.array_equal(evaluate(lambda n: sequence_mask(n, dtype="float32"), lengths), expected[..., :3].astype(np.float32))


@pytest.mark.parametrize("align", ["LEFT_RIGHT", "RIGHT_LEFT", "LEFT_LEFT", "RIGHT_RIGHT"])
@pytest.mark.parametrize("k", [(-1, 1), (0, 2), (-2, -1)])
def test_a_band_of_diagonals_is_taken_out_and_put_back(align: str, k: tuple[int, int]) -> None:
    x = np.arange(1.0, 25).reshape(2, 3, 4)
    band = evaluate(lambda t: matrix_diag_part(t, k=k, padding_value=-5.0, align=align), x)
    above, below = align.split("_")
    for row, d in enumerate(range(k[1], k[0] - 1, -1)):
        values = np.diagonal(x, d, 1, 2)
        missing = band.shape[-1] - values.shape[-1]
        left = (above if d > 0 else below) == "LEFT"
        expected = np.pad(values, [(0, 0), (0, missing) if left else (missing, 0)], constant_values=-5)
        assert np.array_equal(band[:, row], expected)
    offsets = np.arange(4)[None, :] - np.arange(3)[:, None]
    inside = (offsets >= k[0]) & (offsets <= k[1])
    put = evaluate(lambda t, d: matrix_set_diag(t, d, k=k, align=align), np.zeros_like(x), band)
    assert np.array_equal(put, np.where(inside, x, 0))
    made = evaluate(lambda d: matrix_diag(d, k=k, num_rows=3, num_cols=4, align=align), band)
    assert np.array_equal(made, np.where(inside, x, 0))


def test_gradients_of_matrix_diagonals() -> None:
    check_gradient(lambda d: [matrix_diag(d), matrix_diag(d, k=1)], X[0, :2, :2])
    check_gradient(lambda x: [matrix_diag_part(x), matrix_diag_part(x, k=(-1, 1))], X[:, :2, :3])
    check_gradient(lambda x, d: matrix_set_diag(x, d), X[:, :2, :3], X[0, :2, :2])
    check_gradient(lambda x: matrix_band_part(x, 0, 1), X[0])


@pytest.mark.parametrize(("lower", "upper"), [(0, 0), (-1, 0), (0, -1), (1, 2)])
def test_matrix_band_part_is_numpys_triangles(lower: int, upper: int) -> None:
    expected = np.triu(X, -lower) if lower >= 0 else X
    expected = np.tril(expected, upper) if upper >= 0 else expected
    assert np.array_equal(evaluate(lambda x: matrix_band_part(x, lower, upper), X), expected)


# --- choice


def test_where_chooses_elements_rows_or_all() -> None:
    a, b = X[0], -X[0]
    for condition in (a > 2, np.array([True, False, True]), np.array(True), np.array(False)):
        by_rows = condition[:, None] if condition.ndim == 1 else condition
        assert np.array_equal(evaluate(where, condition, a, b), np.where(by_rows, a, b))


def test_where_v2_broadcasts_all_three() -> None:
    c, a, b = X[0] > 2, X[0, :1], X[0, :, :1]
    assert np.array_equal(evaluate(where_v2, c, a, b), np.where(c, a, b))
    assert np.array_equal(evaluate(lambda c, a: where_v2(c, a, 0.0), c, X[0]), np.where(c, X[0], 0))


def test_where_of_one_argument_gives_the_positions_of_what_is_true() -> None:
    got = evaluate(where, X > 2)
    assert got.dtype == np.int64 and np.array_equal(got, np.argwhere(X > 2))
    with Graph().as_default():
        assert where(placeholder("bool", [2, None])).static_shape == (None, 2)
        with pytest.raises(ValueError, match="both be non-None or both be None"):
            where(constant(True), constant(1.0))
        with pytest.raises(ValueError, match="can't choose rows"):
            where(constant([True, False]), zeros([3, 2]), zeros([3, 2]))


def test_where_refuses_in_the_step_what_can_not_be_chosen() -> None:
    graph = Graph()
    with graph.as_default():
        c, x = placeholder("bool"), placeholder("float32")
        y = where(c, x, x)
    with pytest.raises(errors.InvalidArgumentError, match=r"condition of shape \(2,\).*\(3, 2\) and \(3, 2\)"):
        Reference(graph).run(y, {c: [True, False], x: np.zeros((3, 2))})


def test_gradients_of_choices_go_to_what_was_chosen() -> None:
    c, a, b = X[0, :2] > -5, X[0, :2], X[1, :2]
    check_gradient(lambda a, b: where(constant(c), a, b), a, b)
    check_gradient(lambda a, b: where(constant([True, False]), a, b), a, b)
    check_gradient(lambda a, b: where_v2(constant(c), a, b), a, b[:1])
    check_gradient(lambda a, b: where_v2(constant(c), a, b), a[:, :1], np.array(2.0))
