"""The promise of a variable's cell: what a reader holds never changes, whoever writes afterwards."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt import dtypes, errors
from mpirt.ops.state_ops import VariableCell

SHAPE = (2, 3)


def cell(value: Any = None, shape: Any = SHAPE) -> VariableCell:
    made = VariableCell("v", dtypes.float64, shape)
    if value is not None:
        made.assign(value)
    return made


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


actions = st.lists(
    st.one_of(
        st.tuples(st.just("read")),
        st.tuples(st.just("read a view")),
        st.tuples(st.just("drop"), st.integers(0, 5)),
        st.tuples(st.just("assign"), st.integers(-9, 9)),
        st.tuples(st.just("assign and keep"), st.integers(-9, 9)),
        st.tuples(st.just("assign a view"), st.integers(-9, 9)),
        st.tuples(st.just("assign what was read"), st.integers(0, 5)),
        st.tuples(st.just("assign to another cell")),
        st.tuples(st.just("update"), st.integers(-9, 9)),
        st.tuples(st.just("update the other cell"), st.integers(-9, 9)),
    ),
    max_size=30,
)


@given(actions)
def test_no_interleaving_of_reads_and_writes_changes_what_a_reader_holds(steps: list[tuple[Any, ...]]) -> None:
    v, w = cell(np.zeros(SHAPE)), cell(np.ones(SHAPE))
    expected = {v: np.zeros(SHAPE), w: np.ones(SHAPE)}
    held: list[tuple[Any, Any]] = []  # what a reader holds, and a private copy of it

    def hold(array: Any) -> None:
        held.append((array, array.copy()))

    def update(target: VariableCell, by: int) -> None:
        with target.lock:
            array = target.writable()
            array += by
        expected[target] = expected[target] + by

    for what, *arguments in steps:
        if what == "read":
            hold(v.read())
        elif what == "read a view":
            hold(v.read()[1:].T)
        elif what == "drop" and held:
            held.pop(arguments[0] % len(held))
        elif what == "assign":
            v.assign(np.full(SHAPE, float(arguments[0])))
            expected[v] = np.full(SHAPE, float(arguments[0]))
        elif what == "assign and keep":
            mine = np.full(SHAPE, float(arguments[0]))
            v.assign(mine)
            hold(mine)
            expected[v] = mine.copy()
        elif what == "assign a view":
            whole = np.full((4, 3), float(arguments[0]))
            v.assign(whole[::2])
            hold(whole)
            expected[v] = whole[::2].copy()
        elif what == "assign what was read" and held:
            array, copy = held[arguments[0] % len(held)]
            if array.shape == SHAPE:
                v.assign(array)
                expected[v] = copy
        elif what == "assign to another cell":
            w.assign(v.read())
            expected[w] = expected[v]
        elif what == "update":
            update(v, arguments[0])
        elif what == "update the other cell":
            update(w, arguments[0])
        for array, copy in held:
            np.testing.assert_array_equal(array, copy)
        for target, value in expected.items():
            np.testing.assert_array_equal(target.read(), value)


def test_update_is_in_place_while_nobody_looks() -> None:
    v = cell(np.zeros(SHAPE))
    before = address(v.read())
    for _ in range(3):
        with v.lock:
            array = v.writable()
            array += 1
            del array
        assert address(v.read()) == before
    np.testing.assert_array_equal(v.read(), np.full(SHAPE, 3.0))


def test_update_copies_once_for_a_reader_and_then_is_in_place_again() -> None:
    v = cell(np.zeros(SHAPE))
    seen = v.read()
    with v.lock:
        array = v.writable()
        array += 1
        del array
    second = address(v.read())
    assert second != address(seen)
    with v.lock:
        array = v.writable()
        array += 1
        del array
    assert address(v.read()) == second
    np.testing.assert_array_equal(seen, np.zeros(SHAPE))


def test_an_owned_array_is_taken_over_without_a_copy() -> None:
    array = np.zeros(SHAPE)
    v = cell(array)
    assert v.read() is array


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.arange(12.0).reshape(4, 3)[1:3], id="a view"),
        pytest.param(np.asfortranarray(np.arange(6.0).reshape(SHAPE)), id="another order in memory"),
        pytest.param(np.frombuffer(np.arange(6.0).tobytes()).reshape(SHAPE), id="read-only memory of another object"),
    ],
)
def test_an_array_that_is_not_its_own_plain_owner_is_copied(array: Any) -> None:
    v = cell(array)
    assert not np.shares_memory(v.read(), array)
    assert v.read().flags.c_contiguous
    np.testing.assert_array_equal(v.read(), array)


def test_a_read_only_constant_is_copied_and_stays() -> None:
    constant = np.zeros(SHAPE)
    constant.flags.writeable = False
    v = cell(constant)
    with v.lock:
        array = v.writable()
        array += 1
    np.testing.assert_array_equal(constant, np.zeros(SHAPE))


@pytest.mark.parametrize("scalar", [np.float64(2.5), np.array(2.5)])
def test_scalars_are_updated_in_place_too(scalar: Any) -> None:
    v = cell(scalar, shape=())
    with v.lock:
        array = v.writable()
        array += 1
    assert v.read().shape == () and float(v.read()) == 3.5


def test_strings_are_kept_as_bytes() -> None:
    v = VariableCell("s", dtypes.string, ())
    v.assign(b"abc")
    assert v.read().dtype == object and v.read().item() == b"abc"


def test_reading_before_initialisation_names_the_variable_and_the_mend() -> None:
    for use in (cell().read, cell().writable):
        with pytest.raises(errors.FailedPreconditionError, match="^Attempting to use uninitialized value v\n  Mend: run its init"):
            use()


def test_clear_makes_it_uninitialised_again() -> None:
    v = cell(np.zeros(SHAPE))
    states = [v.initialized]
    v.clear()
    states.append(v.initialized)
    assert states == [True, False] and v.current_shape == SHAPE


def test_readers_in_other_threads_never_see_half_an_update() -> None:
    v = cell(np.zeros(1000))
    torn: list[Any] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            array = v.read()
            first = array[0]
            if (array != first).any() or array[0] != first:
                torn.append(array)

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(2000):
        with v.lock:
            array = v.writable()
            for part in (slice(0, 500), slice(500, 1000)):
                array[part] += 1
            del array
    done.set()
    for reader in readers:
        reader.join()
    assert not torn
    np.testing.assert_array_equal(v.read(), np.full(1000, 2000.0))


def test_updates_of_several_threads_all_count() -> None:
    v = cell(np.zeros(10))

    def add() -> None:
        for _ in range(500):
            with v.lock:
                array = v.writable()
                array += 1

    writers = [threading.Thread(target=add) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    np.testing.assert_array_equal(v.read(), np.full(10, 2000.0))


class DeviceArray:
    """As much of cupy's array as a cell may use: flags without ``writeable``, and ``copy``."""

    class flags:  # noqa: N801
        owndata = True
        c_contiguous = True

    dtype = np.dtype(np.float64)
    shape = SHAPE

    def __init__(self, value: float) -> None:
        self.value = value

    def copy(self) -> "DeviceArray":
        return DeviceArray(self.value)


def test_arrays_of_a_gpu_are_shared_and_copied_by_the_same_rule() -> None:
    v = cell(DeviceArray(1.0))
    with v.lock:
        v.writable().value += 1
    seen = v.read()
    assert seen.value == 2.0
    with v.lock:
        v.writable().value += 1
    assert (seen.value, v.read().value) == (2.0, 3.0)
