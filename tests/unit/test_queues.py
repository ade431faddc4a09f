"""The queue as a state machine: whose turn it is, what a close and a cancel do, and that nothing is lost or doubled."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt import dtypes, errors
from mpirt.graph.graph import Graph
from mpirt.ops.queues import Attempt, Queue, QueueSpec


def queue(
    kind: str = "FIFOQueue", capacity: int = 3, shapes: Any = ((),), min_after: int = 0, seed: int = 1, dtype: Any = dtypes.int64
) -> Queue:
    types = (dtypes.int64,) * len(shapes or ((),)) if dtype is dtypes.int64 else (dtype,)
    rng = np.random.Generator(np.random.Philox(seed))
    return Queue("q", QueueSpec(kind, capacity, types, shapes or (), min_after), "train.py:7", rng)


def put(q: Queue, *values: int) -> Attempt:
    """One element, or a batch of any other number."""
    return q.enqueue([np.array(values[0])]) if len(values) == 1 else q.enqueue_many([np.array(values, np.int64)])


def outcome(attempt: Attempt) -> Any:
    """The word waiting, the error's class name, None, or the elements as a list."""
    if not attempt.ready():
        return "waiting"
    try:
        result = attempt.result()
    except errors.OpError as error:
        return type(error).__name__
    return None if result is None else np.atleast_1d(result[0]).tolist()


def message(attempt: Attempt) -> str:
    with pytest.raises(errors.OpError) as caught:
        attempt.result()
    return str(caught.value)


def drained(q: Queue) -> list[int]:
    """What is in it, by closing it."""
    q.close(cancel_pending_enqueues=True)
    found = outcome(q.dequeue_many(10**6, up_to=True))
    return [] if found == "OutOfRangeError" else found


# ---- order and blocking


def test_elements_leave_in_the_order_in_which_they_came() -> None:
    q = queue(capacity=4)
    put(q, 1)
    put(q, 2, 3, 4)
    assert [outcome(q.dequeue()), outcome(q.dequeue_many(2)), outcome(q.dequeue())] == [[1], [2, 3], [4]]


def test_a_queue_of_negative_capacity_is_never_full() -> None:
    q = queue(capacity=-1)
    assert (outcome(put(q, *range(1000))), outcome(put(q, 1000)), q.size) == (None, None, 1001)


def test_a_producer_waits_while_the_queue_is_full_and_a_consumer_while_it_is_empty() -> None:
    q = queue(capacity=1)
    early = q.dequeue()
    assert not early.ready()
    first, second, third = put(q, 1), put(q, 2), put(q, 3)
    assert [outcome(a) for a in (early, first, second, third)] == [[1], None, None, "waiting"]
    assert (q.size, outcome(q.dequeue()), outcome(third)) == (1, [2], None)


def test_consumers_are_served_in_the_order_in_which_they_came_however_little_the_later_one_wants() -> None:
    q = queue(capacity=10)
    many, one = q.dequeue_many(3), q.dequeue()
    put(q, 1, 2)
    assert (many.ready(), one.ready(), q.size) == (False, False, 0)
    put(q, 3, 4)
    assert (outcome(many), outcome(one)) == ([1, 2, 3], [4])


def test_producers_are_served_in_the_order_in_which_they_came_and_a_batch_stays_together() -> None:
    q = queue(capacity=2)
    batch, single = put(q, 1, 2, 3, 4), put(q, 9)
    assert [outcome(q.dequeue()) for _ in range(5)] == [[1], [2], [3], [4], [9]]
    assert (outcome(batch), outcome(single)) == (None, None)


def test_a_batch_may_be_larger_than_the_capacity_on_both_sides() -> None:
    q = queue(capacity=2)
    wanted = q.dequeue_many(7)
    given_ = put(q, *range(8))
    assert (outcome(wanted), outcome(given_), q.size) == (list(range(7)), None, 1)


def test_a_queue_of_capacity_0_hands_elements_from_hand_to_hand() -> None:
    q = queue(capacity=0)
    producer = put(q, 5)
    assert not producer.ready()
    assert (outcome(q.dequeue()), outcome(producer)) == ([5], None)


def test_batches_of_no_elements_end_at_once_even_in_a_full_or_closed_queue() -> None:
    q = queue(capacity=1)
    put(q, 1)
    waiting = put(q, 2)
    assert (outcome(put(q)), outcome(q.dequeue_many(0)), outcome(waiting)) == (None, [], "waiting")
    behind_another = queue()
    another = behind_another.dequeue()
    assert (outcome(behind_another.dequeue_many(0)), outcome(another)) == ([], "waiting")
    q.close(cancel_pending_enqueues=True)
    assert (outcome(put(q)), outcome(q.dequeue_many(0)), outcome(q.dequeue_many(0, up_to=True))) == (None, [], [])


def test_who_asked_to_be_told_is_told_once_and_holding_no_lock() -> None:
    q = queue(capacity=1)
    told: list[int] = []
    waiting = q.dequeue()
    waiting.on_ready = lambda: told.append(q.size)  # would block for ever if the lock were held
    put(q, 1)
    put(q, 2)
    assert told == [0]
    assert waiting.describe() == "an element of FIFOQueue 'q'"
    assert put(q, 3).describe() == "room for an element in FIFOQueue 'q'"
    assert q.dequeue_many(4).describe() == "4 elements of FIFOQueue 'q'"


# ---- closing


def test_close_lets_the_waiting_producers_in_first_then_refuses_and_consumers_take_the_rest() -> None:
    q = queue(capacity=1)
    put(q, 1)
    second, closing, again, late = put(q, 2), q.close(), q.close(), put(q, 3)
    assert [outcome(a) for a in (second, closing, again, late)] == ["waiting"] * 4
    assert (q.is_closed, closing.describe()) == (False, "the enqueues before the close of FIFOQueue 'q'")
    assert outcome(q.dequeue()) == [1]
    assert (outcome(second), outcome(closing), q.is_closed) == (None, None, True)
    assert message(again) == "FIFOQueue 'q' is already closed."
    assert message(late) == "FIFOQueue 'q' is closed."
    assert outcome(q.dequeue()) == [2]
    assert message(q.dequeue()) == "FIFOQueue 'q' is closed and has insufficient elements (requested 1, current size 0)."


def test_a_batch_that_a_closed_queue_cannot_fill_is_out_of_range_and_its_elements_stay() -> None:
    q = queue()
    waiting = q.dequeue_many(4)
    put(q, 1, 2, 3)
    q.close()
    assert message(waiting) == "FIFOQueue 'q' is closed and has insufficient elements (requested 4, current size 3)."
    assert (q.size, outcome(q.dequeue_many(5)), outcome(q.dequeue_many(5, up_to=True))) == (3, "OutOfRangeError", [1, 2, 3])
    assert outcome(q.dequeue_many(5, up_to=True)) == "OutOfRangeError"


def test_when_a_queue_closes_its_waiting_consumers_share_what_is_left_in_their_order() -> None:
    q = queue()
    up_to, one = q.dequeue_many(4, up_to=True), q.dequeue()
    put(q, 1, 2)
    q.close()
    assert (outcome(up_to), outcome(one)) == ([1, 2], "OutOfRangeError")


def test_close_with_cancel_ends_waiting_producers_and_closes_and_may_be_repeated() -> None:
    q = queue(capacity=2)
    batch, single, closing = put(q, 7, 8, 9), put(q, 1), q.close()
    assert outcome(q.close(cancel_pending_enqueues=True)) is None
    assert message(batch) == (
        "FIFOQueue 'q' was closed with cancel_pending_enqueues=True while this waited."
        " The first 2 of its 3 elements are in and stay, the others never come."
    )
    assert message(single) == message(closing) == "FIFOQueue 'q' was closed with cancel_pending_enqueues=True while this waited."
    assert (outcome(q.close(cancel_pending_enqueues=True)), outcome(q.close())) == (None, "CancelledError")
    assert drained(q) == [7, 8]


def test_a_queue_that_is_dropped_ends_all_who_wait() -> None:
    q, empty = queue(capacity=1), queue()
    put(q, 1)
    told: list[int] = []
    all_waiting = (put(q, 2), q.close(), empty.dequeue())
    for i, waiting in enumerate(all_waiting):
        waiting.on_ready = lambda i=i: told.append(i)
    q.discard()
    empty.discard()
    assert told == [0, 1, 2]
    assert {message(waiting) for waiting in all_waiting} == {"FIFOQueue 'q' was dropped from its task by a reset."}
    assert (q.size, outcome(put(q, 3)), outcome(q.dequeue())) == (0, "CancelledError", "OutOfRangeError")


# ---- cancelling


def test_a_cancelled_consumer_takes_nothing_and_those_behind_it_get_what_it_waited_for() -> None:
    q = queue()
    many, one = q.dequeue_many(3), q.dequeue()
    put(q, 1, 2)
    assert (many.cancel(), outcome(one), q.size) == (True, [1], 1)
    assert many.cancel(), "a second time changes nothing"
    assert drained(q) == [2]


def test_what_came_to_its_end_before_is_not_cancelled() -> None:
    q = queue()
    done, waiting = put(q, 1), q.dequeue_many(2)
    put(q, 2)
    assert (done.cancel(), waiting.cancel(), outcome(waiting)) == (False, False, [1, 2])


def test_a_cancelled_batch_of_which_nothing_has_left_is_withdrawn_whole() -> None:
    q = queue(capacity=3)
    put(q, 1)
    batch, behind = put(q, 7, 8, 9), put(q, 2)
    assert (q.size, batch.cancel(), outcome(behind)) == (3, True, None)
    assert drained(q) == [1, 2]


def test_a_cancelled_batch_of_which_something_has_left_says_how_much_is_in() -> None:
    q = queue(capacity=2)
    batch, behind = put(q, 6, 7, 8, 9), put(q, 2)
    assert (outcome(q.dequeue()), batch.cancel()) == ([6], False)
    assert message(batch) == (
        "FIFOQueue 'q': a batch was cancelled half-way."
        " The first 3 of its 4 elements are in, of which some have left; the others never come."
    )
    assert (outcome(q.dequeue()), outcome(behind), drained(q)) == ([7], None, [8, 2])


def test_a_cancelled_producer_or_close_makes_room_for_those_behind() -> None:
    q = queue(capacity=1)
    put(q, 1)
    waiting, closing, behind = put(q, 2), q.close(), put(q, 3)
    assert (waiting.cancel(), q.is_closed, outcome(behind)) == (True, True, "CancelledError")
    q = queue(capacity=1)
    put(q, 1)
    waiting, closing, behind = put(q, 2), q.close(), put(q, 3)
    assert (closing.cancel(), outcome(q.dequeue()), outcome(q.dequeue()), outcome(behind), q.is_closed) == (True, [1], [2], None, False)
    assert outcome(waiting) is None


class Model:
    """A FIFO queue by another route, TensorFlow's: the first consumer in line gathers elements one by one.

    A cancel, and a close, puts what was gathered back in front.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.pool: deque[tuple[int, int]] = deque()  # (value, number of the producer)
        self.gathered: list[tuple[int, int]] = []
        self.left: set[int] = set()  # producers of whom a consumer has something
        self.producers: list[Any] = []  # (id, elements still to come) or (id, "close")
        self.consumers: list[Any] = []  # (id, how many, up to)
        self.outcomes: dict[int, Any] = {}
        self.closed = False

    def flush(self) -> None:
        while self.step():
            pass

    def step(self) -> bool:
        if self.producers:
            who, what = self.producers[0]
            if self.closed:
                self.outcomes[who] = "CancelledError"
            elif what == "close":
                self.closed, self.outcomes[who] = True, None
            elif len(self.pool) < self.capacity:
                self.pool.append((what.popleft(), who))
                if what:
                    self.gather()
                    return True
                self.outcomes[who] = None
            if who in self.outcomes:
                self.producers.pop(0)
                self.gather()
                return True
        return self.gather()

    def gather(self) -> bool:
        if not self.consumers:
            return False
        who, number, up_to = self.consumers[0]
        changed = bool(self.pool) and len(self.gathered) < number
        while self.pool and len(self.gathered) < number:
            self.gathered.append(self.pool.popleft())
        if len(self.gathered) == number or (self.closed and up_to and self.gathered):
            self.outcomes[who] = [value for value, _ in self.gathered]
            self.left |= {producer for _, producer in self.gathered}
            self.gathered = []
        elif self.closed:
            self.put_back()
            self.outcomes[who] = "OutOfRangeError"
        else:
            return changed
        self.consumers.pop(0)
        return True

    def put_back(self) -> None:
        self.pool.extendleft(reversed(self.gathered))
        self.gathered = []

    def cancel(self, who: int) -> bool:
        if who in self.outcomes:
            return False
        if self.consumers and self.consumers[0][0] == who:
            self.put_back()
        self.consumers = [c for c in self.consumers if c[0] != who]
        self.producers = [p for p in self.producers if p[0] != who]
        if who in self.left:
            self.outcomes[who] = "CancelledError"
        else:
            self.pool = deque(e for e in self.pool if e[1] != who)
            self.gathered = [e for e in self.gathered if e[1] != who]
        self.flush()
        return who not in self.outcomes

    def close_and_cancel(self) -> None:
        self.closed = True
        for who, _ in self.producers:
            self.outcomes[who] = "CancelledError"
        self.producers = []
        self.flush()


calls = st.lists(
    st.one_of(
        st.tuples(st.just("enqueue")),
        st.tuples(st.just("enqueue_many"), st.integers(2, 6)),
        st.tuples(st.just("dequeue")),
        st.tuples(st.just("dequeue_many"), st.integers(1, 6)),
        st.tuples(st.just("dequeue_up_to"), st.integers(1, 6)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("cancel the last")),
        st.tuples(st.just("close")),
        st.tuples(st.just("close and cancel")),
    ),
    max_size=30,
)


@given(st.integers(1, 4), calls)
def test_any_interleaving_gives_what_a_queue_gives_that_gathers_and_puts_back(capacity: int, steps: list[tuple[Any, ...]]) -> None:
    q, model, numbers = queue(capacity=capacity), Model(capacity), count()
    attempts: list[Attempt] = []
    told: Counter[int] = Counter()
    cancelled: set[int] = set()
    given_: dict[int, list[int]] = {}

    for what, *arguments in steps:
        who = len(attempts)
        made: Attempt | None = None
        if what in ("enqueue", "enqueue_many"):
            values = [next(numbers) for _ in range(arguments[0] if arguments else 1)]
            made = put(q, *values)
            given_[who] = values
            model.producers.append((who, deque(values)))
        elif what == "dequeue":
            made = q.dequeue()
            model.consumers.append((who, 1, False))
        elif what in ("dequeue_many", "dequeue_up_to"):
            made = q.dequeue_many(arguments[0], up_to=what == "dequeue_up_to")
            model.consumers.append((who, arguments[0], what == "dequeue_up_to"))
        elif what == "close":
            made = q.close()
            model.producers.append((who, "close"))
        elif what == "close and cancel":
            q.close(cancel_pending_enqueues=True)
            model.close_and_cancel()
        elif attempts:
            chosen = arguments[0] % len(attempts) if arguments else len(attempts) - 1
            if chosen not in cancelled:
                taken_back = attempts[chosen].cancel()
                assert taken_back == model.cancel(chosen)
                cancelled |= {chosen} if taken_back else set()
        if made is not None:
            if not made.ready():
                made.on_ready = lambda who=who: told.update([who])
            attempts.append(made)
        model.flush()
        assert {i: a.ready() for i, a in enumerate(attempts)} == {i: i in model.outcomes for i in range(len(attempts))}
        assert (q.size, q.is_closed) == (len(model.pool), model.closed)
        assert all(times == 1 for times in told.values())

    q.close(cancel_pending_enqueues=True)
    model.close_and_cancel()
    results = {i: outcome(a) for i, a in enumerate(attempts) if i not in cancelled}
    assert results == model.outcomes
    rest = drained(q)
    assert rest == [value for value, _ in model.pool]
    everything = [v for i in sorted(results) if isinstance(results[i], list) for v in results[i]] + rest
    assert all(a < b for a, b in pairwise(everything)), "nothing is doubled and nothing overtakes"
    whole = {v for i, values in given_.items() if results.get(i, "cancelled") is None for v in values}
    assert whole <= set(everything), "nothing is lost"


@given(st.sampled_from(["RandomShuffleQueue", "PriorityQueue"]), st.integers(1, 4), calls, st.integers(0, 3))
def test_whatever_the_order_of_leaving_nothing_is_lost_or_doubled(
    kind: str, capacity: int, steps: list[tuple[Any, ...]], kept_back: int
) -> None:
    kept_back = min(kept_back, capacity - 1) if kind == "RandomShuffleQueue" else 0
    q, numbers = queue(kind, capacity, min_after=kept_back), (7919 * i % 10007 for i in count())
    producers: dict[Attempt, list[int]] = {}
    consumers: list[Attempt] = []
    cancelled: set[Attempt] = set()
    for what, *arguments in steps:
        if what in ("enqueue", "enqueue_many"):
            values = [next(numbers) for _ in range(arguments[0] if arguments else 1)]
            producers[put(q, *values)] = values
        elif what == "dequeue":
            consumers.append(q.dequeue())
        elif what in ("dequeue_many", "dequeue_up_to"):
            consumers.append(q.dequeue_many(arguments[0], up_to=what == "dequeue_up_to"))
        elif what.startswith("cancel") and (everyone := [*producers, *consumers]):
            chosen = everyone[(arguments[0] if arguments else -1) % len(everyone)]
            cancelled |= {chosen} if chosen.cancel() else set()
        elif what == "close and cancel":
            q.close(cancel_pending_enqueues=True)
    q.close(cancel_pending_enqueues=True)
    went_in = [v for a, values in producers.items() if a not in cancelled for v in values[: inside(a, len(values))]]
    taken = [v for a in consumers if a not in cancelled and isinstance(found := outcome(a), list) for v in found]
    rest = drained(q)
    assert Counter(taken + rest) == Counter(went_in)
    assert kind != "PriorityQueue" or rest == sorted(rest)


def inside(producer: Attempt, total: int) -> int:
    """How many elements of an ended producer are in the queue, or were: all, or as many as its error says."""
    try:
        producer.result()
        return total
    except errors.CancelledError as error:
        return int(str(error).split("The first ")[1].split()[0]) if "The first " in str(error) else 0


@pytest.mark.parametrize("kind", ["FIFOQueue", "RandomShuffleQueue"])
def test_threads_that_produce_consume_and_give_up_lose_nothing(kind: str) -> None:
    q = queue(kind, capacity=5)
    taken: list[int] = []
    withdrawn: list[int] = []
    lock = threading.Lock()

    def wait(attempt: Attempt, patience_s: float | None = None) -> bool:
        """Whether it came to its end; else it is cancelled. As the runtime waits."""
        event = threading.Event()
        attempt.on_ready = event.set
        return attempt.ready() or event.wait(patience_s) or not attempt.cancel()

    def produce(start: int) -> None:
        rng = np.random.default_rng(start)
        at, end = start, start + 400
        while at < end:
            values = list(range(at, min(end, at + int(rng.integers(1, 4)))))
            attempt = put(q, *values)
            if not wait(attempt, 0.0005 if rng.random() < 0.3 else None):
                with lock:
                    withdrawn.extend(values)
            else:
                with lock:
                    withdrawn.extend(values[inside(attempt, len(values)) :])
            at += len(values)

    def consume(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while True:
            attempt = q.dequeue_many(int(rng.integers(1, 5)), up_to=True)
            if wait(attempt, 0.0005 if rng.random() < 0.3 else None):
                try:
                    values = attempt.result()[0].tolist()
                except errors.OutOfRangeError:
                    return
                with lock:
                    taken.extend(values)

    consumers = [threading.Thread(target=consume, args=(i,)) for i in range(3)]
    producers = [threading.Thread(target=produce, args=(1000 * i,)) for i in range(3)]
    for thread in consumers + producers:
        thread.start()
    for thread in producers:
        thread.join(60)
    assert wait(q.close())
    for thread in consumers:
        thread.join(60)
    everything = [v for start in (0, 1000, 2000) for v in range(start, start + 400)]
    assert sorted(taken + withdrawn) == everything


# ---- the other kinds


def test_a_shuffle_queue_keeps_some_back_until_it_is_closed() -> None:
    q = queue("RandomShuffleQueue", capacity=10, min_after=2)
    put(q, 0, 1, 2)
    many = q.dequeue_many(3)
    assert (many.ready(), q.size) == (False, 2)
    put(q, 3, 4)
    first = outcome(many)
    assert (len(first), q.size) == (3, 2)
    one, rest = q.dequeue(), q.dequeue_many(5, up_to=True)
    assert not one.ready()
    q.close()
    assert sorted(first + outcome(one) + outcome(rest)) == [0, 1, 2, 3, 4]


def test_a_shuffle_queue_draws_evenly() -> None:
    counts = np.zeros((5, 5), int)
    for seed in range(2000):
        q = queue("RandomShuffleQueue", capacity=5, seed=seed)
        put(q, *range(5))
        counts[np.arange(5), drained(q)] += 1
    # Each number stands at each place with probability 1/5: a standard deviation of 18 about 400.
    assert abs(counts - 400).max() < 5 * 18


def test_a_shuffle_queue_draws_the_same_from_equal_seeds() -> None:
    orders = []
    for seed in (3, 3, 4):
        q = queue("RandomShuffleQueue", capacity=20, seed=seed)
        put(q, *range(20))
        orders.append(drained(q))
    assert orders[0] == orders[1] != orders[2]


def test_a_priority_queue_gives_the_smallest_first_and_equals_in_the_order_in_which_they_came() -> None:
    q = queue("PriorityQueue", capacity=20, shapes=((), ()))
    priorities, labels = np.array([5, 1, 3, 1, 1, 5, -2]), np.arange(7)
    q.enqueue_many([priorities, labels])
    q.enqueue([np.array(1), np.array(7)])
    got = q.dequeue_many(8).result()
    assert got[0].tolist() == [-2, 1, 1, 1, 1, 3, 5, 5]
    assert got[1].tolist() == [6, 1, 3, 4, 7, 2, 0, 5]


def test_a_priority_queue_stays_in_order_when_a_batch_is_withdrawn() -> None:
    q = queue("PriorityQueue", capacity=3)
    put(q, 3)
    put(q, 5)
    assert put(q, -1, 9).cancel()
    assert drained(q) == [3, 5]


def test_a_consumer_that_waits_for_several_gets_the_smallest_of_all_that_came() -> None:
    q = queue("PriorityQueue", capacity=20)
    many = q.dequeue_many(3)
    for value in (9, 4):
        put(q, value)
    put(q, 7, -1)
    assert (outcome(many), drained(q)) == ([-1, 4, 7], [9])


def test_a_padding_queue_fills_up_to_the_longest_of_a_batch() -> None:
    q = Queue("p", QueueSpec("PaddingFIFOQueue", 9, (dtypes.int32, dtypes.string, dtypes.bool), ((None, 2), (None,), ())))

    def element(rows: int, words: list[bytes]) -> list[Any]:
        return [np.full((rows, 2), rows, np.int32), np.array(words, object), np.array(True)]

    q.enqueue(element(1, [b"x", b"yy"]))
    q.enqueue(element(3, []))
    numbers, words, flags = q.dequeue_many(2).result()
    assert numbers.tolist() == [[[1, 1], [0, 0], [0, 0]], [[3, 3]] * 3]
    assert (words.tolist(), flags.tolist()) == ([[b"x", b"yy"], [b"", b""]], [True, True])
    q.enqueue_many([np.ones((2, 3, 2), np.int32), np.array([[b"a"], [b"b"]], object), np.array([True, False])])
    q.enqueue(element(1, [b"x", b"yy"]))
    assert [a.shape for a in q.dequeue_many(3).result()] == [(3, 3, 2), (3, 2), (3,)]
    assert [a.shape for a in q.dequeue_many(0).result()] == [(0, 0, 2), (0, 0), (0,)]


# ---- arrays


def test_an_element_is_the_array_that_was_put_in_and_a_batch_taken_whole_the_batch() -> None:
    q = queue(shapes=((4,),), capacity=10)
    one, batch = np.arange(4), np.arange(12).reshape(3, 4).copy()
    q.enqueue([one])
    assert q.dequeue().result()[0] is one
    q.enqueue_many([batch])
    assert q.dequeue_many(3).result()[0] is batch


def test_memory_of_the_user_is_copied_on_its_way_in() -> None:
    q = queue(shapes=((4,),), capacity=10)
    mine = np.arange(4)
    q.enqueue([mine.view()])
    q.enqueue_many([mine.reshape(1, 4)])
    mine[:] = 9
    assert q.dequeue_many(2).result()[0].tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("kind", ["FIFOQueue", "PaddingFIFOQueue", "RandomShuffleQueue", "PriorityQueue"])
def test_a_row_of_a_batch_does_not_keep_the_batch_alive(kind: str) -> None:
    shapes = ((), (4,)) if kind == "PriorityQueue" else ((4,),)
    q = queue(kind, shapes=shapes, capacity=100)
    batch = [np.arange(100), np.zeros((100, 4), np.int64)][-len(shapes) :]
    q.enqueue_many(batch)
    row = q.dequeue().result()[-1]
    some = q.dequeue_many(3).result()[-1]
    assert (row.shape, some.shape) == ((4,), (3, 4))
    assert row.base is None and some.base is None
    held = weakref.ref(batch[-1])
    del batch
    gc.collect()
    assert (held() is None) == (kind in ("RandomShuffleQueue", "PriorityQueue")), "rows that leave in any order aren't part of it"
    q.dequeue_many(96).result()
    assert held() is None


@given(st.lists(st.one_of(st.integers(1, 4), st.none()), max_size=8), st.lists(st.integers(1, 5), max_size=12))
def test_batches_are_cut_and_joined_in_order(came: list[int | None], wanted: list[int]) -> None:
    q, numbers = queue(shapes=((2,), ()), capacity=-1), count()
    everything = []
    for rows in came:
        labels = [next(numbers) for _ in range(rows or 1)]
        values = np.array([[v, -v] for v in labels])
        everything += labels
        if rows is None:
            q.enqueue([values[0].copy(), np.array(labels[0])])
        else:
            q.enqueue_many([values, np.array(labels)])
    q.close()
    for number in wanted:
        attempt, expected = q.dequeue_many(number, up_to=True), everything[:number]
        del everything[:number]
        if expected:
            pairs, labels = attempt.result()
            assert (pairs.tolist(), labels.tolist()) == ([[v, -v] for v in expected], expected)


def test_strings_and_single_values_come_out_as_arrays() -> None:
    q = queue(shapes=None, dtype=dtypes.string, capacity=9)
    q.enqueue([b"alone"])
    q.enqueue_many([np.array([b"a", b"bb"], object)])
    first, second = q.dequeue().result()[0], q.dequeue().result()[0]
    assert (first.shape, first.dtype, first[()]) == ((), object, b"alone")
    assert (second.shape, second.dtype, second[()]) == ((), object, b"a")


# ---- what is refused


def test_elements_of_another_number_type_or_shape_are_refused() -> None:
    q = Queue("q", QueueSpec("FIFOQueue", 3, (dtypes.int64, dtypes.float32), ((), (2,))))
    one, two = np.array(1), np.zeros(2, np.float32)
    refusals: list[tuple[Callable[[], Any], str]] = [
        (lambda: q.enqueue([one]), "FIFOQueue 'q': an element has 2 component(s), ['int64', 'float32'], but 1 came."),
        (lambda: q.enqueue([one, np.zeros(2)]), "FIFOQueue 'q': component 1 must be float32, but float64 came."),
        (lambda: q.enqueue([one, two[:1]]), "FIFOQueue 'q': component 1 must have shape (2,), but an array of shape (1,) came."),
        (lambda: q.enqueue_many([one, two]), "FIFOQueue 'q': component 0 must have shape (?,), but an array of shape () came."),
        (
            lambda: q.enqueue_many([np.arange(3), np.zeros((2, 2), np.float32)]),
            "FIFOQueue 'q': component 1 must have shape (3, 2), but an array of shape (2, 2) came.",
        ),
        (lambda: q.dequeue_many(-1), "FIFOQueue 'q': -1 elements can't be dequeued; the number must be 0 or more."),
        (
            lambda: queue(shapes=None).dequeue_many(1),
            "FIFOQueue 'q': dequeue_many and dequeue_up_to need elements of one shape, but the queue was made without shapes.\n"
            "  Mend: give the queue its shapes, or dequeue one element at a time.",
        ),
    ]
    for make, text in refusals:
        with pytest.raises(errors.InvalidArgumentError) as caught:
            make()
        assert str(caught.value) == text
    unshaped = Queue("u", QueueSpec("FIFOQueue", 3, (dtypes.int64, dtypes.int64)))
    with pytest.raises(errors.InvalidArgumentError) as caught:
        unshaped.enqueue_many([np.arange(2), np.arange(3)])
    assert str(caught.value) == "FIFOQueue 'u': a batch needs as many rows in each component, but the shapes are (2,), (3,)."
    assert (q.size, unshaped.size) == (0, 0)


def test_another_declaration_is_refused_with_both_sides_named() -> None:
    with Graph().as_default() as graph:
        op = graph.create_op("NoOp", (), {}, "mine")
    q = queue("RandomShuffleQueue", capacity=4, min_after=2)
    same = QueueSpec("RandomShuffleQueue", 4, (dtypes.int64,), ((),), 2)
    q.check_declared(same, op)
    for other in (
        QueueSpec("FIFOQueue", 4, (dtypes.int64,), ((),)),
        QueueSpec("RandomShuffleQueue", 5, (dtypes.int64,), ((),), 2),
        QueueSpec("RandomShuffleQueue", 4, (dtypes.int32,), ((),), 2),
        QueueSpec("RandomShuffleQueue", 4, (dtypes.int64,), (), 2),
        QueueSpec("RandomShuffleQueue", 4, (dtypes.int64,), ((),), 1),
        QueueSpec("RandomShuffleQueue", 4, (dtypes.int64,), ((),), 2, (0, 7)),
    ):
        with pytest.raises(errors.InvalidArgumentError) as caught:
            q.check_declared(other, op)
        assert caught.value.message == (
            f"'mine' declares the queue 'q' as {other}, but on this task it is RandomShuffleQueue(capacity=4, min_after_dequeue=2,"
            " seeds=(0, 0), dtypes=[int64], shapes=[()]), declared at train.py:7."
        )
    assert str(QueueSpec("FIFOQueue", 4, (dtypes.int32,))) == "FIFOQueue(capacity=4, dtypes=[int32], shapes=None)"


def test_a_queue_says_what_it_holds_and_who_waits() -> None:
    q = queue(capacity=1)
    put(q, 1)
    put(q, 2)
    assert repr(q) == "<FIFOQueue 'q': 1 in it, 1 producers and 0 consumers waiting>"
    q.close(cancel_pending_enqueues=True)
    assert repr(q) == "<FIFOQueue 'q': 1 in it, 0 producers and 0 consumers waiting, closed>"
