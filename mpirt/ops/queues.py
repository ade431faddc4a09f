"""A queue on its task: who waits for room, who waits for elements, and whose turn it is.

A ``Queue`` is a state machine without a thread. Each call makes an ``Attempt`` and serves whoever can be served now; an
attempt that has to wait is a ``graph.op_def.Pending``, which a later call brings to its end. Guarantees:

- Producers are served in the order of their calls, and so are consumers. The first in line blocks those behind it.
- An element goes to one consumer, whole; nothing is lost or doubled, however calls, cancellations and closes interleave.
- A batch (enqueue_many) goes in as far as there is room, in order, and nothing of others gets in between.
- dequeue_many and dequeue_up_to wait until they can have all they want; meanwhile they hold no element, but while one of
  them is first in line the queue takes in as many elements above its capacity as it wants. So a batch may be larger than
  the capacity, and to cancel it puts nothing back: everything is in its old place.
- A cancelled attempt has no effect. The one exception: a batch of which some elements are in, and one of them has left
  already, ends with CancelledError instead, which says how many are in; these stay, the others never come. If none has
  left, all of them are withdrawn.
- Callbacks are called outside the lock.

Closing follows TensorFlow as observed. ``close()`` waits for the producers that came before it; from then on producers get
CancelledError, consumers take what is left, then get OutOfRangeError, as does a batch that asks for more than is left. A
second ``close()`` gets CancelledError. ``close(cancel_pending_enqueues=True)`` doesn't wait, but gives all waiting producers
(and closes) CancelledError, and may be repeated. What a cancelled batch had put in before stays in.
TensorFlow loses the elements that a cancelled dequeue_many had gathered, and gives equal priorities out in any order.
"""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from mpirt import errors
from mpirt.dtypes import DType
from mpirt.graph.operation import Operation
from mpirt.graph.shapes import Shape, compatible, text
from mpirt.ops.queue_elements import Array, Element, FifoStore, PriorityStore, ShuffleStore, Store, owned, padded, stacked


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """How a queue is declared.

    Attributes
    ----------
    kind : "FIFOQueue", "RandomShuffleQueue", "PaddingFIFOQueue" or "PriorityQueue"
    capacity : how many elements it holds; negative for no limit
    dtypes : of the components of an element; a PriorityQueue's begin with the int64 priority
    shapes : of the components; empty if any shape will do
    min_after_dequeue : how many elements a RandomShuffleQueue keeps back until it is closed
    seeds : of a RandomShuffleQueue
    """

    kind: str
    capacity: int
    dtypes: tuple[DType, ...]
    shapes: tuple[Shape, ...] = ()
    min_after_dequeue: int = 0
    seeds: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        parts = [f"capacity={self.capacity}"]
        if self.kind == "RandomShuffleQueue":
            parts += [f"min_after_dequeue={self.min_after_dequeue}", f"seeds={self.seeds}"]
        parts += [f"dtypes=[{', '.join(d.name for d in self.dtypes)}]"]
        parts += [f"shapes=[{', '.join(map(text, self.shapes))}]" if self.shapes else "shapes=None"]
        return f"{self.kind}({', '.join(parts)})"


class Queue:
    """A queue of elements of one or more arrays each; safe to use from several threads.

    Parameters
    ----------
    name : name of the resource on its task
    spec : as declared by the first graph that used it
    where : the user's file and line of that declaration
    rng : where a RandomShuffleQueue's numbers come from
    """

    def __init__(self, name: str, spec: QueueSpec, where: str = "", rng: np.random.Generator | None = None) -> None:
        self.name = name
        self.spec = spec
        self.where = where
        self._capacity = sys.maxsize if spec.capacity < 0 else spec.capacity
        self._shapes: Sequence[Shape] = spec.shapes or [None] * len(spec.dtypes)
        self._lock = threading.Lock()
        self._store = _store(spec, rng)
        self._producers: deque[_Put | _Close] = deque()
        self._consumers: deque[_Take] = deque()
        self._batches = count(1)
        self._closed = False

    # ---- looking

    @property
    def size(self) -> int:
        """How many elements there are, without those that the first consumer in line waits to have complete."""
        with self._lock:
            return self._size()

    @property
    def is_closed(self) -> bool:
        """Whether it is closed; elements may be left."""
        return self._closed

    def __str__(self) -> str:
        return f"{self.spec.kind} {self.name!r}"

    def __repr__(self) -> str:
        with self._lock:
            state = f"{len(self._store)} in it, {len(self._producers)} producers and {len(self._consumers)} consumers waiting"
        return f"<{self}: {state}{', closed' if self._closed else ''}>"

    def check_declared(self, spec: QueueSpec, op: Operation) -> None:
        """Refuse a declaration by ``op`` that isn't the one this queue was made with.

        Raises
        ------
        InvalidArgumentError
            If it differs in anything.
        """
        if spec == self.spec:
            return
        first = f" at {self.where}" if self.where else " by another graph"
        raise errors.InvalidArgumentError(
            f"{op.name!r} declares the queue {self.name!r} as {spec}, but on this task it is {self.spec}, declared{first}.",
            op=op,
            hint="give the two queues different names (shared_name or container), or the same declaration.",
        )

    # ---- calls: each makes an attempt, which may have come to its end already

    def enqueue(self, values: Sequence[Any]) -> Attempt:
        """Put in one element, when there is room.

        Raises
        ------
        InvalidArgumentError
            If it isn't of the declared types and shapes.
        """
        components = tuple(map(owned, values))
        self._check(components, self._shapes)
        return self._start(_Put(self, components, 1, 0))

    def enqueue_many(self, values: Sequence[Any]) -> Attempt:
        """Put in one element for each row of ``values``, as room comes.

        Raises
        ------
        InvalidArgumentError
            As ``enqueue``, and if the numbers of rows differ.
        """
        components = tuple(map(owned, values))
        rows = components[0].shape[0] if components and components[0].ndim else None
        self._check(components, [None if s is None else (rows, *s) for s in self._shapes])
        if any(c.ndim == 0 or len(c) != rows for c in components):
            raise errors.InvalidArgumentError(
                f"{self}: a batch needs as many rows in each component, but the shapes are {', '.join(text(c.shape) for c in components)}."
            )
        assert rows is not None
        attempt = _Put(self, components, rows, next(self._batches))
        return self._start(attempt) if rows else attempt.end()

    def dequeue(self) -> Attempt:
        """Take one element, when there is one. The result is a list of its components."""
        return self._start(_Take(self, 1))

    def dequeue_many(self, number: int, up_to: bool = False) -> Attempt:
        """Take so many elements, when all are there. The result is a list with one array for each component.

        Parameters
        ----------
        number : how many
        up_to : be content with fewer, but at least one, once the queue is closed

        Raises
        ------
        InvalidArgumentError
            If ``number`` is negative or elements of different shapes are allowed.
        """
        if number < 0:
            raise errors.InvalidArgumentError(f"{self}: {number} elements can't be dequeued; the number must be 0 or more.")
        if not self.spec.shapes:
            raise errors.InvalidArgumentError(
                f"{self}: dequeue_many and dequeue_up_to need elements of one shape, but the queue was made without shapes.",
                hint="give the queue its shapes, or dequeue one element at a time.",
            )
        attempt = _Take(self, number, is_batch=True, up_to=up_to)
        return self._start(attempt) if number else attempt.end()

    def close(self, cancel_pending_enqueues: bool = False) -> Attempt:
        """Take in no more: after the producers that wait, or at once and these are cancelled."""
        attempt = _Close(self)
        if not cancel_pending_enqueues:
            return self._start(attempt)
        with self._lock:
            self._closed = True
            ended: list[Attempt] = [producer.end(self._cancelled_by_close(producer)) for producer in self._producers]
            self._producers.clear()
            ended += self._advance()
        _notify(ended)
        return attempt.end()

    def discard(self) -> None:
        """End it: whoever waits gets CancelledError, its elements are dropped. For a task that drops its resources."""
        with self._lock:
            self._closed = True
            waiting = [*self._producers, *self._consumers]
            self._producers.clear()
            self._consumers.clear()
            self._store.clear()
            ended = [attempt.end(errors.CancelledError(f"{self} was dropped from its task by a reset.")) for attempt in waiting]
        _notify(ended)

    # ---- the machine; all of it with the lock held

    def _start(self, attempt: _Put | _Take | _Close) -> Attempt:
        with self._lock:
            if isinstance(attempt, _Take):
                self._consumers.append(attempt)
            else:
                self._producers.append(attempt)
            ended = self._advance()
        _notify(ended)
        return attempt

    def _advance(self) -> list[Attempt]:
        """Serve whoever can be served; the attempts that came to their end by it."""
        ended: list[Attempt] = []
        while self._serve_producers(ended) or self._serve_consumers(ended):
            pass
        return ended

    def _serve_producers(self, ended: list[Attempt]) -> bool:
        """Whether anything changed."""
        changed = False
        while self._producers:
            first = self._producers[0]
            if isinstance(first, _Put):
                if not self._closed:
                    # Room for what the consumer wants beyond the capacity: see the module's text.
                    limit = self._capacity + (self._consumers[0].number if self._consumers else 0)
                    changed |= first.put(self._store, limit - len(self._store))
                    if first.inside < first.total:
                        break
                first.end(errors.CancelledError(f"{self} is closed.") if self._closed else None)
            else:
                first.end(errors.CancelledError(f"{self} is already closed.") if self._closed else None)
                self._closed = True
            ended.append(self._producers.popleft())
            changed = True
        return changed

    def _serve_consumers(self, ended: list[Attempt]) -> bool:
        """Whether anything changed."""
        changed = False
        while self._consumers:
            first = self._consumers[0]
            there = len(self._store)
            if there - self._kept_back() >= first.number:
                first.elements = self._store.take(first.number)
            elif not self._closed:
                break
            elif first.up_to and there:
                first.elements = self._store.take(there)
            else:
                first.end(self._exhausted(first.number, there))
            ended.append(first.end())
            self._consumers.popleft()
            changed = True
        return changed

    def _kept_back(self) -> int:
        return 0 if self._closed else self.spec.min_after_dequeue

    def _size(self) -> int:
        free = max(0, len(self._store) - self._kept_back())
        return len(self._store) - (min(free, self._consumers[0].number) if self._consumers else 0)

    def _cancel(self, attempt: Attempt) -> bool:
        with self._lock:
            if attempt.ready():
                return False
            if attempt in self._consumers:
                self._consumers.remove(attempt)  # type: ignore[arg-type]
            elif attempt in self._producers:
                self._producers.remove(attempt)  # type: ignore[arg-type]
            taken_back = not isinstance(attempt, _Put) or attempt.withdraw(self._store)
            ended = self._advance()
        _notify(ended)
        return taken_back

    # ---- checks and texts

    def _check(self, components: Sequence[Array], shapes: Sequence[Shape]) -> None:
        dtypes = self.spec.dtypes
        if len(components) != len(dtypes):
            raise errors.InvalidArgumentError(
                f"{self}: an element has {len(dtypes)} component(s), {[d.name for d in dtypes]}, but {len(components)} came."
            )
        for i, (component, dtype, shape) in enumerate(zip(components, dtypes, shapes, strict=True)):
            if component.dtype != dtype.np_dtype:
                raise errors.InvalidArgumentError(f"{self}: component {i} must be {dtype.name}, but {component.dtype} came.")
            if not compatible(shape, component.shape):
                raise errors.InvalidArgumentError(
                    f"{self}: component {i} must have shape {text(shape)}, but an array of shape {text(component.shape)} came."
                )

    def _exhausted(self, number: int, there: int) -> errors.OutOfRangeError:
        return errors.OutOfRangeError(f"{self} is closed and has insufficient elements (requested {number}, current size {there}).")

    def _cancelled_by_close(self, producer: _Put | _Close) -> errors.CancelledError:
        what = f"{self} was closed with cancel_pending_enqueues=True while this waited."
        if isinstance(producer, _Put) and producer.inside:
            what += f" The first {producer.inside} of its {producer.total} elements are in and stay, the others never come."
        return errors.CancelledError(what)

    def _assembled(self, elements: Sequence[Element]) -> list[Array]:
        assemble = padded if self.spec.kind == "PaddingFIFOQueue" else stacked
        return assemble(elements, self.spec.dtypes, self._shapes)


def _store(spec: QueueSpec, rng: np.random.Generator | None) -> Store:
    if spec.kind == "RandomShuffleQueue":
        return ShuffleStore(rng or np.random.default_rng())
    return PriorityStore() if spec.kind == "PriorityQueue" else FifoStore()


def _notify(attempts: Iterable[Attempt]) -> None:
    for attempt in attempts:
        if attempt.on_ready is not None:
            attempt.on_ready()


# --------------------------------------------------------------------------------------------------------- attempts


class Attempt(ABC):
    """One call of a queue, under way or at its end; a ``graph.op_def.Pending``."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.on_ready: Callable[[], None] | None = None
        self._error: errors.OpError | None = None
        self._ended = False

    def ready(self) -> bool:
        """Whether it has come to its end."""
        return self._ended

    def end(self, error: errors.OpError | None = None) -> Attempt:
        """Come to the end; an error that is there already stays."""
        self._error = self._error or error
        self._ended = True
        return self

    def result(self) -> Any:
        """What it brought.

        Raises
        ------
        CancelledError
            If the queue was closed and this would put something in, or was cancelled half-way.
        OutOfRangeError
            If the queue was closed and there isn't enough left.
        """
        assert self._ended, f"result of {self.describe()}, which hasn't come"
        if self._error is not None:
            raise self._error
        return self._value()

    def cancel(self) -> bool:
        """Take it back, see ``graph.op_def.Pending``."""
        return self.queue._cancel(self)

    @abstractmethod
    def describe(self) -> str:
        """What is waited for."""

    def _value(self) -> Any:
        return None


class _Put(Attempt):
    """An element, or the rows of a batch, on their way in; ``inside`` of them are in."""

    def __init__(self, queue: Queue, components: tuple[Array, ...], total: int, batch: int) -> None:
        super().__init__(queue)
        self.total = total
        self.inside = 0
        self._components = components
        self._batch = batch

    def put(self, store: Store, room: int) -> bool:
        """Put in as much as there is room for; whether that was anything."""
        start, stop = self.inside, min(self.total, self.inside + room)
        if start >= stop:
            return False
        if self._batch:
            store.put([Element(self._components, row, self._batch) for row in range(start, stop)])
        else:
            store.put([Element(self._components)])
        self.inside = stop
        return True

    def withdraw(self, store: Store) -> bool:
        """Take back what is in, if all of it is still there; whether that is so."""
        if self.inside and store.count(self._batch) != self.inside:
            text = f"The first {self.inside} of its {self.total} elements are in, of which some have left; the others never come."
            self.end(errors.CancelledError(f"{self.queue}: a batch was cancelled half-way. {text}"))
            return False
        if self.inside:
            store.withdraw(self._batch)
        return True

    def end(self, error: errors.OpError | None = None) -> Attempt:
        """Come to the end."""
        self._components = ()
        return super().end(error)

    def describe(self) -> str:
        """What is waited for."""
        left = self.total - self.inside
        return f"room for {'an element' if left == 1 else f'{left} elements'} in {self.queue}"


class _Close(Attempt):
    """A close, behind the producers that came before it."""

    def describe(self) -> str:
        """What is waited for."""
        return f"the enqueues before the close of {self.queue}"


class _Take(Attempt):
    """A consumer that waits for ``number`` elements, or has them."""

    def __init__(self, queue: Queue, number: int, is_batch: bool = False, up_to: bool = False) -> None:
        super().__init__(queue)
        self.number = number
        self.up_to = up_to
        self.elements: list[Element] = []
        self._is_batch = is_batch

    def describe(self) -> str:
        """What is waited for."""
        return f"{'an element' if self.number == 1 else f'{self.number} elements'} of {self.queue}"

    def _value(self) -> list[Array]:
        elements, self.elements = self.elements, []
        return self.queue._assembled(elements) if self._is_batch else elements[0].arrays()


__all__ = ["Attempt", "Queue", "QueueSpec"]
