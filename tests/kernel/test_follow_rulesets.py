"""Follow on rulesets that others wrote: the right ending, in the tool's words, undisturbed."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_live import follow
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

RULESETS = nets.ROOT / "tests/core/rulesets"
NOISE = 5
_PUBLIC = "203.0.113.1"
_PEER, _BOX = "peer", "box"


@dataclass(frozen=True)
class Send:
    """
    *count* packets from *src*, and the rule that must decide, or a policy.

    *text* is the deciding rule as its tool prints it, None for a policy; *kind* how the
    journey ends, *chain* where. *dport* and *dst* are looked for by the filter.
    """

    proto: str
    dst: str
    dport: int
    count: int
    kind: str
    chain: str
    text: str | None
    src: str = "203.0.113.2"


IPTABLES = {
    "fail2ban": (
        Send(
            *("tcp", _PUBLIC, 22, 7, "rejected", "f2b-sshd"),
            "-A f2b-sshd -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable",
            src="203.0.113.9",
        ),
        Send("tcp", _PUBLIC, 80, 3, "unknown", "INPUT", None),
    ),
    "ufw": (
        Send(
            *("udp", _PUBLIC, 137, 7, "dropped", "ufw-skip-to-policy-input"),
            "-A ufw-skip-to-policy-input -j DROP",
        ),
        Send("udp", _PUBLIC, 9999, 5, "dropped", "INPUT", None),
        Send(
            *("tcp", _PUBLIC, 443, 3, "unknown", "ufw-user-input"),
            "-A ufw-user-input -p tcp -m multiport --dports 80,443 -j ACCEPT",
        ),
    ),
    "docker": (
        Send(
            *("tcp", "172.18.0.2", 80, 7, "dropped", "PREROUTING"),
            "-A PREROUTING -d 172.18.0.2/32 ! -i br-5f0c3b1d2e4a -j DROP",
        ),
        Send("udp", "172.17.0.9", 53, 5, "dropped", "FORWARD", None),
        Send("tcp", _PUBLIC, 8080, 3, "dropped", "FORWARD", None),
    ),
    "kube-proxy": (
        Send(
            *("tcp", "10.96.33.17", 80, 7, "unknown", "KUBE-POSTROUTING"),
            '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT"'
            " -j MASQUERADE --random-fully",
        ),
        Send("udp", "10.96.33.17", 80, 5, "unknown", "POSTROUTING", None),
    ),
    "calico": (
        Send("udp", "172.17.0.9", 53, 5, "unknown", "FORWARD", None),
        Send("udp", _PUBLIC, 4789, 3, "unknown", "INPUT", None),
    ),
    # Its comments hold what looks like nft's handles: no listing can be taken apart by those.
    "odd": (
        Send(
            *("tcp", _PUBLIC, 22, 7, "unknown", "INPUT"),
            "-A INPUT -m comment --comment -j -j ACCEPT",
        ),
    ),
}
NATIVE = {
    "firewalld": (
        Send(
            "udp",
            _PUBLIC,
            9999,
            7,
            "rejected",
            "filter_INPUT",
            "reject with icmpx admin-prohibited",
            src="203.0.113.40",
        ),
        Send(
            *("tcp", _PUBLIC, 22, 5, "dropped", "filter_INPUT_ZONES"),
            "ip saddr @blocked drop",
            src="203.0.113.9",
        ),
        Send(
            "tcp",
            _PUBLIC,
            22,
            3,
            "unknown",
            "filter_IN_public_allow",
            "tcp dport 22 accept",
            src="203.0.113.40",
        ),
    ),
    "fw4": (
        Send(
            *("udp", _PUBLIC, 9999, 7, "rejected", "handle_reject"),
            'reject comment "!fw4: Reject any other traffic"',
        ),
        Send(
            *("tcp", "172.17.0.9", 8080, 5, "dropped", "forward"),
            "tcp dport vmap"
            " { 22 : jump handle_reject, 80 : accept, 443 : accept, 8000-8999 : drop }",
        ),
        Send(
            *("tcp", "172.17.0.9", 22, 3, "rejected", "handle_reject"),
            'meta l4proto tcp reject with tcp reset comment "!fw4: Reject TCP traffic"',
        ),
    ),
}
RUNS = [
    *((backend, name) for name in IPTABLES for backend in ("legacy", "nft")),
    *(("nftables", name) for name in NATIVE),
]


@contextlib.contextmanager
def _box(backend: str, name: str) -> Iterator[None]:
    """Make a peer, and a box that has the ruleset and a way to everywhere."""
    nets.add_netns(_PEER)
    nets.add_netns(_BOX, forward=True)
    try:
        own = tuple(f"203.0.113.{n}/24" for n in (2, 9, 40))
        nets.veth(_PEER, "eth0", own, _BOX, "eth0", f"{_PUBLIC}/24")
        nets.route(_PEER, "default", "via", _PUBLIC)
        nets.veth(_PEER, "out", "192.0.2.2/24", _BOX, "out", "192.0.2.1/24")
        nets.route(_BOX, "default", "via", "192.0.2.2")
        suffix = "nft" if backend == "nftables" else "rules"
        text = (RULESETS / f"{name}.{suffix}").read_text(encoding="utf-8")
        nets.load_rules(_BOX, backend, text)
        yield
    finally:
        nets.delete_netns(_PEER)
        nets.delete_netns(_BOX)


def _send(sends: tuple[Send, ...]) -> None:
    for one in sends:
        for index in range(one.count):
            send = nets.send_udp if one.proto == "udp" else nets.send_tcp_syn
            send(_PEER, one.dst, one.dport, src=one.src, sport=40_000 + index)
    nets.send_udp(_PEER, _PUBLIC, 33_333, NOISE, src="192.0.2.2")


def _list(backend: str) -> list[str]:
    """Return the rules with their counters as the tool prints them, but for the time."""
    if backend == "nftables":
        return nets.ip_netns_exec(_BOX, "nft", "list", "ruleset").stdout.splitlines()
    text = nets.ip_netns_exec(_BOX, f"iptables-{backend}-save", "-c").stdout
    # Which end of a service gets a connection is a throw of kube-proxy's dice.
    return [line for line in text.splitlines() if line[0] != "#" and "KUBE-SEP" not in line]


def _tell(journey: dict[str, Any]) -> tuple[str, str, str | None]:
    last = journey["steps"][-1]
    return journey["ending"]["kind"], last["chain"], last["text"]


@pytest.mark.parametrize(("backend", "name"), RUNS)
def test_tells_the_end_and_changes_nothing(backend: str, name: str) -> None:
    """Packets end where the rules' author meant, and the tools list what they list without us."""
    sends = (NATIVE if backend == "nftables" else IPTABLES)[name]
    with _box(backend, name):
        _send(sends)
        expected = _list(backend)

    with _box(backend, name):
        with follow(_BOX, "--src", "203.0.113.0/24") as live:
            _send(sends)
        after = _list(backend)
        assert live.told is not None
        if name != "odd":
            assert check_texts(live.told, _BOX) > 0

    assert expected == after
    ends: dict[Send, Counter[tuple[str, str, str | None]]] = {}
    for one in sends:
        place = one.proto, one.src, one.dst, one.dport
        ends[one] = Counter(
            _tell(j)
            for j in live.journeys
            if place == tuple(j["packet"].get(k) for k in ("proto", "src", "dst", "dport"))
        )
    assert {one: Counter({(one.kind, one.chain, one.text): one.count}) for one in sends} == ends
    assert not [j for j in live.journeys if j["packet"]["src"] == "192.0.2.2"]
