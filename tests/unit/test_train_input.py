"""Input pipelines: every item comes as often as asked for, in the right batches. Names and refusals follow TensorFlow's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpirt as tf

I = tf.int32  # noqa: E741


@pytest.fixture(autouse=True)
def graph() -> Iterator[tf.Graph]:
    with tf.Graph().as_default() as graph:
        yield graph


def results(fetch: Any, at_most: int = 10_000) -> list[Any]:
    """Values of ``fetch`` until the input has ended, with all runners of the graph."""
    coord = tf.train.Coordinator()
    found: list[Any] = []
    with tf.Session() as session:
        session.run([tf.global_variables_initializer(), tf.local_variables_initializer()])
        threads = tf.train.start_queue_runners(session, coord)
        try:
            while len(found) < at_most:
                found.append(session.run(fetch))
        except tf.errors.OutOfRangeError:
            pass
        coord.request_stop()
        coord.join(threads, stop_grace_period_secs=20)
    return found


def types_made() -> list[tuple[str, str]]:
    return [(op.name, op.type) for op in tf.get_default_graph().get_operations() if op.type != "Const"]


# -------------------------------------------------------------------------------------------------------- producers


def test_what_is_limited_to_epochs_comes_so_often_and_then_is_out_of_range() -> None:
    limited = tf.train.limit_epochs([1, 2], 2)
    assert (limited.op.name, limited.shape.as_list()) == ("limit_epochs", [2])
    assert [v.name for v in tf.local_variables()] == ["limit_epochs/epochs:0"]
    assert tf.global_variables() == tf.trainable_variables() == []
    with tf.Session() as session:
        session.run(tf.local_variables_initializer())
        for _ in range(2):
            np.testing.assert_array_equal(session.run(limited), [1, 2])
        with pytest.raises(tf.errors.OutOfRangeError, match="reached its limit of 2"):
            session.run(limited)
    value = tf.constant(3)
    assert tf.train.limit_epochs(value) is value
    for number in (0, -1):
        with pytest.raises(ValueError, match=rf"^num_epochs must be > 0 not {number}\.$"):
            tf.train.limit_epochs(value, number)


def test_a_producer_gives_out_each_item_once_an_epoch_in_order_or_mixed() -> None:
    queue = tf.train.input_producer(tf.constant([[1, 2], [3, 4], [5, 6]]), num_epochs=2, shuffle=False, capacity=2)
    assert (queue.name, queue.dtypes, queue.shapes) == ("input_producer", [I], [tf.TensorShape([2])])
    assert [v.tolist() for v in results(queue.dequeue())] == [[1, 2], [3, 4], [5, 6]] * 2


def test_a_producer_mixes_anew_in_each_epoch_as_its_seed_says() -> None:
    orders = []
    for seed in (4, 4, 5):
        with tf.Graph().as_default():
            values = [int(v) for v in results(tf.train.range_input_producer(20, num_epochs=2, seed=seed).dequeue())]
        epochs = values[:20], values[20:]
        assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
        assert epochs[0] != epochs[1] != list(range(20))
        orders.append(values)
    assert orders[0] == orders[1] != orders[2]


def test_a_producer_without_epochs_goes_on() -> None:
    queue = tf.train.range_input_producer(3, shuffle=False, name="numbers")
    assert queue.name == "numbers"
    assert [int(v) for v in results(queue.dequeue(), at_most=10)] == [0, 1, 2] * 3 + [0]
    assert tf.local_variables() == []


def test_names_of_files_come_from_a_producer_of_strings() -> None:
    queue = tf.train.string_input_producer(["a", "b"], num_epochs=2, shuffle=False)
    assert (queue.dtypes, queue.shapes) == ([tf.string], [tf.TensorShape([])])
    assert results(queue.dequeue()) == [b"a", b"b"] * 2
    with pytest.raises(ValueError, match=r"^string_input_producer requires a non-null input tensor$"):
        tf.train.string_input_producer([])
    with pytest.raises(TypeError, match="Expected string"):
        tf.train.string_input_producer([1])
    tf.train.string_input_producer(tf.placeholder_with_default(np.array([], object), [None]))
    put = tf.get_collection(tf.GraphKeys.QUEUE_RUNNERS)[-1].enqueue_ops[0]
    with tf.Session() as session, pytest.raises(tf.errors.InvalidArgumentError, match="requires a non-null input tensor"):
        session.run(put)


def test_slices_of_several_tensors_belong_together() -> None:
    rows = tf.train.slice_input_producer([tf.constant([1, 2, 3]), tf.constant([[1.0], [2.0], [3.0]])], num_epochs=2)
    assert [t.shape.as_list() for t in rows] == [[], [1]]
    found = results(rows)
    assert Counter(int(a) for a, _ in found) == {1: 2, 2: 2, 3: 2}
    assert all(b == [a] for a, b in found)
    with pytest.raises(ValueError, match=r"^Expected at least one tensor in slice_input_producer\(\)\.$"):
        tf.train.slice_input_producer([])


def test_the_shape_of_an_item_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"^Either `input_tensor` must have a fully defined shape or `element_shape` must be specified"):
        tf.train.input_producer(tf.placeholder(I))
    assert tf.train.input_producer(tf.placeholder(I, [None]), element_shape=[]).shapes == [tf.TensorShape([])]
    with pytest.raises(ValueError, match=r"^Shapes \(2,\) and \(3,\) are not compatible$"):
        tf.train.input_producer(tf.placeholder(I, [None, 2]), element_shape=[3])
    with pytest.raises(ValueError, match=r"^Shape \(\) must have rank at least 1$"):
        tf.train.input_producer(tf.constant(3))


def test_what_cancels_a_producer_may_be_given() -> None:
    cancel = tf.no_op()
    tf.train.input_producer([1, 2], cancel_op=cancel)
    tf.train.string_input_producer(["a"], cancel_op=cancel)
    assert [runner.cancel_op for runner in tf.get_collection(tf.GraphKeys.QUEUE_RUNNERS)] == [cancel, cancel]


# ---------------------------------------------------------------------------------------------------------- batches


def item(epochs: int = 1, number: int = 10) -> Any:
    return tf.train.range_input_producer(number, num_epochs=epochs, shuffle=False).dequeue()


def test_batches_keep_the_order_and_drop_or_keep_what_is_left_at_the_end() -> None:
    x = item()
    numbers, squares = tf.train.batch([x, tf.stack([x, x * x])], 4)
    assert (numbers.op.name, numbers.shape.as_list(), squares.shape.as_list()) == ("batch", [4], [4, 2])
    assert [a.tolist() for a, _ in results([numbers, squares])] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with tf.Graph().as_default():
        x = item()
        numbers, squares = tf.train.batch([x, tf.stack([x, x * x])], 4, allow_smaller_final_batch=True)
        assert (numbers.shape.as_list(), squares.shape.as_list()) == ([None], [None, 2])
        found = results([numbers, squares])
    assert [a.tolist() for a, _ in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert found[2][1].tolist() == [[8, 64], [9, 81]]


def test_batches_may_be_larger_than_the_queue() -> None:
    numbers = tf.train.batch([item(number=40)], 20, capacity=3)
    assert [a.tolist() for a in results(numbers)] == [list(range(20)), list(range(20, 40))]


def test_several_threads_compute_each_example_once() -> None:
    numbers = tf.train.batch([item(number=100)], 7, num_threads=4, allow_smaller_final_batch=True)
    assert len(tf.get_collection(tf.GraphKeys.QUEUE_RUNNERS)[-1].enqueue_ops) == 4
    assert sorted(np.concatenate(results(numbers)).tolist()) == list(range(100))


def test_batches_have_the_form_of_the_examples() -> None:
    x = tf.constant(3)
    assert isinstance(tf.train.batch([x], 4), tf.Tensor)
    assert isinstance(tf.train.batch(x, 4), tf.Tensor)
    assert [t.dtype for t in tf.train.batch((x, 1.5), 4)] == [I, tf.float32]
    one, two = tf.train.batch({"a": x}, 4), tf.train.batch({"b": [1.0, 2.0], "a": x}, 4)
    assert {key: t.shape.as_list() for key, t in one.items()} == {"a": [4]}
    assert {key: t.shape.as_list() for key, t in two.items()} == {"a": [4], "b": [4, 2]}
    assert tf.train.batch([x], tf.placeholder(I, [])).shape.as_list() == [None]
    assert tf.train.batch([tf.placeholder(I)], 4, shapes=[(2,)]).shape.as_list() == [4, 2]


def test_rows_of_batches_are_examples_if_asked_for() -> None:
    x = item(number=3)
    numbers = tf.train.batch([tf.stack([2 * x, 2 * x + 1])], 3, enqueue_many=True)
    assert numbers.shape.as_list() == [3]
    assert [a.tolist() for a in results(numbers)] == [[0, 1, 2], [3, 4, 5]]


def test_examples_of_different_lengths_are_filled_up() -> None:
    x = item(number=4)
    rows = tf.train.batch([tf.ones([x], I), x], 2, dynamic_pad=True)
    assert [t.shape.as_list() for t in rows] == [[2, None], [2]]
    found = results(rows)
    assert [a.tolist() for a, _ in found] == [[[0], [1]], [[1, 1, 0], [1, 1, 1]]]


def test_batches_are_joined_from_several_sources() -> None:
    sources = [[item(number=30), tf.constant([float(i)])] for i in range(3)]
    numbers, origins = tf.train.batch_join(sources, 5)
    assert (numbers.op.name, numbers.shape.as_list(), origins.shape.as_list()) == ("batch_join", [5], [5, 1])
    assert len(tf.get_collection(tf.GraphKeys.QUEUE_RUNNERS)[-1].enqueue_ops) == 3
    found = [(int(o), int(n)) for a, b in results([numbers, origins]) for n, [o] in zip(a, b, strict=True)]
    for origin in range(3):
        assert [n for o, n in found if o == origin] == list(range(30)), "each source keeps its order"
    assert list(tf.train.batch_join([{"a": 1}, {"a": 3}], 4)) == ["a"]


def test_shuffled_batches_have_every_example_once_in_another_order() -> None:
    orders = []
    for _ in range(2):
        with tf.Graph().as_default():
            numbers = tf.train.shuffle_batch([item(number=60)], 7, 40, 20, seed=3, allow_smaller_final_batch=True)
            assert numbers.op.name == "shuffle_batch"
            orders.append(np.concatenate(results(numbers)).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))
    assert orders[0] != list(range(60))
    joined = tf.train.shuffle_batch_join([[item(number=20)], [item(number=20)]], 8, 30, 10)
    assert joined.op.name == "shuffle_batch_join"
    tf.train.shuffle_batch([1], 7, 40, 20, seed=3)
    tf.train.shuffle_batch_join([[1]], 7, 40, 20, seed=3)
    queues = [op for op in tf.get_default_graph().get_operations() if op.type == "RandomShuffleQueueV2"]
    assert [[op.get_attr(name) for name in ("capacity", "min_after_dequeue", "seed2")] for op in queues[1:]] == [[40, 20, 3]] * 2
    assert Counter(np.concatenate(results(joined)).tolist()) == dict.fromkeys(range(20), 2)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda x: tf.train.batch([], 4), ValueError, "Expected at least one tensor in batch()."),
        (lambda x: tf.train.batch([tf.placeholder(I, name="p")], 4), ValueError,
         "Cannot infer the rank of <mpirt.Tensor 'p:0' shape=<unknown> dtype=int32>: pass shapes."),
        (lambda x: tf.train.batch([tf.placeholder(I, [None])], 4), ValueError,
         "All shapes must be fully defined: ['(?,)']. Sizes that differ: use a PaddingFIFOQueue."),
        (lambda x: tf.train.batch([x], 4, num_threads=0), ValueError, "Must provide queue and enqueue_ops."),
        (lambda x: tf.train.batch([x], 4, enqueue_many=True), ValueError, "Shape () must have rank at least 1"),
        (lambda x: tf.train.batch_join([{"a": x}, {"b": x}], 4), ValueError,
         "All entries of tensors_list must be dictionaries with the same keys: [{'a': <mpirt.Tensor 'x:0' shape=() dtype=int32>},"
         " {'b': <mpirt.Tensor 'x:0' shape=() dtype=int32>}]."),
        (lambda x: tf.train.batch_join([[x], [x, x]], 4), TypeError,
         "All entries of tensors_list must have the same types: [<mpirt.Tensor 'x:0' shape=() dtype=int32>],"
         " [<mpirt.Tensor 'x:0' shape=() dtype=int32>, <mpirt.Tensor 'x:0' shape=() dtype=int32>]."),
        (lambda x: tf.train.batch_join([[[1]], [[3, 4]]], 4), ValueError, "Shapes (1,) and (2,) are not compatible"),
        (lambda x: tf.train.batch_join(x, 4), ValueError,
         "tensors_list must be a list with at least one entry, not <mpirt.Tensor 'x:0' shape=() dtype=int32>."),
        (lambda x: tf.train.shuffle_batch([x], 4, 3, 5), ValueError,
         "min_after_dequeue 5 must be < capacity 3, for 'shuffle_batch/random_shuffle_queue' (RandomShuffleQueueV2) with inputs []."),
    ],
)  # fmt: skip
def test_examples_that_make_no_batch_are_refused(make: Callable[[Any], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        make(tf.constant(1, name="x"))
    assert str(caught.value) == message


def test_the_operations_are_tensorflows_but_for_the_summary() -> None:
    tf.train.batch([tf.constant(3)], 4)
    assert types_made() == [
        ("batch/fifo_queue", "FIFOQueueV2"),
        ("batch/fifo_queue_enqueue", "QueueEnqueueV2"),
        ("batch/fifo_queue_Close", "QueueCloseV2"),
        ("batch/fifo_queue_Close_1", "QueueCloseV2"),
        ("batch", "QueueDequeueManyV2"),
    ]
