"""
Record what a kernel says of a small mixed ruleset, for the tests of tracer/core.

    tests/vm/run.sh --run .venv/bin/python -m tests.vm.record |
        .venv/bin/python -m tests.vm.record keep

The first prints lines of base64 and runs in guests; the second writes the files that it
finds in such lines into tests/core/fixtures. In the network are one host on each side of
a router with rules in legacy tables and in nft's; packets are told apart by their ports.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import platform
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel import nets
from tracer.core.filters import Filter
from tracer.sources.follow import Follow, FollowOptions
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.sources.trace_socket import TraceSocket

_FIXTURES = nets.ROOT / "tests/core/fixtures"
_LINE = re.compile(r"(?:^|\| )fixture (\S+) (\S+)$")

CLIENT, ROUTER, SERVER = "10.9.1.1", "10.9.1.2", "10.9.2.2"

_LEGACY = """*mangle
-N FW:colon
-A PREROUTING -p udp --dport 7003 -j FW:colon
-A FW:colon -p udp --dport 9 -j DROP
-A FW:colon -j MARK --set-xmark 0x5
COMMIT
*filter
-N SSH
-A FORWARD -p tcp -j SSH
-A SSH -p tcp --dport 23 -j ACCEPT
-A SSH -j DROP
COMMIT
"""
_NATIVE = """table inet lab {
  chain falls_off {
    udp dport 9 drop
    counter
  }
  chain nothing_here { }
  chain away {
    meta mark set 0x7
  }
  chain last {
    udp dport 7004 drop
    udp dport 7006 return
    udp dport 7003 accept
  }
  chain pre {
    type filter hook prerouting priority -200
    udp dport 7001 jump falls_off
    udp dport 7001 jump nothing_here
    udp dport 7002 goto away
    udp dport 7002 drop
  }
  chain inp {
    type filter hook input priority 10; policy drop
    udp dport 7001 accept
    tcp dport 7005 reject with tcp reset
    jump last
  }
}
table ip xlat {
  chain pre {
    type nat hook prerouting priority -100
    tcp dport 7010 dnat to 10.9.2.2:22
  }
}
"""
#: Port and number of packets: UDP to the router, then TCP to it.
UDP = {7001: 2, 7002: 1, 7003: 1, 7004: 1, 7006: 1}
TCP = {7005: 1, 7010: 1}


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Build client, router and server with the rules."""
    for name in ("client", "router", "server"):
        nets.add_netns(name, forward=name == "router")
    nets.veth("client", "eth0", f"{CLIENT}/24", "router", "eth0", f"{ROUTER}/24")
    nets.veth("router", "eth1", "10.9.2.1/24", "server", "eth0", f"{SERVER}/24")
    nets.load_rules("router", "legacy", _LEGACY)
    nets.load_rules("router", "nftables", _NATIVE)
    yield
    for name in ("client", "router", "server"):
        nets.delete_netns(name)


def _send() -> None:
    for port, count in UDP.items():
        nets.send_udp("client", ROUTER, port, count, sport=40000 + port, payload=b"nftrace")
    for port, count in TCP.items():
        nets.send_tcp_syn("client", ROUTER, port, count, sport=40000 + port)


def _read(socket: TraceSocket) -> list[bytes]:
    """Return all datagrams that are queued, the announcements of changes left out."""
    messages = []
    while (received := socket.receive()) is not None:
        announced = set(received.announced.tolist())
        for index, (start, size) in enumerate(zip(received.starts, received.lengths, strict=True)):
            if index not in announced:
                messages.append(received.words[start:].tobytes()[:size])
    return messages


@dataclass(frozen=True, slots=True)
class Recording:
    """What the trace socket received, and the rules as the two tools listed them."""

    messages: list[bytes]
    legacy: str
    native: str


def record() -> Recording:
    """Send the packets and return what came; below private namespaces."""
    wanted = Filter(src=ipaddress.ip_network(CLIENT))
    options = FollowOptions(wanted, both=False, rate=0, buffer_bytes=1 << 22, ends=False)
    with _network():
        legacy = nets.ip_netns_exec("router", "iptables-legacy-save").stdout
        native = nets.ip_netns_exec("router", "nft", "-s", "-t", "-a", "list", "ruleset").stdout
        with Follow([find_namespace("router")], options) as session:
            _send()
            messages = _read(session.traces[0].socket)
    kept = [line for line in legacy.splitlines(keepends=True) if line[0] != "#"]
    return Recording(messages, "".join(kept), native)


def _files(recording: Recording) -> dict[str, bytes]:
    name = "linux-" + ".".join(platform.release().split(".")[:2])
    messages = recording.messages
    return {
        f"{name}.raw": b"".join(one + bytes(-len(one) % 4) for one in messages),
        f"{name}.len": b"".join(struct.pack("<H", len(one)) for one in messages),
        f"{name}.legacy.txt": recording.legacy.encode(),
        f"{name}.nft-list.txt": recording.native.encode(),
    }


def _keep(lines: Iterator[str]) -> None:
    for line in lines:
        found = _LINE.search(line.rstrip())
        if found is not None:
            Path(_FIXTURES, found[1]).write_bytes(base64.b64decode(found[2]))


if __name__ == "__main__":
    if sys.argv[1:] == ["keep"]:
        _keep(sys.stdin)
    else:
        nets.enter_private_namespaces()
        for file, content in _files(record()).items():
            sys.stdout.write(f"fixture {file} {base64.b64encode(content).decode()}\n")
