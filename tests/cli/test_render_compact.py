"""The compact form: one line a journey, in columns that awk can count."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

from hypothesis import given
from hypothesis import strategies as st

from tests.journeys import FILTER_CHAIN, article, lone, step, syn
from tracer.cli.render_compact import CompactTemplate, packet_columns, render_compact
from tracer.cli.theme import ASCII
from tracer.core.journey import Ending, EndingKind, Packet, Verdict


def test_drop_has_every_column() -> None:
    """Time, namespace, protocol, flags, addresses, end, table, chain, rule, text."""
    words = render_compact(article()[1], zone=UTC).split()

    expected = "17:22:14.031020 vr2 tcp S 183.62.15.118:22449 → 172.17.21.105:22 dropped mangle"
    assert [*expected.split(), FILTER_CHAIN, "5", "-j", "DROP"] == words


def test_sent_has_the_same_columns_and_the_addresses_after_nat() -> None:
    """What has no rule has `-` in its columns; the translated addresses can be searched for."""
    line = render_compact(article()[0], zone=UTC)

    assert ["sent", "-", "-", "-", "out", "eth0"] == line.split()[7:13]
    assert line.endswith("(now 183.62.15.118:22449 → 172.17.21.105:22)")


def test_unknown_policy_and_gone_rule_fill_their_columns() -> None:
    """Every kind of ending has eleven columns before its text."""
    last = step("input filter INPUT", None, None, Verdict.ACCEPT)
    unknown = lone(syn("10.0.0.1", 22), last, ending=Ending(EndingKind.UNKNOWN, "input"))
    policy = lone(syn("10.0.0.1", 22), replace(last, verdict=Verdict.DROP))
    gone = replace(policy, ending=replace(policy.ending, engine="nft", handle=7))

    assert ["unknown", "-", "-", "-"] == render_compact(unknown).split()[7:11]
    assert ["dropped", "filter", "INPUT", "policy"] == render_compact(policy).split()[7:]
    assert ["dropped", "filter", "INPUT", "handle:7"] == render_compact(gone).split()[7:]


def test_template_gives_the_same_line() -> None:
    """The constant part of a path with a packet's columns is the packet's line."""
    first, other = article()[1], article(1000, sport=7)[1]
    line = CompactTemplate(first).line("17:22:14.031021", packet_columns(other.packet))

    assert render_compact(other, zone=UTC) == line


def test_hole_is_marked_at_the_end() -> None:
    """A journey that may lack steps says so in its line, and only such a one."""
    hole = replace(article()[1], complete=False, lost=3, whole=False)

    assert render_compact(hole).endswith("[first hooks not seen] [may have a hole: 3 events lost]")
    assert "[" not in render_compact(article()[1])


def test_icmp_and_ipv6_keep_the_columns() -> None:
    """ICMP messages take the flags' column; an IPv6 address with a port has brackets."""
    icmp = Packet("ipv4", "icmp", "10.0.0.1", "10.0.0.2", icmp_type=42)
    udp = Packet("ipv6", "udp", "fd00::1", "fd00::2", 1, 2)

    assert ["icmp", "type-42", "10.0.0.1", "→", "10.0.0.2"] == packet_columns(icmp).split()
    assert ["udp", "-", "[fd00::1]:1", "->", "[fd00::2]:2"] == packet_columns(udp, ASCII).split()


@given(st.text(st.characters(), min_size=1, max_size=40))
def test_a_line_stays_one_line(text: str) -> None:
    """No name or rule adds a line or a column before the text."""
    last = replace(step("input filter X", 2, text, Verdict.DROP), chain=text, table=text)
    line = render_compact(replace(lone(syn("10.0.0.1", 22), last), netns=text), color=True)

    assert len(line.splitlines()) == 1
    assert line.split()[10] == "2"
