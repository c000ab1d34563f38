"""End to end: a filter by translated addresses shows every packet from its first hook on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_live import changes, endpoints, follow
from tests.kernel.nat_road import CLIENT, ROUTER, SERVER, Road, Talk, echo, load, road

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.follow_live import Live

__all__ = ["road"]

COUNT = 7
NOISE = 5


@dataclass(frozen=True)
class Case:
    """
    One translation: rules, filter, and what a client's packets to *target* become.

    *rules* are iptables' in table nat, *native* the body of an nft table of nat chains;
    an empty one means that the case does not exist there. *rule* is a piece of the text of
    the rule that translates. *final* is the address and port behind it, *answers* who
    listens there. *noise* is what must not be shown.
    """

    rules: tuple[str, ...]
    native: str
    words: str
    target: tuple[str, int]
    final: tuple[str, int]
    rule: str
    noise: tuple[tuple[str, int], ...]
    client: str = CLIENT
    answers: str = SERVER

    @property
    def family(self) -> str:
        return "ip6" if ":" in self.target[0] else "ip"


def _chain(*rules: str, hook: str = "prerouting priority dstnat", before: str = "") -> str:
    return "\n".join((before, f"chain c {{\ntype nat hook {hook};", *rules, "}"))


_PRE = "-A PREROUTING"
CASES = {
    "single": Case(
        (f"{_PRE} -d 10.8.0.100 -p udp --dport 2222 -j DNAT --to-destination 10.2.0.2:22",),
        _chain("ip daddr 10.8.0.100 udp dport 2222 dnat to 10.2.0.2:22"),
        "--dst 10.2.0.2 --dport 22",
        ("10.8.0.100", 2222),
        ("10.2.0.2", 22),
        "10.2.0.2:22",
        (("10.8.0.100", 22), ("10.2.0.3", 22)),
    ),
    "ports": Case(
        (f"{_PRE} -d 10.8.0.100 -p udp --dport 3000:3010 -j DNAT --to-destination 10.2.0.2:22",),
        _chain("ip daddr 10.8.0.100 udp dport 3000-3010 dnat to 10.2.0.2:22"),
        "--dst 10.2.0.2 --dport 22",
        ("10.8.0.100", 3007),
        ("10.2.0.2", 22),
        "10.2.0.2:22",
        (("10.8.0.100", 3011), ("10.2.0.2", 23)),
    ),
    "prefix": Case(
        (f"{_PRE} -d 10.5.0.0/24 -j NETMAP --to 10.2.0.0/24",),
        _chain("dnat ip prefix to ip daddr map { 10.5.0.0/24 : 10.2.0.0/24 }"),
        "--dst 10.2.0.2 --dport 22",
        ("10.5.0.2", 22),
        ("10.2.0.2", 22),
        "10.5.0.0/24",
        (("10.5.0.3", 22), ("10.5.0.2", 23)),
    ),
    "map": Case(
        (),
        _chain(
            "dnat ip to ip daddr . udp dport map { 10.8.0.100 . 80 : 10.2.0.2 . 22,"
            " 10.8.0.100 . 81 : 10.2.0.3 . 22 }"
        ),
        "--dst 10.2.0.2 --dport 22",
        ("10.8.0.100", 80),
        ("10.2.0.2", 22),
        "10.8.0.100 . 80 : 10.2.0.2 . 22",
        (("10.8.0.100", 81),),
    ),
    "verdict map": Case(
        (),
        _chain(
            "ip daddr . udp dport vmap { 10.8.0.100 . 80 : goto two, 10.8.0.100 . 81 : jump three"
            " }",
            before="chain two {\nmeta l4proto udp dnat to 10.2.0.2:22\n}\n"
            "chain three {\nmeta l4proto udp dnat to 10.2.0.3:22\n}",
        ),
        "--dst 10.2.0.2 --dport 22",
        ("10.8.0.100", 80),
        ("10.2.0.2", 22),
        "10.2.0.2:22",
        (("10.8.0.100", 81),),
    ),
    "chains": Case(
        (
            ":SERVICES -",
            ":SVC:A.1 -",
            f"{_PRE} -j SERVICES",
            "-A SERVICES -d 10.96.0.1 -p udp --dport 80 -j SVC:A.1",
            '-A SVC:A.1 -p udp -m comment --comment "to \\"b\\" -j DROP" -j DNAT --to 10.2.0.2:22',
        ),
        "",
        "--dst 10.2.0.2 --dport 22",
        ("10.96.0.1", 80),
        ("10.2.0.2", 22),
        '-A SVC:A.1 -p udp -m comment --comment "to \\"b\\" -j DROP"',
        (("10.96.0.1", 81),),
    ),
    "redirect": Case(
        (f"{_PRE} -p udp --dport 80 -j REDIRECT --to-ports 8080",),
        _chain("udp dport 80 redirect to :8080"),
        "--dst 10.1.0.1 --dport 8080",
        ("10.1.0.1", 80),
        ("10.1.0.1", 8080),
        "8080",
        (("10.1.0.1", 81),),
        answers=ROUTER,
    ),
    "own packets": Case(
        ("-A OUTPUT -d 10.9.9.9 -p udp --dport 53 -j DNAT --to-destination 10.2.0.2:22",),
        _chain("ip daddr 10.9.9.9 udp dport 53 dnat to 10.2.0.2:22", hook="output priority -100"),
        "--dst 10.2.0.2 --dport 22",
        ("10.9.9.9", 53),
        ("10.2.0.2", 22),
        "10.2.0.2:22",
        (("10.9.9.9", 54),),
        client=ROUTER,
    ),
    "set": Case(
        (),
        _chain(
            "ip daddr . udp dport @doors dnat to 10.2.0.2:22",
            before="set doors {\ntype ipv4_addr . inet_service\nelements = { 10.8.0.7 . 77 }\n}",
        ),
        "--dst 10.2.0.2 --dport 22",
        ("10.8.0.7", 77),
        ("10.2.0.2", 22),
        "doors",
        (("10.8.0.7", 78),),
    ),
    "ip6": Case(
        (f"{_PRE} -d fd08::100 -p udp --dport 2222 -j DNAT --to-destination [fd02::2]:22",),
        _chain("ip6 daddr fd08::100 udp dport 2222 dnat to [fd02::2]:22"),
        "--dst fd02::2 --dport 22",
        ("fd08::100", 2222),
        ("fd02::2", 22),
        "[fd02::2]:22",
        (("fd08::100", 22),),
    ),
}


def _noise(case: Case) -> None:
    for address, port in case.noise:
        nets.send_udp(case.client, address, port, NOISE)


def _require(road: Road, case: Case) -> None:
    if not (case.native if road.backend == "nftables" else case.rules):
        pytest.skip(f"{road.backend} has no such rules")


@contextlib.contextmanager
def _talking(road: Road, case: Case) -> Iterator[Talk]:
    _require(road, case)
    load(road, case.family, case.rules, case.native)
    with echo(case.answers, *case.final) as server:
        talk = Talk(case.client, case.target, server)
        with talk.socket:
            yield talk


def _split(live: Live, case: Case) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    requests = [j for j in live.journeys if j["packet"]["dst"] == case.target[0]]
    return requests, [j for j in live.journeys if j not in requests]


def _translation(case: Case) -> dict[str, list[Any]]:
    pairs = zip(("dst", "dport"), case.target, case.final, strict=True)
    return {name: [before, after] for name, before, after in pairs if before != after}


@pytest.mark.parametrize("name", CASES)
def test_follows_by_the_address_behind_the_translation(road: Road, name: str) -> None:
    """The first packet and every later one, whole, translated, and nobody else's."""
    case = CASES[name]
    with _talking(road, case) as talk, follow(ROUTER, *case.words.split()) as live:
        talk.exchange(COUNT)
        _noise(case)

    source, sport = talk.source
    sent = f"{source} > {case.target[0]}:{case.target[1]}"
    assert [sent] * COUNT == [endpoints(j["packet"]) for j in live.journeys]
    assert {sport} == {j["packet"]["sport"] for j in live.journeys}
    assert [(True, True)] * COUNT == [(j["whole"], j["complete"]) for j in live.journeys]
    assert [_translation(case)] * COUNT == [changes(j) for j in live.journeys]
    (rule,) = [s for s in live.journeys[0]["steps"] if s["changes"]]
    assert case.rule in rule["text"]
    assert ("accept", "rule") == (rule["verdict"], rule["kind"])
    assert not [s for j in live.journeys[1:] for s in j["steps"] if s["table"] in ("nat", "t")]
    assert (COUNT, 0, 0, []) == tuple(
        live.summary[key] for key in ("packets", "lost", "began_late", "notes")
    )
    assert (130, "") == live.status


@pytest.mark.parametrize("name", CASES)
def test_follows_both_ways(road: Road, name: str) -> None:
    """With --both every reply is shown, too, whole, and translated back."""
    case = CASES[name]
    with _talking(road, case) as talk, follow(ROUTER, *case.words.split(), "--both") as live:
        talk.exchange(COUNT)
        _noise(case)

    requests, replies = _split(live, case)
    source, sport = talk.source
    assert (COUNT, COUNT) == (len(requests), len(replies))
    assert {f"{case.final[0]} > {source}:{sport}"} == {endpoints(j["packet"]) for j in replies}
    assert [_translation(case)] * COUNT == [changes(j) for j in requests]
    back = {
        {"dst": "src", "dport": "sport"}[name]: [after, before]
        for name, (before, after) in _translation(case).items()
    }
    assert [back] * COUNT == [changes(j) for j in replies]
    assert {True} == {j["whole"] for j in live.journeys}


RANGE = {
    "iptables": "-A PREROUTING -d 10.8.0.100 -p udp -j DNAT --to-destination 10.2.0.2-10.2.0.3",
    "nftables": "ip daddr 10.8.0.100 meta l4proto udp dnat to 10.2.0.2-10.2.0.3",
}


def test_follows_one_address_of_a_range(road: Road) -> None:
    """Of connections spread over several addresses just those of the one named are shown."""
    load(road, "ip", (RANGE["iptables"],), _chain(RANGE["nftables"]))
    with follow(ROUTER, "--dst", "10.2.0.3", "--dport", "22") as live:
        for _ in range(13):
            nets.send_udp(CLIENT, "10.8.0.100", 22)
        nets.send_udp(CLIENT, "10.8.0.100", 23, NOISE)

    tracked = nets.ip_netns_exec(ROUTER, "conntrack", "-L", "-p", "udp").stdout
    there = sum(
        "dst=10.8.0.100 " in line and "src=10.2.0.3 " in line and " dport=22 " in line
        for line in tracked.splitlines()
    )
    assert {"10.1.0.2 > 10.8.0.100:22"} == {endpoints(j["packet"]) for j in live.journeys}
    assert [["10.8.0.100", "10.2.0.3"]] * there == [changes(j)["dst"] for j in live.journeys]
    assert {True} == {j["whole"] for j in live.journeys}


def test_says_that_a_mark_hides_the_first_packet(road: Road) -> None:
    """Where only a mark says what is translated, the first packet is late, and it is said."""
    rule = "-A PREROUTING -p udp -m mark ! --mark 0x7 -j DNAT --to 10.2.0.2:22"
    load(road, "ip", (rule,), _chain("meta mark != 7 meta l4proto udp dnat to 10.2.0.2:22"))
    with echo(SERVER, "10.2.0.2", 22) as server:
        talk = Talk(CLIENT, ("10.8.0.7", 77), server)
        with talk.socket, follow(ROUTER, "--dst", "10.2.0.2", "--dport", "22") as live:
            talk.exchange(COUNT)

    assert [False, *[True] * (COUNT - 1)] == [j["whole"] for j in live.journeys]
    assert "10.2.0.2" == live.journeys[0]["packet"]["dst"]
    assert {"10.1.0.2 > 10.8.0.7:77"} == {endpoints(j["packet"]) for j in live.journeys[1:]}
    assert 1 == live.summary["began_late"]
    (note,) = live.summary["notes"]
    assert "chain PREROUTING rule 1" in note or "chain c rule 1" in note
