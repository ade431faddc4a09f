"""Queues in a graph: what is refused while building, where they live, who shares them, and steps that wait.

Values, names and static shapes are compared with TensorFlow's in test_tf_golden.py; the rules of a queue in test_queues.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import mpirt as tf
from mpirt.cluster.cluster_spec import ClusterSpec
from mpirt.distributed.cluster import Cluster
from mpirt.graph.op_def import Blocked, op_def
from mpirt.ops.apply import apply_op
from mpirt.ops.queues import Queue
from mpirt.runtime.resources import ResourceManager
from mpirt.transport.loopback import LoopbackTransport
from tests.reference import Reference

I = tf.int32  # noqa: E741


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def two_jobs() -> Cluster:
    return Cluster(LoopbackTransport(), ClusterSpec({"ps": 1, "worker": 2}))


class Background(threading.Thread):
    """Runs a function in a thread; ``outcome()`` is what it returned or the error that it raised."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._call = partial(function, *args)
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as error:  # given to the test
            self._outcome = error

    def outcome(self) -> Any:
        self.join(20)
        assert not self.is_alive()
        return self._outcome


def queue_in(session: tf.Session, q: tf.QueueBase) -> Queue:
    """The queue itself, of a session whose only rank is this one."""
    state: Any = session._runner
    (found,) = [r for r in state._state.private._resources.values() if r.name == q.name]
    assert isinstance(found, Queue)
    return found


def until_waiting(queue: Queue, producers: int = 0, consumers: int = 0) -> None:
    """Return when so many steps wait at ``queue``."""
    arrived = threading.Event()
    for _ in range(20_000):
        if (len(queue._producers), len(queue._consumers)) == (producers, consumers):
            return
        arrived.wait(0.001)
    pytest.fail(f"{queue!r}: {producers} and {consumers} were expected to wait")


# ---- building


def test_a_queue_tells_its_types_shapes_and_names() -> None:
    q = tf.FIFOQueue(3, [I, "float32"], shapes=[(), [2]], names=["n", "xy"], name="jobs")
    assert (q.name, q.dtypes, q.names, q.shapes) == ("jobs", [I, tf.float32], ["n", "xy"], [tf.TensorShape([]), tf.TensorShape([2])])
    assert (q.queue_ref.dtype, q.queue_ref.op.type, q.queue_ref.op.get_attr("capacity")) == (tf.resource, "FIFOQueueV2", 3)
    plain = tf.FIFOQueue(3, I)
    assert (plain.dtypes, plain.names, plain.shapes) == ([I], None, [tf.TensorShape(None)])
    for one in ((2,), [2], tf.TensorShape([2]), [(2,)], [tf.TensorShape([2])]):
        assert tf.FIFOQueue(3, I, shapes=one).shapes == [tf.TensorShape([2])]
    assert tf.FIFOQueue(3, I, shapes=[]).shapes == [tf.TensorShape([])], "one shape, a scalar's"
    assert tf.PaddingFIFOQueue(3, I, shapes=[(None, 2)]).shapes == [tf.TensorShape([None, 2])]
    assert tf.FIFOQueue(3, I, names="n").names == ["n"]
    by_priority = tf.PriorityQueue(3, [tf.string, I], shapes=[(), (2,)], names=["p", "s", "i"])
    assert (by_priority.dtypes, by_priority.queue_ref.op.get_attr("component_types")) == ([tf.int64, tf.string, I], [tf.string, I])
    assert by_priority.shapes == [tf.TensorShape([]), tf.TensorShape([]), tf.TensorShape([2])]
    assert isinstance(q, tf.queue.QueueBase) and tf.queue.PriorityQueue is tf.PriorityQueue


def test_what_is_dequeued_has_the_shapes_that_follow() -> None:
    q = tf.FIFOQueue(3, [I, tf.float32], shapes=[(), (2,)])
    count = tf.placeholder(I, [])
    for tensors, front in (
        (q.dequeue(), []),
        (q.dequeue_many(3), [3]),
        (q.dequeue_many(np.int64(3)), [3]),
        (q.dequeue_many(tf.constant(1) + 2), [3]),
        (q.dequeue_many(count), [None]),
        (q.dequeue_up_to(3), [None]),
    ):
        assert [t.shape.as_list() for t in tensors] == [front, [*front, 2]]
    assert tf.FIFOQueue(3, I).dequeue().shape == tf.TensorShape(None)
    assert tf.FIFOQueue(3, I).dequeue_many(3).shape == tf.TensorShape(None)
    assert tf.PaddingFIFOQueue(3, I, [(None, 2)]).dequeue_many(3).shape.as_list() == [3, None, 2]
    named = tf.FIFOQueue(3, [I, tf.float32], shapes=[(), (2,)], names=["n", "xy"]).dequeue_many(3)
    assert {key: t.shape.as_list() for key, t in named.items()} == {"n": [3], "xy": [3, 2]}


def test_the_shapes_of_a_queue_are_known_wherever_its_handle_is_and_those_of_a_chosen_one_from_python() -> None:
    q = tf.FIFOQueue(3, [I, tf.float32], shapes=[(), (2,)])

    def raw(handle: Any) -> Any:
        return apply_op("QueueDequeueManyV2", handle, 3, component_types=q.dtypes)

    made = [raw(q.queue_ref), raw(tf.identity(q.queue_ref))]

    def branch() -> Any:
        made.append(raw(q.queue_ref))
        return made[-1]

    tf.cond(tf.placeholder(tf.bool, []), branch, branch)
    assert len(made) == 4
    for tensors in made:
        assert [t.shape.as_list() for t in tensors] == [[3], [3, 2]]
    chosen = tf.QueueBase.from_list(tf.placeholder(I, []), [q, q])
    assert [t.shape.ndims for t in raw(chosen.queue_ref)] == [None, None]
    assert [t.shape.as_list() for t in chosen.dequeue_many(3)] == [[3], [3, 2]]


def test_operations_are_named_after_their_queue() -> None:
    with tf.name_scope("input"):
        q = tf.FIFOQueue(3, I, shapes=[()], name="jobs")
        put = q.enqueue(1)
        assert [t.name for t in put.inputs] == ["input/jobs:0", "input/jobs_enqueue/component_0:0"]
        made = [put, q.enqueue_many([[1]]), q.dequeue().op, q.dequeue_many(2).op, q.dequeue_up_to(2).op, q.close(), q.size().op]
        assert [op.name.removeprefix("input/jobs_") for op in made] == [
            "enqueue", "EnqueueMany", "Dequeue", "DequeueMany", "DequeueUpTo", "Close", "Size"
        ]  # fmt: skip
        assert q.is_closed(name="shut").op.name == "input/shut"


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: tf.FIFOQueue(3, I, shapes=(None,)), ValueError,
         "All shapes must be fully defined: ['(?,)']. Sizes that differ: use a PaddingFIFOQueue."),
        (lambda: tf.FIFOQueue(3, I, shapes=2), TypeError, "Shapes must be a TensorShape or a list or tuple of shapes, not 2."),
        (lambda: tf.FIFOQueue(3, I, shapes=[[2], [3]]), ValueError,
         "there are 2 shapes for 1 components, for 'fifo_queue' (FIFOQueueV2) with inputs []."),
        (lambda: tf.FIFOQueue(3, [I], names=["a", "b"]), ValueError,
         "Queue names must have the same length as dtypes, but there are 2 and 1."),
        (lambda: tf.FIFOQueue(2.5, [I]), TypeError, "'float' object cannot be interpreted as an integer"),  # type: ignore[arg-type]
        (lambda: tf.FIFOQueue(3, []), ValueError, "a queue needs at least one component, for 'fifo_queue' (FIFOQueueV2) with inputs []."),
        (lambda: tf.FIFOQueue(3, tf.resource), ValueError,
         "a queue can't hold handles of resources, for 'fifo_queue' (FIFOQueueV2) with inputs []."),
        (lambda: tf.RandomShuffleQueue(3, 3, I), ValueError,
         "min_after_dequeue 3 must be < capacity 3, for 'random_shuffle_queue' (RandomShuffleQueueV2) with inputs []."),
        (lambda: tf.RandomShuffleQueue(3, -1, I), ValueError,
         "min_after_dequeue -1 must be >= 0, for 'random_shuffle_queue' (RandomShuffleQueueV2) with inputs []."),
        (lambda: tf.PaddingFIFOQueue(3, I, (None,)), ValueError,
         "When providing partial shapes, a list of shapes must be provided, not (None,)."),
        (lambda: tf.PaddingFIFOQueue(3, [I, I], [[None]]), ValueError,
         "Shapes must be provided for all components, but there are 2 dtypes and 1 shapes."),
        (lambda: tf.PaddingFIFOQueue(3, I, [tf.TensorShape(None)]), ValueError, "All shapes must have a defined rank: ['<unknown>']."),
        (lambda: tf.PriorityQueue(3, I), TypeError, "a PriorityQueue needs the shapes of its components: shapes=[()] for scalars."),
        (lambda: tf.PriorityQueue(3, [I, I], [()]), ValueError,
         "Queue shapes must have the same length as types, but there are 1 and 2."),
        (lambda: apply_op("PaddingFIFOQueueV2", component_types=[I]), ValueError,
         "there are 0 shapes for 1 components, for 'PaddingFIFOQueueV2' (PaddingFIFOQueueV2) with inputs []."),
        (lambda: apply_op("FIFOQueueV2", component_types=[I], shapes=[(None,)]), ValueError,
         "the shapes (?,) aren't known as far as a FIFOQueue needs, for 'FIFOQueueV2' (FIFOQueueV2) with inputs []."),
    ],
)  # fmt: skip
def test_a_queue_that_can_not_be_is_refused(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("use", "kind", "message"),
    [
        (lambda q, n: q.enqueue(1.5), ValueError, "an element of 'q' has 2 component(s), ['int32', 'float32'], but 1 are to be enqueued."),
        (lambda q, n: q.enqueue([1.5, [1.0, 2.0]]), TypeError, "Expected int32, got 1.5 of type 'float' instead."),
        (lambda q, n: q.enqueue([1, [1.0]]), ValueError, "Shapes (1,) and (2,) are not compatible"),
        (lambda q, n: q.enqueue({"a": 1}), ValueError, "Queue must have names to enqueue a dictionary."),
        (lambda q, n: n.enqueue(1), ValueError, "You must enqueue a dictionary in a Queue with names ['a']."),
        (lambda q, n: n.enqueue({"b": 1}), ValueError,
         "Keys in dictionary to enqueue do not match names of Queue: ['b'] instead of ['a']."),
        (lambda q, n: q.enqueue_many([[1, 2], [[1.0, 2.0]]]), ValueError, "Shapes (2,) and (1,) are not compatible"),
        (lambda q, n: q.enqueue_many([[1, 2], [[1.0], [2.0]]]), ValueError, "Shapes (1,) and (2,) are not compatible"),
        (lambda q, n: q.enqueue_many([1, [[1.0, 2.0]]]), ValueError, "Shape () must have rank at least 1"),
        (lambda q, n: q.dequeue_many(-1), ValueError,
         "n must be 0 or more, not -1, for 'q_DequeueMany' (QueueDequeueManyV2) with inputs [q:0 resource(), n_1:0 int32()]."),
        (lambda q, n: q.dequeue_up_to([2]), ValueError,
         "n must have 0 dimension(s), but has shape (1,), for 'q_DequeueUpTo' (QueueDequeueUpToV2)"
         " with inputs [q:0 resource(), n_1:0 int32(1,)]."),
        (lambda q, n: apply_op("QueueDequeueV2", q.queue_ref, component_types=[I]), ValueError,
         "component_types ['int32'] don't fit a queue of ['int32', 'float32'], for 'QueueDequeueV2' (QueueDequeueV2)"
         " with inputs [q:0 resource()]."),
        (lambda q, n: apply_op("QueueEnqueueV2", n.queue_ref, [np.float32(1)], name="put"), ValueError,
         "components ['float32'] don't fit a queue of ['int32'], for 'put' (QueueEnqueueV2)"
         " with inputs [n:0 resource(), components:0 float32()]."),
        (lambda q, n: apply_op("QueueEnqueueV2", n.queue_ref, [np.array([1], np.int32)], name="put"), ValueError,
         "Shapes (1,) and () are not compatible, for 'put' (QueueEnqueueV2) with inputs [n:0 resource(), components:0 int32(1,)]."),
        (lambda q, n: apply_op("QueueEnqueueManyV2", n.queue_ref, [np.int32(1)], name="put"), ValueError,
         "a batch of elements must have at least one dimension, for 'put' (QueueEnqueueManyV2)"
         " with inputs [n:0 resource(), components:0 int32()]."),
        (lambda q, n: tf.QueueBase.from_list(0, []), TypeError, "A list of queues expected, not []."),
        (lambda q, n: tf.QueueBase.from_list(0, [q, n]), TypeError,
         "Queues do not have matching component dtypes: [mpirt.int32, mpirt.float32], [mpirt.int32]."),
        (lambda q, n: tf.QueueBase.from_list(0, [n, tf.FIFOQueue(1, I)]), TypeError,
         "Queues do not have matching component names: ['a'], None."),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_queue_is_refused_where_it_is_built(
    use: Callable[[Any, Any], Any], kind: type[Exception], message: str
) -> None:
    q = tf.FIFOQueue(3, [I, tf.float32], shapes=[(), (2,)], name="q")
    named = tf.FIFOQueue(3, I, shapes=[()], names=["a"], name="n")
    with pytest.raises(kind) as caught:
        use(q, named)
    assert str(caught.value) == message


def test_seeds_come_from_the_graph_and_of_a_shared_queue_from_its_name() -> None:
    def seeds(**options: Any) -> list[int]:
        op = tf.RandomShuffleQueue(3, 1, I, **options).queue_ref.op
        return [op.get_attr("seed"), op.get_attr("seed2")]

    assert seeds() == seeds(shared_name="abc") == [0, 0]
    assert seeds(seed=3) == [87654321, 3]
    tf.set_random_seed(5)
    # What TensorFlow makes of them. However many random operations come before it, all clients declare the same.
    assert seeds(shared_name="abc") == seeds(shared_name="abc") == [5, 317586264]
    assert seeds(shared_name="abc", seed=7) == [5, 7]


def test_what_is_chosen_from_a_list_has_the_shapes_that_all_have() -> None:
    shapes = [(2, 3), (2, 4), (2, 3)]
    queues = [tf.FIFOQueue(3, I, shapes=[shape]) for shape in shapes]
    assert tf.QueueBase.from_list(0, queues[::2]).shapes == [tf.TensorShape([2, 3])]
    assert tf.QueueBase.from_list(0, queues).shapes == [tf.TensorShape([2, None])]
    assert tf.QueueBase.from_list(0, [*queues, tf.FIFOQueue(3, I)]).shapes == [tf.TensorShape(None)]


# ---- where queues are


def test_a_queue_is_on_a_cpu_and_whoever_uses_it_goes_there() -> None:
    with tf.device("/job:ps"):
        q = tf.FIFOQueue(3, I, shapes=[()], name="q")
    assert q.queue_ref.op.device == "/job:ps/device:CPU:*"
    with tf.device("/job:worker/task:1/gpu:0"):
        assert tf.FIFOQueue(3, I).queue_ref.op.device == "/job:worker/task:1/device:CPU:0"
    with tf.device("/job:worker/task:1"):
        value = tf.constant(4) * 2
        put, got = q.enqueue(value), q.dequeue()
        after = got + 1
    with tf.Session(cluster=two_jobs()) as session:
        session.run(put)
        assert session.run(after) == 9
        placement = session.placement()
    ps, worker = "/job:ps/task:0/device:CPU:0", "/job:worker/task:1/device:CPU:0"
    assert [placement[op.name] for op in (q.queue_ref.op, put, got.op, value.op, after.op)] == [ps, ps, ps, worker, worker]


def test_a_queue_waits_for_no_control_dependency() -> None:
    with tf.control_dependencies([tf.no_op()]):
        q = tf.FIFOQueue(3, I)
        assert (len(q.queue_ref.op.control_inputs), len(q.size().op.control_inputs)) == (0, 1)


# ---- who shares them


def test_sessions_share_a_queue_by_its_shared_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with tf.train.Server.create_local_server() as server:

        def client(put: int) -> Any:
            with tf.Graph().as_default():
                shared = tf.FIFOQueue(9, I, shapes=[()], shared_name="jobs")
                own = tf.FIFOQueue(9, I, shapes=[()], name="jobs")
                with tf.container("elsewhere"):
                    apart = tf.FIFOQueue(9, I, shapes=[()], shared_name="jobs")
                with tf.Session(server.target) as session:
                    session.run([shared.enqueue(put), own.enqueue(put)])
                    return session.run([shared.size(), own.size(), apart.size()])

        assert client(1) == [1, 1, 0]
        assert client(2) == [2, 1, 0]


def test_two_local_sessions_share_nothing() -> None:
    q = tf.FIFOQueue(9, I, shapes=[()], shared_name="jobs")
    with tf.Session() as first, tf.Session() as second:
        first.run(q.enqueue(1))
        assert (first.run(q.size()), second.run(q.size())) == (1, 0)


def test_another_declaration_of_a_shared_queue_is_refused_with_both_sides_named() -> None:
    first = tf.FIFOQueue(3, I, shapes=[()], shared_name="jobs", name="first")
    second = tf.RandomShuffleQueue(3, 1, I, shapes=[()], shared_name="jobs", name="second", seed=2)
    with tf.Session() as session:
        session.run(first.enqueue(1))
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            session.run(second.size())
        assert caught.value.message == (
            "'second' declares the queue 'jobs' as RandomShuffleQueue(capacity=3, min_after_dequeue=1, seeds=(87654321, 2),"
            " dtypes=[int32], shapes=[()]), but on this task it is FIFOQueue(capacity=3, dtypes=[int32], shapes=[()]),"
            f" declared at {first.queue_ref.op.location}."
        )
        assert session.run(first.size()) == 1


def test_every_negative_capacity_means_the_same() -> None:
    queues = [tf.FIFOQueue(capacity, I, shared_name="jobs") for capacity in (-1, -5)]
    with tf.Session() as session:
        for q in queues:
            session.run(q.enqueue(1))
        assert session.run(queues[0].size()) == 2


def test_a_variable_and_a_queue_of_one_name_are_told_apart_by_an_error() -> None:
    v = tf.Variable(1.0, name="both")
    q = tf.FIFOQueue(3, I, shared_name="both", name="q")
    with tf.Session() as session:
        session.run(v.initializer)
        with pytest.raises(tf.errors.InvalidArgumentError, match="^'q' wants a queue, but the resource of that name is <Var"):
            session.run(q.size())


def test_a_reset_ends_the_steps_that_wait_at_a_queue_it_drops() -> None:
    resources = ResourceManager()
    with tf.Graph().as_default() as graph:
        q = tf.FIFOQueue(3, I, shapes=[()])
    context = Reference(graph)
    kernel = op_def("FIFOQueueV2").kernels["CPU"].function
    assert kernel is not None

    class Context:
        op = q.queue_ref.op

        def resource(self, factory: Callable[[str], Any], private: bool = False) -> Any:
            assert private, "without a shared_name it is the session's own"
            return resources.lookup_or_create(next(iter(two_jobs().inventory)), "box", "q", factory)

    queue = kernel(Context())
    waiting = queue.dequeue()
    resources.clear(["another"])
    assert not waiting.ready() and resources.names()
    resources.clear(["box"])
    with pytest.raises(tf.errors.CancelledError, match=r"^FIFOQueue 'q' was dropped from its task by a reset\."):
        waiting.result()
    assert resources.names() == [] and context.cells == {}


# ---- steps


def test_a_fed_array_may_be_changed_after_the_step_and_a_fetched_one_is_the_users() -> None:
    q = tf.FIFOQueue(9, I, shapes=[(2,)])
    x = tf.placeholder(I, [2])
    constant = tf.constant([[7, 7], [7, 7]])
    put, put_constant = q.enqueue(x), q.enqueue_many(constant)
    with tf.Session() as session:
        mine = np.array([1, 2], np.int32)
        session.run(put, {x: mine})
        mine[:] = 9
        np.testing.assert_array_equal(session.run(q.dequeue()), [1, 2])
        for _ in range(2):
            session.run(put_constant)
            got = session.run(q.dequeue_many(2))
            np.testing.assert_array_equal(got, [[7, 7], [7, 7]])
            got[:] = 0


def test_a_variable_that_was_enqueued_keeps_the_value_it_had() -> None:
    v = tf.Variable([1.0, 2.0])
    q = tf.FIFOQueue(9, tf.float32, shapes=[(2,)])
    put, change, got = q.enqueue(v), tf.assign_add(v, [1.0, 1.0]), q.dequeue_many(2)
    with tf.Session() as session:
        session.run(v.initializer)
        for op in (put, change, put, change):
            session.run(op)
        np.testing.assert_array_equal(session.run(got), [[1, 2], [2, 3]])


def test_steps_wait_for_elements_and_for_room() -> None:
    q = tf.FIFOQueue(2, I, shapes=[()])
    x = tf.placeholder(I, [])
    put, many, one = q.enqueue(x), q.dequeue_many(5), q.dequeue()
    with tf.Session() as session:
        consumer = Background(session.run, many)
        producers = [Background(session.run, put, {x: 1}) for _ in range(7)]
        np.testing.assert_array_equal(consumer.outcome(), [1] * 5)
        for producer in producers:
            assert producer.outcome() is None
        full = Background(session.run, put, {x: 2})
        until_waiting(queue_in(session, q), producers=1)
        assert session.run(one) == 1
        assert full.outcome() is None
        assert session.run([one, q.size()])[0] == 1


def test_a_step_that_times_out_takes_nothing_and_says_what_it_waited_for() -> None:
    q = tf.FIFOQueue(2, I, shapes=[()], name="q")
    with tf.Session() as session:
        session.run(q.enqueue_many([[1, 2]]))
        with pytest.raises(tf.errors.DeadlineExceededError, match="waiting for 3 elements of FIFOQueue 'q'"):
            session.run(q.dequeue_many(3), options=tf.RunOptions(timeout_in_ms=30))
        with pytest.raises(tf.errors.DeadlineExceededError, match="waiting for room for an element in FIFOQueue 'q'"):
            session.run(q.enqueue(3), options=tf.RunOptions(timeout_in_ms=30))
        session.run(q.close())
        np.testing.assert_array_equal(session.run(q.dequeue_up_to(9)), [1, 2])


def test_closing_the_session_cancels_its_waiting_steps() -> None:
    q = tf.FIFOQueue(2, I, shapes=[()])
    many = q.dequeue_many(3)
    session = tf.Session()
    session.run(q.enqueue(1))
    waiting = Background(session.run, many)
    until_waiting(queue_in(session, q), consumers=1)
    session.close()
    assert isinstance(waiting.outcome(), tf.errors.CancelledError)


def test_a_close_waits_for_the_enqueues_before_it_and_may_cancel_them() -> None:
    q = tf.FIFOQueue(1, I, shapes=[()], name="q")
    put, got, close, cancel = q.enqueue(1), q.dequeue(), q.close(), q.close(cancel_pending_enqueues=True)
    with tf.Session() as session:
        session.run(put)
        waiting = Background(session.run, put)
        until_waiting(queue_in(session, q), producers=1)
        closing = Background(session.run, close)
        until_waiting(queue_in(session, q), producers=2)
        assert not session.run(q.is_closed())
        session.run(got)
        assert (waiting.outcome(), closing.outcome(), session.run(q.is_closed())) == (None, None, True)
    with tf.Session() as session:
        session.run(put)
        waiting = Background(session.run, put)
        until_waiting(queue_in(session, q), producers=1)
        session.run(cancel)
        assert waiting.outcome().message == "FIFOQueue 'q' was closed with cancel_pending_enqueues=True while this waited."
        assert waiting.outcome().op is put


def test_a_kernel_never_waits_but_says_what_for() -> None:
    with tf.Graph().as_default() as graph:
        q = tf.FIFOQueue(1, I, shapes=[()])
        put, got = q.enqueue(5), q.dequeue()
    reference = Reference(graph)
    with pytest.raises(Blocked) as blocked:
        reference.run(got)
    pending = blocked.value.pending
    told: list[bool] = []
    pending.on_ready = lambda: told.append(pending.ready())
    reference.run(put)
    assert (told, [a.tolist() for a in pending.result()]) == ([True], [5])


def test_timeouts_of_single_operations_are_refused_as_in_tensorflow() -> None:
    q = tf.FIFOQueue(1, I, shapes=[()])
    for op in (
        apply_op("QueueDequeueV2", q.queue_ref, component_types=[I], timeout_ms=5, name="late")[0].op,
        apply_op("QueueEnqueueV2", q.queue_ref, [1], timeout_ms=0, name="late"),
        apply_op("QueueEnqueueManyV2", q.queue_ref, [[1]], timeout_ms=0, name="late"),
        apply_op("QueueDequeueManyV2", q.queue_ref, 1, component_types=[I], timeout_ms=1, name="late")[0].op,
        apply_op("QueueDequeueUpToV2", q.queue_ref, 1, component_types=[I], timeout_ms=1, name="late")[0].op,
    ):
        with tf.Session() as session, pytest.raises(tf.errors.InvalidArgumentError) as caught:
            session.run(op)
        told = f"{op.name!r} ({op.type}): timeout_ms={op.get_attr('timeout_ms')} is not supported, as in TensorFlow."
        assert caught.value.message == told


def test_a_handle_of_something_else_and_types_of_another_queue_are_refused() -> None:
    variable = apply_op("VarHandleOp", dtype=tf.float32, shape=())
    handles = tf.stack([tf.FIFOQueue(1, tf.float32).queue_ref])
    hidden = tf.gather(handles, 0)  # what is behind it is known in the step only
    with tf.Session() as session:
        for fetch, message in (
            (apply_op("QueueSizeV2", variable, name="a"), "'a' (QueueSizeV2) needs the handle of a queue, not <VariableCell 'VarHandleOp'"),
            (
                apply_op("QueueDequeueV2", hidden, component_types=[I], name="b"),
                "'b' (QueueDequeueV2) takes elements of types ['int32'], but those of FIFOQueue 'fifo_queue' are ['float32'].",
            ),
            (
                apply_op("QueueEnqueueV2", hidden, [np.int32(1)], name="c"),
                "FIFOQueue 'fifo_queue': component 0 must be float32, but int32 came.",
            ),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError) as caught:
                session.run(fetch)
            assert caught.value.message.startswith(message)


def test_equal_seeds_shuffle_alike() -> None:
    orders = []
    for seed in (3, 3, 4):
        with tf.Graph().as_default(), tf.Session() as session:
            q = tf.RandomShuffleQueue(50, 0, I, shapes=[()], seed=seed)
            session.run(q.enqueue_many([list(range(50))]))
            orders.append(session.run(q.dequeue_many(50)).tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(50)) != orders[2]


def test_a_queue_works_inside_a_condition() -> None:
    q = tf.FIFOQueue(9, I, shapes=[()])
    p = tf.placeholder(tf.bool, [])
    size = tf.cond(p, lambda: tf.with_dependencies([q.enqueue(4)], tf.constant(1)), lambda: q.dequeue())
    assert size.shape.as_list() == []
    with tf.Session() as session:
        assert [session.run(size, {p: flag}) for flag in (True, True, False)] == [1, 1, 4]
        assert session.run(q.size()) == 1
