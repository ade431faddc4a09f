"""Message tags: parts that never overlap, blocks that are used again once they are free."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt import errors
from mpirt.distributed.tags import TagSpace


def spaces(max_tag: int, size: int) -> list[TagSpace]:
    return [TagSpace.collective(max_tag), *(TagSpace.of_master(max_tag, rank, size) for rank in range(size))]


@given(st.integers(60, 5000), st.integers(1, 20))
def test_collective_sessions_and_the_masters_of_all_ranks_never_use_the_same_tag(max_tag: int, size: int) -> None:
    seen: set[int] = set()
    for space in spaces(max_tag, size):
        mine = []
        with pytest.raises(errors.ResourceExhaustedError):
            while True:
                mine.append(space.take(1))
        assert mine and max(mine) <= max_tag and min(mine) >= 0
        assert seen.isdisjoint(mine)
        seen.update(mine)
    assert len(seen) > max_tag - size - 1  # and nearly all of them are used


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=60))
def test_blocks_that_are_taken_never_overlap_and_those_given_back_are_used_again(wishes: list[tuple[int, bool]]) -> None:
    space = TagSpace(100, 100 + sum(count for count, _ in wishes))
    held: list[tuple[int, int]] = []
    for count, gives_back in wishes:
        first = space.take(count)
        tags = set(range(first, first + count))
        assert all(tags.isdisjoint(range(f, f + c)) for f, c in held)
        held.append((first, count))
        if gives_back:
            f, c = held.pop(0)
            space.give_back(f, c)


def test_a_session_that_ends_again_and_again_never_uses_up_the_tags() -> None:
    space = TagSpace(0, 10)
    for _ in range(1000):
        blocks = [(space.take(3), 3), (space.take(7), 7)]
        for first, count in blocks:
            space.give_back(first, count)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 10)), min_size=1, max_size=60))
def test_blocks_of_all_sizes_become_one_again_in_whatever_order_they_are_given_back(wishes: list[tuple[int, int]]) -> None:
    total = sum(count for count, _ in wishes)
    space = TagSpace(0, total)
    held = [(space.take(count), count, order) for count, order in wishes]
    for first, count, _ in sorted(held, key=lambda block: block[2]):
        space.give_back(first, count)
    assert space.take(total) == 0


def test_the_error_of_a_job_without_tags_says_what_to_do() -> None:
    space = TagSpace(5, 7)
    space.take(2)
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        space.take(1)
    assert caught.value.message == "this job has used up its 2 message tags."
    assert caught.value.hint == (
        "run the same fetches again instead of building new ones for each step, and close sessions that are done."
    )
