"""Optimizers as graph builders: where slots and updates go, what several steps give, and what bad input gets."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.graph.graph import Graph
from tests.optimizer_rules import (
    BETA1,
    BETA2,
    EPSILON,
    L1,
    L2,
    L2_SHRINKAGE,
    LR,
    LR_POWER,
    MOMENTUM,
    RHO,
    RULES,
)  # fmt: skip
from tests.reference import Reference

# The rule of tests.optimizer_rules that each optimizer follows, and our name of each slot of that rule.
OPTIMIZERS: dict[str, tuple[Any, str, dict[str, str]]] = {
    "GradientDescent": (lambda lr: tf.train.GradientDescentOptimizer(lr), "descent", {}),
    "Momentum": (lambda lr: tf.train.MomentumOptimizer(lr, MOMENTUM), "momentum", {"accum": "momentum"}),
    "Nesterov": (lambda lr: tf.train.MomentumOptimizer(lr, MOMENTUM, use_nesterov=True), "nesterov", {"accum": "momentum"}),
    "Adagrad": (lambda lr: tf.train.AdagradOptimizer(lr), "adagrad", {"accum": "accumulator"}),
    "Adam": (lambda lr: tf.train.AdamOptimizer(lr, BETA1, BETA2, EPSILON), "adam", {"m": "m", "v": "v"}),
    "RMSProp": (lambda lr: tf.train.RMSPropOptimizer(lr, RHO, MOMENTUM, EPSILON), "rmsprop", {"ms": "rms", "mom": "momentum"}),
    "Adadelta": (
        lambda lr: tf.train.AdadeltaOptimizer(lr, RHO, EPSILON),
        "adadelta",
        {"accum": "accum", "accum_update": "accum_update"},
    ),
    "ProximalDescent": (lambda lr: tf.train.ProximalGradientDescentOptimizer(lr, L1, L2), "proximal descent", {}),
    "ProximalAdagrad": (
        lambda lr: tf.train.ProximalAdagradOptimizer(lr, 0.1, L1, L2),
        "proximal adagrad",
        {"accum": "accumulator"},
    ),
    "Ftrl": (lambda lr: tf.train.FtrlOptimizer(lr, LR_POWER, 0.1, L1, L2), "ftrl", {"accum": "accum", "linear": "linear"}),
    "FtrlV2": (
        lambda lr: tf.train.FtrlOptimizer(lr, LR_POWER, 0.1, L1, L2, l2_shrinkage_regularization_strength=L2_SHRINKAGE),
        "ftrl v2",
        {"accum": "accum", "linear": "linear"},
    ),
    "Centered": (
        lambda lr: tf.train.RMSPropOptimizer(lr, RHO, MOMENTUM, EPSILON, centered=True),
        "centered rmsprop",
        {"mg": "mg", "ms": "rms", "mom": "momentum"},
    ),
}
EACH = pytest.mark.parametrize("which", OPTIMIZERS)


@pytest.fixture
def graph() -> Iterator[Graph]:
    with tf.Graph().as_default() as g:
        yield g


def started(g: Graph) -> Reference:
    session = Reference(g)
    session.run(tf.global_variables_initializer())
    return session


def start_of(rule: str, value: Any) -> dict[str, Any]:
    return {"var": value} | {slot: np.full(np.shape(value), start) for slot, start in RULES[rule][1].items()}


# ---- what steps give


@EACH
@pytest.mark.parametrize("how", ["number", "tensor", "function"])
def test_dense_steps_follow_the_published_rule(graph: Graph, which: str, how: str) -> None:
    make, rule, slots = OPTIMIZERS[which]
    start = np.array([[1.0, -2.0], [3.0, 0.5]])
    w = tf.Variable(start.astype(np.float32), name="w")
    optimizer = make({"number": LR, "tensor": tf.constant(LR), "function": lambda: LR}[how])
    step = optimizer.minimize(tf.reduce_sum(w * w * w))
    session, expected = started(graph), start_of(rule, start)
    for t in range(1, 5):
        session.run(step)
        RULES[rule][2](expected, 3 * expected["var"] ** 2, t)
    np.testing.assert_allclose(session.run(w), expected["var"], rtol=2e-5)
    assert optimizer.get_slot_names() == sorted(slots.values())
    for ours, theirs in slots.items():
        np.testing.assert_allclose(session.run(optimizer.get_slot(w, theirs)), expected[ours], rtol=2e-5, err_msg=theirs)


@EACH
def test_sparse_steps_sum_repeated_rows_and_then_follow_the_rule(graph: Graph, which: str) -> None:
    make, rule, _ = OPTIMIZERS[which]
    start = np.arange(10.0).reshape(5, 2) + 1
    w = tf.Variable(start.astype(np.float32), name="w")
    ids = tf.placeholder(tf.int32, [None])
    step = make(LR).minimize(tf.reduce_sum(tf.gather(w, ids) ** 2))
    session, expected = started(graph), start_of(rule, start)
    for t, rows in enumerate([[0, 3], [1, 1, 4], [3, 0, 3, 3]], start=1):
        session.run(step, {ids: rows})
        grad = np.zeros_like(start)
        np.add.at(grad, rows, 2 * expected["var"][rows])
        # Adam lets all rows decay; the others leave rows alone that aren't named.
        touched = slice(None) if rule == "adam" else sorted(set(rows))
        part = {key: value[touched] for key, value in expected.items()}
        RULES[rule][2](part, grad[touched], t)
        for key in expected:
            expected[key][touched] = part[key]
    np.testing.assert_allclose(session.run(w), expected["var"], rtol=2e-5)


@EACH
def test_double_precision_and_scalar_variables_train(graph: Graph, which: str) -> None:
    make, rule, _ = OPTIMIZERS[which]
    w = tf.Variable(np.float64(3.0), name="w")
    step = make(tf.constant(LR, tf.float64)).minimize((w - 1.0) ** 2)
    session, expected = started(graph), start_of(rule, np.array(3.0))
    for t in range(1, 4):
        session.run(step)
        RULES[rule][2](expected, 2 * (expected["var"] - 1.0), t)
    # Python numbers are float32 hyper-parameters, as in TensorFlow: that is the precision to expect.
    np.testing.assert_allclose(session.run(w), expected["var"], rtol=1e-5)
    assert session.run(w).dtype == np.float64


def test_dual_averaging_follows_the_published_rule_densely_and_by_rows(graph: Graph) -> None:
    start = np.arange(10.0).reshape(5, 2) - 4
    w, table = tf.Variable(start, name="w"), tf.Variable(start, name="table")
    count, ids = tf.train.get_or_create_global_step(), tf.placeholder(tf.int32, [None])
    loss = tf.reduce_sum(w * w * w) + tf.reduce_sum(tf.gather(table, ids) ** 2)
    step = tf.train.AdagradDAOptimizer(LR, count, 0.1, L1, L2).minimize(loss, global_step=count)
    session, dense, rows = started(graph), start_of("adagrad da", start), start_of("adagrad da", start)
    for t, named in enumerate([[0, 3], [1, 1, 4], [3, 0, 3, 3]], start=1):
        session.run(step, {ids: named})
        RULES["adagrad da"][2](dense, 3 * dense["var"] ** 2, t)
        grad = np.zeros_like(start)
        np.add.at(grad, named, 2 * rows["var"][named])
        touched = sorted(set(named))
        part = {key: value[touched] for key, value in rows.items()}
        RULES["adagrad da"][2](part, grad[touched], t)
        for key in rows:
            rows[key][touched] = part[key]
    np.testing.assert_allclose(session.run(w), dense["var"], rtol=1e-5)
    np.testing.assert_allclose(session.run(table), rows["var"], rtol=1e-5)


@pytest.mark.parametrize("rows", [False, True])
def test_ftrl_keeps_weights_that_matter_little_at_exactly_zero(graph: Graph, rows: bool) -> None:
    slope = np.array([[1.0], [0.01], [-1.0], [0.0]], np.float32)
    w = tf.Variable(np.full((4, 1), 0.5, np.float32))
    used = tf.gather(w, [0, 1, 2]) if rows else w
    optimizer = tf.train.FtrlOptimizer(0.5, l1_regularization_strength=0.1, accum_name="Sum", linear_name="Line")
    step = optimizer.minimize(tf.reduce_sum(used * (slope[:3] if rows else slope)))
    session = started(graph)
    session.run(step)
    found = session.run(w)[:, 0].tolist()
    assert found[1] == 0.0 and found[0] < 0 < found[2]
    assert found[3] == (0.5 if rows else 0.0), "a row that is not named keeps its value"
    assert [optimizer.get_slot(w, name).op.name for name in ("accum", "linear")] == ["Variable/Sum", "Variable/Line"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tf.train.FtrlOptimizer(0.1, 0.5), "learning_rate_power 0.5 needs to be negative or zero"),
        (lambda: tf.train.FtrlOptimizer(0.1, initial_accumulator_value=-1.0), "initial_accumulator_value -1.0 needs to be positive"),
        (lambda: tf.train.FtrlOptimizer(0.1, l1_regularization_strength=-1.0), "l1_regularization_strength -1.0 needs to be"),
        (lambda: tf.train.FtrlOptimizer(0.1, l2_regularization_strength=-1.0), "l2_regularization_strength -1.0 needs to be"),
        (lambda: tf.train.FtrlOptimizer(0.1, l2_shrinkage_regularization_strength=-1.0), "l2_shrinkage_regularization_strength -1.0"),
        (lambda: tf.train.ProximalAdagradOptimizer(0.1, 0.0), "initial_accumulator_value must be positive: 0.0"),
        (lambda: tf.train.AdagradDAOptimizer(0.1, None, 0.0), "initial_gradient_squared_accumulator_value must be positive: 0.0"),
    ],
)
def test_hyper_parameters_without_a_meaning_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_two_variables_share_adams_powers_and_each_advances_once_a_step(graph: Graph) -> None:
    a, b = tf.Variable(1.0, name="a"), tf.Variable(2.0, name="b")
    optimizer = tf.train.AdamOptimizer(LR, BETA1, BETA2)
    step = optimizer.minimize(a * b)
    session = started(graph)
    for _ in range(3):
        session.run(step)
    powers = {v.op.name: float(session.run(v)) for v in optimizer.variables() if "power" in v.name}
    assert powers == {"beta1_power": pytest.approx(BETA1**4), "beta2_power": pytest.approx(BETA2**4)}


def test_the_learning_rate_may_depend_on_the_global_step(graph: Graph) -> None:
    w = tf.Variable(0.0)
    count = tf.train.get_or_create_global_step()
    rate = tf.train.exponential_decay(1.0, count, decay_steps=1, decay_rate=0.5)
    step = tf.train.GradientDescentOptimizer(rate).minimize(-w, global_step=count)
    session = started(graph)
    seen = []
    for _ in range(3):
        session.run(step)
        seen.append(float(session.run(w)))
    assert seen == [1.0, 1.5, 1.75]


def test_a_constraint_is_applied_after_the_update(graph: Graph) -> None:
    w = tf.Variable([0.5, -0.5], constraint=lambda value: tf.maximum(value, 0.0))
    step = tf.train.GradientDescentOptimizer(1.0).minimize(tf.reduce_sum(w))
    session = started(graph)
    session.run(step)
    assert session.run(w).tolist() == [0.0, 0.0]


def test_gradients_computed_in_one_step_may_be_clipped_and_applied_in_another(graph: Graph) -> None:
    w, unused = tf.Variable([3.0, -4.0]), tf.Variable(1.0)
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    pairs = optimizer.compute_gradients(tf.reduce_sum(w * w))
    assert [grad is None for grad, _ in pairs] == [False, True]
    step = optimizer.apply_gradients([(tf.minimum(grad, 1.0), var) for grad, var in pairs[:1]] + [(None, unused)])
    session = started(graph)
    session.run(step)
    np.testing.assert_array_equal(session.run(w), [2.0, 4.0])


# ---- where things go


@EACH
def test_slots_and_updates_live_beside_their_variable_and_the_step_on_its_own_device(graph: Graph, which: str) -> None:
    with graph.device("/job:ps/task:0"):
        v = tf.get_variable("v", [2], initializer=tf.zeros_initializer())
    with graph.device("/job:ps/task:1"):
        w = tf.get_variable("w", [4, 2], initializer=tf.zeros_initializer())
    with graph.device("/job:ps/task:2"):
        count = tf.train.create_global_step()
    with graph.device("/job:worker/task:0"):
        loss = tf.reduce_sum(v) + tf.reduce_sum(tf.gather(w, [0, 0, 2]))
        optimizer = OPTIMIZERS[which][0](LR)
        step = optimizer.minimize(loss, global_step=count)
    for name in optimizer.get_slot_names():
        for var in (v, w):
            slot = optimizer.get_slot(var, name)
            assert slot.device == var.device
            assert slot.op.colocated_with() == [var.op.name]
            assert slot not in tf.trainable_variables()
            assert slot in tf.global_variables()
            assert slot.op.name.startswith(f"{var.op.name}/{optimizer.get_name()}")
    updates = [op for op in graph.get_operations() if "Apply" in op.type or op.type.startswith("Scatter")]
    assert len(updates) >= 2
    for op in updates:
        owner = v if "update_v" in op.name else w
        assert (op.device, op.colocated_with()) == (owner.device, [owner.op.name])
    for op in graph.get_operations():  # what prepares an update is beside the variable too, but rows are summed before they go there
        if "/summed_rows/" in op.name:
            assert op.device == "/job:worker/task:0", op.name
        elif "/update_" in op.name:
            assert op.device == (v if "/update_v/" in op.name else w).device, op.name
    assert {t.device for t in step.inputs} == {step.device}
    assert (step.type, step.name, step.device) == ("AssignAdd", optimizer.get_name(), "/job:ps/task:2")
    assert step in graph.get_collection(tf.GraphKeys.TRAIN_OP)


def test_the_global_step_waits_for_every_update(graph: Graph) -> None:
    a, b = tf.Variable(1.0, name="a"), tf.Variable(1.0, name="b")
    step = tf.train.AdamOptimizer().minimize(a * b, global_step=tf.train.create_global_step())
    waited, stack = set(), [step]
    while stack:
        op = stack.pop()
        if op not in waited:
            waited.add(op)
            stack += [*op.control_inputs, *(t.op for t in op.inputs)]
    changed = {op.inputs[0].op.name for op in waited if op.type in ("ApplyAdam", "Assign")}
    assert changed == {"a", "b", "beta1_power", "beta2_power"}


def test_adams_powers_live_beside_the_variable_that_is_first_by_name(graph: Graph) -> None:
    with graph.device("/job:ps/task:1"):
        z = tf.Variable(1.0, name="z")
    with graph.device("/job:ps/task:0"):
        a = tf.Variable(1.0, name="a")
    optimizer = tf.train.AdamOptimizer()
    optimizer.minimize(z * a)
    assert {v.device for v in optimizer.variables() if "power" in v.name} == {"/job:ps/task:0"}


def test_slots_use_up_no_turn_of_the_device_setter(graph: Graph) -> None:
    with graph.device(tf.train.replica_device_setter(ps_tasks=2)):
        variables = [tf.Variable(1.0, name="a")]
        tf.train.AdamOptimizer().minimize(variables[0] * 2)
        variables.append(tf.Variable(1.0, name="b"))
    assert [v.device for v in variables] == ["/job:ps/task:0", "/job:ps/task:1"]


def test_slot_names_are_tensorflows(graph: Graph) -> None:
    w = tf.get_variable("layer/w", [2], initializer=tf.zeros_initializer())
    optimizer = tf.train.RMSPropOptimizer(LR, centered=True)
    optimizer.minimize(tf.reduce_sum(w))
    names = {name: optimizer.get_slot(w, name).op.name for name in optimizer.get_slot_names()}
    assert names == {"rms": "layer/w/RMSProp", "mg": "layer/w/RMSProp_1", "momentum": "layer/w/RMSProp_2"}


def test_a_second_loss_with_the_same_optimizer_shares_the_slots(graph: Graph) -> None:
    w = tf.Variable([1.0])
    optimizer = tf.train.AdamOptimizer()
    optimizer.minimize(tf.reduce_sum(w))
    before = len(tf.global_variables())
    optimizer.minimize(tf.reduce_sum(w * w))
    assert len(tf.global_variables()) == before


@pytest.mark.parametrize("gate", [tf.train.Optimizer.GATE_NONE, tf.train.Optimizer.GATE_OP, tf.train.Optimizer.GATE_GRAPH])
def test_gates_change_what_waits_and_not_the_result(graph: Graph, gate: int) -> None:
    with graph.device("/job:worker/task:1"):
        a, b = tf.Variable([[1.0, 2.0]]), tf.Variable([[3.0], [4.0]])
        loss = tf.reduce_sum(tf.matmul(a, b))
    pairs = tf.train.GradientDescentOptimizer(1.0).compute_gradients(loss, gate_gradients=gate)
    session = started(graph)
    assert [session.run(grad).tolist() for grad, _ in pairs] == [[[3.0, 4.0]], [[1.0], [2.0]]]
    gated = [op for op in graph.get_operations() if op.name.endswith(("control_dependency", "control_dependency_1"))]
    assert len(gated) == (0 if gate == tf.train.Optimizer.GATE_NONE else 2)
    # What waits is beside what it waits with, not wherever the scope in force says.
    assert {op.colocated_with()[0] for op in gated} == {op.inputs[0].op.name for op in gated}


def test_gradients_may_be_colocated_with_the_operations_they_are_of(graph: Graph) -> None:
    w = tf.Variable(2.0)
    with graph.device("/job:worker/task:1"):
        loss = w * w
    tf.train.GradientDescentOptimizer(1.0).compute_gradients(loss, colocate_gradients_with_ops=True, gate_gradients=0)
    made = [op for op in graph.get_operations() if op.name.startswith("gradients/mul_grad")]
    assert made
    assert {op.device for op in made} == {"/job:worker/task:1"}


def test_an_optimizer_written_for_tensorflow_fits(graph: Graph) -> None:
    class SignDescent(tf.train.Optimizer):
        def __init__(self, rate: float) -> None:
            super().__init__(False, "SignDescent")
            self._rate = rate

        def _create_slots(self, var_list: Any) -> None:
            for var in var_list:
                self._zeros_slot(var, "count", self._name)

        def _prepare(self) -> None:
            self._rate_t = tf.convert_to_tensor(self._call_if_callable(self._rate), name="rate")

        def _apply_dense(self, grad: Any, var: Any) -> Any:
            count = tf.assign_add(self.get_slot(var, "count"), tf.ones_like(grad))
            return tf.group(tf.assign_sub(var, self._rate_t * tf.sign(grad)), count)

    w = tf.Variable([2.0, -3.0])
    optimizer = SignDescent(0.5)
    step = optimizer.minimize(tf.reduce_sum(w * w))
    session = started(graph)
    session.run(step)
    session.run(step)
    assert session.run(w).tolist() == [1.0, -2.0]
    assert session.run(optimizer.get_slot(w, "count")).tolist() == [2.0, 2.0]


# ---- what bad input gets


def test_bad_input_is_refused_with_what_was_given(graph: Graph) -> None:
    w = tf.Variable([1.0], name="w")
    optimizer = tf.train.GradientDescentOptimizer(1.0)
    with pytest.raises(ValueError, match="^Must specify the optimizer name$"):
        tf.train.GradientDescentOptimizer(1.0, name="")
    with pytest.raises(ValueError, match="initial_accumulator_value must be positive: 0.0"):
        tf.train.AdagradOptimizer(1.0, 0.0)
    with pytest.raises(ValueError, match="^No gradients provided for any variable, check your graph"):
        optimizer.minimize(tf.constant(1.0))
    with pytest.raises(ValueError, match="^No variables to optimize"):
        optimizer.minimize(tf.reduce_sum(w), var_list=[])
    with pytest.raises(TypeError, match="^Argument is not a variable: 3$"):
        optimizer.compute_gradients(tf.reduce_sum(w), var_list=[3])
    with pytest.raises(ValueError, match=r"gate_gradients must be one of.* Not 7$"):
        optimizer.compute_gradients(tf.reduce_sum(w), gate_gradients=7)
    with pytest.raises(ValueError, match="^Invalid type int32 for .*, expected: "):
        optimizer.compute_gradients(tf.constant(1))
    with pytest.raises(ValueError, match="^No variables provided"):
        optimizer.apply_gradients([])
    with pytest.raises(ValueError, match=r"^No gradients provided for any variable: \['w:0'\]"):
        optimizer.apply_gradients([(None, w)])
    with pytest.raises(TypeError, match="^Gradient must be convertible to a Tensor or IndexedSlices, or None: <object"):
        optimizer.apply_gradients([(object(), w)])
    with pytest.raises(TypeError, match="^can't apply a gradient to <mpirt.Tensor 'Const"):
        optimizer.apply_gradients([(tf.constant(1.0), tf.constant(1.0))])


def test_a_variable_with_a_constraint_takes_no_sparse_gradient(graph: Graph) -> None:
    w = tf.Variable([[1.0]], constraint=tf.abs)
    with pytest.raises(RuntimeError, match="Cannot use a constraint function on a sparse variable"):
        tf.train.GradientDescentOptimizer(1.0).minimize(tf.reduce_sum(tf.gather(w, [0])))


# ---- the global step


def test_the_global_step_is_one_int64_scalar_that_is_not_trained(graph: Graph) -> None:
    assert tf.train.get_global_step() is None
    with graph.name_scope("inside"):
        count = tf.train.get_or_create_global_step()
    assert (count.op.name, count.dtype.base_dtype, count.shape) == ("global_step", tf.int64, ())
    assert tf.train.get_or_create_global_step() is tf.train.get_global_step() is count
    assert count not in tf.trainable_variables()
    assert count in tf.global_variables()
    with pytest.raises(ValueError, match='^"global_step" already exists'):
        tf.train.create_global_step()
    assert tf.train.global_step(started(graph), count) == 0


def test_what_can_be_no_global_step_is_refused(graph: Graph) -> None:
    with pytest.raises(TypeError, match='^Existing "global_step" does not have integer type: float32$'):
        tf.train.assert_global_step(tf.Variable(1.0))
    with pytest.raises(TypeError, match=r'^Existing "global_step" is not scalar: \(2,\)$'):
        tf.train.assert_global_step(tf.Variable([1, 2]))
    with pytest.raises(TypeError, match='^Existing "global_step" must be a Variable or Tensor: 3'):
        tf.train.assert_global_step(3)


# ---- learning rates

STEPS = [0, 1, 4, 5, 6, 10, 13, 25]
DECAYS: dict[str, tuple[Any, Any]] = {
    "exponential": (lambda s: tf.train.exponential_decay(0.5, s, 5, 0.9), lambda s: 0.5 * 0.9 ** (s / 5)),
    "exponential stairs": (lambda s: tf.train.exponential_decay(0.5, s, 5, 0.9, True), lambda s: 0.5 * 0.9 ** (s // 5)),
    "natural": (lambda s: tf.train.natural_exp_decay(0.5, s, 5, 0.9), lambda s: 0.5 * np.exp(-0.9 * s / 5)),
    "natural stairs": (lambda s: tf.train.natural_exp_decay(0.5, s, 5, 0.9, True), lambda s: 0.5 * np.exp(-0.9 * (s // 5))),
    "inverse time": (lambda s: tf.train.inverse_time_decay(0.5, s, 5, 0.9), lambda s: 0.5 / (1 + 0.9 * s / 5)),
    "inverse time stairs": (lambda s: tf.train.inverse_time_decay(0.5, s, 5, 0.9, True), lambda s: 0.5 / (1 + 0.9 * (s // 5))),
    "polynomial": (
        lambda s: tf.train.polynomial_decay(0.5, s, 10, 0.1, 2.0),
        lambda s: 0.1 + 0.4 * (1 - min(s, 10) / 10) ** 2,
    ),
    "polynomial cycles": (
        lambda s: tf.train.polynomial_decay(0.5, s, 10, 0.1, 2.0, cycle=True),
        lambda s: 0.1 + 0.4 * (1 - s / (10 * max(1, np.ceil(s / 10)))) ** 2,
    ),
    "cosine": (
        lambda s: tf.train.cosine_decay(0.5, s, 10, 0.2),
        lambda s: 0.5 * (0.8 * 0.5 * (1 + np.cos(np.pi * min(s, 10) / 10)) + 0.2),
    ),
    "piecewise": (
        lambda s: tf.train.piecewise_constant(s, [4, 10], [1.0, 0.5, 0.1]),
        lambda s: 1.0 if s <= 4 else 0.5 if s <= 10 else 0.1,
    ),
}


@pytest.mark.parametrize("which", DECAYS)
@pytest.mark.parametrize("kind", [np.int64, np.int32], ids=["int64", "int32"])
def test_learning_rates_decay_as_their_formula_says(graph: Graph, which: str, kind: Any) -> None:
    build, formula = DECAYS[which]
    step = tf.placeholder(tf.as_dtype(kind), [])
    rate = build(step)
    assert (rate.dtype, rate.shape) == (tf.float32, ())
    got = [float(Reference(graph).run(rate, {step: s})) for s in STEPS]
    np.testing.assert_allclose(got, [formula(s) for s in STEPS], rtol=1e-6)


def test_a_decay_without_a_step_or_with_boundaries_that_do_not_fit_is_refused(graph: Graph) -> None:
    with pytest.raises(ValueError, match="^global_step is required"):
        tf.train.exponential_decay(0.1, None, 5, 0.9)
    with pytest.raises(ValueError, match="^The length of boundaries should be 1 less than the length of values: 1, 1"):
        tf.train.piecewise_constant(tf.constant(1), [1], [1.0])
    with pytest.raises(ValueError, match=r"^boundaries \(dtype float32\) must have the same dtype as x \(int32\)"):
        tf.train.piecewise_constant(tf.constant(1), [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="^Values must have the same dtype: float32 and int32"):
        tf.train.piecewise_constant(tf.constant(1), [1], [1.0, 2])


# ---- moving averages


def test_the_average_of_a_variable_starts_at_its_value_and_lives_beside_it(graph: Graph) -> None:
    with graph.device("/job:ps/task:1"):
        w = tf.Variable([4.0, 8.0], name="w")
    averages = tf.train.ExponentialMovingAverage(0.75)
    with graph.device("/job:worker"):
        move = averages.apply([w])
    average = averages.average(w)
    made = [op for op in graph.get_operations() if "/AssignMovingAvg" in op.name]
    assert {op.device for op in made} == {"/job:ps/task:1"}  # the difference is taken there: nothing but the decay crosses
    assert (average.op.name, average.device) == ("w/ExponentialMovingAverage", "/job:ps/task:1")
    assert average not in tf.trainable_variables()
    assert tf.moving_average_variables() == [w]
    change = w.assign([0.0, 0.0])
    session = started(graph)
    session.run(change)
    for _ in range(2):
        session.run(move)
    np.testing.assert_allclose(session.run(average), [4 * 0.75**2, 8 * 0.75**2])


def test_few_updates_so_far_lower_the_decay(graph: Graph) -> None:
    w, updates = tf.Variable(0.0), tf.Variable(2, trainable=False)
    averages = tf.train.ExponentialMovingAverage(0.99, num_updates=updates)
    move = averages.apply([w])
    change = w.assign(1.0)
    session = started(graph)
    session.run(change)
    session.run(move)
    np.testing.assert_allclose(session.run(averages.average(w)), 1 - 3 / 12)


@pytest.mark.parametrize("debias", [False, True])
def test_the_average_of_a_tensor_starts_at_zero_and_may_be_corrected_for_that(graph: Graph, debias: bool) -> None:
    x = tf.placeholder(tf.float32, [], name="x")
    averages = tf.train.ExponentialMovingAverage(0.5, zero_debias=debias)
    move = averages.apply([x])
    session = started(graph)
    values, weights = [3.0, 1.0, 2.0], [0.125, 0.25, 0.5]
    for value in values:
        session.run(move, {x: value})
    total = sum(v * w for v, w in zip(values, weights, strict=True))
    np.testing.assert_allclose(session.run(averages.average(x)), total / sum(weights) if debias else total)


def test_averages_are_what_a_checkpoint_restores_variables_from(graph: Graph) -> None:
    w, other = tf.Variable(1.0, name="w"), tf.Variable(1.0, name="other", trainable=False)
    averages = tf.train.ExponentialMovingAverage(0.5)
    assert averages.average_name(w) == "w/ExponentialMovingAverage"  # before it is made
    assert averages.average(w) is None
    averages.apply()
    assert averages.variables_to_restore() == {"w/ExponentialMovingAverage": w, "other": other}
    with pytest.raises(ValueError, match="^Moving average already computed for: w:0$"):
        averages.apply([w])
    with pytest.raises(TypeError, match="^The variables must be half, float, or double: .*int32"):
        averages.apply([tf.Variable(1, name="count")])
