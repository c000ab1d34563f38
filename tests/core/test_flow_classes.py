"""Flows and their classes, out of headers, and the answers that are remembered."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.events import PACKET
from tracer.core.flow_classes import (
    FLOW_CLASS,
    Answers,
    Flow,
    RuleAnswer,
    class_keys,
    flow_keys,
    tables_by_source,
)
from tracer.core.journey import Ending, EndingKind
from tracer.core.ruleset import Chain, Rule, Ruleset, Table

_ENDING = Ending(EndingKind.DROPPED, "input", "legacy", "ip", "filter", "INPUT", 3, None, "-j DROP")


def _packet(src: str, dst: str, proto: int, transport: bytes, dport: int = 0) -> np.void:
    packet = np.zeros(1, PACKET)[0]
    for name, word in (("src", src), ("dst", dst)):
        packed = ipaddress.ip_address(word).packed
        packet[name][: len(packed) // 4] = np.frombuffer(packed, "<u4")
    packet["family"] = ipaddress.ip_address(src).version
    packet["proto"], packet["dport"] = proto, dport
    packet["transport_length"] = len(transport)
    packet["raw"][40 : 40 + len(transport)] = np.frombuffer(transport, np.uint8)
    return packet


@pytest.mark.parametrize(
    ("src", "proto", "transport", "element"),
    [
        ("10.1.2.3", 6, bytes([0x30, 0x39, 0, 22]), "10.1.2.3 . 6 . 12345"),
        ("2001:db8::1", 17, bytes([0, 53, 1, 2]), "2001:db8::1 . 17 . 53"),
        ("10.1.2.3", 1, bytes([8, 0, 1, 2]), "10.1.2.3 . 1 . 2048"),
    ],
)
def test_a_flow_is_an_element_of_a_set(
    src: str, proto: int, transport: bytes, element: str
) -> None:
    """Source, protocol and the first transport word are what nft looks up."""
    flows, usable = flow_keys(np.array([_packet(src, src, proto, transport)], PACKET))

    assert [True] == usable.tolist()
    assert element == Flow.of_row(flows[0]).render()


def test_what_has_no_transport_header_has_no_flow() -> None:
    """Later fragments and what is not IP cannot be looked up at the first hook."""
    packets = np.array(
        [_packet("10.0.0.1", "10.0.0.2", 17, b""), _packet("10.0.0.1", "10.0.0.2", 17, b"ab")],
        PACKET,
    )
    packets["family"][1] = 0

    assert [False, False] == flow_keys(packets)[1].tolist()


def test_a_class_is_source_destination_port_and_device() -> None:
    """Its first bytes are the source's address alone: without them the source is no matter."""
    one, other = "10.0.0.1", "10.9.9.9"
    packets = np.array(
        [_packet(src, "10.0.0.2", 6, b"abcd", 22) for src in (one, other)]
        + [_packet(one, "10.0.0.2", 6, b"abcd", 23)],
        PACKET,
    )
    same = class_keys(packets, np.array([3, 3, 3]))
    elsewhere = class_keys(packets, np.array([4, 4, 4]))

    beside = [row.tobytes()[FLOW_CLASS["src"].itemsize :] for row in same]
    assert same[0] != same[1]
    assert beside[0] == beside[1]
    assert same[0] != same[2]
    assert same[0] != elsewhere[0]


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("-A INPUT -s 10.0.0.0/8 -j DROP", True),
        ("-A INPUT ! -s 10.0.0.0/8 -j DROP", True),
        ("-A INPUT -m set --match-set blocked src -j DROP", True),
        ("-A INPUT -m iprange --src-range 10.0.0.1-10.0.0.9 -j DROP", True),
        ("-A INPUT -m recent --rcheck --name x -j DROP", True),
        ("-A INPUT -m mac --mac-source 02:00:00:00:00:01 -j DROP", True),
        ("ip saddr 10.0.0.0/8 drop", True),
        ("ip6 saddr . tcp dport @blocked drop", True),
        ("fib saddr oif missing drop", True),
        ("-A INPUT -d 10.0.0.2/32 -p tcp -m tcp --dport 22 -j DROP", False),
        ("tcp dport 22 drop", False),
    ],
)
def test_a_table_looks_at_the_source_if_a_rule_may(text: str, looks: bool) -> None:  # noqa: FBT001
    """Addresses, lists and sets of sources count; destinations, ports and devices do not."""
    chain = Chain("INPUT", (Rule(1, text, "iptables", None),))
    table = Table("legacy", "ip", "filter", "iptables", {"INPUT": chain})
    other = Table("legacy", "ip", "raw", "iptables", {"INPUT": Chain("INPUT")})
    ruleset = Ruleset({("legacy", "ip", "filter"): table, ("legacy", "ip", "raw"): other})

    assert ({"filter"} if looks else set()) == tables_by_source(ruleset)


def test_an_answer_names_a_rule_or_a_policy() -> None:
    """An ending without a chain, as at a closed port, is no rule's."""
    answer = RuleAnswer.of_ending(_ENDING)

    assert answer == RuleAnswer("legacy", "ip", "input", "filter", "INPUT", 3, None, "-j DROP")
    assert RuleAnswer.of_ending(Ending(EndingKind.DROPPED, reason="NO_SOCKET")) is None


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 10))
def test_the_memory_is_bounded_and_keeps_what_is_asked_for(keys: list[int], limit: int) -> None:
    """It holds the last *limit* keys that were remembered or found, and no more."""
    answers, recent = Answers(limit), []
    answer = RuleAnswer.of_ending(_ENDING)
    assert answer is not None
    for key in keys:
        found = answers.find(key) is not None
        assert found == (key in recent)
        if not found:
            answers.remember(key, answer)
        recent = [*(one for one in recent if one != key), key][-limit:]

        assert len(recent) == len(answers)

    assert len(set(keys)) <= len(answers) + answers.evicted
