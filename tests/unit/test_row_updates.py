"""Rows changed by number on an array namespace that is not numpy: cupy where there is a GPU, else one that refuses what cupy does."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpirt.ops.row_updates import change_rows, set_rows

# Where cupy 14's ``at`` gives what numpy's does: it knows no other types, and compares float64 in float32
# and takes tiny float32 for zero.
ATOMIC = {"add": "iILefd", "maximum": "iIL", "minimum": "iIL"}


class UfuncAt:
    """A ufunc of cupy, as far as ``at`` goes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def at(self, target: Any, rows: Any, updates: Any) -> None:
        if target.dtype.char not in ATOMIC[self.name]:
            raise TypeError(f"cupy.{self.name}.at takes no {target.dtype}")
        getattr(np, self.name).at(target, rows, updates)


class Unordered(np.ndarray[Any, Any]):
    """Writes rows backwards: of equal ones the first stays."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key[::-1] if isinstance(key, np.ndarray) else key, value[::-1] if isinstance(key, np.ndarray) else value)


@pytest.fixture(params=["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    if request.param == "cupy":
        return importlib.import_module("cupy")
    names = {name: getattr(np, name) for name in ("asarray", "ascontiguousarray", "negative", "unique", "where")}
    ufuncs = {name: UfuncAt(name) for name in ATOMIC}
    return SimpleNamespace(**names, **ufuncs, array=lambda a: a.copy().view(Unordered), asnumpy=np.asarray)


TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]


def numbers(dtype: str, *shape: int, exact: bool = True) -> Any:
    """Small integers, and the extremes of their type; or, not ``exact``, floats with all their digits, and infinities."""
    rng = np.random.default_rng(5)
    array = rng.integers(-9, 10, shape).astype(dtype)
    if array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        array.reshape(-1)[::5] = rng.choice(np.array([info.min, info.max], dtype), array.reshape(-1)[::5].size)
    elif not exact:
        array = (1 + rng.standard_normal(shape) * 1e-9).astype(dtype) * array
        array.reshape(-1)[::5] = rng.choice(np.array([-np.inf, np.inf, 0.0, 1e-40], dtype), array.reshape(-1)[::5].size)
    return array


ROWS = np.array([3, 0, 3, 3, 5, 0, 1], np.int64)


@pytest.mark.parametrize("dtype", [*TYPES, "complex64", "complex128"])
@pytest.mark.parametrize("ufunc", ["add", "subtract", "maximum", "minimum"])
def test_every_row_takes_part_in_every_type(xp: Any, ufunc: str, dtype: str) -> None:
    if ufunc in ("maximum", "minimum") and dtype.startswith("complex"):
        pytest.skip("complex numbers have no order")
    start, updates = (numbers(dtype, rows, 2, exact=ufunc in ("add", "subtract")) for rows in (6, 7))
    updates = updates[::-1]
    expected = start.copy()
    getattr(np, ufunc).at(expected, ROWS, updates)
    for rows in (ROWS, xp.asarray(ROWS), xp.asarray(ROWS.astype(np.int32))):
        target = xp.array(start)
        change_rows(xp, ufunc, target, rows, xp.asarray(updates))
        assert target.dtype == start.dtype
        np.testing.assert_array_equal(xp.asnumpy(target), expected)


@pytest.mark.parametrize("dtype", [*TYPES, "complex64", "bool"])
def test_the_last_of_equal_rows_stays(xp: Any, dtype: str) -> None:
    start, updates = numbers(dtype, 6, 300), numbers(dtype, 7, 300)
    expected = start.copy()
    for row, update in zip(ROWS, updates, strict=True):
        expected[row] = update
    for rows in (ROWS, xp.asarray(ROWS)):
        target = xp.array(start)
        set_rows(xp, target, rows, xp.asarray(updates))
        np.testing.assert_array_equal(xp.asnumpy(target), expected)


def test_a_vector_of_complex_numbers_has_rows_of_one(xp: Any) -> None:
    target = xp.array(np.zeros(3, np.complex64))
    change_rows(xp, "add", target, np.array([2, 0, 2]), xp.asarray(np.array([1 + 2j, 3j, 1], np.complex64)))
    assert xp.asnumpy(target).tolist() == [3j, 0, 2 + 2j]


def test_rows_that_are_all_different_are_set_in_one_go(xp: Any) -> None:
    target = xp.array(np.zeros((4, 2)))
    set_rows(xp, target, np.array([2, 0]), xp.asarray([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(xp.asnumpy(target), [[3, 4], [0, 0], [1, 2], [0, 0]])
