"""Which tensors cross between tasks: exactly those that must, once each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.linker import link
from mpirt.compiler.partition import Plan
from mpirt.compiler.placer import PlacementRules
from mpirt.compiler.planning import make_plan
from mpirt.compiler.verify import verify
from mpirt.graph.graph import Graph, Operation, Tensor
from tests.unit.planning import Step, inventory, steps

PS0, PS1, WORKER = "/job:ps/task:0", "/job:ps/task:1", "/job:worker/task:0"


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


def plan_of(*fetches: Tensor | Operation, feeds: tuple[Tensor, ...] = ()) -> Plan:
    return Step(tf.get_default_graph(), fetches, feeds).plan()


def edges(plan: Plan) -> list[str]:
    return [str(edge) for edge in plan.edges]


@settings(max_examples=200)
@given(steps(variables=False))
def test_the_tensors_that_cross_are_those_with_a_consumer_on_another_task_once_for_each_task(step: Step) -> None:
    plan = step.plan()
    running = [node.op for node in plan.nodes if node.fed is None]
    wanted = {(t, plan.device_of(op).task) for op in running for t in op.inputs if plan.device_of(t).task != plan.device_of(op).task}
    found = [(e.source, e.dst) for e in plan.edges if isinstance(e.source, Tensor)]
    assert set(found) == wanted and len(found) == len(wanted)
    controls = {(c, plan.device_of(op).task) for op in running for c in op.control_inputs}
    tokens = [(e.source, e.dst) for e in plan.edges if isinstance(e.source, Operation)]
    assert len(set(tokens)) == len(tokens) and set(tokens) <= {(c, task) for c, task in controls if plan.device_of(c).task != task}


@settings(max_examples=200)
@given(steps())
def test_each_node_waits_for_what_it_needs_from_other_tasks_and_each_edge_starts_behind_its_producer(step: Step) -> None:
    plan, fed = step.plan(), set(step.feeds)
    place = {node.op: i for i, node in enumerate(plan.nodes) if node.fed is None}
    for node in plan.nodes:
        if node.fed is not None:
            assert not node.waits and all(plan.edges[i].source is node.fed for i in node.sends)
            continue
        assert all(plan.edges[i].dst == node.device.task for i in node.waits)
        assert all(plan.edges[i].after is node.op and plan.edges[i].source not in fed for i in node.sends)
        away = {t for t in node.op.inputs if plan.device_of(t).task != node.device.task}
        assert away <= {plan.edges[i].source for i in node.waits}
        for control in node.op.control_inputs:
            there = plan.device_of(control)  # which comes to whatever starts an edge when it has run all before that
            own = [other.op for other in plan.nodes if other.fed is None and other.device == there]
            starts = [plan.edges[i].after for i in node.waits if plan.edges[i].source not in fed]
            assert there.task == node.device.task or any(control in own[: own.index(start) + 1] for start in starts if start in own)
        waits = [plan.edges[i] for i in node.waits if plan.edges[i].source not in fed]
        for token in [edge for edge in waits if isinstance(edge.source, Operation)]:  # nothing else that it waits for tells as much
            beside = [e.after for e in waits if e is not token and plan.device_of(e.after) == plan.device_of(token.after)]
            assert all(place[after] < place[token.after] for after in beside)
    assert sorted(i for node in plan.nodes for i in node.sends) == list(range(len(plan.edges)))


@settings(max_examples=200)
@given(steps())
def test_a_reader_elsewhere_gets_the_value_behind_the_last_change_before_it(step: Step) -> None:
    """Followed by hand along the order: who changed the variable last when its reader's turn comes."""
    plan = step.plan()
    last: dict[str, Operation] = {}
    for node in plan.nodes:
        if node.fed is not None:
            continue
        refs = [t for t in node.op.inputs if t.dtype.is_ref and t not in step.feeds]
        for tensor in refs:
            if plan.device_of(tensor).task != node.device.task:
                (edge,) = [plan.edges[i] for i in node.waits if plan.edges[i].source is tensor]
                assert edge.after is last.get(_variable(tensor), tensor.op)
        if node.op.type in ("AssignAdd", "Assign"):
            last[_variable(node.op.inputs[0])] = node.op


def _variable(tensor: Tensor) -> str:
    while tensor.op.type != "VariableV2":
        tensor = tensor.op.inputs[0]
    return tensor.op.name


# -------------------------------------------------------------------------------------------------------- by example


def test_a_tensor_that_two_operations_of_a_task_read_crosses_once() -> None:
    with tf.device(PS0):
        w = tf.constant([1.0, 2.0, 3.0], name="w")
    with tf.device(WORKER):
        readers = [tf.negative(w), tf.exp(w)]
    plan = plan_of(*readers)
    assert edges(plan) == [f"w:0 {PS0} -> {WORKER}"]
    assert plan.edges[0].nbytes == 12
    assert [node.waits for node in plan.nodes] == [(), (0,), (0,)]


def test_a_tensor_that_two_tasks_read_crosses_to_each() -> None:
    with tf.device(PS0):
        w = tf.constant(1.0, name="w")
    with tf.device(PS1):
        a = tf.negative(w)
    with tf.device(WORKER):
        b = tf.negative(w)
    assert edges(plan_of(a, b)) == [f"w:0 {PS0} -> {PS1}", f"w:0 {PS0} -> {WORKER}"]


def test_devices_of_one_task_have_no_edge_between_them() -> None:
    with tf.device(PS0 + "/gpu:0"):
        w = tf.constant(1.0)
    with tf.device(PS0 + "/gpu:1"):
        x = tf.negative(w)
    with tf.device(PS0 + "/cpu:0"), tf.control_dependencies([w]):
        y = tf.negative(x)
    assert edges(plan_of(y)) == []


def test_two_operations_of_a_task_that_wait_for_one_operation_need_one_token() -> None:
    with tf.device(PS0):
        first = tf.no_op(name="first")
    with tf.device(WORKER), tf.control_dependencies([first]):
        after = [tf.no_op(), tf.no_op()]
    plan = plan_of(*after)
    assert edges(plan) == [f"^first {PS0} -> {WORKER}"] and plan.edges[0].nbytes == 1


def test_of_operations_of_a_task_that_one_waits_for_only_the_last_one_tells() -> None:
    with tf.device(PS0 + "/cpu:0"):
        first = [tf.no_op(name=f"first{i}") for i in range(10)]
    with tf.device(PS1):
        beside = tf.no_op(name="beside")
    with tf.device(WORKER), tf.control_dependencies([*first, beside]):
        after = tf.no_op(name="after")
    plan = plan_of(after)
    verify(plan)
    last = [node.op for node in plan.nodes if node.op in first][-1]
    assert sorted(edges(plan)) == [f"^beside {PS1} -> {WORKER}", f"^{last.name} {PS0} -> {WORKER}"]


def test_a_tensor_that_starts_later_on_the_same_task_tells_of_all_before() -> None:
    with tf.device(PS0):
        a = tf.negative(tf.constant(1.0), name="a")
        b = tf.negative(a, name="b")
    with tf.device(WORKER), tf.control_dependencies([a]):
        c = tf.exp(b, name="c")
    plan = plan_of(c)
    verify(plan)
    assert edges(plan) == [f"b:0 {PS0} -> {WORKER}"]


def test_what_starts_earlier_on_the_same_task_tells_nothing() -> None:
    with tf.device(PS0):
        a = tf.negative(tf.constant(1.0), name="a")
        b = tf.negative(a, name="b")
    with tf.device(WORKER), tf.control_dependencies([b]):
        c = tf.exp(a, name="c")
    assert sorted(edges(plan_of(c))) == [f"^b {PS0} -> {WORKER}", f"a:0 {PS0} -> {WORKER}"]


def test_a_tensor_of_the_operation_tells_that_it_has_run_so_no_token_is_sent() -> None:
    with tf.device(PS0):
        a = tf.negative(tf.constant(1.0), name="a")
    with tf.device(WORKER):
        b = tf.negative(a, name="b")
        with tf.control_dependencies([a]):
            c = tf.exp(b, name="c")
    plan = plan_of(b, c)
    assert edges(plan) == [f"a:0 {PS0} -> {WORKER}"]
    assert {node.op.name: node.waits for node in plan.nodes if node.device.task == Task("worker", 0)} == {"b": (0,), "c": (0,)}


def test_a_fed_tensor_tells_nothing_about_its_operation() -> None:
    with tf.device(PS0):
        a = tf.negative(tf.constant(1.0), name="a")
    with tf.device(WORKER):
        b = tf.negative(a)
        with tf.control_dependencies([a]):
            c = tf.exp(b)
    assert sorted(edges(plan_of(c, feeds=(a,)))) == [f"^a {PS0} -> {WORKER}", f"a:0 {PS0} -> {WORKER}"]


def test_a_token_is_not_needed_behind_a_change_whose_variable_is_read() -> None:
    with tf.device(PS0):
        v = tf.Variable(1.0, name="v")
        change = tf.assign_add(v, 1.0)
    with tf.device(WORKER), tf.control_dependencies([change]):
        y = tf.identity(v._as_graph_element())
    plan = plan_of(y)
    assert edges(plan) == [f"v:0 {PS0} -> {WORKER}"] and plan.edges[0].after is change.op


def test_bytes_of_a_tensor_are_unknown_where_its_shape_or_its_type_does_not_tell() -> None:
    with tf.device(PS0):
        x, text = tf.placeholder(tf.float64, [None, 2]), tf.constant(["a"])
        y = tf.negative(tf.placeholder(tf.float64, [3, 2]))
    with tf.device(WORKER + "/cpu:0"):
        readers = [tf.identity(x), tf.identity(text), tf.identity(y)]
    sizes = {e.producer.type: e.nbytes for e in plan_of(*readers).edges}
    assert sizes == {"Placeholder": None, "Const": None, "Neg": 48}


def test_an_update_on_other_tasks_is_brought_its_gradient_only(graph: Graph) -> None:
    """Rates are constants that every task has; the end of the updates is waited for beside the global step."""
    with tf.device(PS0):
        a, step = tf.Variable(1.0, name="a"), tf.train.create_global_step()
    with tf.device(PS1):
        b = tf.Variable(2.0, name="b")
    with tf.device(WORKER):
        train = tf.train.MomentumOptimizer(0.1, 0.9).minimize(tf.multiply(a, b), global_step=step)
        rate = graph.get_tensor_by_name("Momentum/learning_rate:0")
    plan = make_plan(graph, [train], (), inventory(ps=2, worker=1), PlacementRules(Task("worker", 0)), {})
    verify(plan)
    sent = [(str(e.src), str(e.dst), e.name) for e in plan.edges]
    prefix = "gradients/Mul_grad/tuple/control_dependency"
    assert sorted(sent) == [
        (PS0, WORKER, "a/read:0"),
        (PS1, PS0, "^Momentum/update/NoOp_1"),
        (PS1, WORKER, "b/read:0"),
        (WORKER, PS0, f"{prefix}:0"),
        (WORKER, PS1, f"{prefix}_1:0"),
    ]
    ranks = {Task("ps", 0): 0, Task("ps", 1): 1, Task("worker", 0): 2}
    for rank in (0, 1):
        program = link(plan, ranks.__getitem__, rank, 3)
        assert {"Momentum/learning_rate", "Momentum/momentum"} <= {op.name for _, op, _ in program.constants}

    fed = plan_of(train, feeds=(rate,))
    verify(fed)
    assert {str(e.dst) for e in fed.edges if e.source is rate} == {PS0, PS1}  # a value that is given has to be brought


def test_a_rate_that_waits_for_something_is_sent(graph: Graph) -> None:
    with tf.device(PS0):
        a = tf.Variable(1.0, name="a")
    with tf.device(WORKER), tf.control_dependencies([tf.random_uniform([])]):
        train = tf.train.GradientDescentOptimizer(0.1).apply_gradients([(tf.random_uniform([]), a)])
    plan = plan_of(train)
    verify(plan)
    assert f"GradientDescent/learning_rate:0 {WORKER} -> {PS0}" in edges(plan)
