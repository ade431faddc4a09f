"""``tf.container``: where state is kept, for reference variables and for handles."""

from __future__ import annotations

from typing import Any

import pytest

import mpirt as tf
from mpirt.ops.apply import apply_op


def reference(shared_name: str) -> tuple[Any, Any]:
    """A variable of that shared name, and how to set it to 1."""
    v = apply_op("VariableV2", dtype=tf.float32, shape=(), shared_name=shared_name)
    return v, apply_op("Assign", v, tf.constant(1.0))


def handle(shared_name: str) -> tuple[Any, Any]:
    v = apply_op("VarHandleOp", dtype=tf.float32, shape=(), shared_name=shared_name)
    return apply_op("ReadVariableOp", v, dtype=tf.float32), apply_op("AssignVariableOp", v, tf.constant(1.0))


@pytest.mark.parametrize("make", [reference, handle])
def test_one_name_in_two_containers_is_two_variables_and_in_one_container_one(make: Any) -> None:
    with tf.Graph().as_default(), tf.Session() as session:
        with tf.container("left"):
            left, fill = make("state_of_" + make.__name__)
            again, _ = make("state_of_" + make.__name__)
        with tf.container("right"):
            right, _ = make("state_of_" + make.__name__)
        session.run(fill)
        assert session.run([left, again]) == [1.0, 1.0]
        with pytest.raises(tf.errors.FailedPreconditionError):
            session.run(right)


def test_a_container_that_an_operation_names_itself_goes_before_the_block() -> None:
    with tf.Graph().as_default(), tf.container("block"):
        own = apply_op("VarHandleOp", dtype=tf.float32, shape=(), container="own")
        given = apply_op("VarHandleOp", dtype=tf.float32, shape=())
    assert [v.op.get_attr("container") for v in (own, given)] == ["own", "block"]


def test_the_nearest_block_counts_and_an_exception_leaves_it() -> None:
    with tf.Graph().as_default() as graph, tf.container("around"):
        with pytest.raises(KeyError), tf.container("inner"):
            raise KeyError
        with graph.container("nearer"):
            nearer = tf.Variable(1.0)
        around = tf.Variable(1.0)
    assert [v.op.get_attr("container") for v in (nearer, around)] == ["nearer", "around"]
