"""What happens between the messages of a collective: reductions against numpy, and arrays that are used again but never too early."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpirt import dtypes, errors
from mpirt.compiler.exchange import JOIN, Fold, Make, View
from mpirt.ops.collective_ops import combine
from mpirt.runtime import folding
from mpirt.runtime.folding import Made, fold_call, part_of, view_call

Array = np.ndarray[Any, Any]
FUNCTIONS = {"sum": np.add, "max": np.maximum, "min": np.minimum}


@settings(max_examples=60)
@given(
    how=st.sampled_from(["sum", "max", "min"]),
    dtype=st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int64", "complex64"]),
    count=st.integers(1, 5),
    shape=st.sampled_from([(), (1,), (7,), (3, 5), (0, 2)]),
    divisor=st.sampled_from([1, 2, 3, 200]),
    given_out=st.booleans(),
)
def test_arrays_are_reduced_in_their_order_and_stay_as_they_are(
    how: str, dtype: str, count: int, shape: tuple[int, ...], divisor: int, given_out: bool
) -> None:
    if dtype == "complex64" and how != "sum":
        how = "sum"
    rng = np.random.default_rng(count)
    arrays = [(rng.normal(size=shape) * 20).astype(dtype) for _ in range(count)]
    copies = [a.copy() for a in arrays]
    expected = copies[0]
    for other in copies[1:]:
        expected = FUNCTIONS[how](expected, other)
    if divisor > 1:
        if np.dtype(dtype).kind in "iu":
            expected = np.array([int(abs(int(v)) // divisor) * (-1 if v < 0 else 1) for v in np.ravel(expected)], dtype).reshape(shape)
        else:
            expected = expected / np.dtype(dtype).type(divisor)
    out = np.empty(shape, dtype) if given_out else None
    found = combine(np, how, arrays, divisor, out)
    assert found.dtype == np.dtype(dtype) and np.asarray(found).tobytes() == np.asarray(expected).astype(dtype).tobytes()
    assert out is None or found is out
    for before, after in zip(copies, arrays, strict=True):
        assert before.tobytes() == after.tobytes()


@pytest.mark.parametrize("divisor", [1, 3])
def test_block_by_block_a_large_reduction_gives_the_bits_of_the_whole(divisor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "BLOCK_NBYTES", 400)
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=1001).astype(np.float32) for _ in range(4)]
    target = np.zeros(1200, np.float32)
    fold = Fold("x", "sum", divisor, (1, 2, 3, 4), (None, (0, 1001), None, (0, 1001)), 0, (100, 1101))
    call, slots = fold_call(fold)
    assert slots == (0, 1, 2, 3, 4)
    call(target, *arrays)
    expected = (arrays[0] + arrays[1] + arrays[2] + arrays[3]) / np.float32(divisor)
    assert target[100:1101].tobytes() == expected.tobytes()
    assert not target[:100].any() and not target[1101:].any(), "more than its part was written"


def test_arrays_are_joined_and_those_that_don_t_fit_are_named() -> None:
    call, _ = fold_call(Fold("both", JOIN, 1, (0, 1), (None, None), 2, None, ("'a:0' on one", "'b:0' on two")))
    assert call(np.ones((2, 1)), np.zeros((2, 2))).tolist() == [[1, 0, 0], [1, 0, 0]]
    with pytest.raises(errors.InvalidArgumentError, match=r"'both': .* dimension 1: 'a:0' on one .* \(2, 1\), 'b:0' on two .* \(3, 2\)"):
        call(np.ones((2, 1)), np.zeros((3, 2)))


def test_a_part_of_an_array_that_lies_in_one_piece_is_no_copy() -> None:
    array = np.arange(12.0).reshape(3, 4)
    part = view_call(View(0, 1, (4, 8), (2, 2)))(array)
    assert part.tolist() == [[4, 5], [6, 7]] and np.shares_memory(part, array)
    assert np.shares_memory(part_of(array, (2, 4)), array)
    assert part_of(array.T, (0, 3)).tolist() == [0, 4, 8], "the elements of what is seen, not of what lies there"


# ---- arrays of steps

LARGE = Make(0, dtypes.float32, (100_000,))


def step(made: Made) -> Array:
    made.begin()
    return made.take()


def test_an_array_is_used_again_when_nobody_holds_it_or_a_view_of_it() -> None:
    made = Made(LARGE)
    first = step(made)
    address = first.ctypes.data
    view = first[10:20]
    del first
    second = step(made)
    assert second.ctypes.data != address, "a view of it is still held"
    del view, second
    assert step(made).ctypes.data == address


def test_a_caller_that_holds_the_last_result_makes_two_arrays_take_turns() -> None:
    made = Made(LARGE)
    addresses = []
    result: Array | None = None
    for _ in range(6):
        result = step(made)
        addresses.append(result.ctypes.data)
    assert len(set(addresses)) == 2 and addresses[:2] == addresses[2:4]


def test_an_array_of_which_a_message_is_under_way_is_not_used_again() -> None:
    made = Made(LARGE)
    under_way: list[Array] = []
    made.sent_by(lambda: bool(under_way))
    first = step(made)
    address = first.ctypes.data
    under_way.append(first[5:10])
    del first
    assert step(made).ctypes.data != address
    under_way.clear()
    assert step(made).ctypes.data == address


def test_before_each_step_the_senders_are_asked_so_that_they_let_go() -> None:
    made = Made(LARGE)
    held: list[Array] = []

    def pending() -> bool:
        held.clear()  # the message has left, which nobody had noticed
        return False

    made.sent_by(pending)
    first = step(made)
    address = first.ctypes.data
    held.append(first[:5])
    del first
    assert step(made).ctypes.data == address


def test_messages_go_into_the_array_that_the_step_takes() -> None:
    made = Made(Make(0, dtypes.int32, (2, 3)))
    made.begin()
    made.part((1, 4))[...] = 7
    assert made.take().reshape(-1)[1:4].tolist() == [7, 7, 7]
