"""Where operations go: the placements that issue and README promise, the rules one by one, and what is refused."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

import mpirt as tf
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.cluster.task import Task
from mpirt.compiler import placer
from mpirt.compiler.placer import DeviceName, PlacementRules, check_request, default_master, place
from mpirt.distributed.cluster import Cluster
from mpirt.graph import device_scope
from mpirt.graph.graph import Graph, Operation, Tensor
from mpirt.ops.apply import apply_op
from mpirt.transport.loopback import LoopbackTransport
from tests.unit.planning import Step, inventory, steps

CLUSTER = inventory(2, ps=2, worker=2)
NO_GPU = inventory(0, ps=2, worker=2)
ALL_CPUS = ", ".join(f"/job:{job}/task:{i}/device:CPU:0" for job in ("ps", "worker") for i in (0, 1))


@pytest.fixture(autouse=True)
def graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    monkeypatch.setattr(placer._Warned, "task_default", False)
    monkeypatch.setattr(device_scope._leak, "warned", True)
    with Graph().as_default() as g:
        yield g


def placed(
    *items: Any, devices: Any = CLUSTER, master: Any = None, soft: bool = False, task_default: str = "zero", pinned: Any = None
) -> list[str]:
    """Devices of ``items`` in a step that needs the whole graph."""
    rules = PlacementRules(Task(*master) if master else default_master(devices), soft, task_default)
    graph = tf.get_default_graph()
    found = place(graph, graph.get_operations(), devices, rules, pinned)
    return [str(found[item if isinstance(item, Operation) else item.op]) for item in items]


def only(*needed: Any, devices: Any = CLUSTER, soft: bool = False, pinned: Any = None) -> list[str]:
    """Devices of ``needed`` in a step that needs nothing else."""
    ops = sorted((t if isinstance(t, Operation) else t.op for t in needed), key=lambda op: op.index)
    found = place(tf.get_default_graph(), ops, devices, PlacementRules(default_master(devices), soft), pinned)
    return [str(found[t if isinstance(t, Operation) else t.op]) for t in needed]


def refused(*items: Any, **options: Any) -> str:
    """The whole message of the error that placing ``items`` gives."""
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        only(*items, **options)
    return str(caught.value)


def here(offset: int = -1) -> str:
    """This file and the line ``offset`` lines from the caller's."""
    frame = sys._getframe(1)
    return f"{frame.f_code.co_filename}:{frame.f_lineno + offset}"


def at(task: str, device: str = "CPU:0") -> str:
    job, _, index = task.partition(" ")
    return f"/job:{job}/task:{index}/device:{device}"


# ----------------------------------------------------------------------------- what the issue says must come out exactly


@pytest.fixture
def two_and_two(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """ps and worker with two tasks each, two emulated GPUs in each task, all in this process."""
    monkeypatch.setenv("MPIRT_EMULATED_GPUS", "2")
    return Cluster(LoopbackTransport(), ClusterSpec({"ps": 2, "worker": 2}))


def test_a_on_the_cpu_of_ps_b_on_the_second_gpu_of_a_worker_c_on_the_masters_own_default_device(two_and_two: Cluster) -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        a = tf.constant(1.0, name="a")
    with tf.device("/job:worker/task:0/gpu:1"):
        b = tf.add(a, 2, name="b")
    c = tf.add(a, b, name="c")
    with tf.Session(cluster=two_and_two) as session:
        assert session.run(c) == 4.0
        assert session.placement() == {
            "a": "/job:ps/task:0/device:CPU:0",
            "b": "/job:worker/task:0/device:GPU:1",
            "b/y": "/job:worker/task:0/device:GPU:1",
            "c": "/job:worker/task:0/device:GPU:0",
        }


@pytest.mark.parametrize("form", ["ps_tasks", "cluster", "worker_device"])
def test_five_variables_alternate_between_two_parameter_servers_and_inner_blocks_move_what_is_in_them(
    two_and_two: Cluster, form: str
) -> None:
    options: dict[str, dict[str, Any]] = {
        "ps_tasks": {"ps_tasks": 2},
        "cluster": {"cluster": tf.train.ClusterSpec({"ps": 2, "worker": 2})},
        "worker_device": {"ps_tasks": 2, "worker_device": "/job:worker"},
    }
    with tf.device(tf.train.replica_device_setter(**options[form])):
        v = [tf.Variable(float(i), name=f"v{i}") for i in range(1, 6)]
        s = tf.add(v[0], v[1], name="s")
        with tf.device("/gpu:1"):
            p1 = tf.multiply(2.0, s, name="p1")
            with tf.device("/task:1"):
                p2 = tf.multiply(3.0, s, name="p2")
    assert [x.device for x in v] == [f"/job:ps/task:{i}" for i in (0, 1, 0, 1, 0)]
    assert s.device == "/job:worker"
    assert p1.device == "/job:worker/device:GPU:1"
    assert p2.device == "/job:worker/task:1/device:GPU:1"
    with tf.Session(cluster=two_and_two) as session:
        session.run(tf.global_variables_initializer())
        assert [float(x) for x in session.run([p1, p2])] == [6.0, 9.0]
        found = session.placement()
    assert [found[x.op.name] for x in v] == [at(f"ps {i}", "GPU:0") for i in (0, 1, 0, 1, 0)]
    assert found["s"] == at("worker 0", "GPU:0")
    assert found["p1"] == at("worker 0", "GPU:1")
    assert found["p2"] == at("worker 1", "GPU:1")


def test_a_worker_device_with_task_and_type_is_where_operations_go_and_variables_do_not() -> None:
    with tf.device(tf.train.replica_device_setter(ps_tasks=2, ps_device="/job:ps/cpu:0", worker_device="/job:worker/task:1/gpu:0")):
        v = tf.Variable(1.0)
        y = tf.negative(v)
    assert placed(v.op, y) == [at("ps 0"), at("worker 1", "GPU:0")]


# ------------------------------------------------------------------------------------------------------ default rules


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("", at("worker 0", "GPU:0")),
        ("/cpu:0", at("worker 0")),
        ("/gpu:1", at("worker 0", "GPU:1")),
        ("/gpu", at("worker 0", "GPU:0")),
        ("/job:ps", at("ps 0", "GPU:0")),
        ("/job:ps/cpu", at("ps 0")),
        ("/job:ps/task:1", at("ps 1", "GPU:0")),
        ("/job:ps/task:1/gpu:1", at("ps 1", "GPU:1")),
        ("/task:1", at("worker 1", "GPU:0")),
        ("/task:1/cpu:0", at("worker 1")),
        ("/job:ps/replica:0", at("ps 0", "GPU:0")),
        ("/job:*", at("worker 0", "GPU:0")),
    ],
)
def test_what_is_not_said_is_filled_in(request_: str, expected: str) -> None:
    x = tf.placeholder(tf.float32)
    with tf.device(request_):
        y = tf.negative(x)
    assert placed(y) == [expected]


def test_a_task_without_gpu_uses_its_cpu() -> None:
    devices = {**inventory(0, ps=1), **inventory(1, worker=1)}
    x = tf.placeholder(tf.float32)
    with tf.device("/job:ps"):
        y = tf.negative(x)
    assert placed(y, tf.negative(y), devices=devices) == [at("ps 0"), at("worker 0", "GPU:0")]


def test_an_operation_without_gpu_kernel_uses_the_cpu_of_a_task_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    y = tf.negative(tf.placeholder(tf.float32))
    monkeypatch.delitem(y.op.definition.kernels, "GPU")
    assert placed(y) == [at("worker 0")]


def test_strings_stay_in_host_memory() -> None:
    text = tf.constant(["a", "b"])
    joined = tf.add(text, text)
    with tf.device("/gpu:0"):
        pinned = tf.identity(text, name="pinned")
    assert only(text, joined) == [at("worker 0"), at("worker 0")]
    assert placed(pinned, soft=True) == [at("worker 0")]
    assert refused(pinned) == (
        "cannot place 'pinned' (Identity) on /job:worker/task:0/device:GPU:0: its values are strings, which live on CPUs only"
        f" (kernels: CPU, GPU).\n  defined at {here(-5)}."
        "\n  Mend: pin it to a CPU, or use ConfigProto(allow_soft_placement=True)."
    )


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ({"ps": 1, "worker": 2, "chief": 1}, "/job:chief/task:0"),
        ({"ps": 1, "worker": 2}, "/job:worker/task:0"),
        ({"ps": 2, "eval": 1}, "/job:ps/task:0"),
        ({"zzz": 1, "aaa": 1}, "/job:zzz/task:0"),
    ],
)
def test_the_master_is_the_chief_else_a_worker_else_the_first_task_of_the_spec(jobs: dict[str, int], expected: str) -> None:
    assert str(default_master(inventory(0, **jobs))) == expected


def test_a_session_may_name_its_master(two_and_two: Cluster) -> None:
    x = tf.placeholder(tf.float32, name="x")
    tf.negative(x, name="y")
    with tf.device("/task:1"):
        tf.negative(x, name="z")
    assert tf.Session(cluster=two_and_two, master="/job:ps/task:1").placement() == {
        "x": at("ps 1", "GPU:0"), "y": at("ps 1", "GPU:0"), "z": at("ps 1", "GPU:0"),
    }  # fmt: skip
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"^master='/job:chief' names no task of the cluster; its tasks are /job:ps/"):
        tf.Session(cluster=two_and_two, master="/job:chief")


def test_a_job_without_task_means_task_0_with_one_warning_where_tensorflow_differs() -> None:
    x = tf.placeholder(tf.float32)
    with tf.device("/job:worker/cpu:0"):
        y, z = tf.negative(x, name="y"), tf.exp(x)
    with tf.device("/job:ps/cpu:0"):
        w = tf.exp(x)
    expected = re.escape(
        "'y' asks for '/job:worker/device:CPU:0' without a task and goes to /job:worker/task:0; TensorFlow would put it on the"
        " master's own task, /job:worker/task:1. Name the task, or use Session(task_default=\"master\")."
    )
    with pytest.warns(UserWarning, match=f"^{expected}$") as caught:
        assert placed(y, z, w, master=("worker", 1)) == [at("worker 0"), at("worker 0"), at("ps 0")]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert placed(y, master=("worker", 1)) == [at("worker 0")]  # said once


def test_task_default_master_gives_tensorflows_rule_without_a_warning() -> None:
    x = tf.placeholder(tf.float32)
    with tf.device("/job:worker/cpu:0"):
        y = tf.negative(x)
    with tf.device("/job:ps/cpu:0"):
        w = tf.exp(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert placed(y, w, master=("worker", 1), task_default="master") == [at("worker 1"), at("ps 0")]
        assert placed(y, w) == [at("worker 0"), at("ps 0")]  # where both rules agree nothing is said either


def test_another_task_default_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^task_default must be one of zero, master, not 'first'\.$"):
        PlacementRules(Task("a", 0), task_default="first")


# ----------------------------------------------------------------------------------------- sources, and shapes of inputs


def test_a_source_without_device_goes_with_its_consumers() -> None:
    x = tf.placeholder(tf.float32, name="x")
    with tf.device("/job:ps/task:1/gpu:1"):
        y = tf.negative(x)
    assert placed(x, y) == [at("ps 1", "GPU:1")] * 2


def test_a_source_whose_consumers_share_a_task_but_no_device_goes_to_its_cpu_if_one_is_there() -> None:
    x = tf.placeholder(tf.float32)
    for device in ("/gpu:1", "/cpu:0"):
        with tf.device("/job:ps/task:1" + device):
            tf.negative(x)
    assert placed(x) == [at("ps 1")]


def test_a_source_with_consumers_on_several_tasks_goes_to_the_master() -> None:
    x = tf.placeholder(tf.float32)
    for task in (0, 1):
        with tf.device(f"/job:ps/task:{task}"):
            tf.negative(x)
    assert placed(x) == [at("worker 0", "GPU:0")]


def test_only_consumers_of_the_step_count() -> None:
    x = tf.placeholder(tf.float32)
    y = []
    for task in (0, 1):
        with tf.device(f"/job:ps/task:{task}/cpu:0"):
            y.append(tf.negative(x))
    assert only(x, y[1]) == [at("ps 1")] * 2


def test_a_source_that_says_where_it_wants_to_be_stays_there() -> None:
    with tf.device("/job:ps"):
        x = tf.placeholder(tf.float32)
    with tf.device("/job:worker/task:1"):
        tf.negative(x)
    assert placed(x) == [at("ps 0", "GPU:0")]


def test_what_asks_only_for_a_shape_goes_with_its_input_and_draws_nothing_to_itself() -> None:
    x = tf.placeholder(tf.float32)
    with tf.device("/job:ps/task:1/gpu:1"):
        y = tf.negative(x)
    assert placed(x, tf.shape(x), tf.size(y), apply_op("Rank", tf.shape(y))) == [at("ps 1", "GPU:1")] * 4


def test_what_asks_for_a_shape_goes_where_it_was_told_to() -> None:
    with tf.device("/job:ps/task:1"):
        x = tf.placeholder(tf.float32)
    with tf.device("/job:worker/cpu:0"):
        size = tf.shape(x)
    assert placed(size) == [at("worker 0")]


# ---------------------------------------------------------------------------------------------------------- colocation


def test_a_group_combines_what_its_members_ask_for_field_by_field() -> None:
    with tf.device("/job:ps"):
        a = tf.constant(1.0)
    with tf.colocate_with(a):
        b = tf.constant(2.0)
        c = tf.constant(3.0)
    b.op._set_device("/task:1")
    c.op._set_device("/cpu:0")
    assert placed(a, b, c) == [at("ps 1")] * 3


def test_members_without_request_go_with_the_one_that_has_one_whichever_came_first() -> None:
    a = tf.constant(1.0)
    with tf.colocate_with(a):
        b = tf.constant(2.0)
    b.op._set_device("/job:ps/task:1/cpu:0")
    assert placed(a, b) == [at("ps 1")] * 2


def test_groups_that_share_a_member_are_one() -> None:
    with tf.device("/job:ps/task:1/cpu:0"):
        a = tf.constant(1.0)
    b = tf.constant(2.0)
    with tf.colocate_with(a), tf.colocate_with(b):
        c = tf.constant(3.0)
    c.op._set_device("")
    assert placed(a, b, c) == [at("ps 1")] * 3


def conflict() -> tuple[Tensor, Tensor, str]:
    with tf.device("/job:ps/task:1"):
        a = tf.constant(1.0, name="a")
    with tf.colocate_with(a):
        e = tf.constant(2.0, name="e")
        line = here()
    e.op._set_device("/job:worker/task:1")
    return a, e, line


def test_explicit_colocation_of_contradicting_requests_is_refused() -> None:
    a, e, line = conflict()
    assert refused(a, e) == (
        "cannot colocate 'e' on /job:worker/task:1 with 'a' on /job:ps/task:1: their jobs 'worker' and 'ps' differ."
        f"\n  defined at {line}."
        "\n  Mend: pin both to the same device, drop one of the device blocks, or drop colocate_with."
    )


def test_soft_placement_colocates_contradicting_requests_where_the_first_wants_to_be() -> None:
    a, e, _ = conflict()
    assert placed(a, e, soft=True) == [at("ps 1", "GPU:0")] * 2


def test_a_contradiction_that_a_step_does_not_need_does_not_hurt_it() -> None:
    a, e, _ = conflict()
    assert only(a) == [at("ps 1", "GPU:0")]
    assert only(e) == [at("worker 1", "GPU:0")]


def test_a_name_that_is_not_in_the_graph_makes_no_group(graph: Graph) -> None:
    with graph.attr_scope({"_class": ["loc:@missing"]}), tf.device("/job:ps/cpu:0"):
        a = tf.constant(1.0)
    assert placed(a) == [at("ps 0")]


def test_the_variable_wins_over_an_operation_that_changes_it_and_asks_for_another_device() -> None:
    with tf.device("/job:ps/task:1/cpu:0"):
        v = tf.Variable(1.0)
    with tf.device("/job:worker/task:0/gpu:0"):
        change = tf.assign_add(v, 1.0)
    change.op._set_device("/job:worker/task:0/gpu:0")
    assert placed(v.op, change) == [at("ps 1")] * 2
    elsewhere = tf.Variable(1.0)
    change = tf.assign_add(elsewhere, 1.0)
    change.op._set_device("/job:ps/task:1/gpu:1")  # the variable asks for nothing: its user's request counts
    assert placed(elsewhere.op, change) == [at("ps 1", "GPU:1")] * 2


def test_the_request_of_an_operation_that_changes_a_variable_is_the_last_to_count() -> None:
    v = tf.Variable(1.0)
    change = tf.assign_add(v, 1.0)
    change.op._set_device("/job:ps/task:1/cpu:0")
    with tf.colocate_with(v.op):
        reader = tf.negative(v)
    reader.op._set_device("/job:ps/task:0")
    assert placed(v.op, change, reader) == [at("ps 0")] * 3


@pytest.mark.parametrize(
    ("owner", "user", "expected"),
    [  # as TensorFlow places a queue and its enqueue, but for the last two, which it can't place
        ("/job:ps", "/job:worker/task:1", "ps 0"),
        ("/job:ps", "/task:1", "ps 1"),
        ("/job:ps/task:1", "/job:worker/task:0", "ps 1"),
        ("", "/job:ps/task:1", "ps 1"),
        ("/job:ps", "/job:worker/task:0/gpu:3", "ps 0"),
        ("/job:ps", "/job:worker/task:5", "ps 0"),
    ],
)
def test_a_user_of_a_queue_goes_to_it_and_says_nothing_more_once_it_contradicts(owner: str, user: str, expected: str) -> None:
    with tf.device(owner):
        queue = tf.FIFOQueue(3, tf.int32)
    one = tf.constant(1)
    with tf.device(user):
        put = queue.enqueue(one)
    assert placed(queue.queue_ref, put) == [at(expected)] * 2


def test_slots_initialisers_and_updates_sit_with_their_variable() -> None:
    with tf.device("/job:ps/task:1/cpu:0"):
        v = tf.Variable([1.0], name="v")
    with tf.device("/job:worker/task:1/gpu:1"):
        loss = tf.reduce_sum(tf.square(v))
        train = tf.train.AdamOptimizer(0.1).minimize(loss)
    graph = tf.get_default_graph()
    found = place(graph, graph.get_operations(), CLUSTER, PlacementRules(Task("worker", 0)))
    state = [op for op in graph.get_operations() if op.definition.stateful or placer.resource_inputs(op)]
    assert {op.name for op in state} >= {"v", "v/Assign", "v/Adam", "v/Adam/Assign", "v/Adam_1", "Adam/update_v/ApplyAdam"}
    assert {str(found[op]) for op in state} == {at("ps 1")}
    assert str(found[loss.op]) == at("worker 1", "GPU:1")
    assert train.type == "NoOp"


# ----------------------------------------------------------------------------------------------- one place in all steps


def test_a_variable_has_one_place_in_a_step_that_only_initialises_it_and_in_the_step_that_uses_it() -> None:
    v = tf.Variable(1.0)
    user = tf.assign_add(v, 1.0)
    user.op._set_device("/job:ps/task:1/cpu:0")
    assert only(v.initializer, v.op, v.initial_value)[:2] == [at("ps 1")] * 2


def test_a_variable_stays_where_it_is_when_the_graph_grows(two_and_two: Cluster) -> None:
    v = tf.Variable(5.0, name="v")
    with tf.Session(cluster=two_and_two) as session:
        session.run(v.initializer)
        before = session.placement()["v"]
        change = tf.assign_add(v, 1.0, name="change")
        change.op._set_device("/job:ps/task:1/cpu:0")
        assert session.run(change) == 6.0
        found = session.placement()
    assert before == found["v"] == found["change"] == at("worker 0", "GPU:0")


def test_state_is_never_moved_to_join_other_state(two_and_two: Cluster) -> None:
    with tf.device("/job:ps/task:0/cpu:0"):
        v = tf.Variable(1.0, name="v")
    w = tf.Variable(2.0, name="w")
    with tf.Session(cluster=two_and_two) as session:
        session.run([v.initializer, w.initializer])
        with tf.colocate_with(v.op), tf.colocate_with(w.op):
            both = tf.add(v, w, name="both")
        assert session.run([v, w]) == [1.0, 2.0]  # the new operation isn't needed, so it can't hurt
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            session.run([both, v.op, w.op])
        assert session.run([v, w]) == [1.0, 2.0]
    assert str(caught.value) == (
        "cannot colocate 'w' with 'v': an earlier step put the one on /job:worker/task:0/device:GPU:0, the other on"
        f" /job:ps/task:0/device:CPU:0.\n  defined at {w.op.location}."
        "\n  Mend: colocate them before the first step of the session, or not at all."
    )


def test_what_joins_state_on_a_gpu_must_have_a_kernel_there(monkeypatch: pytest.MonkeyPatch) -> None:
    v = tf.Variable(1.0, name="v")
    pinned = {v.op: DeviceName(Task("ps", 0), "GPU", 1)}
    assert only(v.op, pinned=pinned) == [at("ps 0", "GPU:1")]
    with tf.colocate_with(v.op):
        y = tf.negative(tf.placeholder(tf.float32), name="y")
        line = here()
    monkeypatch.delitem(y.op.definition.kernels, "GPU")
    assert refused(v.op, y, pinned=pinned) == (
        "cannot place 'y' (Neg) on /job:ps/task:0/device:GPU:1: it has no kernel for GPU (kernels: CPU)."
        f"\n  defined at {line}."
        "\n  Mend: to be with 'v', pin that to a CPU before the first step of the session."
    )
    assert only(v.op, pinned=pinned) == [at("ps 0", "GPU:1")]


@settings(max_examples=60)
@given(steps())
def test_every_state_and_all_that_touches_it_share_a_device_in_every_step(step: Step) -> None:
    whole = place(step.graph, step.graph.get_operations(), inventory(2, ps=2, worker=1), PlacementRules(Task("worker", 0)))
    for op, device in step.placement().items():
        for tensor in placer.resource_inputs(op):
            assert device == step.placement()[tensor.op] == whole[tensor.op]


# --------------------------------------------------------------------------------------------------------- what is refused


def test_an_unknown_job_is_refused_with_the_jobs_there_are() -> None:
    with tf.device("/job:worke"):
        y = tf.negative(tf.placeholder(tf.float32), name="y")
    assert refused(y, devices=NO_GPU) == (
        f"cannot place 'y' on /job:worke: there is no job 'worke'; jobs are ps, worker. All devices: {ALL_CPUS}."
        f"\n  defined at {here(-3)}.\n  Mend: use one of the jobs ps, worker."
    )


def test_a_task_out_of_range_is_refused_with_the_range() -> None:
    with tf.device("/job:ps/task:2"):
        y = tf.negative(tf.placeholder(tf.float32), name="y")
    assert refused(y, devices=NO_GPU) == (
        f"cannot place 'y' on /job:ps/task:2: job 'ps' has 2 task(s) (0-1). All devices: {ALL_CPUS}."
        f"\n  defined at {here(-3)}.\n  Mend: use task 0-1, or give job 'ps' more tasks in the rank table or ClusterSpec."
    )


def test_a_task_without_job_means_the_masters_job_and_is_refused_with_its_range() -> None:
    with tf.device("/task:7"):
        y = tf.negative(tf.placeholder(tf.float32), name="y")
    assert refused(y, devices=NO_GPU).startswith("cannot place 'y' on /task:7: job 'worker' has 2 task(s) (0-1).")


def test_a_device_index_that_is_not_there_is_refused_with_the_devices_there_are() -> None:
    with tf.device("/job:ps/gpu:2"):
        y = tf.negative(tf.placeholder(tf.float32), name="y")
    assert refused(y, devices=inventory(2, ps=1)) == (
        "cannot place 'y' (Neg) on /job:ps/device:GPU:2: /job:ps/task:0 has no device GPU:2; it has CPU:0, GPU:0, GPU:1."
        " All devices: /job:ps/task:0/device:CPU:0, /job:ps/task:0/device:GPU:0, /job:ps/task:0/device:GPU:1."
        f"\n  defined at {here(-4)}.\n  Mend: use a device of that list, or ConfigProto(allow_soft_placement=True)."
    )


def test_a_gpu_where_there_is_none_is_refused_with_the_way_to_try_one() -> None:
    with tf.device("/gpu"):
        y = tf.negative(tf.placeholder(tf.float32), name="y")
    assert refused(y, devices=inventory(0, worker=1)) == (
        "cannot place 'y' (Neg) on /device:GPU:*: /job:worker/task:0 has no device GPU:*; it has CPU:0."
        " All devices: /job:worker/task:0/device:CPU:0."
        f"\n  defined at {here(-4)}.\n  Mend: use a device of that list, or ConfigProto(allow_soft_placement=True)."
        " To try GPUs without having one, set MPIRT_EMULATED_GPUS=1."
    )


def test_an_unknown_device_type_is_refused() -> None:
    with tf.device("/device:FPGA:0"):
        y = tf.negative(tf.placeholder(tf.float32), name="y")
    assert refused(y).startswith("cannot place 'y' (Neg) on /device:FPGA:0: /job:worker/task:0 has no device FPGA:0;")


def test_a_device_without_kernel_for_the_operation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with tf.device("/gpu:0"):
        y = tf.negative(tf.placeholder(tf.float32), name="y")
    line = here()
    monkeypatch.delitem(y.op.definition.kernels, "GPU")
    assert refused(y) == (
        "cannot place 'y' (Neg) on /job:worker/task:0/device:GPU:0: it has no kernel for GPU (kernels: CPU)."
        f"\n  defined at {line}."
        "\n  Mend: pin it to a CPU, or use ConfigProto(allow_soft_placement=True)."
    )


def test_an_operation_for_which_its_task_has_nothing_is_refused() -> None:
    devices = {Task("worker", 0): ("GPU:0",)}
    text = tf.constant("a", name="text")
    assert refused(text, devices=devices) == (
        "cannot place 'text' (Const): it runs on CPU, /job:worker/task:0 has GPU:0."
        f"\n  defined at {here(-3)}.\n  Mend: use a task that has such a device."
    )


def test_colocated_operations_without_a_common_kind_of_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tf.placeholder(tf.float32, name="x")
    y = tf.negative(x, name="y")
    with tf.colocate_with(y):
        z = tf.exp(x, name="z")
    monkeypatch.delitem(y.op.definition.kernels, "GPU")
    monkeypatch.delitem(z.op.definition.kernels, "CPU")
    assert refused(y, z).startswith(
        "cannot place 'z' (Exp): it runs on GPU, /job:worker/task:0 has CPU:0, GPU:0, GPU:1,"
        " and 'y', which shares its device, runs on CPU."
    )


def test_replicas_other_than_0_are_refused() -> None:
    with tf.device("/job:ps/replica:1"):
        y = tf.constant(1.0, name="y")
    assert refused(y).startswith("cannot place 'y' on /job:ps/replica:1: there are no replicas but 0.")


def test_in_a_large_cluster_the_list_of_devices_is_cut() -> None:
    with tf.device("/job:nope"):
        y = tf.constant(1.0)
    message = refused(y, devices=inventory(1, ps=20))
    assert "/job:ps/task:7/device:GPU:0 and 24 more." in message and "/job:ps/task:8" not in message


@pytest.mark.parametrize(
    ("request_", "expected"),
    [("/gpu:5", at("worker 0", "GPU:0")), ("/job:ps/device:FPGA:3", at("ps 0")), ("/job:ps/task:1/cpu:4", at("ps 1"))],
)
def test_soft_placement_changes_type_and_index_only(request_: str, expected: str) -> None:
    with tf.device(request_):
        y = tf.negative(tf.placeholder(tf.float32))
    assert placed(y, soft=True) == [expected]


@pytest.mark.parametrize("request_", ["/job:nope", "/job:ps/task:9"])
def test_soft_placement_does_not_invent_jobs_or_tasks(request_: str) -> None:
    with tf.device(request_):
        y = tf.constant(1.0)
    refused(y, soft=True)


def test_a_bad_operation_that_nobody_fetches_breaks_nothing(two_and_two: Cluster) -> None:
    v = tf.Variable(1.0, name="v")
    with tf.device("/job:nope"):
        bad = tf.negative(v, name="bad")
    worse = tf.assign_add(v, 1.0, name="worse")
    worse.op._set_device("/job:nope/task:3")  # in the group of the variable
    with tf.Session(cluster=two_and_two) as session:
        for fetch in (bad, worse):
            with pytest.raises(tf.errors.InvalidArgumentError, match="there is no job 'nope'"):
                session.run(fetch)
        session.run(v.initializer)
        assert session.run(v) == 1.0
        with pytest.raises(tf.errors.InvalidArgumentError, match="^cannot place 'bad' on /job:nope: there is no job 'nope'"):
            session.run(bad)
        assert session.run(worse) == 2.0  # now the variable has a place, which wins


# -------------------------------------------------------------------------------------- refused at the ``with`` line


def test_once_the_cluster_is_known_an_impossible_job_or_task_is_refused_in_the_with_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_scope, "_device_check", lambda text: check_request(text, CLUSTER))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught, tf.device("/job:wurker"):
        raise AssertionError("the block must not be entered")
    assert str(caught.value) == (
        "device '/job:wurker': the cluster has no job 'wurker'; jobs are ps, worker.\n  Mend: use one of the jobs ps, worker."
    )
    with pytest.raises(tf.errors.InvalidArgumentError) as caught, tf.device("/job:ps/task:2/gpu:0"):
        raise AssertionError("the block must not be entered")
    assert str(caught.value) == (
        "device '/job:ps/task:2/device:GPU:0': job 'ps' has 2 task(s) (0-1)."
        "\n  Mend: use task 0-1, or give job 'ps' more tasks in the rank table or ClusterSpec."
    )
    with pytest.raises(tf.errors.InvalidArgumentError), tf.device("/job:ps"), tf.device("/task:2"):  # together they are impossible
        raise AssertionError("the block must not be entered")
    for fine in ("", "/job:ps/task:1", "/gpu:7", "/task:9", "/job:ps/device:FPGA:0", None):
        with tf.device(fine):
            tf.constant(1.0)


def test_a_device_function_that_asks_for_an_impossible_task_is_refused_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_scope, "_device_check", lambda text: check_request(text, CLUSTER))
    with tf.device(lambda op: "/job:ps/task:9"), pytest.raises(tf.errors.InvalidArgumentError, match="job 'ps' has 2 task"):
        tf.constant(1.0)
    assert not tf.get_default_graph().get_operations()
