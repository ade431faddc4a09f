"""Sessions in one process: life, default sessions, callables, growth of the graph, state and errors."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.compiler import linker
from mpirt.distributed import master_session
from mpirt.distributed.cluster import Cluster
from mpirt.graph.default_session import default_session_stack
from mpirt.graph.graph import Graph
from mpirt.transport.loopback import LoopbackTransport


@pytest.fixture(autouse=True)
def graph() -> Iterator[Graph]:
    with Graph().as_default() as graph:
        yield graph


def two_jobs() -> Cluster:
    return Cluster(LoopbackTransport(), ClusterSpec({"ps": 1, "worker": 2}))


# --------------------------------------------------------------------------------------------------------- making one


def test_to_wait_for_a_fed_placeholder_is_to_wait_for_nothing() -> None:
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [])
        with tf.control_dependencies([x]):
            y = tf.constant(2.0) * 1.0
        with tf.Session() as session:
            assert session.run(y, {x: 1.0}) == 2.0
            with pytest.raises(tf.errors.InvalidArgumentError, match="You must feed a value for placeholder tensor 'Placeholder'"):
                session.run(y)


def test_the_target_and_the_config_are_checked() -> None:
    with pytest.raises(TypeError) as caught:
        tf.Session(target=5)  # type: ignore[arg-type]
    assert str(caught.value) == "target must be a string, but got 5"
    with pytest.raises(TypeError) as caught:
        tf.Session(config={"log": 1})
    assert str(caught.value) == "config must be a ConfigProto, but got {'log': 1}"
    with pytest.raises(TypeError, match="^graph must be a mpirt.Graph, but got 3$"):
        tf.Session(graph=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^fetch_on must be 'all' or 'owner', not 'some'.$"):
        tf.Session(fetch_on="some")
    with pytest.raises(tf.errors.NotFoundError, match="session target 'grpc://x'"):
        tf.Session("grpc://x")


def test_a_session_takes_the_graph_it_is_given_or_the_current_one(graph: Graph) -> None:
    other = Graph()
    assert tf.Session().graph is graph
    with tf.Session(graph=other) as session:
        assert session.graph is other and tf.get_default_graph() is other
        assert session.run(tf.constant(2)) == 2
    assert tf.get_default_graph() is graph
    assert session.sess_str == "" and len(session.graph_def.node) == 1


def test_the_master_may_be_named() -> None:
    x = tf.constant(1)
    assert tf.Session(cluster=two_jobs()).placement() == {"Const": "/job:worker/task:0/device:CPU:0"}
    assert tf.Session(cluster=two_jobs(), master="/job:ps").placement() == {"Const": "/job:ps/task:0/device:CPU:0"}
    session = tf.Session(cluster=two_jobs(), master="/job:worker/task:1")
    session.run(x)
    assert session.placement() == {"Const": "/job:worker/task:1/device:CPU:0"}
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        tf.Session(cluster=two_jobs(), master="/job:chief")
    assert caught.value.message == (
        "master='/job:chief' names no task of the cluster; its tasks are /job:ps/task:0, /job:worker/task:0, /job:worker/task:1."
    )


def test_a_target_is_the_label_of_the_master_task() -> None:
    tf.constant(1)
    spec = ClusterSpec({"ps": ["node1:2222"], "worker": ["node2:2222", "node3:2222"]})

    def place(target: str, **options: Any) -> tuple[str, str]:
        session = tf.Session(target, cluster=Cluster(LoopbackTransport(), spec), **options)
        return session.placement()["Const"], session.sess_str

    assert place("grpc://node1:2222") == ("/job:ps/task:0/device:CPU:0", "grpc://node1:2222")
    assert place("node3:2222") == ("/job:worker/task:1/device:CPU:0", "node3:2222")
    assert place("") == ("/job:worker/task:0/device:CPU:0", "")
    with pytest.raises(tf.errors.NotFoundError) as caught:
        place("node4:2222")
    assert str(caught.value) == (
        "session target 'node4:2222': ClusterSpec: no task has the address 'node4:2222'; there are"
        " node1:2222, node2:2222, node3:2222.\n"
        "  Mend: give the address of a task, as in the ClusterSpec, or leave the target out."
    )
    with pytest.raises(ValueError, match="both name the master task; give one of them"):
        place("node1:2222", master="/job:ps")


# -------------------------------------------------------------------------------------------------------------- life


def test_an_empty_graph_cannot_run() -> None:
    with pytest.raises(RuntimeError) as caught:
        tf.Session().run([])
    assert str(caught.value) == "The Session graph is empty. Add operations to the graph before calling run()."


def test_a_closed_session_refuses_to_run_and_closing_twice_is_fine() -> None:
    x = tf.constant(1)
    session = tf.Session()
    session.run(x)
    session.close()
    session.close()
    with pytest.raises(RuntimeError) as caught:
        session.run(x)
    assert str(caught.value) == "Attempted to use a closed Session."
    with tf.Session() as inside:
        pass
    with pytest.raises(RuntimeError, match="closed Session"):
        inside.run(x)


def test_steps_of_several_threads_reach_the_runner_at_once() -> None:
    x, y = tf.constant(1), tf.constant(2)
    both = threading.Barrier(2, timeout=20)

    class Runner:
        def run(self, leaves: Any, feeds: Any, deadline: Any) -> list[Any]:
            both.wait()  # passed only if the other thread's step is under way too
            return [leaf.name for leaf in leaves]

        def close(self) -> None:
            pass

    with tf.Session() as session:
        session._runner = Runner()  # type: ignore[assignment]
        found: dict[str, Any] = {}
        threads = [threading.Thread(target=lambda t=t: found.update({t.name: session.run(t)})) for t in (x, y)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {x.name: x.name, y.name: y.name}


def test_closing_lets_a_computing_operation_end_and_refuses_later_steps() -> None:
    under_way, go_on = threading.Event(), threading.Event()

    def wait() -> np.int64:
        under_way.set()
        assert go_on.wait(20)
        return np.int64(7)

    slow, x = tf.py_func(wait, [], tf.int64), tf.constant(1)
    session = tf.Session()
    session.run(x)
    found: list[Any] = []
    running = threading.Thread(target=lambda: found.append(session.run(slow)))
    running.start()
    assert under_way.wait(20)
    session.close()  # nothing can stop a Python function; nobody waits for it either
    assert found == []
    go_on.set()
    running.join()
    assert found == [7]
    with pytest.raises(RuntimeError, match="^Attempted to use a closed Session.$"):
        session._runner.run((x,), {}, None)  # a step that passed the session's own check before it was closed


def test_the_graph_may_grow_between_runs_until_it_is_finalized(graph: Graph) -> None:
    session = tf.Session()
    x: Any = tf.constant(1)
    for i in range(3):
        assert session.run(x) == 2**i
        x = x * 2
    graph.finalize()
    assert session.run(x) == 8 and session.run(x) == 8
    with pytest.raises(RuntimeError, match="finalized"):
        tf.constant(1)


def test_sessions_share_no_state_even_on_one_graph() -> None:
    v = tf.Variable(1.0)
    first, second = tf.Session(), tf.Session()
    first.run(v.initializer)
    with pytest.raises(tf.errors.FailedPreconditionError) as caught:
        second.run(v)
    assert caught.value.message == "Attempting to use uninitialized value Variable"
    assert first.run(v) == 1.0


def test_a_variable_stays_where_it_is_when_the_graph_grows() -> None:
    with tf.device("/job:ps/task:0"):
        v = tf.Variable(1.0, name="v")
    session = tf.Session(cluster=two_jobs())
    session.run(v.initializer)
    with tf.device("/job:worker/task:1"):
        w = tf.identity(v, name="w")
        change = v.assign_add(1.0, name="change")
    session.run([w, change])
    placement = session.placement()
    assert list(placement) == sorted(placement)
    assert {name: placement[name].partition("/device")[0] for name in ("v", "v/read", "change", "w")} == {
        "v": "/job:ps/task:0", "v/read": "/job:ps/task:0", "change": "/job:ps/task:0", "w": "/job:worker/task:1",
    }  # fmt: skip


def test_one_session_may_be_used_by_many_threads() -> None:
    v = tf.Variable(0)
    change = v.assign_add(1)
    session = tf.Session()
    session.run(v.initializer)

    def loop() -> None:
        for _ in range(200):
            session.run(change.op)

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.run(v) == 800


def test_in_one_process_a_function_of_the_graph_may_run_the_session() -> None:
    one = tf.constant(1)
    y = tf.py_func(lambda: session.run(one) + 1, [], tf.int32)
    session = tf.Session()
    assert session.run(y) == 2


# ------------------------------------------------------------------------------------------------- default sessions


def test_eval_and_run_use_the_default_session() -> None:
    x = tf.placeholder(tf.float32, [])
    v = tf.Variable(2.0)
    y = x * v
    with pytest.raises(ValueError, match="no default session"):
        y.eval({x: 1.0})
    with tf.Session() as session:
        assert tf.get_default_session() is session
        v.initializer.run()
        assert y.eval({x: 3.0}) == 6.0
        with tf.Session(graph=y.graph).as_default() as inner:
            assert tf.get_default_session() is inner
        assert tf.get_default_session() is session
        assert not inner._closed
    assert tf.get_default_session() is None
    other = tf.Session()
    other.run(v.initializer)
    assert y.eval({x: 5.0}, session=other) == 10.0


def test_each_thread_has_default_sessions_of_its_own() -> None:
    found: list[Any] = []
    with tf.Session():
        thread = threading.Thread(target=lambda: found.append(tf.get_default_session()))
        thread.start()
        thread.join()
    assert found == [None]


def test_leaving_default_sessions_in_another_order_is_refused() -> None:
    first, second = tf.Session().as_default(), tf.Session().as_default()
    first.__enter__()
    second.__enter__()
    with pytest.raises(AssertionError, match="^Nesting violated for default sessions"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    default_session_stack().clear()


def test_an_interactive_session_is_the_default_until_it_is_closed() -> None:
    session = tf.InteractiveSession()
    assert tf.get_default_session() is session and tf.constant(3).eval() == 3
    session.close()
    session.close()
    assert tf.get_default_session() is None


# --------------------------------------------------------------------------------------------------------- callables


def test_a_callable_takes_its_feeds_by_position() -> None:
    x, y = tf.placeholder(tf.float32, [], name="x"), tf.placeholder(tf.float32, [], name="y")
    session = tf.Session()
    call = session.make_callable([x - y], [x, "y:0"])
    assert call(5.0, 3.0) == [2.0] and call(1.0, 1.0, options=tf.RunOptions()) == [0.0]
    with pytest.raises(TypeError, match=r"^this callable takes 2 value\(s\), not 1.$"):
        call(1.0)
    assert session.make_callable(tf.constant(4))() == 4
    with pytest.raises(TypeError):
        session.make_callable(x, [x.op])
    session.close()
    with pytest.raises(RuntimeError, match=r"^Attempted to use a closed Session\.$"):
        session.make_callable(x)


def test_a_callable_looks_names_and_structure_up_once() -> None:
    """So it is faster than run() where there is much to look up: counted, since times vary."""
    looked_up: list[Any] = []

    class Counting(Graph):
        def as_graph_element(self, *args: Any, **kwargs: Any) -> Any:
            looked_up.append(args)
            return super().as_graph_element(*args, **kwargs)

    with Counting().as_default():
        x = tf.placeholder(tf.float32, [], name="x")
        call = tf.Session().make_callable({"a": [x + 1.0, "x:0"]}, [x])
        assert call(1.0) == {"a": [2.0, 1.0]}
        looked_up.clear()
        assert call(3.0) == {"a": [4.0, 3.0]}
        assert looked_up == []


# ------------------------------------------------------------------------------------------------------------ feeds


def test_any_tensor_may_be_fed_and_what_is_above_it_does_not_run() -> None:
    calls: list[int] = []

    def one() -> np.float32:
        calls.append(1)
        return np.float32(1.0)

    x = tf.py_func(one, [], tf.float32)
    x.set_shape([])
    y = x * 2.0
    c, v = tf.constant(3.0), tf.Variable(1.0)
    session = tf.Session()
    assert session.run(y, {x: 10.0}) == 20.0 and calls == []
    assert session.run(c + 1.0, {c: 10.0}) == 11.0
    assert session.run(v + 1.0, {v.value(): 7.0}) == 8.0  # never initialised
    assert session.run(y) == 2.0 and calls == [1]
    with pytest.raises(ValueError, match=r"Cannot feed value of shape \(1,\) for Tensor 'Const"):
        session.run(c + 1.0, {c: [1.0]})


def test_a_missing_feed_is_named_and_only_those_needed_count() -> None:
    x, unused = tf.placeholder(tf.float32, [None, 3], name="x"), tf.placeholder(tf.int32)
    y = tf.placeholder_with_default(2.0, [])
    session = tf.Session()
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        session.run(x * 2.0)
    assert caught.value.message == "You must feed a value for placeholder tensor 'x' with dtype float32 and shape (?, 3)."
    assert caught.value.op is x.op and caught.value.hint == "pass feed_dict={x: value} to run()."
    assert session.run(y) == 2.0 and session.run(y, {y: 3.0}) == 3.0
    assert session.run(y, {unused: 1}) == 2.0


def test_a_fed_fetch_is_a_copy_of_the_feed() -> None:
    x = tf.placeholder(tf.float32, [2])
    value = np.array([1.0, 2.0], np.float32)
    found = tf.Session().run(x, {x: value})
    assert found.tolist() == [1.0, 2.0] and not np.shares_memory(found, value) and found.flags.writeable


def test_alternating_feed_sets_are_steps_of_their_own() -> None:
    x = tf.placeholder_with_default(1.0, [])
    y = x * 2.0
    session = tf.Session()
    assert [float(session.run(y, feeds)) for feeds in ({}, {x: 5.0}, {}, {y: 7.0}, {x: 6.0}, None)] == [2, 10, 2, 7, 12, 2]


# ----------------------------------------------------------------------------------------------------------- errors


def test_an_error_of_a_kernel_names_its_operation_and_the_session_goes_on() -> None:
    def fail(flag: bool) -> Any:
        if flag:
            raise KeyError("k")
        return np.int32(1)

    flag = tf.placeholder(tf.bool, [])
    y = tf.py_func(fail, [flag], tf.int32, name="y")
    session = tf.Session()
    for _ in range(2):
        with pytest.raises(tf.errors.UnknownError) as caught:
            session.run(y, {flag: True})
        assert isinstance(caught.value, tf.errors.OpError) and caught.value.op is y.op and caught.value.node_def.name == "y"
        assert caught.value.message.startswith("'y' (PyFunc): the Python function failed with KeyError: 'k'")
        assert caught.value.code == tf.errors.UNKNOWN and caught.value.where.rpartition(":")[0] == __file__
        assert session.run(y, {flag: False}) == 1


def test_an_exception_of_numpy_becomes_an_error_of_the_operation() -> None:
    a, b = tf.placeholder(tf.float32), tf.placeholder(tf.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"^'sum' \(AddV2\)") as caught:
        tf.Session().run(tf.add(a, b, name="sum"), {a: [1.0, 2.0], b: [1.0, 2.0, 3.0]})
    assert caught.value.op.name == "sum"


def test_nothing_orders_two_fetches_but_a_control_dependency_does() -> None:
    v = tf.Variable(1.0)
    with tf.control_dependencies([v.initializer]):
        after = v.read_value()
    session = tf.Session()
    assert session.run(after) == 1.0


# ---------------------------------------------------------------------------------------------------------- reports


def test_traffic_is_known_after_the_first_run_only() -> None:
    x = tf.constant(1)
    session = tf.Session()
    with pytest.raises(tf.errors.FailedPreconditionError, match="this signature has not run in this session yet"):
        session.traffic(x)
    session.run(x)
    assert session.traffic(x) == {"messages": 0, "nbytes": 0, "window_nbytes": 0}


def test_the_compiled_program_is_written_where_the_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIRT_DUMP_PROGRAM", str(tmp_path))
    session = tf.Session(cluster=two_jobs())
    x = tf.constant(1, name="x")
    y = tf.negative(x, name="y")
    session.run(y)
    session.run(y)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "session-0-step-0-rank-0.txt": (
            "rank 0: 1 instructions, 2 slots\n"
            "  const s0 = x on /job:worker/task:0/device:CPU:0\n"
            "  run   s1 = Neg y(s0) on /job:worker/task:0/device:CPU:0\n"
            "  fetch s1\n"
            "memory: 4 B at most, 0 B of it in 0 buffers that every step uses again\n"
        )
    }


def test_the_text_of_a_session_says_what_it_is(graph: Graph) -> None:
    session = tf.Session(cluster=two_jobs())
    session.run(tf.constant(1))
    assert repr(session) == f"<mpirt.Session of {graph!r}, 1 signatures>"
    session.close()
    assert repr(session) == f"<mpirt.Session of {graph!r}, closed>"


@pytest.mark.parametrize("enabled", [True, False])
def test_planning_leaves_the_garbage_collector_as_it_was(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def link(*args: Any) -> Any:
        seen.append(gc.isenabled())
        return linker.link(*args)

    monkeypatch.setattr(master_session, "link", link)
    try:
        (gc.enable if enabled else gc.disable)()
        assert tf.Session().run(tf.constant(1) + 2) == 3
        after = gc.isenabled()
        with pytest.raises(tf.errors.InvalidArgumentError):
            tf.Session().run(tf.placeholder(tf.float32))
        assert (after, gc.isenabled()) == (enabled, enabled)
        assert seen and not any(seen)
    finally:
        gc.enable()
