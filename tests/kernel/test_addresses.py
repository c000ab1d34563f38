"""The namespace's own addresses, as the kernel tells them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from tests.kernel import nets
from tracer.sources.addresses import read_addresses

if TYPE_CHECKING:
    from collections.abc import Callable


def test_addresses_are_told_by_device(netns: Callable[..., str]) -> None:
    """Every address is its device's: several, of both families, and ours at a peer's link."""
    for name in ("one", "two"):
        netns(name)
    nets.veth("one", "a0", ("10.3.0.1/24", "fd00:3::1/64"), "two", "b0", None)
    nets.run("ip", "-n", "one", "address", "add", "10.3.1.1", "peer", "10.3.1.2", "dev", "a0")
    with nets.in_netns("one"):
        found = read_addresses()

    assert set(found) == {"lo", "a0"}
    assert set(found["lo"]) == {ip_address("127.0.0.1"), ip_address("::1")}
    assert set(found["a0"]) == {
        ip_address("10.3.0.1"),
        ip_address("10.3.1.1"),
        ip_address("fd00:3::1"),
    }


def test_dump_of_many_datagrams_is_read_whole(netns: Callable[..., str]) -> None:
    """A thousand addresses, more than one datagram holds, are all told."""
    netns("one")
    lines = [f"address add 10.4.{n >> 8}.{n & 255}/32 dev lo" for n in range(1, 1010)]
    nets.ip_batch("one", lines)
    with nets.in_netns("one"):
        found = read_addresses()

    assert len([one for one in found["lo"] if str(one).startswith("10.4.")]) == 1009
