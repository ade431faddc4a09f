"""Gradients against central finite differences in float64, evaluated by tests.reference (no session).

def test_gradient_of_square():
    check_gradient(lambda x: square(x), np.array([1.0, -2.0]))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpirt import dtypes
from mpirt.gradients import gradients
from mpirt.graph.graph import Graph, Tensor
from mpirt.ops.apply import apply_op, constant
from mpirt.ops.indexed_slices import IndexedSlices
from tests.reference import Reference


def check_gradient(
    build_fn: Callable[..., Any],
    *input_arrays: Any,
    rtol: float = 1e-5,
    atol: float = 1e-6,
    step: float = 1e-5,
    unknown_shapes: bool = True,
    differentiate: list[int] | None = None,
) -> None:
    """Assert that ``gradients`` of what ``build_fn`` builds agrees with central differences.

    Parameters
    ----------
    build_fn : gets one tensor for each input (placeholders), returns a tensor or a list of tensors; outputs that aren't
        floating are left out
    *input_arrays : floating ones become float64 and are differentiated; the others are passed on as they are
    rtol, atol : as in ``np.testing.assert_allclose``
    step : relative step of the differences
    unknown_shapes : check a second time with inputs whose static shape is unknown (the other branch of many gradients)
    differentiate : positions of the inputs to check, by default all floating ones

    Notes
    -----
    Each output is weighted with fixed random numbers, so that a transposed or permuted gradient is seen. An x that gets
    None must have zero differences.
    """
    arrays = [np.asarray(a) for a in input_arrays]
    arrays = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    for known in (True, False) if unknown_shapes else (True,):
        _check(build_fn, arrays, rtol, atol, step, known, differentiate)


def _check(
    build_fn: Callable[..., Any],
    arrays: list[Any],
    rtol: float,
    atol: float,
    step: float,
    known: bool,
    differentiate: list[int] | None,
) -> None:
    graph = Graph()
    with graph.as_default():
        xs = [
            apply_op("Placeholder", dtype=dtypes.as_dtype(a.dtype), shape=a.shape if known else None, name=f"input_{i}")
            for i, a in enumerate(arrays)
        ]
        built = build_fn(*xs)
        outputs: list[Tensor] = [
            t for t in (built if isinstance(built, list | tuple) else [built]) if t.dtype.base_dtype.kind == "f"
        ]
        feeds = dict(zip(xs, arrays, strict=True))
        values = Reference(graph).run(outputs, feeds)
        rng = np.random.default_rng(1)
        weights = [rng.uniform(0.5, 1.5, np.shape(v)).astype(t.dtype.np_dtype) for t, v in zip(outputs, values, strict=True)]
        chosen = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"] if differentiate is None else differentiate
        grads = gradients(outputs, [xs[i] for i in chosen], grad_ys=[constant(w) for w in weights])
        fetches = [
            part for g in grads if g is not None for part in ((g.values, g.indices) if isinstance(g, IndexedSlices) else (g,))
        ]
    fetched = iter(Reference(graph).run(fetches, feeds))

    def loss(position: int, array: Any) -> float:
        # A fresh evaluation each time: random operations start again from the same numbers.
        got = Reference(graph).run(outputs, {**feeds, xs[position]: array})
        return float(sum(np.sum(np.asarray(g, np.float64) * w) for g, w in zip(got, weights, strict=True)))

    for position, grad in zip(chosen, grads, strict=True):
        array = arrays[position]
        expected = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            h = step * max(1.0, abs(float(array[index])))
            up, down = array.copy(), array.copy()
            up[index] += h
            down[index] -= h
            expected[index] = (loss(position, up) - loss(position, down)) / (2 * h)
        actual = np.zeros_like(array)
        if isinstance(grad, IndexedSlices):
            rows, indices = next(fetched), next(fetched)
            np.add.at(actual, indices, rows)
        elif grad is not None:
            actual = next(fetched)
            assert actual.dtype == array.dtype, f"gradient of input {position} has dtype {actual.dtype}"
        assert np.shape(actual) == array.shape, f"gradient of input {position} has shape {np.shape(actual)}, not {array.shape}"
        how = "static shapes" if known else "unknown shapes"
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=f"gradient of input {position} ({how})")
