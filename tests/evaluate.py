"""The value of what a function builds, for tests of kernels: placeholders in, arrays out, no session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.graph.graph import Graph
from mpirt.ops.apply import apply_op
from tests.reference import Reference


def evaluate(build: Callable[..., Any], *arrays: Any) -> Any:
    """What ``build`` gives for tensors of the values ``arrays``: an array, or a list of them.

    Computed twice, with known shapes and with unknown ones; both must agree, and the static shapes must hold.
    """
    first, second = (_evaluate(build, arrays, known) for known in (True, False))
    for a, b in zip(
        first if isinstance(first, list) else [first], second if isinstance(second, list) else [second], strict=True
    ):
        np.testing.assert_array_equal(a, b)
    return first


def _evaluate(build: Callable[..., Any], arrays: tuple[Any, ...], known: bool) -> Any:
    graph = Graph()
    with graph.as_default():
        values = [np.asarray(a) for a in arrays]
        inputs = [
            apply_op("Placeholder", dtype=dtypes.as_dtype(v.dtype), shape=v.shape if known else None, name=f"input_{i}")
            for i, v in enumerate(values)
        ]
        built = build(*inputs)
    fetches = list(built) if isinstance(built, list | tuple) else built
    return Reference(graph).run(fetches, dict(zip(inputs, values, strict=True)))
