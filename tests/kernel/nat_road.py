"""A client and a server with a translating router between them, and talk over it."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT, ROUTER, SERVER = "client", "router", "server"
_ANSWER_S = 5.0
#: So that every packet passes a chain that is shown.
_SEEN = (":INPUT ACCEPT", ":FORWARD ACCEPT", ":OUTPUT ACCEPT")


@dataclass(frozen=True)
class Road:
    """A client and a server with a router between them, whose rules are of *backend*."""

    backend: str


@pytest.fixture(scope="module", params=nets.BACKENDS)
def road(request: pytest.FixtureRequest, private_machine: nets.Outside) -> Iterator[Road]:
    """Give the network; rules are replaced by each test, tables of another engine never are."""
    del private_machine
    for name in (CLIENT, ROUTER, SERVER):
        nets.add_netns(name, forward=name == ROUTER)
    nets.veth(
        *(CLIENT, "eth0", ("10.1.0.2/24", "fd01::2/64")),
        *(ROUTER, "eth0", ("10.1.0.1/24", "fd01::1/64")),
    )
    nets.veth(
        *(ROUTER, "eth1", ("10.2.0.1/24", "fd02::1/64")),
        *(SERVER, "eth0", ("10.2.0.2/24", "10.2.0.3/24", "10.2.0.4/24", "fd02::2/64")),
    )
    for ns, gateway in ((CLIENT, "10.1.0.1"), (CLIENT, "fd01::1"), (SERVER, "10.2.0.1")):
        nets.route(ns, "default", "via", gateway)
    nets.route(SERVER, "default", "via", "fd02::1")
    # A way to what nobody has: routing comes before DNAT of the router's own packets.
    nets.route(ROUTER, "10.9.9.0/24", "dev", "eth1")
    yield Road(request.param)
    for name in (CLIENT, ROUTER, SERVER):
        nets.delete_netns(name)


def load(road: Road, family: str, rules: tuple[str, ...], native: str) -> None:
    """Replace the router's rules: NAT in *family*, and filter chains that accept."""
    with nets.in_netns(ROUTER):
        if road.backend == "nftables":
            nets.run("nft", "flush", "ruleset")
        nets.run("conntrack", "-F")
    if road.backend == "nftables":
        seen = "".join(
            f"chain {hook} {{\ntype filter hook {hook} priority 0;\n}}\n"
            for hook in ("forward", "input", "output")
        )
        nets.load_rules(
            ROUTER,
            "nftables",
            f"table {family} t {{\n{native}\n}}\ntable {family} f {{\n{seen}}}\n",
        )
        return
    backend = road.backend + ("6" if family == "ip6" else "")
    other = road.backend + ("" if family == "ip6" else "6")
    lines = ("*nat", *rules, "COMMIT", "*filter", *_SEEN, "COMMIT", "")
    nets.load_rules(ROUTER, backend, "\n".join(lines))
    if family == "ip6":
        nets.load_rules(ROUTER, other, "*nat\nCOMMIT\n")


@contextlib.contextmanager
def echo(ns: str, address: str, port: int) -> Iterator[socket.socket]:
    """Hold a UDP port open for `Talk`, which answers through it."""
    with nets.udp_listener(ns, port, address) as sock:
        sock.settimeout(_ANSWER_S)
        yield sock


class Talk:
    """Datagrams from one socket of the client's, each answered; the reply's source is checked."""

    def __init__(self, client: str, target: tuple[str, int], server: socket.socket) -> None:
        self._server = server
        kind = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        with nets.in_netns(client):
            self.socket = socket.socket(kind, socket.SOCK_DGRAM)
        self.socket.settimeout(_ANSWER_S)
        self.socket.connect(target)
        self.source: tuple[str, int] = self.socket.getsockname()[:2]

    def exchange(self, count: int) -> None:
        """Ask and answer *count* times, one after the other; errors: TimeoutError."""
        for _ in range(count):
            self.socket.send(b"ask")
            _, peer = self._server.recvfrom(64)
            self._server.sendto(b"tell", peer)
            assert self.socket.recv(64) == b"tell"
