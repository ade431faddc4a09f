"""Fetch structures: what may be fetched, and that results come back in the same structure."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.fetches import FetchMapper
from mpirt.graph.graph import Graph

Pair = namedtuple("Pair", "first second")


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def run(fetches: Any) -> Any:
    with tf.Session() as session:
        return session.run(fetches)


def test_leaves_are_tensors_operations_variables_names_and_indexed_slices() -> None:
    a, v = tf.constant([1, 2], name="a"), tf.Variable(5.0, name="v")
    with tf.Session() as session:
        assert session.run(a.op) is None and session.run("a") is None
        assert session.run(a).tolist() == session.run("a:0").tolist() == [1, 2]
        session.run(v.initializer)
        assert session.run(v) == session.run("v:0") == 5.0
        slices = session.run(tf.IndexedSlices(a, tf.constant([0, 3]), tf.constant([4])))
        assert isinstance(slices, tf.IndexedSlicesValue)
        assert [x.tolist() for x in slices] == [[1, 2], [0, 3], [4]]
        assert session.run(tf.IndexedSlices(a, tf.constant([0, 3]))).dense_shape is None


def test_structures_keep_their_containers() -> None:
    a, b = tf.constant(1), tf.constant(2)
    found = run([a, (b, a), {"k": b, "l": [a.op]}, Pair(a, b), OrderedDict([("z", a), ("a", b)]), [], {}, ()])
    assert found == [1, (2, 1), {"k": 2, "l": [None]}, Pair(1, 2), OrderedDict([("z", 1), ("a", 2)]), [], {}, ()]
    assert [type(x) for x in found[1:5]] == [tuple, dict, Pair, OrderedDict]


def test_a_dict_with_a_default_is_a_dict_too() -> None:
    fetches: defaultdict[str, Any] = defaultdict(list)
    fetches["a"] = tf.constant(1)
    found = run(fetches)
    assert found == {"a": 1} and found["b"] == []


@pytest.mark.parametrize("empty", [[], (), {}, [[], {"a": ()}]], ids=repr)
def test_nothing_fetched_is_given_back_as_it_is(empty: Any) -> None:
    tf.constant(1)
    assert run(empty) == empty and type(run(empty)) is type(empty)


def test_what_is_fetched_twice_is_run_once() -> None:
    calls: list[int] = []

    def count() -> np.int64:
        calls.append(1)
        return np.int64(len(calls))

    x = tf.py_func(count, [], tf.int64)
    assert run([x, {"again": x}, (x, x)]) == [1, {"again": 1}, (1, 1)]
    assert FetchMapper(x.graph, [x, x, x.op]).leaves == (x, x.op)


def test_results_that_are_fetched_twice_may_be_changed_apart() -> None:
    x = tf.constant([1.0, 2.0]) * 2.0
    first, second, third = run([x, tf.identity(x), x])
    first[0] = -1
    assert second.tolist() == [2.0, 4.0] and third is first


def test_single_values_are_numpy_scalars_and_fed_ones_arrays() -> None:
    x = tf.placeholder(tf.float32, [])
    with tf.Session() as session:
        found = session.run([x, x + 1.0, tf.constant(True), tf.constant("s"), tf.constant([])], {x: 1})
    assert [type(v) for v in found] == [np.ndarray, np.float32, np.bool_, bytes, np.ndarray]
    assert found[0].shape == ()


BAD = [None, 7, {1, 2}, [None], {"a": 1.5}, np.zeros(2)]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_other_things_are_refused(bad: Any) -> None:
    tf.constant(1)
    leaf = bad[0] if isinstance(bad, list) else bad["a"] if isinstance(bad, dict) else bad
    with pytest.raises(TypeError) as caught:
        run(bad)
    assert str(caught.value) == (
        f"Fetch argument {leaf!r} has invalid type {type(leaf).__name__!r}: it must be a tensor, operation, variable,"
        " name, or a list, tuple or dict of these."
    )


def test_a_generator_is_refused() -> None:
    x = tf.constant(1)
    with pytest.raises(TypeError, match="has invalid type 'generator'"):
        run(t for t in [x])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("b", "The name 'b' refers to an Operation not in the graph."),
        ("b:0", "The name 'b:0' refers to a Tensor which does not exist: the operation 'b' is not in the graph."),
        ("a:3", "The name 'a:3' refers to a Tensor which does not exist: 'a' has 1 output(s)."),
    ],
)
def test_unknown_names_are_refused(name: str, why: str) -> None:
    tf.constant(1, name="a")
    with pytest.raises(ValueError) as caught:
        run(name)
    assert str(caught.value) == f"Fetch argument {name!r} cannot be interpreted as a Tensor. ({why})"


def test_what_belongs_to_another_graph_is_refused() -> None:
    tf.constant(1)
    with Graph().as_default():
        foreign = tf.constant(1)
    with pytest.raises(ValueError, match="is not an element of this graph"):
        run(foreign)
