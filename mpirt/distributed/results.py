"""Fetched values as the user gets them: his own to keep and change, never memory that the runtime or he himself uses.

An array that nobody else holds is given away as it is; all others are copied. Single values are numpy scalars.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def as_results(values: list[Any], fed: Sequence[bool], received: Sequence[bool] = ()) -> list[Any]:
    """``values`` of the fetches, changed in place; hand over a list that nobody else has, else all is copied.

    Parameters
    ----------
    values : arrays, numpy scalars and None
    fed : for each value whether it is a feed that came back, so the user's own memory
    received : for each value whether it came in a message of its own, into a buffer that is filled again only when nobody
        else has it; none if left out
    """
    for i in range(len(values)):
        if values[i] is None or isinstance(values[i], np.generic):
            continue
        if fed[i]:
            values[i] = np.array(values[i])
        elif values[i].ndim == 0:
            values[i] = values[i][()]
        elif received and received[i] and values[i].base is None:
            continue
        elif values[i].base is not None or not values[i].flags.writeable or _references(values, i) != _SOLE_HOLDER:
            values[i] = np.array(values[i])
    return values


def _references(values: list[Any], i: int) -> int:
    return sys.getrefcount(values[i])


_SOLE_HOLDER = _references([np.zeros(1)], 0)  # what it is while only the list of results holds an array
