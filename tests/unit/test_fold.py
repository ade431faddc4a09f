"""Constants that are folded while planning: the same bits as in the step, everywhere, and nothing that may not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpirt as tf
from mpirt.compiler import fold, planning
from mpirt.compiler.linker import link
from mpirt.compiler.partition import Plan
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.program import Program, Run
from mpirt.graph.graph import Graph, Operation, Tensor
from tests.unit.planning import TASKS, inventory

PS0, PS1, WORKER = (f"{task}/cpu:0" for task in TASKS)


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


def plan_of(*leaves: Tensor | Operation, fed: Sequence[Tensor] = (), gpus: int = 0) -> Plan:
    return make_plan(tf.get_default_graph(), leaves, fed, inventory(gpus, ps=2, worker=1), PlacementRules(TASKS[2]), {})


def running(plan: Plan) -> list[str]:
    """Types of the operations that run in a step, but for constants."""
    return sorted(node.op.type for node in plan.nodes if node.fed is None and node.op.type != "Const")


def program_of(plan: Plan, rank: int = 0) -> Program:
    return link(plan, {task: i for i, task in enumerate(TASKS)}.__getitem__, rank, len(TASKS))


def unfolded(run: Callable[[], Any]) -> Any:
    """What ``run`` gives without this pass."""
    with mock.patch.object(planning, "fold_constants", lambda *_: {}):
        return run()


# ------------------------------------------------------------------------------------------------------------ bits

_UNARY: tuple[Callable[[Any], Any], ...] = (
    tf.abs, tf.negative, tf.sign, tf.square, tf.identity, tf.transpose, tf.zeros_like, tf.ones_like,
    lambda x: tf.cast(x, tf.int32), lambda x: tf.cast(x, tf.float64), lambda x: tf.reshape(x, [-1]), lambda x: tf.expand_dims(x, 0),
    lambda x: tf.floor(tf.cast(x, tf.float64)), lambda x: tf.ceil(tf.cast(x, tf.float32)),
    lambda x: tf.reduce_sum(tf.expand_dims(x, 0), 0), lambda x: tf.reduce_max(x), lambda x: tf.tile(tf.reshape(x, [-1]), [2]),
    lambda x: tf.broadcast_to(tf.reduce_min(x), [2, 3]), lambda x: tf.reshape(x, [-1])[1:], lambda x: tf.stack([x, x]),
    lambda x: tf.gather(tf.reshape(x, [-1]), [1, 0]), lambda x: tf.fill([3], tf.reduce_max(x)), lambda x: tf.unstack(tf.stack([x, x]))[1],
    lambda x: tf.concat([tf.reshape(x, [-1])] * 2, 0), lambda x: tf.where(tf.greater(x, 0), x, tf.zeros_like(x)),
)  # fmt: skip
_BINARY = (tf.add, tf.subtract, tf.multiply, tf.maximum, tf.minimum, tf.div, tf.floordiv, tf.floormod)
_NUMBERS = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45]))


@settings(max_examples=150)
@given(st.lists(_NUMBERS, min_size=2, max_size=2), st.lists(_NUMBERS, min_size=2, max_size=2), st.data())
def test_a_step_has_the_same_bits_with_and_without_folding(a: list[float], b: list[float], data: st.DataObject) -> None:
    with Graph().as_default():
        tensors = [tf.constant(np.array(a, np.float32)), tf.constant(np.array(b, np.float32).reshape(2, 1))]
        fed = tf.placeholder(tf.float32, [])
        for _ in range(data.draw(st.integers(1, 8))):
            x = data.draw(st.sampled_from(tensors))
            if data.draw(st.booleans()):
                tensors.append(data.draw(st.sampled_from(_UNARY))(x))
                continue
            fitting = [y for y in tensors if y.dtype is x.dtype and _fits(x, y)]
            tensors.append(data.draw(st.sampled_from(_BINARY))(x, data.draw(st.sampled_from(fitting))))
        # Behind a value that nobody knows yet all of them are read, and some are fetched.
        reads = [tf.py_func(lambda x, _: x, [x, fed], x.dtype) for x in tensors]
        asked = [*reads, *data.draw(st.lists(st.sampled_from(tensors), max_size=2))]

        def step() -> list[Any]:
            with tf.Session() as session:
                return list(session.run(asked, {fed: 1.0}))

        try:
            wanted = unfolded(step)
        except tf.errors.OpError as error:  # an integer divided by 0: the operation's error, whoever would have folded it
            with pytest.raises(type(error)) as found:
                step()
            assert found.value.message == error.message and found.value.op is error.op
            return
        for want, have in zip(wanted, step(), strict=True):
            assert (have.dtype, have.shape, have.tobytes()) == (want.dtype, want.shape, want.tobytes())


def _fits(x: Tensor, y: Tensor) -> bool:
    try:
        np.broadcast_shapes(x.shape.as_list(), y.shape.as_list())
    except ValueError:
        return False
    return True


def test_what_the_gradient_of_a_mean_starts_from_is_one_constant() -> None:
    x = tf.placeholder(tf.float32, [4, 5])
    (gradient,) = tf.gradients(tf.reduce_mean(tf.multiply(x, x)), x)
    plan = plan_of(gradient, fed=[x])
    assert running(plan) == ["AddN", "Mul", "Mul"]
    (spread,) = [op for tensor, op in plan.constants.items() if tensor.static_shape == (4, 5)]
    np.testing.assert_array_equal(spread.attrs["value"], np.full((4, 5), np.float32(1) / np.float32(20)))


# ----------------------------------------------------------------------------------------------------------- where


def test_constants_given_or_folded_have_no_edges_however_many_tasks_read_them() -> None:
    with tf.device(PS0):
        given = tf.constant([1.0, 2.0], name="given")
        folded = tf.negative(tf.fill([2], 3.0), name="folded")
    fetches = []
    for device in (PS1, WORKER):
        with tf.device(device):
            fetches.append(tf.exp(given) + tf.exp(folded))
    plan = plan_of(*fetches)
    assert [str(edge) for edge in plan.edges] == [] and {node.device.task for node in plan.nodes} == set(TASKS[1:])
    for rank in (1, 2):
        constants = {op.name: op.attrs["value"].tolist() for _, op, _ in program_of(plan, rank).constants}
        assert constants == {"given": [1.0, 2.0], "_folded/folded/0": [-3.0, -3.0]}


def test_a_large_constant_is_sent_and_not_copied_and_nothing_large_is_folded() -> None:
    with tf.device(PS0):
        given, made = tf.constant(np.zeros(fold.CONSTANT_NBYTES // 4, np.float32)), tf.fill([fold.CONSTANT_NBYTES // 4], 1.0)
    with tf.device(WORKER):
        plan = plan_of(tf.exp(given), tf.exp(made))
    assert sorted(edge.name for edge in plan.edges) == sorted([given.name, made.name]) and "Fill" in running(plan)


def test_no_more_is_held_while_planning_than_its_limit() -> None:
    with mock.patch.object(fold, "MOST_NBYTES", 100):
        plan = plan_of(*[tf.exp(tf.negative(tf.constant(np.full(10, i, np.float32)))) for i in range(6)])
    assert running(plan).count("Neg") == 3  # of 40 bytes each: the third one passes the limit


def test_a_constant_is_in_host_memory_for_operations_that_want_it_there_and_on_the_gpu_for_others() -> None:
    with tf.device(f"{TASKS[0]}/gpu:0"):
        x = tf.placeholder(tf.float32, [4])
        y = tf.reshape(tf.add(x, tf.constant(1.0, name="one")), tf.constant([2, 2], name="shape"))
    program = program_of(plan_of(y, fed=[x], gpus=1))
    assert {op.name: device.type for _, op, device in program.constants} == {"one": "GPU", "shape": "CPU"}
    assert not any(isinstance(i, Run) and i.op.type == "Const" for i in program.instructions)


def test_what_a_gpu_would_compute_is_not_folded() -> None:
    with tf.device(f"{TASKS[0]}/gpu:0"):
        y = tf.exp(tf.negative(tf.constant([1.0])))
    assert running(plan_of(y, gpus=1)) == ["Exp", "Neg"]


def test_steps_share_the_constant_that_a_server_is_told_of() -> None:
    x = tf.negative(tf.constant([1.0, 2.0]))
    (first,), (second,) = (plan_of(tf.exp(x)).constants.values() for _ in range(2))
    assert first is second and first.name == "_folded/Neg/0" and first not in tf.get_default_graph().get_operations()


# ------------------------------------------------------------------------------------------------- what still runs


def test_what_is_fetched_runs_and_its_inputs_are_folded() -> None:
    x = tf.negative(tf.negative(tf.constant([1.0])))
    plan = plan_of(x, tf.exp(x))
    assert running(plan) == ["Exp", "Neg"] and x not in plan.constants
    with tf.Session() as session:
        mine, _ = session.run([x, tf.exp(x)])
        mine += 1.0  # the user's own
        assert session.run(x).tolist() == [1.0]


def test_a_fed_constant_and_what_is_made_of_it_are_not_folded() -> None:
    a = tf.constant(2.0)
    y = tf.exp(tf.log(tf.multiply(a, 3.0)))
    assert running(plan_of(y, fed=[a])) == ["Exp", "Log", "Mul"]
    with tf.Session() as session:
        np.testing.assert_allclose(session.run(y), 6.0, rtol=1e-6)
        np.testing.assert_allclose(session.run(y, {a: 5.0}), 15.0, rtol=1e-6)


def test_a_fed_result_stands_for_its_operation_which_is_not_folded() -> None:
    a = tf.negative(tf.constant(2.0))
    y = tf.multiply(tf.negative(a), tf.random_uniform([]))
    assert a not in plan_of(y, fed=[a]).constants
    with tf.Session() as session:
        assert session.run(tf.negative(a), {a: 7.0}) == -7.0


def test_an_operation_that_waits_for_an_effect_waits_in_every_step() -> None:
    v = tf.Variable(0.0)
    with tf.control_dependencies([tf.assign_add(v, 1.0)]):
        y = tf.negative(tf.constant(2.0))
        z = tf.exp(y)
    with tf.Session() as session:
        session.run(v.initializer)
        for count in (1.0, 2.0):
            np.testing.assert_allclose(session.run(z), np.exp(-2.0), rtol=1e-6)
            assert session.run(v) == count


def test_an_operation_that_waits_for_a_folded_one_still_runs() -> None:
    folded = tf.negative(tf.constant(2.0))
    with tf.control_dependencies([folded]):
        y = tf.random_uniform([])
    with tf.Session() as session:
        assert 0 <= session.run(tf.exp(folded) * 0.0 + y) < 1


def test_random_numbers_variables_and_functions_of_the_user_are_never_folded() -> None:
    calls: list[int] = []

    def count(x: Any) -> Any:
        calls.append(1)
        return x

    made = [tf.random_uniform([2], seed=1), tf.py_func(count, [tf.constant(1.0)], tf.float32)]
    summed = [tf.exp(tf.reduce_sum(x)) for x in made]
    with tf.Session() as session:
        first, second = session.run(summed), session.run(summed)
    assert first[0] != second[0] and len(calls) == 2


def test_a_function_of_the_user_that_writes_to_its_argument_changes_no_later_step() -> None:
    def double(x: Any) -> Any:
        x = np.array(x) if not x.flags.writeable else x
        x *= 2
        return x

    y = tf.py_func(double, [tf.fill([2], 3.0)], tf.float32)
    with tf.Session() as session:
        assert [session.run(y).tolist() for _ in range(2)] == [[6.0, 6.0]] * 2


def test_a_variable_set_to_a_folded_value_may_be_changed_and_set_again() -> None:
    v = tf.Variable([0.0, 0.0])
    reset, change = tf.assign(v, tf.fill([2], 3.0)), tf.assign_add(v, [1.0, 2.0])
    with tf.Session() as session:
        for _ in range(2):
            session.run(reset)
            assert session.run(change).tolist() == [4.0, 5.0]


def test_an_operation_that_fails_fails_in_the_step_by_its_name() -> None:
    y = tf.exp(tf.cast(tf.floordiv(tf.constant(1), tf.constant(0), name="by_zero"), tf.float32))
    with tf.Session() as session, pytest.raises(tf.errors.InvalidArgumentError, match="by_zero") as caught:
        session.run(y)
    assert caught.value.op is tf.get_default_graph().get_operation_by_name("by_zero")


def test_the_graph_that_a_user_exports_knows_nothing_of_it() -> None:
    y = tf.exp(tf.negative(tf.constant([1.0])))
    before = tf.get_default_graph().as_graph_def().SerializeToString()
    with tf.Session() as session:
        session.run(y)
    assert tf.get_default_graph().as_graph_def().SerializeToString() == before


def test_bodies_are_folded_too() -> None:
    n = tf.placeholder(tf.int32, [])
    _, total = tf.while_loop(lambda i, _: i < n, lambda i, x: (i + 1, x + tf.exp(tf.fill([2], 0.0))), [0, tf.zeros([2])])
    with tf.Session() as session:
        assert session.run(total, {n: 3}).tolist() == [3.0, 3.0]
