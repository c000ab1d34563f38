"""A connection tracking table that is really full: what dies of it, and how that is told."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from tests.kernel import nets
from tracer.cli.drop_watch import Choice, DropWatch
from tracer.cli.run import Interrupts
from tracer.core.filters import Filter
from tracer.sources.changes_conntrack import ConntrackChanges
from tracer.sources.drops import DropSource, Mode
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

_RULES = """table ip tracked {
chain input {
type filter hook input priority 0;
ct state established accept
}
}
"""
#: include/uapi/linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h
_NETLINK_NETFILTER, _CT_NEW = 12, 1 << 8
_REQUEST_CREATE_EXCL = 0x1 | 0x400 | 0x200
_SEEN_REPLY_ASSURED_CONFIRMED = 2 | 4 | 8
_NESTED = 0x8000
_UDP = 17
#: Stand for the ports in the message that all others are made of.
_SPORT, _DPORT = 0x1111, 0x2222
_AT_ONCE = 400
#: The kernel's whole table is filled, since a namespace has no limit of its own.
_MOST = 1 << 19


def _attribute(kind: int, body: bytes, nested: int = 0) -> bytes:
    head = struct.pack("=HH", 4 + len(body), kind | nested)
    return head + body + bytes(-len(body) % 4)


def _tuple(kind: int, addresses: tuple[str, str], ports: tuple[int, int]) -> bytes:
    ip = b"".join(_attribute(n, socket.inet_aton(one)) for n, one in enumerate(addresses, 1))
    proto = _attribute(1, bytes([_UDP]))
    proto += b"".join(_attribute(n, struct.pack(">H", one)) for n, one in enumerate(ports, 2))
    return _attribute(kind, _attribute(1, ip, _NESTED) + _attribute(2, proto, _NESTED), _NESTED)


def _new_connection() -> bytes:
    there, back = ("10.9.0.1", "10.9.0.2"), ("10.9.0.2", "10.9.0.1")
    body = struct.pack("=BBH", socket.AF_INET, 0, 0)
    body += _tuple(1, there, (_SPORT, _DPORT)) + _tuple(2, back, (_DPORT, _SPORT))
    # Assured: any other makes room for the next connection when the table is full.
    body += _attribute(3, struct.pack(">I", _SEEN_REPLY_ASSURED_CONFIRMED))
    body += _attribute(7, struct.pack(">I", 600))
    return struct.pack("=IHHII", 16 + len(body), _CT_NEW, _REQUEST_CREATE_EXCL, 0, 0) + body


def _fill(ns: str, count: int) -> None:
    """Make *count* connections in the namespace's table, a port pair each."""
    message = _new_connection()
    template = np.frombuffer(message, np.uint8)
    places = {
        port: [at for at in range(len(message)) if message[at : at + 2] == struct.pack(">H", port)]
        for port in (_SPORT, _DPORT)
    }
    with nets.in_netns(ns):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    with contextlib.closing(sock):
        sock.bind((0, 0))
        for first in range(0, count, _AT_ONCE):
            numbers = np.arange(first, min(first + _AT_ONCE, count))
            batch = np.tile(template, (len(numbers), 1))
            for port, values in ((_SPORT, numbers >> 10), (_DPORT, numbers & 1023)):
                for at in places[port]:
                    batch[:, at] = values + 1024 >> 8
                    batch[:, at + 1] = values & 255
            sock.send(batch.tobytes())


@pytest.fixture
def full(netns: Callable[..., str]) -> None:
    """Lay a cable from a to b, whose table has no room left."""
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text(encoding="ascii"))
    if not 0 < limit <= _MOST:
        pytest.skip(f"net.netfilter.nf_conntrack_max is {limit}: too many to fill it")
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.load_rules("b", "nftables", _RULES)
    _fill("b", limit)
    assert str(limit) == nets.ip_netns_exec("b", "conntrack", "-C").stdout.strip()


@pytest.mark.usefixtures("full")
def test_packets_that_a_full_table_drops_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    """New flows die at connection tracking's own hook, each counted, with what to look at."""
    source = DropSource([find_namespace("b")])
    source.open()
    with contextlib.closing(source), Interrupts() as interrupts:
        source.set_mode(Mode.RECORD)
        nets.send_udp("a", "10.1.0.2", 7001, 13)
        words = {"once": True, "interval": 0.1, "timeout": None, "output": "json"}
        choice = Choice(Filter(), frozenset({find_namespace("b").inode}), None, "total")
        DropWatch(source, choice, words).run(interrupts, Console())
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert ("prerouting", "ipv4_conntrack_in", 13) == (row["hook"], row["function"], row["packets"])
    assert row["what"].startswith("connection tracking: its table is full")
    assert "nf_conntrack_max" in row["look_at"]


@pytest.mark.usefixtures("full")
def test_a_full_table_is_a_change_that_the_log_keeps() -> None:
    """That the table is full, and each packet that it cost, is told with before and after."""
    changes = ConntrackChanges(find_namespace("b"))
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text(encoding="ascii").strip()
    before = [(one.subject, one.before, one.after) for one in changes.look(0.0, 0)]
    nets.send_udp("a", "10.1.0.2", 7001, 17)
    after = [(one.subject, one.before, one.after) for one in changes.look(1000.0, 0)]

    assert [("table", "not full", f"full ({limit} of {limit})")] == before
    assert [("drop", "0", "17")] == after
