"""What a step needs: all that its fetches depend on, cut at the fed tensors, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings

import mpirt as tf
from mpirt.compiler.prune import prune
from mpirt.graph.graph import Graph, Operation, Tensor
from tests.unit.planning import Step, steps


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


def names(operations: list[Operation]) -> list[str]:
    return [op.name for op in operations]


@settings(max_examples=150)
@given(steps())
def test_needed_is_the_smallest_set_that_holds_the_fetches_and_with_an_operation_all_it_depends_on(step: Step) -> None:
    fed = set(step.feeds)
    closed = {f if isinstance(f, Operation) else f.op for f in step.fetches if f not in fed}
    while True:  # the definition, by repetition until nothing is missing
        more = {t.op for op in closed for t in op.inputs if t not in fed} | {c for op in closed for c in op.control_inputs}
        if more <= closed:
            break
        closed |= more
    assert step.needed() == [op for op in step.graph.get_operations() if op in closed]


def test_a_fed_tensor_cuts_what_lies_behind_it() -> None:
    a = tf.constant(1.0, name="a")
    b = tf.negative(a, name="b")
    c = tf.negative(b, name="c")
    assert names(prune([c])) == ["a", "b", "c"]
    assert names(prune([c], {b})) == ["c"]
    assert names(prune([c, a], {b})) == ["a", "c"]


def test_a_fetched_tensor_that_is_fed_needs_nothing() -> None:
    b = tf.negative(tf.constant(1.0))
    assert prune([b], {b}) == []
    assert names(prune([b.op], {b})) == ["Const", "Neg"]  # the operation itself was asked for


def test_an_operation_with_one_fed_output_runs_for_the_other() -> None:
    first, second = tf.unstack(tf.constant([1.0, 2.0]), name="both")
    assert names(prune([first, second], {first})) == ["Const", "both"]


def test_control_inputs_are_needed_even_where_the_tensor_is_fed() -> None:
    a = tf.negative(tf.constant(1.0, name="one"), name="a")
    with tf.control_dependencies([a]):
        b = tf.constant(2.0, name="b")
    assert names(prune([b], {a})) == ["one", "a", "b"]


def test_a_long_chain_needs_no_recursion() -> None:
    x: Tensor = tf.constant(1.0)
    for _ in range(5000):
        x = tf.negative(x)
    assert len(prune([x])) == 5001
