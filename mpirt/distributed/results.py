"""Fetched values as the user gets them: his own to keep and change, never memory that the runtime or he himself uses.

An array that nobody else holds is given away as it is; all others are copied. Single values are numpy scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from sys import getrefcount
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
        value = values[i]
        if not isinstance(value, np.ndarray):  # a number, or nothing
            continue
        if fed[i]:
            values[i] = np.array(value)
        elif value.ndim == 0:
            values[i] = value[()]
        elif value.base is not None:
            values[i] = np.array(value)
        elif received and received[i]:
            continue
        elif getrefcount(value) != _SOLE_HOLDER or not value.flags.writeable:
            values[i] = np.array(value)
    return values


def _measure_sole_holder() -> int:
    values = [np.zeros(1)]
    value = values[0]
    return getrefcount(value)


_SOLE_HOLDER = _measure_sole_holder()  # what it is while only the list of results holds an array, and a local name
