"""Tags: no two blocks overlap, and what is given back is used again, in blocks of any size."""

from __future__ import annotations

import random

import pytest

from mpirt import errors
from mpirt.distributed.tags import TagSpace


def test_masters_and_collective_sessions_never_have_a_tag_in_common() -> None:
    max_tag, size = 1000, 7
    spaces = [TagSpace.collective(max_tag), *(TagSpace.of_master(max_tag, rank, size) for rank in range(size))]
    taken = []
    for space in spaces:
        with pytest.raises(errors.ResourceExhaustedError):
            while True:
                taken.append(space.take(1))
    assert len(set(taken)) == len(taken) and min(taken) >= 0 and max(taken) <= max_tag
    assert len(taken) > max_tag - size - 2, "nearly all are used"


def test_blocks_that_are_taken_never_overlap_and_neighbours_given_back_become_one() -> None:
    rng = random.Random(0)
    space = TagSpace(100, 400)
    held: list[tuple[int, int]] = []
    for _ in range(5000):
        if held and rng.random() < 0.5 or len(held) > 10:
            space.give_back(*held.pop(rng.randrange(len(held))))
        else:
            count = rng.randrange(1, 12)
            first = space.take(count)
            assert 100 <= first <= 400 - count
            assert all(first + count <= f or f + c <= first for f, c in held)
            held.append((first, count))
    for block in held:
        space.give_back(*block)
    assert space.take(300) == 100, "all of it is one block again"


def test_a_used_up_space_says_what_to_do() -> None:
    space = TagSpace(0, 4)
    space.take(3)
    with pytest.raises(errors.ResourceExhaustedError, match="this job has used up its 4 message tags") as caught:
        space.take(2)
    assert "close sessions that are done" in caught.value.hint
