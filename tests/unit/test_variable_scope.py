"""``get_variable`` and ``variable_scope``: names, sharing, defaults. Expected names are TensorFlow 2.21's (compat.v1)."""

from collections.abc import Iterator
from functools import partial
from threading import Thread
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.graph import Graph
from mpirt.ops.variable_scope import (
    AUTO_REUSE,
    VariableScope,
    get_local_variable,
    get_variable,
    get_variable_scope,
    no_regularizer,
    variable_op_scope,
    variable_scope,
)  # fmt: skip
from tests.reference import Reference


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def opened(scope: VariableScope) -> tuple[str, str, str]:
    return scope.name, scope.original_name_scope, tf.get_default_graph().get_name_scope()


# ------------------------------------------------------------------------------------------------------------- names


def test_variables_follow_variable_scopes_and_operations_name_scopes() -> None:
    with variable_scope("a"), tf.name_scope("ns"):
        v = get_variable("v", [2])
        plain = tf.Variable(1.0, name="k")
        op = tf.constant(0.0, name="c")
    assert (v.name, plain.name, op.name) == ("a/v:0", "a/ns/k:0", "a/ns/c:0")
    assert v.initial_value.op.name == "a/v/Initializer/random_uniform"


def test_opening_a_scope_again_by_name_gives_new_name_scopes_and_the_same_prefix() -> None:
    with variable_scope("a") as first:
        assert (*opened(first), get_variable("x", []).name) == ("a", "a/", "a", "a/x:0")
    with variable_scope("a") as second:
        assert (*opened(second), get_variable("y", []).name) == ("a", "a_1/", "a_1", "a/y:0")


def test_opening_a_scope_again_by_object_keeps_its_first_name_scope() -> None:
    with variable_scope("a") as scope:
        pass
    with variable_scope(scope) as again:
        assert opened(again) == ("a", "a/", "a_1")
    with variable_scope("b"):
        with variable_scope(scope) as inside:
            assert opened(inside) == ("a", "a/", "b/a")
        with variable_scope(scope, auxiliary_name_scope=False) as quiet:
            assert opened(quiet) == ("a", "a/", "b")
        assert get_variable_scope().name == "b"
    assert get_variable_scope().name == ""


def test_default_names_are_numbered_within_the_outer_scope() -> None:
    seen = []
    for _ in range(3):
        with variable_scope(None, "def") as scope:
            seen.append((*opened(scope)[:2], get_variable("x", []).name))
    assert seen == [("def", "def/", "def/x:0"), ("def_1", "def_1/", "def_1/x:0"), ("def_2", "def_2/", "def_2/x:0")]
    with variable_scope("def") as scope:
        assert opened(scope)[:2] == ("def", "def_3/")
    with variable_scope(None, "def") as scope:
        assert opened(scope)[:2] == ("def_3", "def_4/")
    with variable_scope("q"), variable_scope(None, "def") as scope:
        assert opened(scope)[:2] == ("q/def", "q/def/")
    with variable_scope("q"), variable_scope(None, "def") as scope:  # numbers start again with q
        assert opened(scope)[:2] == ("q/def", "q_1/def/")


def test_the_root_scope_opens_no_name_scope() -> None:
    with variable_scope("") as scope:
        assert opened(scope) == ("", "", "")
    with variable_scope(get_variable_scope(), reuse=AUTO_REUSE) as scope:
        assert (*opened(scope), scope.reuse) == ("", "", "", AUTO_REUSE)


def test_an_exception_leaves_the_scope() -> None:
    with pytest.raises(KeyError), variable_scope("a"):
        raise KeyError("x")
    assert opened(get_variable_scope()) == ("", "", "")


def test_each_thread_opens_its_own_scopes(graph: Graph) -> None:
    names = []

    def build() -> None:
        with graph.as_default():
            names.append(get_variable_scope().name)

    with variable_scope("a"):
        thread = Thread(target=build)
        thread.start()
        thread.join()
    assert names == [""]


def test_the_older_order_of_arguments_works() -> None:
    with variable_op_scope([tf.constant(1.0)], None, "layer") as scope:
        assert scope.name == "layer"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name_or_scope": None}, TypeError, "If default_name is None then name_or_scope is required"),
        ({"name_or_scope": 3}, TypeError, "must be a string or VariableScope"),
        ({"name_or_scope": None, "default_name": "a", "reuse": True}, ValueError, "cannot be used without a name_or_scope"),
        ({"name_or_scope": "a", "reuse": 3}, ValueError, "must be True or False or None"),
        ({"name_or_scope": "a", "auxiliary_name_scope": 1}, TypeError, "must be `True` or `False`"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        variable_scope(**arguments)


def test_tensors_of_another_graph_are_refused() -> None:
    with Graph().as_default():
        foreign = tf.constant(1.0)
    with pytest.raises(ValueError, match="must be from the current graph"):
        variable_scope("a", values=[foreign])


# ----------------------------------------------------------------------------------------------------------- sharing


def test_the_same_name_twice_is_refused_with_the_first_place() -> None:
    get_variable("x", [])
    with pytest.raises(
        ValueError, match=r"^Variable x already exists, disallowed.*Originally defined at .*test_variable_scope.py:\d+\.$"
    ):
        get_variable("x", [])


def test_reuse_gives_the_very_same_variable_wherever_it_is_asked_for() -> None:
    with variable_scope("a"), tf.device("/job:ps"):
        v = get_variable("v", [2])
    with variable_scope("a", reuse=True), tf.device("/job:worker"):
        assert get_variable("v", [2]) is v and get_variable("v") is v
    assert v.device == "/job:ps"
    with variable_scope("a") as scope:
        scope.reuse_variables()
        assert get_variable("v") is v


def test_auto_reuse_makes_or_shares() -> None:
    with variable_scope("a", reuse=AUTO_REUSE):
        assert get_variable("v", [2]) is get_variable("v", [2])


def test_reuse_is_inherited_and_false_does_not_end_it() -> None:
    with variable_scope("b"), variable_scope("c", reuse=True) as c:
        with variable_scope("d", reuse=False) as d:
            assert (c.reuse, d.reuse) == (True, True)
        with variable_scope("d", reuse=AUTO_REUSE) as d:
            assert d.reuse is AUTO_REUSE
        with variable_scope(VariableScope(False, "e")) as jumped:
            assert not jumped.reuse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "nope", "shape": []}, "Variable nope does not exist, or was not created with tf.get_variable"),
        ({"name": "x", "shape": [3]}, r"Trying to share variable x, but specified shape \(3,\) and found shape \(\)"),
        ({"name": "x", "dtype": tf.int32}, "Trying to share variable x, but specified dtype int32 and found dtype float32_ref"),
    ],
)
def test_what_cannot_be_shared_is_refused(arguments: dict[str, Any], message: str) -> None:
    get_variable("x", [])
    with variable_scope("", reuse=True), pytest.raises(ValueError, match=message):
        get_variable(**arguments)


def test_a_variable_that_get_variable_did_not_make_is_not_shared() -> None:
    tf.Variable(1.0, name="x")
    with variable_scope("", reuse=True), pytest.raises(ValueError, match="was not created with tf.get_variable"):
        get_variable("x", [])


def test_graphs_have_stores_of_their_own() -> None:
    v = get_variable("v", [])
    with Graph().as_default():
        assert get_variable("v", []) is not v


# ------------------------------------------------------------------------------------------------------ initial values


@pytest.mark.parametrize(
    ("dtype", "initializer"),
    [
        (tf.float32, "random_uniform"),
        (tf.float64, "random_uniform"),
        (tf.int32, "zeros"),
        (tf.bool, "zeros"),
        (tf.string, "zeros"),
    ],
)
def test_the_default_initializer_depends_on_the_type(dtype: Any, initializer: str) -> None:
    v = get_variable("v", [2], dtype)
    assert v.dtype.base_dtype is dtype and v.initial_value.op.name == f"v/Initializer/{initializer}"


def test_initializers_are_objects_classes_functions_values_or_tensors(graph: Graph) -> None:
    made = {
        "object": get_variable("a", [2], initializer=tf.constant_initializer(3.0)),
        "class": get_variable("b", [2], initializer=tf.ones_initializer),
        "function of a shape": get_variable("c", [2], initializer=lambda shape: tf.fill(shape, 4.0)),
        "function with dtype": get_variable(
            "d", [2], tf.int32, lambda shape, dtype, partition_info=None: tf.ones(shape, dtype)
        ),
        "function without arguments": get_variable("e", initializer=lambda: tf.constant([7.0, 8.0])),
        "value": get_variable("f", initializer=[1.0, 2.0]),
        "array": get_variable("g", initializer=np.array([1.0, 2.0])),
        "tensor": get_variable("h", initializer=tf.constant([5, 6])),
        "partial": get_variable("i", [2], initializer=partial(tf.random_uniform, minval=1.0, maxval=1.5)),
    }
    run = Reference(graph).run
    run(tf.global_variables_initializer())
    values = {key: run(v).tolist() for key, v in made.items() if key != "partial"}
    assert values == {
        "object": [3, 3], "class": [1, 1], "function of a shape": [4, 4], "function with dtype": [1, 1],
        "function without arguments": [7, 8], "value": [1, 2], "array": [1, 2], "tensor": [5, 6],
    }  # fmt: skip
    assert made["array"].dtype.base_dtype is tf.float64 and made["tensor"].dtype.base_dtype is tf.int32
    assert 1.0 <= run(made["partial"])[0] < 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "did not get an initializer, so its `shape` argument must be specified"),
        ({"shape": [None]}, r"the shape \(\?,\) must be fully defined"),
        ({"shape": [2], "initializer": [1.0, 2.0]}, "If initializer is a constant, do not specify shape"),
        ({"shape": [2], "dtype": tf.complex64}, "An initializer for variable u of complex64 is required"),
    ],
)
def test_a_variable_that_cannot_be_initialised_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_variable("u", **arguments)


@pytest.mark.parametrize("value", [np.float32(1.0), np.ones(3, np.float32), "tensor", "variable"], ids=str)
def test_an_initial_value_that_has_another_type_is_refused(value: Any) -> None:
    if isinstance(value, str):
        value = tf.constant(1.0) if value == "tensor" else get_variable("other", [2])
    with pytest.raises(ValueError, match="Initializer type .*float32.* and explicit dtype .*int32.* don't match"):
        get_variable("u", dtype=tf.int32, initializer=value)


def test_numbers_become_the_type_that_is_asked_for_if_nothing_is_lost_and_else_have_their_own(graph: Graph) -> None:
    with variable_scope("a", dtype=tf.float64):  # TensorFlow: the type of a scope isn't that of values either
        made = [get_variable("x", initializer=3), get_variable("y", initializer=[1.5]), get_variable("z", None, tf.float16, 3)]
    assert [v.dtype.base_dtype for v in made] == [tf.int32, tf.float32, tf.float16]
    with variable_scope("a", reuse=True):
        assert get_variable("x", initializer=4) is made[0]
    with pytest.raises(TypeError, match="Expected int32, got 1.5"):
        get_variable("b", dtype=tf.int32, initializer=1.5)


# ------------------------------------------------------------------------------------------------------------ defaults


def test_scopes_pass_their_defaults_on_and_inner_ones_win() -> None:
    with variable_scope("a", initializer=tf.zeros_initializer(), dtype=tf.float64, caching_device="/cpu:1"):
        v = get_variable("v", [2])
        assert v.initial_value.op.type == "Const" and v.dtype.base_dtype is tf.float64
        assert v.value().device == "/device:CPU:1"
        with variable_scope("b", dtype=tf.float16):
            assert get_variable("v", [2]).dtype.base_dtype is tf.float16
            assert get_variable("w", [2], tf.float32).dtype.base_dtype is tf.float32


def test_a_regularizer_adds_a_loss_once_per_variable() -> None:
    with variable_scope("a", regularizer=lambda v: tf.reduce_sum(v * v), reuse=AUTO_REUSE):
        v = get_variable("v", [2])
        get_variable("v", [2])
        get_variable("bias", [2], regularizer=no_regularizer)
        get_variable("none", [2], regularizer=lambda v: None)
    (loss,) = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
    assert loss.op.name.startswith("a/v/Regularizer/") and loss.op.colocated_with() == ["a/v"]
    assert v.name == "a/v:0"


def test_custom_getters_of_scopes_wrap_from_the_inside_out_and_that_of_a_call_stands_alone() -> None:
    calls: list[tuple[str, str]] = []

    def named(who: str) -> Any:
        def wrap(getter: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            calls.append((who, name))
            return getter(name, *args, **kwargs) * 1.0

        return wrap

    with variable_scope("a", custom_getter=named("a")), variable_scope("b", custom_getter=named("b")):
        value = get_variable("v", [2])
        get_variable("w", [2], custom_getter=named("call"))
    assert calls == [("b", "a/b/v"), ("a", "a/b/v"), ("call", "a/b/w")]
    assert value.op.type == "Mul" and [v.name for v in tf.global_variables()] == ["a/b/v:0", "a/b/w:0"]


def test_local_variables_are_not_trained() -> None:
    v = get_local_variable("v", [2])
    assert tf.local_variables() == [v] and tf.global_variables() == [] == tf.trainable_variables()


def test_a_scope_lists_its_own_variables() -> None:
    with variable_scope("a") as scope:
        v = get_variable("v", [2])
        w = get_variable("w", [2], trainable=False)
    get_variable("ab", [2])
    assert scope.global_variables() == [v, w] and scope.trainable_variables() == [v] and scope.local_variables() == []
