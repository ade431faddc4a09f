"""What a queue holds, and in which order it gives it out.

Owns: elements, the stores that keep them (first in first out, shuffled, by priority), and how elements become a batch.
Does not own: who waits for what (``queues``). Nothing here locks: a queue calls its store while it holds its own lock.

An element's arrays are kept as they came, and are never written to. Only an array that is a view of other memory is copied
on its way in: that memory is larger than the element, or it is the user's, who may write to it once his step is over.
A batch (enqueue_many) is kept whole while its rows go in and out in order, since then only one batch at a time outlives
rows that have left it; what a consumer gets is cut out of it by a copy, unless he takes the batch whole. Where rows leave
in another order each is copied out of its batch on its way in, so that no row keeps its batch alive.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np

from mpirt.dtypes import DType
from mpirt.graph.shapes import Shape, is_static

Array = Any  # numpy array; strings are object arrays of bytes


class Element(NamedTuple):
    """One element: the components themselves, or one row of each of them."""

    components: tuple[Array, ...]
    row: int = -1  # -1: not a row
    batch: int = 0  # number of the batch that brought it, so that what is left of a batch can be found; 0: none

    def arrays(self) -> list[Array]:
        """The components of this element, none of which keeps a larger array alive."""
        if self.row < 0:
            return list(self.components)
        return [c[self.row, ...].copy() if len(c) > 1 else c[0, ...] for c in self.components]

    def detached(self) -> Element:
        """The same element, no longer a row."""
        return self if self.row < 0 else Element(tuple(self.arrays()), -1, self.batch)


def owned(value: Any) -> Array:
    """``value`` as an array that owns its memory; copied only if it doesn't."""
    if not isinstance(value, np.ndarray):
        return np.array(value, object if isinstance(value, bytes) else None)
    return value if value.flags.owndata else value.copy()


# ---------------------------------------------------------------------------------------------------------- batches


def stacked(elements: Sequence[Element], dtypes: Sequence[DType], shapes: Sequence[Shape]) -> list[Array]:
    """The elements as one array for each component, in order.

    Parameters
    ----------
    elements : of one shape
    dtypes, shapes : of the components of an element
    """
    if not elements:
        return [np.zeros((0, *(size or 0 for size in shape or ())), dtype.np_dtype) for dtype, shape in zip(dtypes, shapes, strict=True)]
    runs = list(_runs(elements))
    return [_joined(runs, i) for i in range(len(dtypes))]


def _runs(elements: Sequence[Element]) -> Iterator[tuple[Element, int]]:
    """Neighbours that are neighbours in a batch as well: the first of them, and how many they are."""
    first, number = elements[0], 1
    for element in elements[1:]:
        if element.row > 0:  # stores that keep rows give them out in order, so the row before it is the element before it
            number += 1
        else:
            yield first, number
            first, number = element, 1
    yield first, number


def _joined(runs: Sequence[tuple[Element, int]], i: int) -> Array:
    parts = [_rows(first.components[i], first.row, number) for first, number in runs]
    if len(parts) > 1:
        return np.concatenate(parts)
    (first, number), part = runs[0], parts[0]
    if first.row < 0:
        return part
    batch = first.components[i]
    return batch if number == len(batch) else part.copy()


def _rows(component: Array, row: int, number: int) -> Array:
    return component[np.newaxis, ...] if row < 0 else component[row : row + number]


def padded(elements: Sequence[Element], dtypes: Sequence[DType], shapes: Sequence[Shape]) -> list[Array]:
    """As ``stacked``, with zeros (empty strings) behind what is shorter than the longest of the elements."""
    if not elements or all(is_static(shape) for shape in shapes):
        return stacked(elements, dtypes, shapes)
    runs = list(_runs(elements))
    return [_joined(runs, i) if is_static(shapes[i]) else _padded(elements, i, dtypes[i]) for i in range(len(dtypes))]


def _padded(elements: Sequence[Element], i: int, dtype: DType) -> Array:
    rows = [e.components[i] if e.row < 0 else e.components[i][e.row, ...] for e in elements]
    sizes = np.max([row.shape for row in rows], axis=0)
    out = np.full((len(rows), *sizes), b"" if dtype.kind == "O" else 0, dtype.np_dtype)
    for target, row in zip(out, rows, strict=True):
        target[tuple(map(slice, row.shape))] = row
    return out


# ----------------------------------------------------------------------------------------------------------- stores


class Store(Protocol):
    """Elements in the order in which they leave."""

    def __len__(self) -> int: ...

    def put(self, elements: Iterable[Element]) -> None:
        """Take them in, in this order."""

    def take(self, number: int) -> list[Element]:
        """Give out so many; there are as many."""

    def count(self, batch: int) -> int:
        """How many elements of a batch there are."""

    def withdraw(self, batch: int) -> None:
        """Drop the elements of a batch."""

    def clear(self) -> None:
        """Drop everything."""


class FifoStore:
    """First in, first out."""

    def __init__(self) -> None:
        self._elements: deque[Element] = deque()

    def __len__(self) -> int:
        return len(self._elements)

    def put(self, elements: Iterable[Element]) -> None:
        """Take them in, in this order."""
        self._elements.extend(elements)

    def take(self, number: int) -> list[Element]:
        """The oldest ones."""
        return [self._elements.popleft() for _ in range(number)]

    def count(self, batch: int) -> int:
        """How many elements of a batch there are."""
        return sum(e.batch == batch for e in self._elements)

    def withdraw(self, batch: int) -> None:
        """Drop the elements of a batch: the newest, since it is the last one that came in."""
        while self._elements and self._elements[-1].batch == batch:
            self._elements.pop()

    def clear(self) -> None:
        """Drop everything."""
        self._elements.clear()


class ShuffleStore:
    """Any element is the next one with the same probability."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._elements: list[Element] = []
        self._rng = rng

    def __len__(self) -> int:
        return len(self._elements)

    def put(self, elements: Iterable[Element]) -> None:
        """Take them in, in this order."""
        self._elements.extend(element.detached() for element in elements)

    def take(self, number: int) -> list[Element]:
        """Draw without putting back."""
        elements, out = self._elements, []
        for _ in range(number):
            i = int(self._rng.integers(len(elements)))
            elements[i], elements[-1] = elements[-1], elements[i]
            out.append(elements.pop())
        return out

    def count(self, batch: int) -> int:
        """How many elements of a batch there are."""
        return sum(e.batch == batch for e in self._elements)

    def withdraw(self, batch: int) -> None:
        """Drop the elements of a batch."""
        self._elements[:] = [e for e in self._elements if e.batch != batch]

    def clear(self) -> None:
        """Drop everything."""
        self._elements.clear()


class PriorityStore:
    """The smallest first component first; among equals the oldest."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Element]] = []
        self._age = count()

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, elements: Iterable[Element]) -> None:
        """Take them in, in this order."""
        for element in elements:
            own = element.detached()
            heapq.heappush(self._heap, (int(own.components[0]), next(self._age), own))

    def take(self, number: int) -> list[Element]:
        """The first ones."""
        return [heapq.heappop(self._heap)[2] for _ in range(number)]

    def count(self, batch: int) -> int:
        """How many elements of a batch there are."""
        return sum(e.batch == batch for _, _, e in self._heap)

    def withdraw(self, batch: int) -> None:
        """Drop the elements of a batch."""
        self._heap[:] = [item for item in self._heap if item[2].batch != batch]
        heapq.heapify(self._heap)

    def clear(self) -> None:
        """Drop everything."""
        self._heap.clear()
