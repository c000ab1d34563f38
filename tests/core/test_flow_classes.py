"""Flows and their classes, out of headers, and the answers that are remembered."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.events import PACKET
from tracer.core.flow_classes import Answers, Flow, RuleAnswer, class_keys, flow_keys
from tracer.core.journey import Ending, EndingKind

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


def test_the_source_makes_no_difference_to_the_class() -> None:
    """Packets from everywhere to one port by one device are of one class."""
    one, other = "10.0.0.1", "10.9.9.9"
    packets = np.array(
        [_packet(src, "10.0.0.2", 6, b"abcd", 22) for src in (one, other)]
        + [_packet(one, "10.0.0.2", 6, b"abcd", 23)],
        PACKET,
    )
    same = class_keys(packets, np.array([3, 3, 3]))
    elsewhere = class_keys(packets, np.array([4, 4, 4]))

    assert same[0] == same[1]
    assert same[0] != same[2]
    assert same[0] != elsewhere[0]


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
