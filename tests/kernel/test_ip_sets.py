"""NAT rules that name their packets by an ipset: read from the kernel, followed from the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_live import endpoints, follow
from tests.kernel.nat_road import CLIENT, ROUTER, SERVER, Road, Talk, echo, load, road
from tracer.sources import ip_sets
from tracer.sources.ip_sets import read_ip_sets

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["road"]

COUNT, NOISE = 7, 3
MATCHES = {
    "hash:ip": ("create doors hash:ip\nadd doors 10.8.0.7\nadd doors 10.8.0.9\n", "dst"),
    "hash:ip,port": ("create doors hash:ip,port\nadd doors 10.8.0.7,udp:77\n", "dst,dst"),
    "hash:net": (
        "create doors hash:net\nadd doors 10.8.0.0/24\nadd doors 10.8.0.8 nomatch\n",
        "dst",
    ),
    "hash:net,port": ("create doors hash:net,port\nadd doors 10.8.0.0/24,udp:70-77\n", "dst,dst"),
    "hash:ip,port,ip": (
        "create doors hash:ip,port,ip\nadd doors 10.1.0.2,udp:77,10.8.0.7\n",
        "src,dst,dst",
    ),
    "bitmap:port": ("create doors bitmap:port range 1-100\nadd doors 77\n", "dst"),
    "bitmap:ip": ("create doors bitmap:ip range 10.8.0.0/24\nadd doors 10.8.0.7\n", "dst"),
    "list:set": (
        "create inner hash:net\nadd inner 10.8.0.4/30\ncreate doors list:set\nadd doors inner\n",
        "dst",
    ),
}


@pytest.fixture
def doors(request: pytest.FixtureRequest, road: Road) -> Iterator[str]:
    """Fill the set that the parameter names, translate by it, and give the rule's words."""
    if road.backend == "nftables":
        pytest.skip("nft has no ipset")
    nets.require("ipset")
    commands, ways = MATCHES[request.param]
    nets.ip_netns_exec(ROUTER, "ipset", "restore", stdin=commands)
    rule = f"-A PREROUTING -p udp -m set --match-set doors {ways} -j DNAT --to 10.2.0.2:22"
    load(road, "ip", (rule,), "")
    yield rule
    load(road, "ip", (), "")
    nets.ip_netns_exec(ROUTER, "ipset", "destroy", "doors")
    nets.ip_netns_exec(ROUTER, "ipset", "destroy")


@pytest.mark.parametrize("doors", MATCHES, indirect=True)
@pytest.mark.usefixtures("doors")
def test_follows_from_the_first_packet_what_a_set_picks() -> None:
    """A translation whose packets an ipset names is followed from each one's first hook on."""
    with echo(SERVER, "10.2.0.2", 22) as server:
        talk = Talk(CLIENT, ("10.8.0.7", 77), server)
        with talk.socket, follow(ROUTER, "--dst", "10.2.0.2", "--dport", "22") as live:
            talk.exchange(COUNT)
            nets.send_udp(CLIENT, "10.7.0.7", 66, NOISE)

    assert [True] * COUNT == [j["whole"] for j in live.journeys]
    assert {"10.1.0.2 > 10.8.0.7:77"} == {endpoints(j["packet"]) for j in live.journeys}
    assert [] == live.summary["notes"]


@pytest.mark.parametrize("doors", ["hash:ip,port"], indirect=True)
@pytest.mark.usefixtures("doors")
def test_a_set_that_is_too_large_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set beyond the limit nothing is read, and one that is gone is left out."""
    monkeypatch.setattr(ip_sets, "MAX_SET_BYTES", 64)
    with nets.in_netns(ROUTER):
        found = read_ip_sets(("doors", "no such set"))

    assert {"doors": None} == {name: known.members for name, known in found.items()}


@pytest.mark.parametrize("doors", ["hash:ip"], indirect=True)
@pytest.mark.usefixtures("doors")
def test_reads_a_set_of_many_datagrams_whole() -> None:
    """Every member is read once, however many answers the kernel needs for them."""
    more = [f"10.9.{high}.{low}" for high in range(16) for low in range(251)]
    nets.ip_netns_exec(
        ROUTER, "ipset", "restore", stdin="".join(f"add doors {one}\n" for one in more)
    )
    with nets.in_netns(ROUTER):
        members = read_ip_sets(("doors",))["doors"].members

    assert members is not None
    assert len(more) + 2 == len(members) == len(set(members))
