"""What packets are made of, however they travel: where in one each tensor lies, how it gets there and out again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpirt.compiler.packets import packed_nbytes
from mpirt.compiler.program import Transfer
from mpirt.runtime.rendezvous import broken_promise

Array = np.ndarray[Any, Any]
Places = dict[int, Array | None]


def packet_nbytes(transfers: Sequence[Transfer]) -> int:
    """Bytes of a packet."""
    return sum(map(packed_nbytes, transfers))


def places_in(buffer: Array, transfers: Sequence[Transfer]) -> Places:
    """Where in the buffer of a packet each transfer's tensor is; None for a token and an empty tensor, of one byte each.

    Tensors of the longest numbers come first, so that all of them are aligned.
    """
    places: Places = {}
    offset = 0
    for transfer in sorted(transfers, key=_itemsize, reverse=True):
        place: Array | None = None
        if transfer.dtype is not None and transfer.nbytes:
            assert transfer.shape is not None
            place = np.ndarray(transfer.shape, transfer.dtype.np_dtype, buffer, offset)
        places[transfer.index] = place
        offset += packed_nbytes(transfer)
    return places


def stores_of(transfers: Sequence[Transfer], slots: Sequence[int], places: Places) -> tuple[list[tuple[int, Array]], Callable[..., None]]:
    """Slot and place of each tensor that has content; and what writes those that aren't in their places already, from all slots."""
    stores = [
        (slot, transfer, place, place.dtype, place.shape)
        for slot, transfer in zip(slots, transfers, strict=True)
        if (place := places[transfer.index]) is not None
    ]

    def store(values: Sequence[Any]) -> None:
        for slot, transfer, place, dtype, shape in stores:
            value = values[slot]
            if value is place:
                continue
            array = value if value.__class__ is np.ndarray else np.asarray(value)
            if (array.dtype is not dtype and array.dtype != dtype) or array.shape != shape:
                raise broken_promise(transfer, array)
            place[...] = array

    return [(slot, place) for slot, _, place, _, _ in stores], store


def contents_of(transfers: Sequence[Transfer], places: Places) -> Callable[[], Any] | None:
    """What makes the values of some transfers, in arrays of the caller's own: one by itself, several as a tuple; None of none."""
    copies = [_content(t, places[t.index]) for t in transfers]
    return None if not copies else copies[0] if len(copies) == 1 else lambda: tuple([copy() for copy in copies])


def _nothing() -> None:
    """The value of a token."""


def _content(transfer: Transfer, place: Array | None) -> Callable[[], Any]:
    if place is not None:
        return place.copy
    dtype = transfer.dtype
    return _nothing if dtype is None else (lambda: np.empty(transfer.shape or (), dtype.np_dtype))


def _itemsize(transfer: Transfer) -> int:
    return transfer.dtype.np_dtype.itemsize if transfer.dtype is not None and transfer.nbytes else 0
