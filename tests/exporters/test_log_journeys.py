"""Journeys in the log come back as the values that were put in."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.json_lines import render_journey
from exporters.log.journeys import read_journey
from exporters.log.select import matches_journey
from tests.journeys import START_NS, article, lone, step
from tracer.core.filters import Filter
from tracer.core.journey import Ending, EndingKind, Packet, Verdict

FIRST, SECOND = article()
ICMP = lone(
    Packet(
        "ipv6", "icmpv6", "fd00::1", "fd00::2", icmp_type=128, icmp_code=0, icmp_id=7, icmp_seq=1
    ),
    step("input filter IN:PUT", 3, '-m comment --comment "ä \\" ✓" -j DROP', Verdict.DROP),
)
JOURNEYS = [
    FIRST,
    SECOND,
    ICMP,
    lone(Packet("other", "0")),
    replace(SECOND, complete=False, lost=7, whole=False, duration_us=31, clock="kernel"),
    replace(SECOND, ending=Ending(EndingKind.QUEUED), in_device=None),
]


@pytest.mark.parametrize("journey", JOURNEYS)
def test_a_journey_comes_back_as_it_was(journey: object) -> None:
    """Reading a journey's line gives the journey, to the nanosecond of its row."""
    assert journey == read_journey(render_journey(journey), journey.start_ns)


def test_what_a_later_version_adds_is_passed_over() -> None:
    """Members that we do not know do not keep a journey from being read."""
    line = render_journey(SECOND).replace('"hook":', '"colour":"red","hook":')

    assert SECOND == read_journey(f'{line[:-1]},"later":[1]}}', SECOND.start_ns)


@given(st.integers(0, len(render_journey(SECOND)) - 1), st.characters())
def test_a_damaged_line_is_said_to_be_none(at: int, other: str) -> None:
    """A line that is cut is a ValueError; with another character in it, that or a journey."""
    line = render_journey(SECOND)
    with pytest.raises(ValueError, match=r"."):
        read_journey(line[:at], START_NS)
    with contextlib.suppress(ValueError):
        assert START_NS == read_journey(line[:at] + other + line[at + 1 :], START_NS).start_ns


_NAMES = st.sampled_from(["ending", "steps", "packet", "kind"])
_ANY = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner),
)


@given(_ANY)
def test_any_json_that_is_no_journey_is_said_to_be_none(told: object) -> None:
    """Whatever the line holds, what is no journey is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        read_journey(json.dumps(told), START_NS)


def test_the_addresses_of_one_moment_must_match_together() -> None:
    """The address after the NAT with the port from before it is no packet of this journey."""
    assert matches_journey(Filter(dport=22), FIRST)
    assert matches_journey(Filter(dport=10174), FIRST)
    assert not matches_journey(Filter(dport=23), FIRST)
    assert not matches_journey(Filter(dport=10174, proto=17), FIRST)
