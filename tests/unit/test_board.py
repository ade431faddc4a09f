"""Boards: nothing lies on anything else, and a flag of one step is none of another one that may be looked at meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt.transport.board import DEAD, DONE, HERE, HOLDS, TURN, Board, turn_of


@given(
    count=st.integers(2, 8),
    shape=st.one_of(st.just(()), st.tuples(st.integers(1, 3000)), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    dtype=st.sampled_from(["f2", "f4", "f8", "i1", "c8"]),
    turns=st.integers(1, 2),
    common=st.booleans(),
)
def test_flags_and_areas_lie_apart_and_inside(count: int, shape: tuple[int, ...], dtype: str, turns: int, common: bool) -> None:
    form = np.dtype(dtype)
    memory = np.zeros(Board.nbytes_of(count, shape, form, turns, common), np.uint8)
    board = Board(memory, count, shape, form, turns, common)
    areas = [area for of_turn in board.areas for area in of_turn] + ([] if board.common is None else [board.common])
    assert len(areas) == turns * count + common
    board.flags[:] = b"\xff" * len(board.flags)
    for number, area in enumerate(areas):
        assert area.shape == shape and area.dtype == form
        area[...] = number
    assert all((area == number).all() for number, area in enumerate(areas))
    assert set(bytes(board.flags)) == {255}
    places = [Board.line(i) + which + turn for i in range(count) for which in (HERE, DONE) for turn in (0, 1)]
    assert len(set(places)) == len(places) and max(places) < len(board.flags)
    assert memory.size - len(board.flags) < (turns * count + common) * (areas[0].nbytes + 4096)


def test_what_is_read_is_counted_and_can_t_be_written() -> None:
    memory = np.zeros(Board.nbytes_of(2, (3,), np.dtype("f4"), 1, True), np.uint8)
    board = Board(memory, 2, (3,), np.dtype("f4"), 1, True)
    assert board.common is not None
    result = board.read_only()
    board.common[:] = 1, 2, 3
    assert result.tolist() == [1, 2, 3]
    assert result[1:].base is result, "who holds a part holds the whole, which can be counted"
    with pytest.raises(ValueError, match="read-only"):
        result[0] = 0


@given(step=st.integers(1, 1000))
def test_a_flag_is_not_that_of_the_step_before_the_last_nor_of_none(step: int) -> None:
    """In a place there is the flag of a step or of the one two steps before; at first 0."""
    assert turn_of(step) != turn_of(step + 2) and turn_of(step) == turn_of(step + 4)
    for more in (0, DEAD, HOLDS):
        assert (turn_of(step) | more) & TURN == turn_of(step) != 0
