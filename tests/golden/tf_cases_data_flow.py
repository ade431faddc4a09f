"""Golden cases of queues, as far as a step of theirs doesn't have to wait. See tf_case.py."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden.tf_case import Builder, case


@case(dynamic=True)
def queue_fifo(tf: Any, b: Builder) -> None:
    b.inspect = False
    numbers, words = b.ph(np.array([1, 2, 3], np.int32), "numbers"), b.ph(np.array(["one", "two", "three"]), "words")
    pair = b.ph(b.normal(2), "pair")
    q = tf.FIFOQueue(10, [tf.int32, tf.string], shapes=[(), ()], name="q")
    b.run(targets=q.enqueue([7, "seven"]))
    b.run(targets=q.enqueue_many([numbers, words]))
    b.run(fetch=[q.size(), q.is_closed()])
    b.run(fetch=q.dequeue())
    b.run(fetch=q.dequeue_many(2))
    b.run(fetch=q.dequeue_many(0))
    b.run(targets=q.enqueue_many([numbers, words], name="again"))
    b.run(fetch=q.dequeue_up_to(2))
    b.run(targets=q.close())
    b.run(targets=q.close(), error="CancelledError")
    b.run(targets=q.enqueue([1, "late"]), error="CancelledError")
    b.run(fetch=q.dequeue_many(9), error="OutOfRangeError")
    b.run(fetch=[q.size(), q.is_closed()])
    b.run(fetch=q.dequeue_up_to(9))
    b.run(fetch=q.dequeue(), error="OutOfRangeError")
    b.run(fetch=q.dequeue_up_to(9), error="OutOfRangeError")
    b.run(targets=q.close(cancel_pending_enqueues=True))
    with tf.name_scope("any"):
        shapeless = tf.FIFOQueue(3, tf.float32)
        b.run(targets=shapeless.enqueue(pair))
        b.run(targets=shapeless.enqueue_many([pair]))
        b.run(fetch=shapeless.dequeue_many(1), error="InvalidArgumentError")
        b.run(fetch=[shapeless.dequeue()])
        b.run(fetch=[shapeless.dequeue() * 2.0])


@case
def queue_names(tf: Any, b: Builder) -> None:
    b.inspect = False
    q = tf.FIFOQueue(5, [tf.int32, tf.float32], shapes=[(), (2,)], names=["n", "xy"])
    b.run(targets=q.enqueue({"xy": [1.0, 2.0], "n": 3}))
    b.run(targets=q.enqueue_many({"xy": [[3.0, 4.0], [5.0, 6.0]], "n": [4, 5]}))
    one, two = q.dequeue(), q.dequeue_many(2)
    b.run(fetch=[one["n"], one["xy"]])
    b.run(fetch=[two["n"], two["xy"]])


@case
def queue_padding(tf: Any, b: Builder) -> None:
    b.inspect = False
    rows, words = tf.placeholder(tf.float32, name="rows"), tf.placeholder(tf.string, name="words")
    q = tf.PaddingFIFOQueue(9, [tf.float32, tf.string, tf.bool], shapes=[(None, 2), (None,), ()])
    put = q.enqueue([rows, words, True])
    b.run(targets=put, feeds={rows: b.normal(1, 2), words: ["x", "yy"]})
    b.run(targets=put, feeds={rows: b.normal(3, 2), words: np.array([], "S1")})
    b.run(targets=put, feeds={rows: b.normal(2, 3), words: ["a"]}, error="InvalidArgumentError")
    b.run(fetch=q.dequeue_many(2))
    b.run(targets=q.enqueue_many([rows, words, [True, False]]), feeds={rows: b.normal(2, 2, 2), words: [["a"], ["b"]]})
    b.run(targets=put, feeds={rows: b.normal(1, 2), words: ["x", "yy"]})
    b.run(targets=q.close())
    b.run(fetch=q.dequeue())
    b.run(fetch=q.dequeue_up_to(5))


@case
def queue_priority(tf: Any, b: Builder) -> None:
    b.inspect = False
    q = tf.PriorityQueue(9, [tf.string, tf.int32], shapes=[(), (2,)])
    words = ["five", "one", "three", "minus two"]
    b.run(targets=q.enqueue_many(([5, 1, 3, -2], words, [[1, 2], [3, 4], [5, 6], [7, 8]])))
    b.run(targets=q.enqueue((2, "two", [9, 10])))
    b.run(fetch=q.dequeue())
    b.run(fetch=q.dequeue_many(3))  # not dequeue_up_to after a close: TensorFlow loses the elements there
    b.run(targets=q.close())
    b.run(fetch=q.dequeue())


@case
def queue_shuffle(tf: Any, b: Builder) -> None:
    """Which element comes is another random number than TensorFlow's: only what doesn't depend on it."""
    b.inspect = False
    q = tf.RandomShuffleQueue(9, 2, tf.int32, shapes=[()], seed=3)
    b.run(targets=q.enqueue_many([[4, 4, 4, 4]]))
    b.run(fetch=[q.dequeue_many(2)])
    b.run(targets=q.close())
    b.run(fetch=[q.dequeue_many(3)], error="OutOfRangeError")
    b.run(fetch=[q.dequeue_up_to(3)])


@case
def queue_shared(tf: Any, b: Builder) -> None:
    b.inspect = False
    first, second = (tf.FIFOQueue(3, tf.int32, shapes=[()], shared_name="shared", name=name) for name in ("first", "second"))
    own = tf.FIFOQueue(3, tf.int32, shapes=[()], name="own")
    b.run(targets=first.enqueue(1))
    b.run(targets=second.enqueue(2))
    b.run(targets=own.enqueue(9))
    b.run(fetch=[first.size(), second.size(), own.size()])
    b.run(fetch=[second.dequeue_many(2)])
    others = [
        tf.FIFOQueue(4, tf.int32, shapes=[()], shared_name="shared"),
        tf.FIFOQueue(3, tf.int64, shapes=[()], shared_name="shared"),
        tf.FIFOQueue(3, tf.int32, shared_name="shared"),
        tf.PaddingFIFOQueue(3, tf.int32, shapes=[()], shared_name="shared"),
    ]
    for other in others:
        b.run(fetch=[other.size()], error="InvalidArgumentError")
    with tf.container("elsewhere"):
        apart = tf.FIFOQueue(4, tf.int64, shapes=[()], shared_name="shared")
    b.run(fetch=[apart.size()])


@case
def queue_refusals(tf: Any, b: Builder) -> None:
    b.inspect = False
    numbers, pairs = tf.placeholder(tf.int32, name="numbers"), tf.placeholder(tf.float32, name="pairs")
    count = tf.placeholder(tf.int32, [], name="count")
    q = tf.FIFOQueue(9, [tf.int32, tf.float32], shapes=[(), (2,)])
    put, put_many, many = q.enqueue([numbers, pairs]), q.enqueue_many([numbers, pairs]), q.dequeue_many(count)
    good = np.ones((2, 2), np.float32)
    for step, left, right in (
        (put, np.int32([1]), good[0]),
        (put, np.int32(1), np.ones(3, np.float32)),
        (put_many, np.int32([1, 2]), good[:1]),
        (put_many, np.int32([1, 2]), good[:, :1]),
        (put_many, np.int32(1), good),
    ):
        b.run(targets=step, feeds={numbers: left, pairs: right}, error="InvalidArgumentError")
    b.run(fetch=[q.size()], feeds={})
    b.run(targets=put_many, feeds={numbers: np.zeros(0, np.int32), pairs: good[:0]})
    b.run(targets=put_many, feeds={numbers: np.int32([1, 2]), pairs: good})
    b.run(fetch=many, feeds={count: np.int32(-1)}, error="InvalidArgumentError")
    b.run(fetch=many, feeds={count: np.int32(2)})


@case
def queue_from_list(tf: Any, b: Builder) -> None:
    b.inspect = False
    index = tf.placeholder(tf.int32, [], name="index")
    queues = [tf.FIFOQueue(3, tf.int32, shapes=[(2,)]) for _ in range(2)]
    chosen = tf.QueueBase.from_list(index, queues)
    b.run(targets=chosen.enqueue([[5, 6]]), feeds={index: np.int32(1)})
    b.run(fetch=[q.size() for q in queues], feeds={})
    b.run(fetch=[chosen.dequeue()], feeds={index: np.int32(1)})
    b.run(fetch=[chosen.size()], feeds={index: np.int32(2)}, error="InvalidArgumentError")
