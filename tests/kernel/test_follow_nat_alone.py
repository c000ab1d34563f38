"""A router that translates and has no other rules: later packets pass no rule at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow_text
from tests.kernel.follow_live import changes, follow
from tests.kernel.nat_road import CLIENT, ROUTER, SERVER, Road, Talk, echo, road

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["road"]

COUNT = 5
_IPTABLES = """*nat
-A PREROUTING -d 10.8.0.9 -p udp --dport 79 -j DNAT --to-destination 10.2.0.2:22
COMMIT
"""
_NATIVE = """
table ip t { chain c { type nat hook prerouting priority dstnat;
 ip daddr 10.8.0.9 udp dport 79 dnat to 10.2.0.2:22
}; }
"""
THERE = {"dst": ["10.8.0.9", "10.2.0.2"], "dport": [79, 22]}
BACK = {"src": ["10.2.0.2", "10.8.0.9"], "sport": [22, 79]}


@pytest.fixture
def talk(road: Road) -> Iterator[Talk]:
    """Give a conversation through the router, which has a nat table and nothing else."""
    nets.load_rules(ROUTER, road.backend, _NATIVE if road.backend == "nftables" else _IPTABLES)
    with echo(SERVER, "10.2.0.2", 22) as server:
        one = Talk(CLIENT, ("10.8.0.9", 79), server)
        with one.socket:
            yield one
    nets.ip_netns_exec(ROUTER, "conntrack", "-F")
    if road.backend == "nftables":
        nets.ip_netns_exec(ROUTER, "nft", "flush", "ruleset")


def _own_changes(journey: dict[str, Any]) -> dict[str, Any]:
    return journey.get("changes", {})


def test_later_packets_are_shown_with_their_translation(talk: Talk) -> None:
    """What no rule's step can hold stands in the journey's own changes, replies included."""
    with follow(ROUTER, "--dst", "10.2.0.2", "--dport", "22", "--both") as live:
        talk.exchange(COUNT)

    there = [j for j in live.journeys if j["packet"]["dport"] == 79]
    back = [j for j in live.journeys if j["packet"]["sport"] == 22]
    assert [{}, *[THERE] * (COUNT - 1)] == [_own_changes(j) for j in there]
    assert THERE == changes(there[0])
    assert [BACK] * COUNT == [_own_changes(j) for j in back]
    assert [[]] * (2 * COUNT - 1) == [j["steps"] for j in (*there[1:], *back)]
    assert {True} == {j["whole"] and j["complete"] for j in live.journeys}


def test_people_read_the_translation_and_why_no_rule_is_shown(talk: Talk) -> None:
    """The text of such a packet says that it passed no rule, and what became of its addresses."""
    talk.exchange(1)
    with follow_text(ROUTER, "--dst", "10.2.0.2", "--dport", "22") as run:
        talk.exchange(1)
        text = run.finish_text("10.2.0.2:22")

    assert "no rule passed; as its connection is translated:" in text
    assert "dst 10.8.0.9:79 ⇒ 10.2.0.2:22" in text
