"""Random operations: distributions (fixed seeds, bounds far outside chance), seeds, independent streams, refusals."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt import errors
from mpirt.graph.graph import Graph
from mpirt.ops.apply import apply_op
from mpirt.ops.random_seed import DEFAULT_GRAPH_SEED, get_seed
from tests.reference import Reference

N = 200_000


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def drawn(tensor: Any) -> Any:
    return Reference(tensor.graph).run(tensor)


def distance(sample: Any, cdf: Callable[[float], float]) -> float:
    """Kolmogorov's distance; for N numbers of that distribution above 2 / sqrt(N) once in 1,500 times."""
    ordered = np.sort(np.asarray(sample, np.float64).ravel())
    expected = np.array([cdf(x) for x in ordered[:: len(ordered) // 1000]])
    return float(np.abs(expected - np.arange(0, len(ordered), len(ordered) // 1000) / len(ordered)).max())


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def truncated_cdf(x: float) -> float:
    return (normal_cdf(x) - normal_cdf(-2)) / (normal_cdf(2) - normal_cdf(-2))


CLOSE = 2 / math.sqrt(N) + 1e-3


# ------------------------------------------------------------------------------------------------------ distributions


@pytest.mark.parametrize("dtype", [tf.float16, tf.float32, tf.float64])
def test_uniform_numbers_are_uniform_and_below_the_end(dtype: Any) -> None:
    x = drawn(tf.random_uniform([N], dtype=dtype, seed=1))
    assert x.dtype == dtype.np_dtype and x.min() >= 0 and x.max() < 1
    assert distance(x, lambda v: v) < CLOSE
    y = drawn(tf.random_uniform([N], -3.0, 5.0, dtype, seed=2))
    assert y.dtype == dtype.np_dtype and distance((y.astype(np.float64) + 3) / 8, lambda v: v) < CLOSE


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_uniform_integers_take_each_value_equally_often(dtype: Any) -> None:
    x = drawn(tf.random_uniform([N], -2, 5, dtype, seed=1))
    assert x.dtype == dtype.np_dtype
    values, counts = np.unique(x, return_counts=True)
    assert values.tolist() == list(range(-2, 5))
    assert (((counts - N / 7) ** 2) / (N / 7)).sum() < 30  # chi square of 6 degrees: 4e-5


def test_uniform_integers_span_the_whole_type() -> None:
    x = drawn(tf.random_uniform([1000], tf.int64.min, tf.int64.max, tf.int64, seed=1))
    assert x.min() < -(2**62) and x.max() > 2**62


@pytest.mark.parametrize("dtype", [tf.float16, tf.float32, tf.float64])
def test_normal_numbers_are_normal(dtype: Any) -> None:
    x = drawn(tf.random_normal([N], dtype=dtype, seed=1))
    assert x.dtype == dtype.np_dtype and distance(x, normal_cdf) < CLOSE
    wide = x.astype(np.float64)
    assert abs(wide.mean()) < 0.01 and abs(wide.var() - 1) < 0.02 and abs((wide**4).mean() - 3) < 0.1
    y = drawn(tf.random_normal([N], 5.0, 0.5, dtype, seed=2)).astype(np.float64)
    assert abs(y.mean() - 5) < 0.01 and abs(y.std() - 0.5) < 0.01


@pytest.mark.parametrize("dtype", [tf.float16, tf.float32, tf.float64])
def test_truncated_normal_numbers_are_cut_off_at_two(dtype: Any) -> None:
    x = drawn(tf.truncated_normal([N], dtype=dtype, seed=1))
    assert x.dtype == dtype.np_dtype and np.abs(x).max() < 2 and distance(x, truncated_cdf) < CLOSE
    assert abs(x.astype(np.float64).std() - 0.87962566) < 0.01
    y = drawn(tf.truncated_normal([N], 10.0, 3.0, dtype, seed=1))
    assert 4 <= y.min() < 4.1 and 15.9 < y.max() <= 16


def test_means_and_deviations_broadcast(graph: Graph) -> None:
    x = tf.random_normal([1000, 3], mean=[0.0, 10.0, 20.0], stddev=[1.0, 2.0, 3.0], seed=3)
    assert x.shape.as_list() == [1000, 3]
    value = drawn(x)
    np.testing.assert_allclose(value.mean(0), [0, 10, 20], atol=0.4)
    np.testing.assert_allclose(value.std(0), [1, 2, 3], rtol=0.1)


def test_shuffling_keeps_rows_whole_and_gives_each_order() -> None:
    rows = np.arange(12.0).reshape(4, 3)
    x = drawn(tf.random_shuffle(rows, seed=1))
    assert sorted(x.tolist()) == rows.tolist()
    reference = Reference(tf.get_default_graph())
    shuffled = tf.random_shuffle([0, 1, 2], seed=4)
    orders = [tuple(reference.run(shuffled).tolist()) for _ in range(1200)]
    counts = np.array([orders.count(order) for order in sorted(set(orders))])
    assert len(counts) == 6 and (((counts - 200) ** 2) / 200).sum() < 30
    assert drawn(tf.random_shuffle(tf.constant(3.0))) == 3.0
    assert drawn(tf.random_shuffle([[b"a"], [b"b"]], seed=1)).shape == (2, 1)


def test_categories_follow_their_logits() -> None:
    p = np.array([[0.1, 0.2, 0.7], [0.0, 1.0, 0.0]])
    with np.errstate(divide="ignore"):
        x = drawn(tf.multinomial(np.log(p) + 1000.0, 20_000, seed=1))
    assert x.shape == (2, 20_000) and x.dtype == np.int64
    np.testing.assert_allclose(np.bincount(x[0]) / 20_000, p[0], atol=0.015)
    assert (x[1] == 1).all()
    assert drawn(tf.random.categorical([[0.0, 0.0]], 5, tf.int32)).dtype == np.int32


# -------------------------------------------------------------------------------------------------------------- seeds


def attributes(tensor: Any) -> tuple[int, int]:
    op = tensor.op
    while "seed" not in op.attrs:
        op = op.inputs[0].op
    return op.attrs["seed"], op.attrs["seed2"]


def test_seeds_combine_as_in_tensorflow() -> None:
    assert get_seed(None) == (None, None)
    assert attributes(tf.random_uniform([2])) == (0, 0)
    assert attributes(tf.random_uniform([2], seed=7)) == (DEFAULT_GRAPH_SEED, 7)
    tf.set_random_seed(3)
    assert attributes(tf.random_uniform([2], 0, 10, tf.int32)) == (3, 0)
    assert attributes(tf.random_normal([2], seed=5)) == (3, 5)
    assert attributes(tf.random_shuffle(tf.range(3))) == (3, 1)
    assert attributes(tf.truncated_normal([2], 1.0, 2.0)) == (3, 2)
    assert attributes(tf.random_uniform([2], -1.0, 1.0, tf.float64)) == (3, 3)
    tf.set_random_seed(0)
    assert attributes(tf.random_uniform([2], seed=0)) == (0, 2**31 - 1)
    assert attributes(tf.random_uniform([2], seed=2**31 + 5)) == (0, 6)
    tf.set_random_seed(None)
    assert get_seed(None) == (None, None)


def test_other_operations_do_not_change_the_seeds_that_follow() -> None:
    def build(extra: bool) -> Any:
        with Graph().as_default():
            tf.set_random_seed(1)
            if extra:
                tf.constant(1.0)
            return attributes(tf.random_uniform([2]))

    assert build(False) == build(True)


def test_equal_seeds_draw_equal_numbers_in_any_graph_and_others_do_not() -> None:
    def build(seed: int, draw: Callable[..., Any], *args: Any) -> Any:
        with Graph().as_default():
            return drawn(draw(*args, seed=seed))

    for draw, args in (
        (tf.random_uniform, ([20],)), (tf.random_normal, ([20],)), (tf.truncated_normal, ([20],)),
        (tf.random_shuffle, (np.arange(20),)), (tf.random_uniform, ([20], 0, 1000, tf.int32)),
        (tf.multinomial, (np.zeros((2, 50)), 10)),
    ):  # fmt: skip
        np.testing.assert_array_equal(build(1, draw, *args), build(1, draw, *args))
        assert (build(1, draw, *args) != build(2, draw, *args)).any()


def test_each_execution_draws_new_numbers_and_streams_are_independent(graph: Graph) -> None:
    tf.set_random_seed(1)
    a, b = tf.random_normal([N // 10]), tf.random_normal([N // 10])
    reference = Reference(graph)
    first, other = reference.run([a, b])
    second = reference.run(a)
    for x, y in ((first, other), (first, second), (other, second)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / math.sqrt(N // 10)
        assert not np.intersect1d(x, y).size > 10


# ------------------------------------------------------------------------------------------------------ shapes, refusals


def test_static_shapes_follow_what_is_known(graph: Graph) -> None:
    n = tf.placeholder(tf.int32, [])
    assert tf.random_uniform([2, 3]).shape.as_list() == [2, 3]
    assert tf.random_uniform(tf.TensorShape([4])).shape.as_list() == [4]
    assert tf.random_uniform([]).shape.as_list() == []
    assert tf.random_normal([n, 3]).shape.as_list() == [None, 3]
    assert tf.random_normal(tf.placeholder(tf.int32, [2])).shape.as_list() == [None, None]
    assert tf.truncated_normal(tf.placeholder(tf.int64)).shape.dims is None
    assert tf.multinomial(tf.placeholder(tf.float32, [None, 4]), n).shape.as_list() == [None, None]
    assert Reference(graph).run(tf.random_normal([n, 3]), {n: 5}).shape == (5, 3)


def test_empty_shapes_draw_nothing() -> None:
    for x in (tf.random_uniform([0, 3]), tf.random_uniform([0], 5, 5, tf.int32), tf.truncated_normal([2, 0])):
        assert drawn(x).size == 0
    assert drawn(tf.multinomial(np.zeros((2, 3)), 0)).shape == (2, 0)


def test_what_cannot_be_drawn_is_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match="Must specify maxval for integer dtype int32"):
        tf.random_uniform([2], dtype=tf.int32)
    with pytest.raises(ValueError, match="can't draw string"):
        tf.random_uniform([2], dtype=tf.string)
    with pytest.raises(errors.InvalidArgumentError, match="Need minval < maxval, got 5 >= 5"):
        drawn(tf.random_uniform([2], 5, 5, tf.int32))
    with pytest.raises(errors.InvalidArgumentError, match=r"\[2, -1\] has a negative size"):
        drawn(apply_op("RandomUniform", np.array([2, -1], np.int32), dtype=tf.float32))
    with pytest.raises(ValueError, match="minval must have 0 dimension"):
        tf.random_uniform([2], [1, 2], 5, tf.int32)
    with pytest.raises(ValueError, match="logits must have 2 dimension"):
        tf.multinomial([1.0, 2.0], 3)
    logits = tf.placeholder(tf.float32)
    with pytest.raises(errors.InvalidArgumentError, match=r"must be \[batch, classes\]"):
        Reference(graph).run(tf.multinomial(logits, 3), {logits: np.zeros(3)})


# -------------------------------------------------------------------------------------------------------- initializers


@pytest.mark.parametrize(
    ("initializer", "shape", "low", "high", "std"),
    [
        (tf.random_uniform_initializer(-2.0, 2.0, seed=1), [300, 200], -2, 2, 4 / math.sqrt(12)),
        (tf.random_normal_initializer(0.0, 0.3, seed=1), [300, 200], -9, 9, 0.3),
        (tf.truncated_normal_initializer(0.0, 0.3, seed=1), [300, 200], -0.6, 0.6, 0.3 * 0.87962566),
        (tf.glorot_uniform_initializer(seed=1), [300, 200], -math.sqrt(6 / 500), math.sqrt(6 / 500), math.sqrt(2 / 500)),
        (tf.glorot_normal_initializer(seed=1), [300, 200], -1, 1, math.sqrt(2 / 500)),
        (tf.initializers.he_normal(seed=1), [300, 200], -1, 1, math.sqrt(2 / 300)),
        (tf.initializers.he_uniform(seed=1), [300, 200], -math.sqrt(6 / 300), math.sqrt(6 / 300), math.sqrt(2 / 300)),
        (tf.initializers.lecun_normal(seed=1), [300, 200], -1, 1, math.sqrt(1 / 300)),
        (tf.initializers.lecun_uniform(seed=1), [3, 3, 40, 100], -0.1, 0.1, math.sqrt(1 / 360)),
        (tf.variance_scaling_initializer(3.0, "fan_out", "untruncated_normal", 1), [300, 200], -9, 9, math.sqrt(3 / 200)),
        (tf.uniform_unit_scaling_initializer(2.0, seed=1), [300, 200], -0.2, 0.2, 0.2 / math.sqrt(3)),
    ],
)
def test_random_initializers_have_their_spread(initializer: Any, shape: list[int], low: float, high: float, std: float) -> None:
    for dtype in (tf.float32, tf.float64):
        x = drawn(initializer(shape, dtype=dtype))
        assert x.shape == tuple(shape) and x.dtype == dtype.np_dtype
        assert low * 1.0001 <= x.min() and x.max() <= high * 1.0001
        np.testing.assert_allclose(x.std(), std, rtol=0.02)
        assert abs(x.mean()) < 0.02 * std * 4


def test_plain_initializers_have_their_values() -> None:
    def value(initializer: Any, shape: Any, **kwargs: Any) -> Any:
        return drawn(initializer(shape, **kwargs))

    np.testing.assert_array_equal(value(tf.zeros_initializer(), [2, 2]), np.zeros((2, 2), np.float32))
    assert value(tf.zeros_initializer(), [2], dtype=tf.string).tolist() == [b"", b""]
    assert value(tf.ones_initializer(tf.int32), tf.TensorShape([3])).tolist() == [1, 1, 1]
    assert value(tf.ones_initializer(), [2000]).sum() == 2000  # filled in the step
    assert value(tf.constant_initializer(2), [2], dtype=tf.float64).tolist() == [2, 2]
    assert value(tf.constant_initializer([1, 2, 3]), [2, 2]).tolist() == [[1, 2], [3, 3]]
    assert value(tf.constant_initializer("s"), [2], dtype=tf.string).tolist() == [b"s", b"s"]
    np.testing.assert_array_equal(value(tf.initializers.identity(2.0), [2, 3]), 2 * np.eye(2, 3))
    assert value(tf.random_uniform_initializer(0, 5), [100], dtype=tf.int32).max() == 4


def test_initializers_refuse_what_they_cannot_make() -> None:
    with pytest.raises(TypeError, match="expected a value of shape"):
        tf.constant_initializer([1, 2], verify_shape=True)([3])
    with pytest.raises(TypeError, match="Invalid type for initial value: dict"):
        tf.constant_initializer({})
    with pytest.raises(ValueError, match="Expected floating point type, got int32"):
        tf.random_normal_initializer(dtype=tf.int32)
    with pytest.raises(ValueError, match="can only be used for 2D matrices"):
        tf.initializers.identity()([2, 2, 2])
    with pytest.raises(ValueError, match="needs all sizes"):
        tf.glorot_uniform_initializer()([None, 2])
    for arguments in ((0.0,), (1.0, "fan"), (1.0, "fan_in", "gamma")):
        with pytest.raises(ValueError, match="must be"):
            tf.variance_scaling_initializer(*arguments)


def test_initializers_can_be_made_again_from_their_arguments() -> None:
    for made in (tf.random_normal_initializer(1.0, 2.0, 3), tf.glorot_uniform_initializer(5), tf.constant_initializer(4)):
        config = made.get_config()
        assert type(made).from_config(config).get_config() == config
