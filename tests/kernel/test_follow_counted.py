"""Rulesets as others write them: each rule is named as often as the kernel counted it."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow
from tests.kernel.printed_rules import check_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.follow_helper import Told

RULESETS = Path(__file__).with_name("rulesets")
PEER, BOX = "peer", "box"
PUBLIC = "203.0.113.1"
#: What lies behind the box, by the name of the device there: its address, and the others.
DEVICES = {
    "docker0": ("172.17.0.1/16", ("172.17.0.2/16", "172.17.0.3/16")),
    "br-5f0c3b1d2e4a": ("172.18.0.1/16", ("172.18.0.2/16",)),
    "cni0": ("10.42.0.1/24", ("10.42.0.7/24", "10.42.0.8/24")),
    "cali1234567890a": ("10.65.0.1/24", ("10.65.0.2/24",)),
    "cali9876543210b": ("10.66.0.1/24", ("10.66.0.2/24",)),
}
BEHIND = {
    "docker": ("docker0", "br-5f0c3b1d2e4a"),
    "k3s": ("cni0",),
    "calico": ("cali1234567890a", "cali9876543210b"),
    "kube-proxy": ("cni0",),
    "firewalld": ("docker0", "br-5f0c3b1d2e4a"),
    "fw4": ("docker0",),
}
IPSETS = {
    "k3s": "create KUBE-DST-3YG2 hash:ip\nadd KUBE-DST-3YG2 10.42.0.7\n",
    "calico": "create cali40masq-ipam-pools hash:net\nadd cali40masq-ipam-pools 10.64.0.0/12\n"
    "create cali40all-ipam-pools hash:net\nadd cali40all-ipam-pools 10.64.0.0/12\n"
    "create cali40s:front hash:ip\nadd cali40s:front 203.0.113.40\n",
}


@dataclass(frozen=True)
class Send:
    """
    *count* packets from *src*, each of a connection of its own, and where they must end.

    *end* is the kind and the last step: chain, rule's number or None for a policy. *ends*
    are several such where the ruleset throws dice or counts; then each may be.
    """

    proto: str
    src: str
    dst: str
    dport: int
    count: int
    kind: str
    ends: tuple[tuple[str, int | None], ...]


def _send(where: str, count: int, kind: str, *ends: tuple[str, int | None]) -> Send:
    """Make a `Send` of "PROTO SRC > DST:PORT"."""
    proto, src, _, target = where.split()
    dst, _, dport = target.rpartition(":")
    return Send(proto, src, dst, int(dport), count, kind, ends)


SENDS = {
    "docker": (
        _send("tcp 203.0.113.2 > 203.0.113.1:8080", 7, "unknown", ("POSTROUTING", None)),
        _send("udp 203.0.113.2 > 203.0.113.1:5353", 5, "unknown", ("POSTROUTING", None)),
        _send("tcp 203.0.113.9 > 203.0.113.1:8080", 7, "rejected", ("DOCKER-USER", 1)),
        _send("tcp 203.0.113.2 > 203.0.113.1:9090", 3, "unknown", ("INPUT", None)),
        _send("tcp 203.0.113.2 > 172.18.0.2:81", 5, "dropped", ("DOCKER", 2)),
        _send("udp 203.0.113.2 > 172.17.0.2:53", 5, "dropped", ("DOCKER", 4)),
        _send("tcp 203.0.113.2 > 172.18.0.2:9090", 3, "dropped", ("DOCKER-USER", 2)),
        _send("tcp 172.17.0.2 > 172.18.0.2:80", 7, "dropped", ("DOCKER-ISOLATION-STAGE-2", 2)),
        _send("tcp 172.18.0.2 > 172.17.0.2:80", 3, "dropped", ("DOCKER-ISOLATION-STAGE-2", 1)),
        _send("udp 172.17.0.2 > 203.0.113.2:99", 5, "unknown", ("POSTROUTING", 2)),
        _send("tcp 203.0.113.2 > 198.51.100.1:80", 3, "dropped", ("FORWARD", None)),
    ),
    "k3s": (
        _send(
            *("tcp 203.0.113.2 > 10.43.33.17:80", 11, ""),
            *(("KUBE-POSTROUTING", 3), ("KUBE-POD-FW-QOF4HS5VQMMRUIUM", 6)),
        ),
        _send(
            *("tcp 203.0.113.2 > 203.0.113.1:31380", 7, ""),
            *(("KUBE-POSTROUTING", 3), ("KUBE-POD-FW-QOF4HS5VQMMRUIUM", 6)),
        ),
        _send("tcp 203.0.113.2 > 203.0.113.1:31999", 5, "rejected", ("KUBE-EXTERNAL-SERVICES", 1)),
        _send("tcp 203.0.113.2 > 10.43.44.2:80", 3, "rejected", ("KUBE-SERVICES", 1)),
        _send(
            "tcp 203.0.113.2 > 10.42.0.7:9999", 5, "rejected", ("KUBE-POD-FW-QOF4HS5VQMMRUIUM", 6)
        ),
        _send(
            *("tcp 203.0.113.2 > 203.0.113.1:443", 3, "rejected"),
            ("KUBE-POD-FW-QOF4HS5VQMMRUIUM", 6),
        ),
        _send("udp 10.42.0.8 > 203.0.113.2:53", 7, "unknown", ("FLANNEL-POSTRTG", 3)),
        _send("udp 203.0.113.2 > 10.42.0.8:53", 5, "unknown", ("POSTROUTING", None)),
    ),
    "calico": (
        _send("tcp 203.0.113.40 > 10.65.0.2:8080", 7, "unknown", ("POSTROUTING", None)),
        _send("tcp 203.0.113.40 > 203.0.113.80:8443", 5, "unknown", ("POSTROUTING", None)),
        _send("tcp 203.0.113.2 > 10.65.0.2:8080", 5, "dropped", ("cali-tw-cali1234567890a", 7)),
        _send("tcp 203.0.113.40 > 10.66.0.2:8080", 3, "dropped", ("cali-tw-cali9876543210b", 1)),
        _send("tcp 10.66.0.2 > 203.0.113.2:80", 3, "dropped", ("cali-fw-cali9876543210b", 1)),
        _send("udp 10.65.0.2 > 203.0.113.2:4789", 5, "dropped", ("cali-fw-cali1234567890a", 4)),
        _send("udp 10.65.0.2 > 203.0.113.2:53", 7, "unknown", ("cali-nat-outgoing", 1)),
        _send("udp 10.65.0.2 > 10.65.0.1:53", 3, "unknown", ("cali-wl-to-host", 1)),
        _send("udp 10.65.0.2 > 10.65.0.1:54", 3, "unknown", ("cali-wl-to-host", 3)),
    ),
    "ufw": (
        _send(
            "tcp 203.0.113.40 > 203.0.113.1:22",
            7,
            "",
            ("ufw-user-limit-accept", 1),
            ("ufw-user-limit", 2),
        ),
        _send("tcp 203.0.113.2 > 203.0.113.1:443", 5, "unknown", ("ufw-user-input", 4)),
        _send("tcp 203.0.113.9 > 203.0.113.1:444", 5, "dropped", ("ufw-user-input", 5)),
        _send("udp 203.0.113.2 > 203.0.113.1:137", 3, "dropped", ("ufw-skip-to-policy-input", 1)),
        _send("udp 203.0.113.2 > 203.0.113.1:9999", 11, "dropped", ("INPUT", None)),
        _send("udp 203.0.113.2 > 198.51.100.1:53", 13, "dropped", ("FORWARD", None)),
        _send("tcp 203.0.113.2 > 198.51.100.1:443", 3, "unknown", ("ufw-user-forward", 1)),
    ),
    "istio": (
        _send("tcp 203.0.113.2 > 203.0.113.1:80", 11, "", ("INPUT", 2), ("INPUT", None)),
        _send("tcp 203.0.113.2 > 203.0.113.1:15021", 3, "unknown", ("INPUT", None)),
        _send("udp 203.0.113.2 > 203.0.113.1:41641", 5, "unknown", ("ts-input", 3)),
        _send("tcp 203.0.113.2 > 198.51.100.12:80", 3, "unknown", ("POSTROUTING", None)),
        _send(
            "tcp 203.0.113.2 > 198.51.100.12:81", 5, "rejected", ("VERY_LONG_CHAIN_NAME_28chars", 2)
        ),
        _send("udp 203.0.113.2 > 198.51.100.12:53", 7, "dropped", ("FORWARD", None)),
        _send("udp 203.0.113.2 > 198.51.100.30:53", 3, "dropped", ("FORWARD", None)),
    ),
    "kube-proxy": (
        _send("tcp 203.0.113.2 > 10.43.33.17:80", 11, "unknown", ("masquerading", 3)),
        _send("tcp 203.0.113.2 > 203.0.113.1:31380", 7, "unknown", ("masquerading", 3)),
        _send("tcp 203.0.113.2 > 203.0.113.1:31999", 5, "rejected", ("reject-chain", 1)),
        _send("tcp 203.0.113.2 > 10.43.44.2:80", 3, "rejected", ("reject-chain", 1)),
        _send("tcp 203.0.113.2 > 10.43.33.17:81", 5, "rejected", ("cluster-ips-check", 1)),
        _send("udp 203.0.113.2 > 10.43.55.3:53", 7, "dropped", ("service-endpoints-check", 1)),
        _send(
            *("tcp 203.0.113.2 > 203.0.113.1:443", 5, "dropped"),
            ("firewall-XPGD46QR-shop/web/tcp/tls", 1),
        ),
        _send("udp 203.0.113.2 > 203.0.113.1:53", 3, "unknown", ("filter-input", None)),
    ),
    "firewalld": (
        _send("tcp 203.0.113.2 > 203.0.113.1:8888", 7, "unknown", ("nat_POSTROUTING", None)),
        _send("tcp 203.0.113.2 > 203.0.113.1:22", 3, "unknown", ("filter_IN_public_allow", 1)),
        _send("tcp 203.0.113.2 > 203.0.113.1:443", 5, "unknown", ("filter_IN_public_allow", 3)),
        _send("tcp 203.0.113.9 > 203.0.113.1:22", 7, "dropped", ("filter_IN_drop", 2)),
        _send("tcp 203.0.113.40 > 203.0.113.1:25", 5, "rejected", ("filter_IN_public_deny", 1)),
        _send("udp 203.0.113.2 > 203.0.113.1:138", 5, "dropped", ("filter_IN_public_deny", 2)),
        _send("udp 203.0.113.2 > 203.0.113.1:99", 3, "rejected", ("filter_IN_public", 9)),
        _send("udp 203.0.113.2 > 172.17.0.2:53", 5, "dropped", ("filter_FWD_public_deny", 1)),
        _send("udp 203.0.113.2 > 172.17.0.2:54", 3, "rejected", ("filter_FWD_public", 3)),
        _send("udp 172.17.0.2 > 203.0.113.2:53", 7, "unknown", ("nat_POST_public", 1)),
    ),
    "fw4": (
        _send("tcp 203.0.113.2 > 203.0.113.1:8080", 7, "unknown", ("srcnat", None)),
        _send("tcp 203.0.113.2 > 203.0.113.1:22", 5, "rejected", ("handle_reject", 1)),
        _send("udp 203.0.113.2 > 203.0.113.1:99", 7, "rejected", ("handle_reject", 2)),
        _send("udp 203.0.113.9 > 203.0.113.1:53", 5, "dropped", ("input_wan", 4)),
        _send("tcp 203.0.113.2 > 172.17.0.2:80", 3, "rejected", ("handle_reject", 1)),
        _send("udp 172.17.0.2 > 203.0.113.2:53", 7, "unknown", ("srcnat_wan", 1)),
        _send("udp 172.17.0.2 > 172.17.0.1:53", 3, "unknown", ("accept_from_lan", 1)),
    ),
}
RUNS = [
    *(
        (backend, name)
        for name in ("docker", "k3s", "calico", "ufw", "istio")
        for backend in ("legacy", "nft")
    ),
    *(("nftables", name) for name in ("kube-proxy", "firewalld", "fw4")),
]


@contextlib.contextmanager
def _box(backend: str, name: str) -> Iterator[None]:
    """Make a host with the ruleset, a peer before it and containers behind it."""
    behind = BEHIND.get(name, ())
    nets.add_netns(BOX, forward=True)
    for ns in (PEER, *behind):
        nets.add_netns(ns)
    try:
        nets.sysctl(BOX, {f"net/ipv4/conf/{d}/send_redirects": 0 for d in ("all", "default")})
        own = tuple(f"203.0.113.{n}/24" for n in (2, 9, 40))
        nets.veth(PEER, "eth0", own, BOX, "eth0", f"{PUBLIC}/24")
        nets.veth(PEER, "out", "192.0.2.2/24", BOX, "out", "192.0.2.1/24")
        nets.route(PEER, "default", "via", PUBLIC)
        nets.route(PEER, "203.0.113.80", "via", PUBLIC)
        nets.route(BOX, "default", "via", "192.0.2.2")
        for device in behind:
            gateway, inside = DEVICES[device]
            nets.veth(device, "eth0", inside, BOX, device, gateway)
            nets.route(device, "default", "via", gateway.partition("/")[0])
        if name in IPSETS:
            nets.require("ipset")
            nets.ip_netns_exec(BOX, "ipset", "restore", stdin=IPSETS[name])
        suffix = "nft" if backend == "nftables" else "rules"
        nets.load_rules(BOX, backend, (RULESETS / f"{name}.{suffix}").read_text(encoding="utf-8"))
        yield
    finally:
        for ns in (PEER, BOX, *behind):
            nets.delete_netns(ns)


@pytest.mark.parametrize(("backend", "name"), RUNS)
def test_each_rule_is_named_as_often_as_it_counted(backend: str, name: str) -> None:
    """Packets end where the ruleset means, and over all of them no count is off by one."""
    if backend == "legacy":
        nets.require("legacy_tables")
    with _box(backend, name):
        with follow(BOX) as run:
            for number, one in enumerate(SENDS[name]):
                _send_all(one, 20_000 + 100 * number)
            told = run.finish(0)
        counted = _native_counters() if backend == "nftables" else _iptables_counters(backend)
        check_texts(told, BOX)

    assert 0 == told.summary["lost"] == told.summary["over_limit"]
    for number, one in enumerate(SENDS[name]):
        _check_ends(told, one, 20_000 + 100 * number)
    named = _named(told, by_handle=backend == "nftables")
    # Of native rules only some count.
    expected = {place: count for place, count in counted.items() if count or place in named}
    assert expected == {place: named[place] for place in named if place in counted}
    assert sum(counted.values()) > 0
    if backend != "nftables":
        assert set(named) <= set(counted)


def _send_all(one: Send, sport: int) -> None:
    inside = (
        device
        for device, (_, addresses) in DEVICES.items()
        if one.src in [address.partition("/")[0] for address in addresses]
    )
    ns = next(inside, PEER)
    send = nets.send_udp if one.proto == "udp" else nets.send_tcp_syn
    for index in range(one.count):
        send(ns, one.dst, one.dport, src=one.src, sport=sport + index)


def _check_ends(told: Told, one: Send, sport: int) -> None:
    ports = range(sport, sport + one.count)
    journeys = [
        journey
        for journey in told.journeys
        if journey["packet"].get("sport") in ports and journey["packet"]["src"] == one.src
    ]
    ends = Counter(_end(journey) for journey in journeys)
    assert one.count == len(journeys), (one, ends)
    expected = {("", *end) if not one.kind else (one.kind, *end) for end in one.ends}
    found = {("", *end[1:]) if not one.kind else end for end in ends}
    assert found <= expected, (one, ends)
    if len(expected) == 1:
        assert found == expected


def _end(journey: dict[str, Any]) -> tuple[str, str, int | None]:
    # What filter accepted passes nat's INPUT, too, where iptables made that chain.
    steps = [s for s in journey["steps"] if (s["table"], s["chain"]) != ("nat", "INPUT")]
    last = steps[-1]
    return journey["ending"]["kind"], last["chain"], last["rule"]


def _named(told: Told, *, by_handle: bool) -> Counter[tuple[Any, ...]]:
    return Counter(
        (
            step["family"],
            step["table"],
            step["chain"],
            step["handle"] if by_handle else step["rule"],
        )
        for journey in told.journeys
        for step in journey["steps"]
        if step["kind"] == "rule"
    )


def _iptables_counters(backend: str) -> dict[tuple[Any, ...], int]:
    """Return how many packets each rule met, by (family, table, chain, number)."""
    found: dict[tuple[Any, ...], int] = {}
    text = nets.ip_netns_exec(BOX, f"iptables-{backend}-save", "-c").stdout
    table = ""
    numbers: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
            numbers.clear()
        elif match := re.match(r"\[(\d+):\d+\] -A (\S+) ", line):
            numbers[match[2]] += 1
            found["ip", table, match[2], numbers[match[2]]] = int(match[1])
    return found


def _native_counters() -> dict[tuple[Any, ...], int]:
    """Return how many packets each rule that counts met, by (family, table, chain, handle)."""
    found: dict[tuple[Any, ...], int] = {}
    text = nets.ip_netns_exec(BOX, "nft", "-a", "list", "ruleset").stdout
    table, chain = ("", ""), ""
    for line in text.splitlines():
        if match := re.match(r"table (\S+) (\S+) ", line):
            table = (match[1], match[2])
        elif match := re.match(r"\tchain (\S+) ", line):
            chain = match[1]
        elif match := re.search(r"counter packets (\d+) .*# handle (\d+)$", line):
            found[*table, chain, int(match[2])] = int(match[1])
    return found
