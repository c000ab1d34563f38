"""End to end: translated sources, replies, filters by either name, and older connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel import nets
from tests.kernel.follow_live import changes, endpoints, follow
from tests.kernel.nat_road import CLIENT, ROUTER, SERVER, Road, Talk, echo, load, road

if TYPE_CHECKING:
    from tests.kernel.follow_live import Live

__all__ = ["road"]

COUNT = 7
NOISE = 5
BEFORE = 3


@dataclass(frozen=True)
class Case:
    """
    Rules, filters that name either end of them, and what they make of packets to *target*.

    *server* is who answers; *translated* the fields of a request before and after.
    """

    rules: tuple[str, ...]
    native: tuple[str, ...]
    words: tuple[str, ...]
    target: tuple[str, int]
    server: tuple[str, int]
    translated: dict[str, tuple[str | int, str | int]]


def _post(*rules: str) -> str:
    return "\n".join(("chain p {\ntype nat hook postrouting priority srcnat;", *rules, "}"))


def _pre(*rules: str) -> str:
    return "\n".join(("chain c {\ntype nat hook prerouting priority dstnat;", *rules, "}"))


_SERVER = ("10.2.0.2", 22)
_MASQUERADE = "-A POSTROUTING -s 10.1.0.0/24 -o eth1 -j MASQUERADE"
_SNAT = "-A POSTROUTING -s 10.1.0.0/24 -o eth1 -j SNAT --to-source 10.3.0.9"
_DNAT = "-A PREROUTING -d 10.8.0.100 -p udp --dport 2222 -j DNAT --to-destination 10.2.0.2:22"
_MASQUERADE_NATIVE = _post('ip saddr 10.1.0.0/24 oifname "eth1" masquerade')
_SNAT_NATIVE = _post('ip saddr 10.1.0.0/24 oifname "eth1" snat to 10.3.0.9')
_DNAT_NATIVE = _pre("ip daddr 10.8.0.100 udp dport 2222 dnat to 10.2.0.2:22")
_DST: dict[str, tuple[str | int, str | int]] = {
    "dst": ("10.8.0.100", "10.2.0.2"),
    "dport": (2222, 22),
}
CASES = {
    "masquerade": Case(
        (_MASQUERADE,),
        (_MASQUERADE_NATIVE,),
        ("--src 10.2.0.1 --dst 10.2.0.2", "--src 10.1.0.2 --dst 10.2.0.2", "--dst 10.2.0.2"),
        _SERVER,
        _SERVER,
        {"src": ("10.1.0.2", "10.2.0.1")},
    ),
    "source": Case(
        (_SNAT,),
        (_SNAT_NATIVE,),
        (
            "--src 10.3.0.9 --dst 10.2.0.2",
            "--src 10.3.0.0/24 --dport 22",
            "--src 10.1.0.2 --dport 22",
        ),
        _SERVER,
        _SERVER,
        {"src": ("10.1.0.2", "10.3.0.9")},
    ),
    "destination": Case(
        (_DNAT,),
        (_DNAT_NATIVE,),
        ("--dst 10.8.0.100 --dport 2222", "--dst 10.2.0.2 --dport 22 --proto udp"),
        ("10.8.0.100", 2222),
        _SERVER,
        _DST,
    ),
    "both": Case(
        (_DNAT, _SNAT),
        (_DNAT_NATIVE, _SNAT_NATIVE),
        (
            "--src 10.3.0.9 --dst 10.2.0.2 --dport 22",
            "--src 10.1.0.2 --dst 10.8.0.100",
            "--dst 10.2.0.2 --dport 22",
        ),
        ("10.8.0.100", 2222),
        _SERVER,
        {"src": ("10.1.0.2", "10.3.0.9"), **_DST},
    ),
}
RUNS = [(name, words) for name, case in CASES.items() for words in case.words]


def _reverse(
    translated: dict[str, tuple[str | int, str | int]],
) -> dict[str, list[str | int]]:
    names = {"dst": "src", "dport": "sport", "src": "dst", "sport": "dport"}
    return {names[name]: [after, before] for name, (before, after) in translated.items()}


def _requests(live: Live, case: Case) -> list[dict[str, Any]]:
    wanted = f"10.1.0.2 > {case.target[0]}:{case.target[1]}"
    return [j for j in live.journeys if endpoints(j["packet"]) == wanted]


def _replies(live: Live) -> list[dict[str, Any]]:
    return [j for j in live.journeys if j["packet"]["src"] == "10.2.0.2"]


@pytest.mark.parametrize(("name", "words"), RUNS)
def test_follows_both_ways_by_either_name(road: Road, name: str, words: str) -> None:
    """Requests and replies are whole and translated, whichever name the filter uses."""
    case = CASES[name]
    load(road, "ip", case.rules, "\n".join(case.native))
    with echo(SERVER, *case.server) as server:
        talk = Talk(CLIENT, case.target, server)
        with talk.socket, follow(ROUTER, *words.split(), "--both") as live:
            talk.exchange(COUNT)
            nets.send_udp(CLIENT, "10.2.0.4", 2223, NOISE)
            nets.send_udp(SERVER, "10.1.0.2", 2223, NOISE, src="10.2.0.3")

    requests, replies = _requests(live, case), _replies(live)
    assert (COUNT, COUNT, 2 * COUNT) == (len(requests), len(replies), len(live.journeys))
    there = {name: list(pair) for name, pair in case.translated.items()}
    assert [there] * COUNT == [changes(j) for j in requests]
    assert [_reverse(case.translated)] * COUNT == [changes(j) for j in replies]
    assert {True} == {j["whole"] for j in live.journeys}
    assert (2 * COUNT, 0, 0) == tuple(
        live.summary[key] for key in ("packets", "lost", "began_late")
    )


@pytest.mark.parametrize(("name", "words"), RUNS)
def test_follows_connections_that_are_older(road: Road, name: str, words: str) -> None:
    """Of a connection that began before follow did, at most the first packet each way is late."""
    case = CASES[name]
    load(road, "ip", case.rules, "\n".join(case.native))
    with echo(SERVER, *case.server) as server:
        talk = Talk(CLIENT, case.target, server)
        with talk.socket:
            talk.exchange(BEFORE)
            with follow(ROUTER, *words.split(), "--both") as live:
                talk.exchange(COUNT)

    late = [j for j in live.journeys if not j["whole"]]
    assert 2 * COUNT == len(live.journeys)
    assert len(late) == live.summary["began_late"]
    assert late in ([], live.journeys[:1], live.journeys[:2], live.journeys[1:2])
    there = {name: list(pair) for name, pair in case.translated.items()}
    whole = [changes(j) for j in _requests(live, case) if j["whole"]]
    assert len(whole) >= COUNT - 1
    assert [there] * len(whole) == whole
    back = [changes(j) for j in _replies(live) if j["whole"]]
    assert len(back) >= COUNT - 1
    assert [_reverse(case.translated)] * len(back) == back


def test_says_what_it_sees_late_when_the_rule_is_gone(road: Road) -> None:
    """Only conntrack knows a connection whose rule was deleted: one late packet, and it is said."""
    case = CASES["destination"]
    load(road, "ip", case.rules, "\n".join(case.native))
    with echo(SERVER, *case.server) as server:
        talk = Talk(CLIENT, case.target, server)
        with talk.socket:
            talk.exchange(BEFORE)
            nets.load_rules(ROUTER, *_other_nat(road))
            with follow(ROUTER, "--dst", "10.2.0.2", "--dport", "22") as live:
                talk.exchange(COUNT)

    assert [False, *[True] * (COUNT - 1)] == [j["whole"] for j in live.journeys]
    assert COUNT == len(_requests(live, case)), "conntrack knows before it translates"
    assert 1 == live.summary["began_late"]


def _other_nat(road: Road) -> tuple[str, str]:
    if road.backend == "nftables":
        return road.backend, "flush chain ip t c\n"
    return road.backend, "*nat\n:PREROUTING ACCEPT\n:OTHER -\n-A PREROUTING -j OTHER\nCOMMIT\n"


def test_follows_an_established_tcp_connection(road: Road) -> None:
    """Each later data segment of a translated TCP connection is whole, both ways."""
    rules = (_DNAT.replace("udp", "tcp"),)
    load(road, "ip", rules, _DNAT_NATIVE.replace("udp", "tcp"))
    with (
        nets.tcp_listener(SERVER, 22) as listener,
        nets.connect(CLIENT, "10.8.0.100", 2222) as client,
        listener.accept()[0] as server,
        follow(ROUTER, "--dst", "10.2.0.2", "--dport", "22", "--both") as live,
    ):
        for _ in range(COUNT):
            client.sendall(b"?")
            assert server.recv(1) == b"?"
            server.sendall(b"!")
            assert client.recv(1) == b"!"

    data = [j for j in live.journeys if j["packet"]["tcp_flags"] == "PA"]
    asked = [j for j in data if j["packet"]["dst"] == "10.8.0.100"]
    told = [j for j in data if j["packet"]["src"] == "10.2.0.2"]
    assert (COUNT, COUNT, 2 * COUNT) == (len(asked), len(told), len(data))
    assert {True} == {j["whole"] for j in data}
    expected = {name: list(pair) for name, pair in _DST.items()}
    assert [expected] * COUNT == [changes(j) for j in asked]
    assert [_reverse(_DST)] * COUNT == [changes(j) for j in told]
