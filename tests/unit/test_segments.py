"""Segments: buffers that are used again, calls in blocks; their results are those of the calls one by one, to the last bit."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.compiler import buffers
from mpirt.compiler.program import Run
from mpirt.graph.graph import Graph, Tensor
from mpirt.runtime import executor
from tests.reference import Reference
from tests.unit import test_tf_golden


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of arrays that tests can have many of."""
    monkeypatch.setattr(buffers, "BLOCK_NBYTES", 64)
    monkeypatch.setattr(buffers, "SMALL_NBYTES", 32)


def bits(array: Any) -> tuple[Any, ...]:
    """All that tells two arrays apart."""
    array = np.asarray(array)
    return array.shape, array.dtype.str, array.tobytes()


# ---------------------------------------------------------------------------------------------- any graph

UNARY = (tf.negative, tf.square, tf.tanh, tf.exp, tf.abs, tf.sign, tf.sigmoid, tf.nn.relu, tf.identity, tf.sin, tf.stop_gradient)
BINARY = (tf.add, tf.subtract, tf.multiply, tf.divide, tf.maximum, tf.minimum, tf.atan2)
SHAPES = ((), (1,), (6,), (4, 6), (1, 6), (30,), (5, 6))
Shape = tuple[int, ...]


@dataclass
class Case:
    """A random graph, what is fetched, and what each of its steps is fed."""

    graph: Graph
    fetches: list[Any]
    feeds: list[Tensor]
    steps: list[dict[Tensor, np.ndarray[Any, Any]]] = field(default_factory=list)
    variables: list[Any] = field(default_factory=list)
    values: list[np.ndarray[Any, Any]] = field(default_factory=list)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Elementwise functions, broadcasting, reductions, views, matrix products, variables that change on the way."""
    graph = Graph()
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    with graph.as_default():
        feeds = [tf.placeholder(tf.float32, draw(st.sampled_from(SHAPES))) for _ in range(draw(st.integers(1, 3)))]
        case = Case(graph, [], feeds)
        for i in range(draw(st.integers(0, 2))):
            case.values.append(np.asarray(numbers.standard_normal(draw(st.sampled_from(SHAPES))), np.float32))
            case.variables.append(tf.Variable(case.values[-1], name=f"v{i}"))
        tensors: list[Tensor] = [*feeds, tf.constant(numbers.standard_normal((4, 6)).astype(np.float32))]
        order: list[Any] = []  # what must have run before: changes of variables are in one order with all else
        for _ in range(draw(st.integers(1, 25))):
            kind = draw(st.sampled_from(["unary", "binary", "binary", "view", "sum", "matmul", "read", "change", "less"]))
            x = draw(st.sampled_from(tensors))
            with graph.control_dependencies(order):
                if kind == "unary":
                    tensors.append(draw(st.sampled_from(UNARY))(x))
                elif kind in ("binary", "less"):
                    y = draw(st.sampled_from([t for t in [*tensors, *case.variables] if fits(x, t)]))
                    if kind == "less":
                        tensors.append(tf.where(tf.less(x, y), tf.broadcast_to(x, tf.less(x, y).shape), tf.broadcast_to(y, tf.less(x, y).shape)))
                    else:
                        tensors.append(draw(st.sampled_from(BINARY))(x, y))
                elif kind == "view":
                    tensors.append(draw(st.sampled_from([lambda t: tf.reshape(t, [-1]), tf.transpose, lambda t: tf.expand_dims(t, 0)]))(x))
                elif kind == "sum":
                    tensors.append(tf.reduce_sum(x, draw(st.sampled_from([None, 0])) if x.shape.ndims else None))
                elif kind == "matmul" and x.shape.ndims == 2:
                    tensors.append(tf.matmul(x, x, transpose_b=True))
                elif case.variables:
                    variable = draw(st.sampled_from(case.variables))
                    if kind == "read":
                        tensors.append(tf.identity(variable))
                    elif kind == "change":
                        same = [t for t in tensors if t.shape.as_list() == variable.shape.as_list()]
                        if same:
                            with tf.control_dependencies(tensors):
                                change = draw(st.sampled_from([tf.assign, tf.assign_add, tf.assign_sub]))
                                order = [change(variable, draw(st.sampled_from(same)))]
        case.fetches = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=4)) + order
        for _ in range(draw(st.integers(1, 4))):
            case.steps.append({t: arranged(draw, numbers, t.shape.as_list()) for t in feeds})
    return case


def fits(x: Any, y: Any) -> bool:
    a, b = x.shape.as_list(), y.shape.as_list()
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False))


def arranged(draw: st.DrawFn, numbers: np.random.Generator, shape: list[int]) -> np.ndarray[Any, Any]:
    """An array of ``shape``: in C order, transposed, or with gaps."""
    how = draw(st.sampled_from(["c", "c", "transposed", "gaps"]))
    if how == "transposed":
        return numbers.standard_normal(shape[::-1]).astype(np.float32).T
    if how == "gaps" and shape:
        return numbers.standard_normal([*shape[:-1], 2 * shape[-1]]).astype(np.float32)[..., ::2]
    return np.asarray(numbers.standard_normal(shape), np.float32)


@pytest.mark.parametrize("block, small", [(64, 32), (16, 0), (1 << 18, 1 << 12), (64, 1 << 12)])
@given(case=cases())
@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_steps_give_what_numpy_gives_call_by_call_and_what_is_kept_never_changes(block: int, small: int, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "BLOCK_NBYTES", block)
        patch.setattr(buffers, "SMALL_NBYTES", small)
        reference = Reference(case.graph)
        with tf.Session(graph=case.graph) as session:
            for runner in (session, reference):
                for variable in case.variables:
                    runner.run(variable.initializer)
            kept: list[tuple[Any, tuple[Any, ...]]] = []
            for feeds in case.steps:
                for mine, right in zip(session.run(case.fetches, feeds), reference.run(case.fetches, feeds), strict=True):
                    assert bits(mine) == bits(right)
                    kept.append((mine, bits(right)))
                for array, content in kept:
                    assert bits(array) == content
            for variable in case.variables:
                assert bits(session.run(variable)) == bits(reference.run(variable))


# ---------------------------------------------------------------------------------------------- what kernels promise


@pytest.mark.parametrize("name", sorted(test_tf_golden.cases()))
def test_kernels_keep_their_promise_about_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = executor._kernel_call

    def checking(run: Run, state: executor.SessionState) -> Callable[..., Any]:
        call, memory = original(run, state), run.op.definition.kernels[run.device.type].memory

        def checked(*inputs: Any) -> Any:
            before = [sys.getrefcount(x) for x in inputs]
            result = call(*inputs)
            after = [sys.getrefcount(x) for x in inputs]
            results = result if isinstance(result, list | tuple) else [result]
            first = 1 if memory == "view" else 0
            for x, count, now in list(zip(inputs, before, after, strict=True))[first:]:
                assert now == count or not isinstance(x, np.ndarray), f"{run.op.type} keeps an input"
                for made in results:
                    shared = isinstance(x, np.ndarray) and isinstance(made, np.ndarray) and np.may_share_memory(x, made)
                    assert not shared, f"{run.op.type} returns an input's memory"
            return result

        return checked if memory else call

    monkeypatch.setattr(executor, "_kernel_call", checking)
    answers = test_tf_golden.Answers(name)
    graph = test_tf_golden.imported(answers)
    with tf.Session(graph=graph) as session:
        for step in answers.entry["steps"]:
            test_tf_golden.run_step(session, graph, answers, step)
