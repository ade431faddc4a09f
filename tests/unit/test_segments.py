"""Segments: buffers that are used again, calls in blocks; their results are those of the calls one by one, to the last bit."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.compiler import buffers
from mpirt.compiler.exchange import Fold, Make
from mpirt.compiler.program import NO_SLOT, Run, Send, frees_after_last_use
from mpirt.graph.graph import Graph, Tensor
from mpirt.graph.op_def import op_def, op_types
from mpirt.runtime import executor, segments
from tests.reference import Reference
from tests.unit import test_tf_golden
from tests.unit.test_executor import by_name, executors


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
        for _ in range(draw(st.integers(1, 40))):
            kinds = ["unary", "unary", "binary", "binary", "binary", "view", "sum", "matmul", "read", "change", "less"]
            kind = draw(st.sampled_from(kinds))
            x = draw(st.sampled_from(tensors))
            with graph.control_dependencies(order):
                if kind == "unary":
                    tensors.append(draw(st.sampled_from(UNARY))(x))
                elif kind in ("binary", "less"):
                    y = draw(st.sampled_from([t for t in [*tensors, *case.variables] if fits(x, t)]))
                    tensors.append(smaller(x, y) if kind == "less" else draw(st.sampled_from(BINARY))(x, y))
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


def smaller(x: Any, y: Any) -> Tensor:
    """The smaller of both, by way of a comparison."""
    less = tf.less(x, y)
    return tf.where(less, tf.broadcast_to(x, less.shape), tf.broadcast_to(y, less.shape))


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
@settings(max_examples=80, phases=(Phase.explicit, Phase.generate))
def test_steps_give_what_numpy_gives_call_by_call_and_what_is_kept_never_changes(block: int, small: int, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "BLOCK_NBYTES", block)
        patch.setattr(buffers, "SMALL_NBYTES", small)
        patch.setattr(buffers._Assigner, "_pays", lambda *_: True)  # segments also where they aren't worth it
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
    original = executor.kernel_call

    def checking(run: Run, state: executor.SessionState) -> Callable[..., Any]:
        call, memory = original(run, state), run.op.definition.kernels[run.device.type].memory

        def checked(_: Any, *inputs: Any, out: Any = None) -> Any:
            before = [sys.getrefcount(x) for x in inputs]
            result = call(*inputs) if out is None else call(*inputs, out=out)
            after = [sys.getrefcount(x) for x in inputs]
            results = result if isinstance(result, list | tuple) else [result]
            first = 1 if memory == "view" else 0
            for x, count, now in list(zip(inputs, before, after, strict=True))[first:]:
                assert now == count or not isinstance(x, np.ndarray), f"{run.op.type} keeps an input"
                for made in results:
                    shared = isinstance(x, np.ndarray) and isinstance(made, np.ndarray) and np.may_share_memory(x, made)
                    assert not shared, f"{run.op.type} returns an input's memory"
            return result

        return MethodType(checked, run) if memory else call

    monkeypatch.setattr(executor, "kernel_call", checking)
    answers = test_tf_golden.Answers(name)
    graph = test_tf_golden.imported(answers)
    with tf.Session(graph=graph) as session:
        for step in answers.entry["steps"]:
            test_tf_golden.run_step(session, graph, answers, step)


def direct_calls() -> list[tuple[str, str]]:
    """Every ufunc that is a kernel, with every real type that it is for."""
    found = set()
    for op_type in op_types():
        definition = op_def(op_type)
        kernel = definition.kernels.get("CPU")
        if kernel is None or not isinstance(getattr(np, kernel.direct or "abs", None), np.ufunc) or not kernel.direct:
            continue
        kinds = definition.attrs["T"].allowed if "T" in definition.attrs else (tf.bool,)
        found |= {(kernel.direct, t.np_dtype.name) for t in kinds if t.np_dtype.kind in "biuf" and t.np_dtype.isbuiltin == 1}
    return sorted(found)


@pytest.mark.parametrize("name, dtype", direct_calls())
def test_a_ufunc_gives_the_same_bits_over_its_own_memory_and_block_by_block(name: str, dtype: str) -> None:
    ufunc = segments._into(name)
    plain: np.ufunc = getattr(np, name)
    numbers = np.random.default_rng(0)
    inputs = [(numbers.standard_normal(1003) * 10).astype(dtype) for _ in range(plain.nin)]
    if inputs[0].dtype.kind == "f":
        inputs[0][:4] = inputs[0][500:504] = [np.inf, -np.inf, np.nan, 6e4]
    with np.errstate(all="ignore"):
        whole = plain(*inputs)
        for block in (1, 7, 64, 1003):
            blocks = np.empty_like(whole)
            for start in range(0, 1003, block):
                ufunc(*[x[start : start + block] for x in inputs], blocks[start : start + block])
            assert bits(blocks) == bits(whole)
        for over in range(plain.nin):
            operands = [x.copy() for x in inputs]
            if operands[over].dtype == whole.dtype:
                ufunc(*operands, operands[over])
                assert bits(operands[over]) == bits(whole)
        first = [inputs[0], *[x[:1] for x in inputs[1:]]]
        assert bits(ufunc(*first, np.empty_like(whole))) == bits(plain(inputs[0], *[x[0] for x in inputs[1:]]))


# ---------------------------------------------------------------------------------------------- who holds what


def test_what_a_python_function_keeps_never_changes_also_if_it_is_a_view() -> None:
    x = tf.placeholder(tf.float32, [4, 5])
    kept: list[Any] = []
    keep = tf.py_func(lambda *arrays: kept.extend(arrays), [tf.reshape(chain(x), [-1]), tf.transpose(tf.exp(chain(x)))], [])
    fed = [np.full((4, 5), i, np.float32) for i in range(3)]
    with tf.Session() as session:
        for value in fed:
            session.run(keep, {x: value})
        assert segments_of(session)
    right = [a for value in fed for a in (chained(value).reshape(-1), np.exp(chained(value)).T)]
    assert [bits(a) for a in kept] == [bits(a) for a in right]


def test_a_buffer_is_not_used_again_while_a_view_of_it_is_still_to_be_read() -> None:
    x, z = tf.placeholder(tf.float32, [16]), tf.placeholder(tf.float32, [16])
    view = tf.reshape(chain(x), [4, 4])
    with tf.control_dependencies([view]):
        other = chain(z)
    with tf.control_dependencies([other]):
        total = tf.reduce_sum(view, 0)
    ones, twos = np.ones(16, np.float32), np.full(16, 2.0, np.float32)
    with tf.Session() as session:
        found = session.run([total, tf.reduce_sum(other)], {x: ones, z: twos})
        assert len(segments_of(session)) == 2
    assert bits(found[0]) == bits(chained(ones).reshape(4, 4).sum(0)) and bits(found[1]) == bits(chained(twos).sum())


@pytest.mark.parametrize("size, copied", [(10, True), (50_000, False)])
def test_what_is_sent_is_held_until_it_has_left_unless_it_travels_in_a_packet(
    size: int, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers._Assigner, "_pays", lambda *_: True)
    x = tf.placeholder(tf.float32, [size])
    first, second = chain(x), chain(tf.tanh(x))
    z = [tf.negative(first, name="first_on_1"), tf.negative(second, name="second_on_1")]
    sender, _ = executors([t.op for t in z], [x], 2, by_name)
    sent = {i.source for i in sender.program.instructions if isinstance(i, Send) and i.source != NO_SLOT}
    assert len(sent) == 2 and bool(sender.program.packets) == copied
    given = {slot for segment in sender.buffers.segments for slot, _ in segment.outputs}
    kept = sender.buffers.kept.keys()
    assert (sent <= kept and not sent & given) if copied else (sent <= given and not sent & kept)


@pytest.mark.parametrize("into", [None, (0, 10)])
def test_what_a_fold_may_give_on_as_its_result_is_no_buffer(into: tuple[int, int] | None) -> None:
    y = chain(tf.placeholder(tf.float32, [10]), 8)
    (sole,) = executors([y.op], [y.op.graph.get_tensor_by_name("Placeholder:0")])
    program = sole.program
    slot, target = program.instructions[-1].outputs[0], program.num_slots
    program.instructions += [Make(target, tf.float32, (10,))] if into else []
    program.instructions.append(Fold("fold", "sum", 1, (slot,), (None,), target, into))
    program.num_slots, program.fetches = target + 1, [target]
    program.frees = frees_after_last_use(program)
    found = buffers.assign_buffers(program)
    (segment,) = found.segments
    assert ([s for s, _ in segment.outputs], list(found.kept)) == (([], [slot]) if into else ([slot], []))


def test_a_matrix_in_another_layout_is_summed_in_the_order_of_its_own() -> None:
    x = tf.placeholder(tf.float32, [300, 700])
    total = tf.reduce_sum(chain(x), 1)
    fed = np.random.default_rng(0).standard_normal((700, 300)).astype(np.float32).T
    assert bits(chained(fed).sum(1)) != bits(np.ascontiguousarray(chained(fed)).sum(1))
    with tf.Session() as session:
        assert bits(session.run(total, {x: fed})) == bits(chained(fed).sum(1))
        assert bits(session.run(total, {x: fed.copy()})) == bits(chained(fed.copy()).sum(1))
        assert segments_of(session)


# ---------------------------------------------------------------------------------------------- several steps at a time


def chain(x: Tensor, num: int = 6) -> Tensor:
    for i in range(num):
        x = x * 1.5 if i % 2 else x + 0.25
    return x


def chained(x: Any, num: int = 6) -> Any:
    for i in range(num):
        x = x * np.float32(1.5) if i % 2 else x + np.float32(0.25)
    return x


def segments_of(session: tf.Session) -> list[buffers.Segment]:
    """Of the step that the session has run last."""
    return list(session._runner._signatures.values())[-1].executor.buffers.segments


@pytest.mark.parametrize("size", [10, 5000])
def test_threads_that_run_one_step_at_the_same_time_have_buffers_of_their_own(size: int) -> None:
    x = tf.placeholder(tf.float32, [size])
    before = tf.tanh(chain(x))
    with tf.control_dependencies([before]):
        middle = tf.py_func(lambda a: (barrier.wait(10), a)[1], [x], tf.float32)  # all steps are here at the same time
    middle.set_shape([size])
    y = chain(chain(middle) + before)
    barrier = threading.Barrier(4)
    wrong: list[Any] = []

    def steps(session: tf.Session, number: int) -> None:
        for step in range(5):
            fed = np.full(size, (number * 10 + step) / 50, np.float32)
            if bits(session.run(y, {x: fed})) != bits(chained(chained(fed) + np.tanh(chained(fed)))):
                wrong.append((number, step))

    with tf.Session() as session:
        threads = [threading.Thread(target=steps, args=(session, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(segments_of(session)) == 2
    assert not wrong


def test_steps_that_wait_in_the_middle_keep_their_values_while_others_run() -> None:
    x = tf.placeholder(tf.float32, [10])
    queue = tf.FIFOQueue(10, [tf.float32], [[10]])
    before = chain(x)
    with tf.control_dependencies([before]):
        element = queue.dequeue()
    y = chain(element + tf.tanh(before)) + before
    give = tf.placeholder(tf.float32, [10])
    put, at_once = queue.enqueue([give]), chain(x) * chain(x + 1.0)
    found: dict[int, Any] = {}
    feeds = {n: np.linspace(0, n + 1, 10).astype(np.float32) for n in range(3)}
    with tf.Session() as session:

        def wait(number: int) -> None:
            found[number] = session.run(y, {x: feeds[number]})

        threads = [threading.Thread(target=wait, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        one = np.ones(10, np.float32)
        for _ in range(3):
            assert bits(session.run(at_once, {x: one})) == bits(chained(one) * chained(one + np.float32(1)))
            session.run(put, {give: one})
        for thread in threads:
            thread.join()
    for number, fed in feeds.items():
        first = chained(fed)
        assert bits(found[number]) == bits(chained(one + np.tanh(first)) + first)


# ---------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_call_that_fails_in_a_segment_is_named_and_the_next_step_is_whole(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = [True]
    original = segments._into

    def failing(ufunc: str) -> Any:
        function = original(ufunc)

        def call(*operands: Any) -> Any:
            if tight[0] and ufunc == "tanh":
                raise MemoryError("no more")
            return function(*operands)

        return call

    monkeypatch.setattr(segments, "_into", failing)
    x = tf.placeholder(tf.float32, [size])
    y = chain(tf.tanh(chain(x), name="guilty"))
    fed = np.ones(size, np.float32)
    with tf.Session() as session:
        with pytest.raises(tf.errors.ResourceExhaustedError, match=r"^'guilty' \(Tanh\) failed: MemoryError: no more") as caught:
            session.run(y, {x: fed})
        assert caught.value.op.name == "guilty"
        assert len(segments_of(session)) == 1
        tight[0] = False
        assert bits(session.run(y, {x: fed})) == bits(chained(np.tanh(chained(fed))))


def test_a_variable_without_a_value_is_named_with_the_operation_that_reads_it() -> None:
    v = tf.Variable(np.ones(3, np.float32), name="v")
    y = chain(tf.multiply(chain(tf.constant(np.ones(3, np.float32))), v._as_graph_element(), name="reader"))
    with tf.Session() as session:
        with pytest.raises(tf.errors.FailedPreconditionError, match="uninitialized value v") as caught:
            session.run(y)
        assert caught.value.op.name == "reader"
        session.run(v.initializer)
        one = np.ones(3, np.float32)
        assert bits(session.run(y)) == bits(chained(chained(one) * one))


@pytest.mark.parametrize("given", [np.full(1, 2.0, np.float32), np.full((2, 3), 2.0, np.float32)])
def test_an_input_whose_static_shape_is_wrong_gives_what_the_calls_give_one_by_one(given: np.ndarray[Any, Any]) -> None:
    x = tf.py_func(lambda: given, [], tf.float32)
    x.set_shape([3])
    first = chain(x)
    total = tf.reduce_sum(first)
    second = chain(first + total)
    with tf.Session() as session:
        right = chained(given)
        for _ in range(2):
            assert bits(session.run(second)) == bits(chained(right + right.sum(axis=0)))
        assert len(segments_of(session)) == 2


# ---------------------------------------------------------------------------------------------- memory


def test_nothing_from_outside_is_held_when_a_step_has_ended() -> None:
    big = 100_000
    x = tf.placeholder(tf.float32, [big])
    v = tf.Variable(np.ones(big, np.float32))
    y, more = chain(x + v), tf.assign_add(v, np.ones(big, np.float32))
    with tf.Session() as session:
        session.run(v.initializer)
        fed = np.ones(big, np.float32)
        count = sys.getrefcount(fed)
        session.run(y, {x: fed})
        assert sys.getrefcount(fed) == count and len(segments_of(session)) == 1
        (cell,) = session._runner._state.resources._resources.values()
        array = id(cell._value)
        session.run(more.op)
        assert id(cell._value) == array, "the variable was copied: somebody holds its value"


def test_the_predicted_peak_of_memory_is_what_a_step_takes_and_buffers_are_used_again() -> None:
    n = 300_000
    x = tf.placeholder(tf.float32, [n])
    c = tf.constant(np.ones(n, np.float32))
    loss = tf.reduce_sum(tf.sigmoid(chain(x)) + chain(c * 0.5))
    rows = tf.reshape(chain(x), [300, 1000])
    product = tf.matmul(rows, rows, transpose_b=True)
    escaping = chain(tf.tanh(x))
    fetches = [loss, product, escaping]
    fed = np.ones(n, np.float32)
    with tf.Session() as session:
        session.run(loss, {x: fed})  # what Python itself needs
        tracemalloc.start()
        try:
            kept = session.run(fetches, {x: fed})
            peak = tracemalloc.get_traced_memory()[1]
            plan = list(session._runner._signatures.values())[-1].executor.buffers
            assert not plan.unknown and abs(peak - plan.peak_nbytes) < 0.1 * plan.peak_nbytes
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            again = session.run(fetches, {x: fed})
            more = tracemalloc.get_traced_memory()[1] - before
            assert abs(more - (plan.peak_nbytes - sum(plan.nbytes))) < 0.1 * plan.peak_nbytes
        finally:
            tracemalloc.stop()
        assert all(bits(a) == bits(b) for a, b in zip(kept, again, strict=True))


def test_the_text_of_a_program_shows_segments_and_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_DUMP_PROGRAM", str(tmp_path))
    monkeypatch.setattr(buffers, "BLOCK_NBYTES", 16)
    x = tf.placeholder(tf.float32, [2], name="x")
    wide = tf.placeholder(tf.float32, [8], name="wide")
    y = tf.exp(wide * tf.reduce_max(tf.tanh(chain(x))))
    with tf.Session() as session:
        session.run([y, y.op], {x: np.ones(2), wide: np.ones(8)})
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    assert text[text.index("memory") :] == (
        "memory: 104 B at most, 68 B of it in 5 buffers that every step uses again\n"
        "segment 0: instructions 0-6\n"
        "  take  s1[b0] = s1\n"
        "  call  s3[b1] = add(s1[b0], s2)\n"
        "  call  s5[b1] = multiply(s3[b1], s4)\n"
        "  call  s7[b1] = add(s5[b1], s6)\n"
        "  call  s9[b1] = multiply(s7[b1], s8)\n"
        "  call  s11[b1] = add(s9[b1], s10)\n"
        "  call  s13[b1] = multiply(s11[b1], s12)\n"
        "  call  s14[b1] = tanh(s13[b1])\n"
        "segment 1: instructions 8-9\n"
        "  take  s0[b2] = s0\n"
        "  take  s16[b3] = s16\n"
        "  in blocks of 4 elements:\n"
        "  call  s17[b4] = multiply(s0[b2], s16[b3])\n"
        "  call  s18 = exp(s17[b4])\n"
        "  give  s18\n"
    )
