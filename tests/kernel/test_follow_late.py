"""A follower that comes late, or whose buffer overran: what it may not get wrong."""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING

from tests.kernel import nets
from tracer.core.assemble import STALL_NS
from tracer.core.filters import Filter
from tracer.core.journey import EndingKind
from tracer.pipeline import choose
from tracer.sources.follow import Follow, FollowOptions
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tracer.pipeline import Chosen
    from tracer.sources.trace import NamespaceTrace, Told

_DST, _PORT = "10.7.0.2", 9
_WANTED = Filter(dst=ipaddress.ip_network(_DST))

# Three messages a packet: the mark of ours, the counting rule, the drop.
_RULES = f"""
table ip late {{
	chain pre {{
		type filter hook prerouting priority -100; policy accept;
		udp dport {_PORT} counter
		ip daddr {_DST} drop
	}}
}}
"""
_OTHERS = """
flush chain ip late pre
add rule ip late pre udp dport 9 counter comment "new"
add rule ip late pre meta l4proto udp drop
"""
# A chain in front of ours asks for another place.
_ELSEWHERE = """
table ip later {
	chain pre {
		type filter hook prerouting priority -10000; policy accept;
		udp dport 9 counter
	}
}
"""


def _cable(netns: Callable[..., str]) -> None:
    netns("snd")
    netns("rtr")
    nets.veth("snd", "s0", "10.7.0.1/24", "rtr", "r0", f"{_DST}/24")
    nets.load_rules("rtr", "nftables", _RULES)


def _follow(buffer_bytes: int) -> Follow:
    options = FollowOptions(_WANTED, both=False, rate=0, buffer_bytes=buffer_bytes, ends=False)
    return Follow([find_namespace("rtr")], options)


def _choose(told: Iterable[Told]) -> list[Chosen]:
    return [
        choose(one.journeys, one.paths, _WANTED, both=False, device=one.trace.device)
        for one in told
    ]


def _read_all(trace: NamespaceTrace) -> list[Told]:
    found, count = trace.receive()
    while count:
        told, count = trace.receive()
        found += told
    return found


def test_reader_that_is_late_splits_no_journey(netns: Callable[..., str]) -> None:
    """A journey whose rest waits in the socket is not over, however late we come to read it."""
    _cable(netns)
    packets = 2003  # of three messages: one read of 4,096 ends within a packet's
    with _follow(64 << 20) as follow:
        (trace,) = follow.traces
        nets.flood("snd", _DST, _PORT, packets)
        told, count = trace.receive()
        time.sleep(2 * STALL_NS / 1e9)
        told += trace.advance()
        chosen = _choose([*told, *_read_all(trace), *follow.drain()])

    assert count % 3 != 0
    kinds = [path.ending.kind for one in chosen for path in one.paths]
    assert kinds == [EndingKind.DROPPED] * packets
    assert all((one.complete & one.whole).all() for one in chosen)


def test_change_that_was_announced_in_a_hole_is_seen(netns: Callable[..., str]) -> None:
    """Rules that changed while announcements were lost name the packets that came after."""
    _cable(netns)
    with _follow(1 << 18) as follow:
        (trace,) = follow.traces
        nets.flood("snd", _DST, _PORT, 5003)
        nets.load_rules("rtr", "nftables", _OTHERS)
        _read_all(trace)
        lost = trace.socket.lost
        nets.flood("snd", _DST, _PORT, 11)
        told = [*_read_all(trace), *follow.drain()]
        paths = [path for one in _choose(told) for path in one.paths]
        texts = [[step.text for step in path.steps] for path in paths]

    assert lost > 0
    # Journeys that the hole cut short end later, as incomplete ones by the old rules.
    assert texts.count(['udp dport 9 counter comment "new"', "meta l4proto udp drop"]) == 11


def test_rules_that_change_behind_the_last_packet_arm_nothing(netns: Callable[..., str]) -> None:
    """Disarmed, a follow reads the rules that its last packets met, and stays disarmed."""
    _cable(netns)
    with _follow(8 << 20) as follow:
        (trace,) = follow.traces
        nets.flood("snd", _DST, _PORT, 7)
        before = trace.ruleset
        follow.disarm()
        nets.load_rules("rtr", "nftables", _ELSEWHERE)
        told: list[Told] = []

        def is_known() -> bool:
            told.extend(trace.receive()[0])
            return trace.ruleset is not before

        nets.wait_until(is_known, 5, "the new rules")
        chosen = _choose([*told, *_read_all(trace), *follow.drain()])
        tables = nets.ip_netns_exec("rtr", "nft", "list", "tables").stdout

    assert 7 == sum(map(len, chosen))
    assert ["table ip late", "table ip later"] == tables.splitlines()
    assert [] == follow.notes
