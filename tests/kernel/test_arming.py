"""On the running kernel: what a plan arms is just what the filter means, from its first hook."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import nftables
import pytest

from tests.kernel import nets
from tracer.core.arming import ArmingPlan, LocalAddresses, plan_arming
from tracer.core.filters import Filter
from tracer.sources.ruleset import read_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TABLE = "nftrace_follow_4711"
ROUTER = "router"
FIRST = "armed"
#: Each packet of a translated connection passes these on its way through; one event each.
FORWARDED = ("armed", "old_prerouting", "translated_prerouting", "new_postrouting")


@pytest.fixture
def road(netns: Callable[..., str]) -> tuple[str, str]:
    """Give a client and a server (10.2.0.2 to .4, also IPv6), the router between them."""
    client, router, server = netns("client"), netns(ROUTER, forward=True), netns("server")
    nets.veth(
        *(client, "eth0", ("10.1.0.2/24", "fd01::2/64")),
        *(router, "eth0", ("10.1.0.1/24", "fd01::1/64")),
    )
    nets.veth(
        *(router, "eth1", ("10.2.0.1/24", "fd02::1/64")),
        *(server, "eth0", ("10.2.0.2/24", "10.2.0.3/24", "10.2.0.4/24", "fd02::2/64")),
    )
    nets.route(client, "default", "via", "10.1.0.1")
    nets.route(client, "default", "via", "fd01::1")
    nets.route(server, "default", "via", "10.2.0.1")
    nets.route(server, "default", "via", "fd02::1")
    return client, server


class Traces:
    """What the kernel's trace group says in the router, as (table, chain, kind)."""

    def __init__(self) -> None:
        with nets.in_netns(ROUTER):
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self.socket.bind((0, 0))
        self.socket.setsockopt(270, 1, 9)  # SOL_NETLINK, add membership, NFNLGRP_NFTRACE
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 2**24)  # SO_RCVBUFFORCE
        self.socket.setblocking(False)  # noqa: FBT003 - socket's signature
        self.seen: list[tuple[str, str]] = []

    def read(self) -> list[tuple[str, str]]:
        """Return the (table, chain) of all events so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.seen.append(_decode(self.socket.recv(65536)))
        return self.seen

    def count(self, table: str = TABLE) -> Counter[str]:
        """Count the events of *table* by chain."""
        return Counter(chain for name, chain in self.read() if name == table)

    def settle(self, expected: Counter[str], table: str = TABLE) -> Counter[str]:
        """Wait until there are as many events as *expected*, and return what there is."""
        with contextlib.suppress(AssertionError):
            nets.wait_until(lambda: self.count(table) >= expected, what="events")
        return self.count(table)


def _decode(message: bytes) -> tuple[str, str]:
    found = {}
    offset = 20
    while offset < len(message):
        length, kind = struct.unpack_from("=HH", message, offset)
        found[kind & 0x3FFF] = message[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return tuple(found[kind].rstrip(b"\0").decode() for kind in (1, 2))


def _plan(wanted: Filter, *, both: bool = False, rate: int | None = None) -> ArmingPlan:
    text = nets.ip_netns_exec(ROUTER, "ip", "-j", "address").stdout
    own = {
        link["ifname"]: tuple(ipaddress.ip_address(a["local"]) for a in link["addr_info"])
        for link in json.loads(text)
    }
    with nets.in_netns(ROUTER):
        found = read_ruleset()
    return plan_arming(
        wanted,
        found.ruleset,
        found.nat_json,
        LocalAddresses(own),
        table=TABLE,
        both=both,
        rate=rate,
        devices=tuple(own),
    )


@contextlib.contextmanager
def armed(plan: ArmingPlan) -> Iterator[Traces]:
    """Load *plan* into the router and listen."""
    traces = Traces()
    with nets.in_netns(ROUTER):
        context = nftables.Nftables()
        status, _, error = context.cmd(plan.script)
    assert (status, error) == (0, ""), plan.script
    try:
        yield traces
    finally:
        del context
        traces.socket.close()


def _filter(**words: object) -> Filter:
    for name in ("src", "dst"):
        if name in words:
            words[name] = ipaddress.ip_network(str(words[name]))
    return Filter(**words)


Send = tuple[str, str, int, int]


@dataclass
class Case:
    """Rules, a filter, and packets (proto, dst, dport, count) that are wanted and not."""

    backends: tuple[str, ...]
    rules: str
    wanted: tuple[Send, ...]
    noise: tuple[Send, ...] = ()
    filter: dict[str, object] = field(default_factory=lambda: {"dst": "10.2.0.2", "dport": 22})
    sender: str = "client"
    chains: tuple[str, ...] = FORWARDED


IPTABLES = ("legacy", "nft")


def _nat(*rules: str) -> str:
    return "\n".join(("*nat", *rules, "COMMIT", ""))


def _native(*rules: str, hook: str = "prerouting priority dstnat", before: str = "") -> str:
    body = "\n".join(rules)
    family = "ip6" if "ip6 " in body else "ip"
    return f"table {family} t {{\n{before}\nchain c {{\ntype nat hook {hook};\n{body}\n}}\n}}\n"


_D = "-A PREROUTING -p tcp"
CASES = {
    "single": Case(
        IPTABLES,
        _nat(f"{_D} -d 10.8.0.100 --dport 2222 -j DNAT --to-destination 10.2.0.2:22"),
        (("tcp", "10.8.0.100", 2222, 7),),
        (("tcp", "10.8.0.100", 22, 5), ("udp", "10.8.0.100", 2222, 5)),
    ),
    "single native": Case(
        ("nftables",),
        _native('iifname "eth0" ip daddr 10.8.0.100 tcp dport 2222 dnat to 10.2.0.2:22'),
        (("tcp", "10.8.0.100", 2222, 7),),
        (("tcp", "10.8.0.100", 22, 5), ("udp", "10.8.0.100", 2222, 5)),
    ),
    "port kept": Case(
        IPTABLES,
        _nat("-A PREROUTING -d 10.8.0.101 -i eth+ -j DNAT --to-destination 10.2.0.2"),
        (("tcp", "10.8.0.101", 22, 5), ("udp", "10.8.0.101", 22, 2)),
        (("tcp", "10.8.0.101", 23, 5),),
    ),
    "address range": Case(
        IPTABLES,
        _nat(f"{_D} -d 10.8.0.100 -j DNAT --to-destination 10.2.0.2-10.2.0.3 --persistent"),
        (("tcp", "10.8.0.100", 22, 7),),
        (("tcp", "10.8.0.100", 23, 5),),
        {"dst": "10.2.0.0/24", "dport": 22},
    ),
    "ports": Case(
        IPTABLES,
        _nat(
            f"{_D} -m multiport --dports 3000,3010:3020 -d 10.8.0.100"
            " -j DNAT --to-destination 10.2.0.2:22",
            f"{_D} -d 10.8.0.102 --dport 4000:4001 -j DNAT --to-destination 10.2.0.2:20-22",
        ),
        (("tcp", "10.8.0.100", 3000, 3), ("tcp", "10.8.0.100", 3015, 3)),
        (("tcp", "10.8.0.100", 3001, 5), ("tcp", "10.8.0.102", 3999, 5)),
    ),
    "prefix": Case(
        IPTABLES,
        _nat("-A PREROUTING -d 10.5.0.0/24 -j NETMAP --to 10.2.0.0/24"),
        (("tcp", "10.5.0.2", 22, 7),),
        (("tcp", "10.5.0.3", 22, 5),),
    ),
    "prefix native": Case(
        ("nftables",),
        _native("dnat ip prefix to ip daddr map { 10.5.0.0/24 : 10.2.0.0/24 }"),
        (("tcp", "10.5.0.2", 22, 7),),
        (("tcp", "10.5.0.3", 22, 5),),
    ),
    "map": Case(
        ("nftables",),
        _native(
            "dnat ip to ip daddr . tcp dport map { 10.8.0.100 . 80 : 10.2.0.2 . 22,"
            " 10.8.0.100 . 81 : 10.2.0.3 . 22 }"
        ),
        (("tcp", "10.8.0.100", 80, 7),),
        (("tcp", "10.8.0.100", 81, 5),),
    ),
    "verdict map and numgen": Case(
        ("nftables",),
        _native(
            "ip daddr . tcp dport vmap {"
            " 10.8.0.100 . 80 : goto two, 10.8.0.100 . 81 : jump three }",
            before="""
            set friends { type ipv4_addr; flags interval; elements = { 10.1.0.0/24 } }
            chain two {
              ip saddr @friends meta l4proto tcp dnat to numgen inc mod 2 map {
               0 : 10.2.0.2 . 22, 1 : 10.2.0.2 . 22 }
            }
            chain three {
              meta l4proto tcp dnat to 10.2.0.3:22
            }""",
        ),
        (("tcp", "10.8.0.100", 80, 7),),
        (("tcp", "10.8.0.100", 81, 5),),
    ),
    "redirect": Case(
        IPTABLES,
        _nat(f"{_D} --dport 80 -j REDIRECT --to-ports 8080"),
        (("tcp", "10.1.0.1", 80, 7),),
        (("tcp", "10.1.0.1", 81, 5),),
        {"dst": "10.1.0.1", "dport": 8080},
        chains=("armed", "old_prerouting", "translated_prerouting", "new_input"),
    ),
    "redirect native": Case(
        ("nftables",),
        _native("tcp dport 80 redirect to :8080"),
        (("tcp", "10.1.0.1", 80, 7),),
        (("tcp", "10.1.0.1", 81, 5),),
        {"dst": "10.1.0.1", "dport": 8080},
        chains=("armed", "old_prerouting", "translated_prerouting", "new_input"),
    ),
    "masquerade": Case(
        IPTABLES,
        _nat("-A POSTROUTING -s 10.1.0.0/24 -o eth1 -j MASQUERADE"),
        (("tcp", "10.2.0.2", 22, 7),),
        (("tcp", "10.2.0.3", 22, 5),),
        {"src": "10.2.0.1", "dst": "10.2.0.2"},
    ),
    "source and destination": Case(
        ("nftables",),
        _native("ip daddr 10.8.0.100 dnat to 10.2.0.2")
        + _native(
            "ip saddr 10.1.0.0/24 snat to 10.2.0.9", hook="postrouting priority srcnat"
        ).replace("table ip t", "table ip u"),
        (("tcp", "10.8.0.100", 22, 7),),
        (("tcp", "10.8.0.100", 23, 5), ("tcp", "10.2.0.3", 22, 5)),
        {"src": "10.2.0.9", "dst": "10.2.0.2", "dport": 22},
    ),
    "kube-proxy": Case(
        IPTABLES,
        _nat(
            ":KUBE-SERVICES -",
            ":KUBE-SVC-A -",
            ":KUBE-SEP-1 -",
            ":KUBE-SEP-2 -",
            '-A PREROUTING -m comment --comment "service portals -d 1.2.3.4" -j KUBE-SERVICES',
            f"-A KUBE-SERVICES {_D[14:]} -d 10.96.0.1 --dport 80 -j KUBE-SVC-A",
            f"-A KUBE-SERVICES {_D[14:]} -d 10.96.0.2 --dport 80 -j KUBE-SEP-2",
            "-A KUBE-SVC-A -m statistic --mode random --probability 1.0 -j KUBE-SEP-1",
            "-A KUBE-SVC-A -j KUBE-SEP-2",
            f"-A KUBE-SEP-1 {_D[14:]} -j DNAT --to-destination 10.2.0.2:22",
            f"-A KUBE-SEP-2 {_D[14:]} -j DNAT --to-destination 10.2.0.3:22",
        ),
        (("tcp", "10.96.0.1", 80, 7),),
        (("tcp", "10.96.0.2", 80, 5), ("tcp", "10.96.0.1", 81, 5)),
    ),
    "ip6": Case(
        ("legacy6", "nft6"),
        _nat(f"{_D} -d fd08::100 --dport 2222 -j DNAT --to-destination [fd02::2]:22"),
        (("tcp", "fd08::100", 2222, 7),),
        (("tcp", "fd08::100", 22, 5),),
        {"dst": "fd02::2", "dport": 22},
    ),
    "ip6 native": Case(
        ("nftables",),
        _native("ip6 daddr fd08::100 tcp dport 2222 dnat to [fd02::2]:22"),
        (("tcp", "fd08::100", 2222, 7),),
        (("tcp", "fd08::100", 22, 5),),
        {"dst": "fd02::2", "dport": 22},
    ),
    "own packets": Case(
        IPTABLES,
        _nat("-A OUTPUT -p udp -d 10.9.9.9 --dport 53 -j DNAT --to-destination 10.2.0.2:22"),
        (("udp", "10.9.9.9", 53, 7),),
        (("udp", "10.9.9.9", 54, 5),),
        sender=ROUTER,
        chains=("armed", "old_output", "translated_output", "new_postrouting"),
    ),
    "no translation": Case(
        ("nftables",),
        "table ip f {\nchain c {\ntype filter hook forward priority 0;\n}\n}\n",
        (("tcp", "10.2.0.2", 22, 7), ("udp", "10.2.0.2", 22, 3)),
        (("tcp", "10.2.0.2", 23, 5),),
        chains=("armed",),
    ),
}


def _send(ns: str, packets: tuple[Send, ...]) -> int:
    for proto, dst, dport, count in packets:
        send = nets.send_tcp_syn if proto == "tcp" else nets.send_udp
        for _ in range(count):
            send(ns, dst, dport)
    return sum(count for *_, count in packets)


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, backend) for name, case in CASES.items() for backend in case.backends],
)
def test_each_wanted_packet_is_armed_once_at_its_first_hook(
    road: tuple[str, str], name: str, backend: str
) -> None:
    """Each wanted packet has one event of ours in each of our chains, and no other has any."""
    del road
    case = CASES[name]
    nets.ip_batch(ROUTER, ["route add 10.9.9.9 via 10.2.0.2"])
    nets.load_rules(ROUTER, backend, case.rules)

    with armed(plan := _plan(_filter(**case.filter))) as traces:
        _send(case.sender, case.noise)
        sent = _send(case.sender, case.wanted)
        expected = Counter(dict.fromkeys(case.chains, sent))

        assert expected == traces.settle(expected), (plan.notes, plan.script)


MASQUERADE = _nat("-A POSTROUTING -s 10.1.0.0/24 -o eth1 -j MASQUERADE")
FORWARDING = _nat(f"{_D} -d 10.8.0.100 --dport 2222 -j DNAT --to-destination 10.2.0.2:22")
#: In front of everything: counts what a test sends, and makes our chains go further ahead.
COUNTING = "table ip count {\nchain c {\ntype filter hook prerouting priority -500;\n%s\n}\n}\n"


def _talk(client: str, dst: str, dport: int, server: str) -> None:
    """Open a connection, send a byte, and close it in order."""
    with nets.tcp_listener(server, 22) as listener, nets.connect(client, dst, dport) as one:
        other, _ = listener.accept()
        with other:
            one.sendall(b"x")
            other.recv(1)
            one.shutdown(socket.SHUT_WR)
            other.recv(1)
        one.recv(1)


def _counted() -> int:
    return nets.rule_counters(ROUTER, "nftables", "count", "c")[0]


@pytest.mark.parametrize("backend", IPTABLES)
@pytest.mark.parametrize(
    ("rules", "dst", "words"),
    [
        (FORWARDING, "10.8.0.100:2222", {"dst": "10.2.0.2", "dport": 22}),
        (FORWARDING, "10.8.0.100:2222", {"dst": "10.8.0.100", "dport": 2222}),
        (MASQUERADE, "10.2.0.2:22", {"src": "10.1.0.2"}),
        (MASQUERADE, "10.2.0.2:22", {"src": "10.2.0.1", "dport": 22}),
    ],
    ids=("after", "before", "private", "public"),
)
def test_with_both_every_packet_of_a_connection_is_seen_from_its_first_hook(
    road: tuple[str, str], backend: str, rules: str, dst: str, words: dict[str, object]
) -> None:
    """As many packets are armed at the first hook as the router's own counter has."""
    nets.load_rules(ROUTER, backend, rules)
    nets.load_rules(ROUTER, "nftables", COUNTING % "meta l4proto tcp counter")
    host, port = dst.split(":")

    with armed(_plan(_filter(**words), both=True)) as traces:
        for _ in range(3):
            _talk(road[0], host, int(port), road[1])

        seen = traces.settle(Counter(armed=_counted(), old_prerouting=_counted()))
        assert _counted() == seen["armed"] == seen["old_prerouting"]
        assert not {"learn", "learn_both"} & set(seen)


def test_a_reply_that_nat_turns_into_the_filter_is_seen_from_its_first_hook(
    road: tuple[str, str],
) -> None:
    """A filter for a masqueraded host's incoming packets gets the replies, and only those."""
    nets.load_rules(ROUTER, "legacy", MASQUERADE)
    replies = COUNTING % 'iifname "eth1" meta l4proto tcp counter'
    nets.load_rules(ROUTER, "nftables", replies)

    with armed(_plan(_filter(dst="10.1.0.2"))) as traces:
        _talk(road[0], "10.2.0.2", 22, road[1])

        assert 0 < _counted() == traces.settle(Counter(armed=_counted()))["armed"]


@pytest.mark.parametrize("both", [False, True])
def test_a_connection_older_than_the_rules_is_caught_behind_conntrack(
    road: tuple[str, str], *, both: bool
) -> None:
    """Its NAT rule is gone: one packet is caught at -199, each later one at the first hook."""
    client, server = road
    nets.load_rules(ROUTER, "legacy", FORWARDING)
    with (
        nets.tcp_listener(server, 22) as listener,
        nets.connect(client, "10.8.0.100", 2222) as one,
    ):
        other, _ = listener.accept()
        nets.load_rules(ROUTER, "legacy", _nat("-A PREROUTING -d 10.8.0.1 -j RETURN"))

        with other, armed(_plan(_filter(dst="10.2.0.2", dport=22), both=both)) as traces:
            for _ in range(5):
                one.sendall(b"x")
                other.recv(1)

            start = "learn_both" if both else "learn"
            expected = Counter({start: 1, "armed": 9 if both else 4})
            assert expected == _only(traces.settle(expected), expected)


def _only(found: Counter[str], wanted: Counter[str]) -> Counter[str]:
    return Counter({name: count for name, count in found.items() if name in wanted})


@pytest.mark.parametrize("proto", ["tcp", "icmp"])
def test_nat_that_cannot_be_read_is_learned_from_its_first_packet(
    road: tuple[str, str], proto: str
) -> None:
    """One packet is caught behind DNAT, the later ones at the first hook; the notes say so."""
    client, _ = road
    elements = "flags timeout; elements = { 10.8.0.100 : 10.2.0.2 }"
    before = f"map live {{ type ipv4_addr : ipv4_addr; {elements} }}"
    nets.load_rules(ROUTER, "nftables", _native("dnat to ip daddr map @live", before=before))
    words = (
        {"dst": "10.2.0.2", "proto": 6, "dport": 22}
        if proto == "tcp"
        else {"dst": "10.2.0.2", "proto": 1}
    )

    with armed(plan := _plan(_filter(**words))) as traces:
        if proto == "tcp":
            nets.send_tcp_syn(client, "10.8.0.100", 22, sport=4001)
            nets.send_tcp_syn(client, "10.8.0.100", 23, 3)
            nets.wait_until(lambda: traces.count()["learn"] == 1)
            nets.send_tcp_syn(client, "10.8.0.100", 22, sport=4001)
        else:
            nets.send_echo(client, "10.8.0.100", 2)

        expected = Counter(learn=1, armed=1)
        assert expected == _only(traces.settle(expected), expected)
    (note,) = plan.notes
    assert note == (
        "NAT in table ip t chain c rule 1 cannot be mapped back:"
        " the first packet of each connection is traced from prerouting -99 on"
    )


def test_a_set_that_was_not_read_still_lets_the_wanted_packets_through(
    road: tuple[str, str],
) -> None:
    """A rule that matches on an ipset is mapped back without it: more, never fewer."""
    nets.require("ipset")
    nets.ip_netns_exec(ROUTER, "ipset", "create", "vips", "hash:ip")
    nets.ip_netns_exec(ROUTER, "ipset", "add", "vips", "10.8.0.100")
    rule = f"{_D} --dport 2222 -m set --match-set vips dst -j DNAT --to-destination 10.2.0.2:22"
    nets.load_rules(ROUTER, "legacy", _nat(rule))

    with armed(_plan(_filter(dst="10.2.0.2", dport=22))) as traces:
        nets.send_tcp_syn(road[0], "10.8.0.100", 22, 3)
        nets.send_tcp_syn(road[0], "10.8.0.100", 2222, 7)

        assert traces.settle(Counter(armed=7))["armed"] == 7


@pytest.mark.parametrize("rules", ["", FORWARDING], ids=("plain", "nat"))
def test_what_is_over_the_limit_is_counted(road: tuple[str, str], rules: str) -> None:
    """Traced and counted together are what was sent, and the burst is what was asked for."""
    if rules:
        nets.load_rules(ROUTER, "legacy", rules)
    dst, dport = ("10.8.0.100", 2222) if rules else ("10.2.0.2", 22)

    with armed(plan := _plan(_filter(dst="10.2.0.2", dport=22), rate=5)) as traces:
        nets.send_tcp_syn(road[0], dst, dport, 97)

        ((family, table, counter),) = plan.over_limit_counters
        found = nets.wait_until(lambda: _over(family, table, counter) >= 97 - 7 or None)
        assert found is True
        over = _over(family, table, counter)
        assert traces.settle(Counter(armed=97 - over))["armed"] + over == 97
        assert "learn" not in traces.count()


def _over(family: str, table: str, counter: str) -> int:
    text = nets.ip_netns_exec(ROUTER, "nft", "list", "counter", family, table, counter).stdout
    return int(text.split("packets ")[1].split()[0])


@pytest.mark.parametrize("rules", ["", FORWARDING], ids=("plain", "nat"))
def test_the_tables_go_with_their_context_and_nft_can_load_their_listing(
    road: tuple[str, str], rules: str
) -> None:
    """What an operator dumps loads again, the owner flag aside, and nothing of ours stays."""
    if rules:
        nets.load_rules(ROUTER, "legacy", rules)
    plan = _plan(_filter(dst="10.2.0.2", dport=22), both=True, rate=100)

    with armed(plan):
        listed = nets.ip_netns_exec(ROUTER, "nft", "list", "ruleset").stdout
        tables = nets.ip_netns_exec(ROUTER, "nft", "list", "tables").stdout
    after = nets.ip_netns_exec(ROUTER, "nft", "list", "tables").stdout

    assert [f"table {family} {name}" for family, name in plan.tables] == tables.splitlines()
    assert after == ""
    nets.load_rules(road[0], "nftables", listed.replace("flags owner", ""))
    again = nets.ip_netns_exec(road[0], "nft", "-s", "list", "ruleset").stdout
    assert again.count("chain ") == listed.count("chain ")


def test_connections_stay_untracked_where_nobody_translates(road: tuple[str, str]) -> None:
    """Without a nat chain no rule of ours makes the kernel track connections."""
    nets.load_rules(
        ROUTER, "nftables", "table inet f {\nchain c {\ntype filter hook input priority 0;\n}\n}\n"
    )

    with armed(plan := _plan(_filter(dport=22), both=True)) as traces:
        nets.send_tcp_syn(road[0], "10.2.0.2", 22, 7)
        # Each SYN and the reset that answers it.
        assert traces.settle(Counter(armed=14)) == Counter(armed=14)
        with nets.in_netns(ROUTER):
            tracked = int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())

    assert tracked == 0
    assert "ct " not in plan.script
    assert plan.tables == (("ip", TABLE), ("ip6", TABLE))


def test_ingress_chains_are_preceded(road: tuple[str, str]) -> None:
    """Where a device has ingress chains, its packets are armed in front of them."""
    chain = 'type filter hook ingress device "eth0" priority -400;'
    nets.load_rules(ROUTER, "nftables", f"table netdev n {{\nchain c {{\n{chain}\n}}\n}}\n")

    with armed(plan := _plan(_filter(dst="10.2.0.2", dport=22))) as traces:
        nets.send_tcp_syn(road[0], "10.2.0.2", 23, 5)
        nets.send_tcp_syn(road[0], "10.2.0.2", 22, 7)

        assert plan.tables == (("ip", TABLE), ("netdev", TABLE))
        # At ingress and, with the way there, at prerouting; the foreign chain's end and policy.
        expected = Counter(armed=14, first_prerouting=7)
        assert expected == traces.settle(expected)
        assert traces.count("n") == Counter(c=14)


def test_bridged_packets_are_armed_in_front_of_the_bridge_tables(
    netns: Callable[..., str],
) -> None:
    """Where there are bridge tables, what is bridged is traced through them."""
    left, bridge, right = netns("left"), netns(ROUTER), netns("right")
    nets.veth(left, "eth0", "10.3.0.1/24", bridge, "p0", None)
    nets.veth(right, "eth0", "10.3.0.2/24", bridge, "p1", None)
    nets.ip_batch(bridge, ["link add br0 type bridge", "link set br0 up"])
    nets.ip_batch(bridge, ["link set p0 master br0", "link set p1 master br0"])
    nets.sysctl(bridge, {"net/bridge/bridge-nf-call-iptables": 0})
    chain = "type filter hook prerouting priority -300;"
    nets.load_rules(bridge, "nftables", f"table bridge b {{\nchain c {{\n{chain}\n}}\n}}\n")

    with armed(plan := _plan(_filter(dst="10.3.0.2", dport=22))) as traces:
        nets.send_udp(left, "10.3.0.2", 23, 5)
        nets.send_udp(left, "10.3.0.2", 22, 7)

        assert ("bridge", TABLE) in plan.tables
        assert traces.settle(Counter(armed=7)) == Counter(armed=7)
        assert traces.count("b") == Counter(c=14)
