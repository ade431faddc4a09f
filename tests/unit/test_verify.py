"""The proof of a plan: every plan that the compiler makes passes, and a plan that was broken by hand is refused in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings

import mpirt as tf
from mpirt.cluster.task import Task
from mpirt.compiler.partition import Edge, Node, Plan
from mpirt.compiler.verify import verify
from mpirt.graph.graph import Graph
from tests.unit.planning import Step, steps

PS0, PS1, WORKER = "/job:ps/task:0", "/job:ps/task:1", "/job:worker/task:0"


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as g:
        yield g


@settings(max_examples=200)
@given(steps())
def test_every_plan_of_the_compiler_passes(step: Step) -> None:
    verify(step.plan())


@settings(max_examples=100)
@given(steps())
def test_a_plan_that_lacks_any_one_send_or_wait_is_refused(step: Step) -> None:
    plan = step.plan()
    for i, node in enumerate(plan.nodes):
        for broken in [node._replace(sends=node.sends[1:])] * bool(node.sends) + [node._replace(waits=node.waits[1:])] * bool(node.waits):
            with pytest.raises(tf.errors.InternalError):
                verify(with_node(plan, i, broken))


def with_node(plan: Plan, position: int, node: Node) -> Plan:
    return replace(plan, nodes=(*plan.nodes[:position], node, *plan.nodes[position + 1 :]))


def refusal(plan: Plan) -> str:
    with pytest.raises(tf.errors.InternalError) as caught:
        verify(plan)
    text = str(caught.value)
    start, end = "the plan of this step is not safe: ", ".\n  Mend: this is an error of mpirt; please report it."
    assert text.startswith(start) and text.endswith(end)
    return text.removeprefix(start).removesuffix(end)


@pytest.fixture
def plan(graph: Graph) -> Plan:
    """a on ps 0; b and c on the worker's GPU and CPU, which read a; d on ps 1 reads c and waits for b; e there reads d."""
    with tf.device(PS0 + "/cpu:0"):
        a = tf.constant(1.0, name="a")
    with tf.device(WORKER + "/gpu:0"):
        b = tf.negative(a, name="b")
    with tf.device(WORKER + "/cpu:0"):
        c = tf.exp(a, name="c")
    with tf.device(PS1 + "/cpu:0"), tf.control_dependencies([b]):
        d = tf.negative(c, name="d")
    with tf.device(PS1 + "/cpu:0"):
        e = tf.negative(d, name="e")
    return Step(graph, (e,), ()).plan()


def test_the_plan_that_is_broken_below_is_correct(plan: Plan) -> None:
    verify(plan)
    assert [node.op.name for node in plan.nodes] == ["a", "b", "c", "d", "e"]
    assert [str(e) for e in plan.edges] == [f"a:0 {PS0} -> {WORKER}", f"c:0 {WORKER} -> {PS1}", f"^b {WORKER} -> {PS1}"]


def reorder(plan: Plan) -> Plan:
    a, b, c, d, e = plan.nodes
    return replace(plan, nodes=(a, b, d, c, e))


def forget_a_control_input(plan: Plan) -> Plan:
    a, b, c, d, e = plan.nodes
    return replace(plan, nodes=(a, c, d, b, e))


def drop_a_wait(plan: Plan) -> Plan:
    return with_node(plan, 1, plan.nodes[1]._replace(waits=()))


def drop_a_token(plan: Plan) -> Plan:
    return with_node(plan, 3, plan.nodes[3]._replace(waits=(1,)))


def drop_a_send(plan: Plan) -> Plan:
    return with_node(plan, 0, plan.nodes[0]._replace(sends=()))


def send_twice(plan: Plan) -> Plan:
    return with_node(plan, 0, plan.nodes[0]._replace(sends=(0, 0)))


def double_an_edge(plan: Plan) -> Plan:
    doubled = replace(plan, edges=(*plan.edges, replace(plan.edges[0], index=3)))
    return with_node(with_node(doubled, 0, plan.nodes[0]._replace(sends=(0, 3))), 2, plan.nodes[2]._replace(waits=(3,)))


def start_elsewhere(plan: Plan) -> Plan:
    moved = with_node(plan, 0, plan.nodes[0]._replace(sends=()))
    return with_node(moved, 1, plan.nodes[1]._replace(sends=(0, *plan.nodes[1].sends)))


def wait_on_the_wrong_task(plan: Plan) -> Plan:
    return with_node(plan, 2, plan.nodes[2]._replace(waits=(0, 1)))


def cross_within_a_task(plan: Plan) -> Plan:
    here = Task("worker", 0)
    a, b, c, _ = plan.edges[0], *plan.edges[1:], None
    inside = Edge(3, plan.nodes[1].op.outputs[0], plan.nodes[1].op, here, here)
    return replace(plan, edges=(a, b, c, inside))


def send_what_nobody_awaits(plan: Plan) -> Plan:
    extra = Edge(3, plan.nodes[0].op.outputs[0], plan.nodes[0].op, Task("ps", 0), Task("ps", 1))
    return with_node(replace(plan, edges=(*plan.edges, extra)), 0, plan.nodes[0]._replace(sends=(0, 3)))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (reorder, "'d' comes before 'c', which it depends on"),
        (forget_a_control_input, "'d' comes before 'b', which it depends on"),
        (drop_a_wait, f"nothing brings 'a:0' to 'b' on {WORKER}"),
        (drop_a_token, f"nothing tells 'd' on {PS1} that 'b' has run"),
        (drop_a_send, f"a:0 {PS0} -> {WORKER} is started 0 times"),
        (send_twice, f"a:0 {PS0} -> {WORKER} is started 2 times"),
        (double_an_edge, f"a:0 {PS0} -> {WORKER} is sent twice"),
        (start_elsewhere, f"a:0 {PS0} -> {WORKER} can't start at 'b' on {WORKER}"),
        (wait_on_the_wrong_task, f"'c' on {WORKER} can't wait for c:0 {WORKER} -> {PS1}"),
        (cross_within_a_task, f"b:0 {WORKER} -> {WORKER} doesn't leave its task"),
        (send_what_nobody_awaits, f"nobody waits for a:0 {PS0} -> {PS1}"),
    ],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_a_broken_plan_is_refused(plan: Plan, damage: Callable[[Plan], Plan], text: str) -> None:
    assert refusal(damage(plan)) == text


def test_tasks_that_wait_for_each_other_are_found_by_running_them(graph: Graph) -> None:
    """Each task's list has the wait before the send that the other waits for; every edge alone is in order."""
    tensors = {}
    for name, task in (("x", PS0), ("y", PS1)):
        with tf.device(task + "/cpu:0"):
            tensors[name] = tf.constant(1.0, name=name)
    readers = []
    for name, task in (("y", PS0), ("x", PS1)):
        with tf.device(task + "/cpu:0"):
            readers.append(tf.negative(tensors[name], name=f"of_{name}"))
    plan = Step(graph, tuple(readers), ()).plan()
    verify(plan)
    x, y, of_y, of_x = plan.nodes
    cyclic = (x._replace(waits=of_y.waits), y._replace(waits=of_x.waits), of_y, of_x)
    assert refusal(replace(plan, nodes=cyclic)) == f"{PS0} would wait for ever for y:0 {PS1} -> {PS0} before 'x'"
