"""Hostlist expressions, with answers as ``scontrol show hostnames`` gives them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpirt.cluster import hostlist


@pytest.mark.parametrize(
    ("expression", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[3,1-2]", ["n3", "n1", "n2"]),
        ("a[1-3,07]b[0-1],c", ["a1b0", "a1b1", "a2b0", "a2b1", "a3b0", "a3b1", "a07b0", "a07b1", "c"]),
        ("n[008-011]", ["n008", "n009", "n010", "n011"]),
        ("n[1-2]-ib,login", ["n1-ib", "n2-ib", "login"]),
        ("rack[1-2]n[01-02]", ["rack1n01", "rack1n02", "rack2n01", "rack2n02"]),
        (" h2 , h1 ", ["h2", "h1"]),
        ("h1,h1", ["h1", "h1"]),
        ("[1-2]", ["1", "2"]),
        ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
    ],
)
def test_expand_keeps_order_repeats_and_padding(expression: str, hosts: list[str]) -> None:
    assert hostlist.expand(expression) == hosts


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "hostlist '' has an empty host or unbalanced brackets"),
        ("a,,b", "hostlist 'a,,b' has an empty host or unbalanced brackets"),
        ("a,", "hostlist 'a,' has an empty host or unbalanced brackets"),
        ("a, ,b", "hostlist 'a, ,b' has an empty host or unbalanced brackets"),
        ("n[1-2", "hostlist 'n[1-2' has an empty host or unbalanced brackets"),
        ("n1-2]", "hostlist 'n1-2]' has an empty host or unbalanced brackets"),
        ("n[[1]]", "hostlist 'n[[1]]' has an empty host or unbalanced brackets"),
        ("n[]", "'' is not a number or a range like 0-3"),
        ("n[a-b]", "'a-b' is not a number or a range like 0-3"),
        ("n[1-]", "'1-' is not a number or a range like 0-3"),
        ("n[3-1]", "the range '3-1' runs backwards"),
        ("n[0-99999999999]", "the range '0-99999999999' is too large: at most 65536 numbers"),
        ("n[0-65535]x[0-65535]", "hostlist 'n[0-65535]x[0-65535]' has more than 65536 hosts"),
        ("n[0-65535],m", "hostlist 'n[0-65535],m' has more than 65536 hosts"),
    ],
)
def test_malformed_and_huge_expressions_are_refused(expression: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        hostlist.expand(expression)
    assert str(caught.value) == reason


def test_the_largest_list_is_accepted() -> None:
    assert len(hostlist.expand("n[0-65535]")) == 65536


@pytest.mark.parametrize("text", ["0-65536", "0-65535,7", "0-40000,0-40000"])
def test_a_list_of_numbers_is_limited_as_a_whole(text: str) -> None:
    with pytest.raises(ValueError, match="^the range '.*' is too large: at most 65536 numbers$"):
        hostlist.numbers(text)


@given(st.lists(st.integers(0, 300), unique=True).map(sorted))
def test_ranges_are_the_inverse_of_numbers(values: list[int]) -> None:
    text = hostlist.ranges(values)
    assert (hostlist.numbers(text) if values else []) == values
    runs = sum(value - 1 not in values for value in values)
    assert text.count(",") == max(runs - 1, 0)


@pytest.mark.parametrize(
    ("host", "short"),
    [("h1.cluster.org", "h1"), ("H1", "h1"), ("10.77.0.1", "10.77.0.1"), ("n1-ib", "n1-ib")],
)
def test_short_name_drops_the_domain_but_not_parts_of_an_address(host: str, short: str) -> None:
    assert hostlist.short_name(host) == short
