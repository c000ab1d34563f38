"""Interval arithmetic against plain sets of numbers."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.nat_ranges import (
    complement,
    count,
    covers,
    join,
    make_ranges,
    meet,
    move,
    move_back,
    read_addresses,
    read_network,
)

TOP = 63
PAIRS = st.lists(st.tuples(st.integers(0, TOP), st.integers(0, TOP)), max_size=5)


def _numbers(ranges: tuple[tuple[int, int], ...] | None) -> set[int]:
    if ranges is None:
        return set(range(TOP + 1))
    return {number for low, high in ranges for number in range(low, high + 1)}


@given(PAIRS, PAIRS)
def test_ranges_are_the_sets_that_they_stand_for(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    """Meeting, joining, complementing and covering agree with Python's sets."""
    a, b = make_ranges(one), make_ranges(other)

    assert _numbers(meet(a, b)) == _numbers(a) & _numbers(b)
    assert _numbers(join(a, b)) == _numbers(a) | _numbers(b)
    assert _numbers(complement(a, TOP)) == set(range(TOP + 1)) - _numbers(a)
    assert covers(a, b) is (_numbers(a) >= _numbers(b))
    assert count(a) == len(_numbers(a))
    assert make_ranges(a) == a


@given(PAIRS)
def test_any_number_is_neutral(pairs: list[tuple[int, int]]) -> None:
    """None limits nothing and covers everything."""
    a = make_ranges(pairs)

    assert meet(a, None) == meet(None, a) == a
    assert join(a, None) is None
    assert covers(None, a)
    assert not covers(a, None)


@given(PAIRS, st.sampled_from([1, 4, 16]), st.integers(0, 3))
def test_moving_keeps_the_place_in_the_block(
    pairs: list[tuple[int, int]], size: int, block: int
) -> None:
    """Moved numbers have the target's block and their own place; moving back loses none."""
    a, base = make_ranges(pairs), block * size
    moved = move(a, size, base)

    assert _numbers(moved) == {base | (number & (size - 1)) for number in _numbers(a)}
    assert move_back(moved, size, a) == a
    for number in range(base, base + size):
        wanted = {each for each in _numbers(a) if each & (size - 1) == number & (size - 1)}
        assert _numbers(move_back(((number, number),), size, a)) == wanted


def test_a_range_over_many_blocks_is_not_followed() -> None:
    """A whole IPv6 network moves into the target in no time, and back into itself."""
    wide = read_network(ipaddress.ip_network("2001:db8::/32"))

    assert move(wide, 256, 512) == ((512, 767),)
    assert move_back(((512, 512),), 256, wide) == wide
    assert move_back(((512, 512),), 256, None) is None


@pytest.mark.parametrize(
    ("text", "version", "expected"),
    [
        ("10.0.0.1", 4, ((167772161, 167772161),)),
        ("10.0.0.0/24", 4, ((167772160, 167772415),)),
        ("10.0.0.0/255.255.255.0", 4, ((167772160, 167772415),)),
        ("10.0.0.1-10.0.0.3", 4, ((167772161, 167772163),)),
        ("::1", 6, ((1, 1),)),
        ("::/126", 6, ((0, 3),)),
    ],
)
def test_addresses_are_read_in_each_notation(
    text: str, version: int, expected: tuple[tuple[int, int], ...]
) -> None:
    """One address, a network by length or mask, and a range."""
    assert read_addresses(text, version) == expected


@pytest.mark.parametrize(("text", "version"), [("::1", 4), ("10.0.0.0/8", 6), ("x", 4), ("", 6)])
def test_what_is_no_address_of_the_version_is_refused(text: str, version: int) -> None:
    """Another version's address is an error like any other text."""
    with pytest.raises(ValueError, match=r"."):
        read_addresses(text, version)
