"""Feed keys and feed values: what is accepted, what it becomes, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.graph import Graph, Tensor
from mpirt.runtime.feeds import feed_array, feed_tensors


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def placeholder(dtype: Any, shape: Any = None) -> Tensor:
    found: Tensor = tf.placeholder(dtype, shape, name="x")
    return found


def test_a_key_is_a_tensor_its_name_or_a_variable(graph: Graph) -> None:
    x, v = placeholder(tf.float32), tf.Variable(1.0)
    assert feed_tensors(graph, {x: 1}) == {x: 1}
    assert feed_tensors(graph, {"x:0": 2}) == {x: 2}
    assert list(feed_tensors(graph, {v: 3})) == [v._as_graph_element()]


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (7, "Can not convert a int into a Tensor."),
        (None, "Can not convert a NoneType into a Tensor."),
        ("x", "'x' is not a tensor's name: write 'x:0'."),
        ("y:0", "The name 'y:0' refers to a Tensor which does not exist: the operation 'y' is not in the graph."),
        ("x:1", "The name 'x:1' refers to a Tensor which does not exist: 'x' has 1 output(s)."),
    ],
)
def test_other_keys_are_refused(graph: Graph, key: Any, why: str) -> None:
    placeholder(tf.float32)
    with pytest.raises(TypeError) as caught:
        feed_tensors(graph, {key: 1})
    assert str(caught.value) == f"Cannot interpret feed_dict key {key!r} as Tensor: {why}"


def test_a_tensor_of_another_graph_and_an_operation_are_no_keys(graph: Graph) -> None:
    with Graph().as_default():
        foreign = tf.constant(1)
    with pytest.raises(TypeError, match="is not an element of this graph"):
        feed_tensors(graph, {foreign: 1})
    with pytest.raises(TypeError, match="Can not convert a Operation into a Tensor"):
        feed_tensors(graph, {placeholder(tf.float32).op: 1})


ACCEPTED: list[tuple[Any, Any, Any]] = [
    (tf.float32, [1, 2], np.array([1, 2], np.float32)),
    (tf.float32, 1.5, np.array(1.5, np.float32)),
    (tf.float32, np.array([0.1]), np.array([0.1]).astype(np.float32)),  # float64 for float32
    (tf.float32, True, np.array(1.0, np.float32)),
    (tf.float32, np.float16(2), np.array(2, np.float32)),
    (tf.float32, [], np.array([], np.float32)),
    (tf.float64, 3, np.array(3.0)),
    (tf.int32, 7, np.array(7, np.int32)),
    (tf.int32, np.int64(-(2**31)), np.array(-(2**31), np.int32)),
    (tf.int32, [], np.array([], np.int32)),  # an empty list has no type
    (tf.int8, [127, -128], np.array([127, -128], np.int8)),
    (tf.uint8, [0, 255], np.array([0, 255], np.uint8)),
    (tf.int64, np.uint8(200), np.array(200, np.int64)),
    (tf.int64, True, np.array(1, np.int64)),
    (tf.complex64, 1.5, np.array(1.5, np.complex64)),
    (tf.bool, [True, False], np.array([True, False])),
    (tf.string, "ä", np.array("ä".encode(), object)),
    (tf.string, [b"a", "b"], np.array([b"a", b"b"], object)),
    (tf.string, np.array(["a", "bc"]), np.array([b"a", b"bc"], object)),
    (tf.string, np.array([b"x"]), np.array([b"x"], object)),
    (tf.string, [], np.empty(0, object)),
]


@pytest.mark.parametrize(("dtype", "value", "expected"), ACCEPTED)
def test_values_become_arrays_of_the_tensors_type(dtype: Any, value: Any, expected: Any) -> None:
    found = feed_array(placeholder(dtype), value)
    assert found.dtype == expected.dtype and found.shape == expected.shape and found.tolist() == expected.tolist()


LOST = " something would be lost. Convert it yourself if that is meant, e.g. value.astype('{0}')."
REFUSED: list[tuple[Any, Any, type[Exception], str]] = [
    (tf.int32, 1.5, TypeError, "Cannot feed a value of type float64 for Tensor 'x:0' of type int32:" + LOST.format("int32")),
    (tf.int32, np.array([1.7]), TypeError, "Cannot feed a value of type float64 for Tensor 'x:0' of type int32:" + LOST.format("int32")),
    (tf.float32, 1j, TypeError, "Cannot feed a value of type complex128 for Tensor 'x:0' of type float32:" + LOST.format("float32")),
    (tf.bool, 1, TypeError, "Cannot feed a value of type int64 for Tensor 'x:0' of type bool:" + LOST.format("bool")),
    (tf.uint8, [-1], TypeError, "Cannot feed a value of type int64 for Tensor 'x:0' of type uint8:" + LOST.format("uint8")),
    (tf.int32, 2**31, TypeError, "Cannot feed Tensor 'x:0' of type int32: the values 2147483648 to 2147483648 don't fit into it."),
    (tf.int32, np.int64(2**40), TypeError,
     "Cannot feed Tensor 'x:0' of type int32: the values 1099511627776 to 1099511627776 don't fit into it."),
    (tf.int8, [1, 128], TypeError, "Cannot feed Tensor 'x:0' of type int8: the values 1 to 128 don't fit into it."),
    (tf.uint8, [3, 256], TypeError, "Cannot feed Tensor 'x:0' of type uint8: the values 3 to 256 don't fit into it."),
    (tf.int64, 2**70, ValueError, "Cannot feed a value of type object for Tensor 'x:0' of type int64."),
    (tf.float32, "one", ValueError, "Cannot feed a value of type <U3 for Tensor 'x:0' of type float32."),
    (tf.float32, {1: 2}, ValueError, "Cannot feed a value of type object for Tensor 'x:0' of type float32."),
    (tf.string, 1, TypeError, "Cannot feed 1 for Tensor 'x:0' of type string."),
    (tf.string, ["a", None], TypeError, "Cannot feed None for Tensor 'x:0' of type string."),
    (tf.float32, None, TypeError, "the value of the feed 'x:0' is None."),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "value", "kind", "text"), REFUSED)
def test_values_that_would_lose_something_are_refused(dtype: Any, value: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        feed_array(placeholder(dtype), value)
    assert type(caught.value) is kind and str(caught.value) == text


def test_a_ragged_list_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Cannot feed \[\[1\], \[2, 3\]\] for Tensor 'x:0' of type float32: "):
        feed_array(placeholder(tf.float32), [[1], [2, 3]])


def test_a_tensor_or_variable_is_no_value() -> None:
    x = placeholder(tf.float32)
    for value in (tf.constant(1.0), tf.Variable(1.0)):
        with pytest.raises(TypeError) as caught:
            feed_array(x, value)
        assert str(caught.value) == (
            f"The value of a feed cannot be a tensor: {value!r} was given for 'x:0'."
            " Acceptable feed values include Python scalars, strings, lists and numpy ndarrays."
        )


@pytest.mark.parametrize(
    ("static", "shape", "shown"), [([2], (3,), "(2,)"), ([None, 2], (2,), "(?, 2)"), ([], (1,), "()"), ([0], (1,), "(0,)")]
)
def test_the_static_shape_holds(static: list[int | None], shape: tuple[int, ...], shown: str) -> None:
    with pytest.raises(ValueError) as caught:
        feed_array(placeholder(tf.float32, static), np.zeros(shape))
    assert str(caught.value) == f"Cannot feed value of shape {shape} for Tensor 'x:0', which has shape {shown}"


@pytest.mark.parametrize(("static", "shape"), [([None], (0,)), ([None, 2], (5, 2)), (None, ()), (None, (1, 2, 3)), ([], ())])
def test_unknown_sizes_match_anything(static: Any, shape: tuple[int, ...]) -> None:
    assert feed_array(placeholder(tf.float32, static), np.zeros(shape)).shape == shape


def test_a_fed_array_is_not_copied_and_cannot_be_written_to() -> None:
    value = np.zeros(3, np.float32)
    found = feed_array(placeholder(tf.float32), value)
    assert np.shares_memory(found, value) and not found.flags.writeable and value.flags.writeable
