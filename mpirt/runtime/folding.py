"""What happens between the messages of a collective: reducing, joining, cutting, and the arrays into which messages come.

Owns: the calls for the instructions `Fold` and `View`, and `Made`, the array of a `Make`. Does not own: messages
(``rendezvous``), what a reduction computes (``ops.collective_ops``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mpirt.compiler.buffers import BLOCK_NBYTES
from mpirt.compiler.exchange import JOIN, KEPT_NBYTES, Fold, Make, Part, View
from mpirt.ops.collective_ops import check_shapes, combine, gathered
from mpirt.runtime.rendezvous import SOLE_HOLDER, references

_MOST_KEPT = 2  # a caller that holds the last step's result while the next one runs needs no third


class Made:
    """An array that each step fills; large ones are used again when nobody holds them any more.

    Guarantee: while anybody holds an array, a view of it, or a message of it under way, no step fills it again.
    """

    def __init__(self, make: Make) -> None:
        self._shape = make.shape
        self._dtype = make.dtype.np_dtype
        self._kept: list[np.ndarray[Any, Any]] = []
        self._array: np.ndarray[Any, Any] | None = None
        self._is_sent: list[Callable[[], bool]] = []

    def sent_by(self, pending: Callable[[], bool]) -> None:
        """Have it ask ``pending`` before each step: a message that has left lets go of the array only when it is asked."""
        self._is_sent.append(pending)

    def begin(self) -> None:
        """Get the array of the next step ready, before the step's receives are posted."""
        for pending in self._is_sent:
            pending()
        self._array = None
        for i in range(len(self._kept)):
            if references(self._kept, i) == SOLE_HOLDER:
                self._array = self._kept[i]
                return
        self._array = np.empty(self._shape, self._dtype)
        if self._array.nbytes >= KEPT_NBYTES:
            self._kept = [*self._kept, self._array][-_MOST_KEPT:]

    def take(self) -> np.ndarray[Any, Any]:
        """The array of this step."""
        assert self._array is not None
        array, self._array = self._array, None
        return array

    def part(self, part: Part) -> np.ndarray[Any, Any]:
        """Where a message of this step goes; before `take`."""
        assert self._array is not None
        return self._array.reshape(-1)[part[0] : part[1]]


def fold_call(fold: Fold) -> tuple[Callable[..., Any], tuple[int, ...]]:
    """The function for an instruction, and the slots of its arguments; its result is an array only if that is a new one."""
    if fold.how == JOIN:
        return partial(_join, fold), fold.inputs
    if fold.into is None:
        plain = len(fold.inputs) == 2 and fold.number == 1 and not fold.labels
        return FUNCTIONS[fold.how] if plain else partial(_fold_new, fold), fold.inputs
    if fold.number == 1 and fold.parts == (None,):
        return partial(_put, *fold.into), (fold.target, *fold.inputs)
    return partial(_fold_into, fold), (fold.target, *fold.inputs)


FUNCTIONS: dict[str, Callable[..., Any]] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


def _join(fold: Fold, *arrays: Any) -> Any:
    return gathered(np, arrays, fold.number, fold.name, fold.labels, fold.op)


def _fold_new(fold: Fold, *arrays: Any) -> Any:
    if fold.labels:
        check_shapes(fold.name, fold.how, [a.shape for a in arrays], fold.labels, fold.op)
    return combine(np, fold.how, arrays, fold.number)


def _put(start: int, stop: int, target: Any, array: Any) -> None:
    """A reduction of one tensor, into its place in a bucket: the smallest gradients cost no more than a copy."""
    target.reshape(-1)[start:stop] = array.reshape(-1)


def _fold_into(fold: Fold, target: Any, *arrays: Any) -> None:
    assert fold.into is not None
    start, stop = fold.into
    out = target.reshape(-1)[start:stop]
    flat = [_flat(a) if part is None else a[part[0] : part[1]] for a, part in zip(arrays, fold.parts, strict=True)]
    reduce_into(fold.how, flat, fold.number, out)


def reduce_into(how: str, flat: Sequence[Any], divisor: int, out: Any) -> None:
    """Reduce arrays of one dimension, see ``collective_ops.combine``."""
    if len(flat) + (divisor != 1) < 3 or out.nbytes <= BLOCK_NBYTES:
        combine(np, how, flat, divisor, out)
        return
    step = max(1, BLOCK_NBYTES // out.itemsize)  # several passes over the same elements: block by block
    for at in range(0, out.size, step):
        combine(np, how, [a[at : at + step] for a in flat], divisor, out[at : at + step])


def view_call(view: View) -> Callable[[Any], Any]:
    """The function for an instruction."""
    return partial(_view, view.part, view.shape)


def _view(part: Part | None, shape: tuple[int, ...], array: Any) -> Any:
    if part is not None and array.__class__ is np.ndarray and array.ndim == 1 and array.flags.c_contiguous:  # out of a bucket
        return array[part[0] : part[1]].reshape(shape)
    flat = _flat(array)
    return (flat if part is None else flat[part[0] : part[1]]).reshape(shape)


def part_of(array: Any, part: Part) -> Any:
    """The elements of ``array`` that a message carries."""
    return _flat(array)[part[0] : part[1]]


def _flat(array: Any) -> Any:
    return np.ascontiguousarray(array).reshape(-1)
