"""A full table of connections: its limit is the whole machine's, so a machine of our own."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from rich.console import Console

from tests.kernel import nets
from tracer.cli.drop_watch import Choice, DropWatch
from tracer.cli.run import Interrupts
from tracer.core.filters import Filter
from tracer.sources.drops import DropSource
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

#: It can be set in the first process's namespace alone, and holds for each by itself.
_SYSCTL = ("nsenter", "--net=/proc/1/ns/net", "sysctl", "-n")
_LIMIT = "net.netfilter.nf_conntrack_max"
_ROOM = 5
_RULES = "*filter\n-A INPUT -m conntrack --ctstate NEW -j ACCEPT\nCOMMIT\n"
_WORDS = {"once": True, "interval": 0.1, "timeout": None, "output": "json"}


@contextlib.contextmanager
def _room_for(connections: int) -> Iterator[None]:
    before = nets.run(*_SYSCTL, _LIMIT).stdout.strip()
    nets.run(*_SYSCTL, "-w", f"{_LIMIT}={connections}")
    try:
        yield
    finally:
        nets.run(*_SYSCTL, "-w", f"{_LIMIT}={before}")


def test_a_full_table_is_named(
    netns: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each packet of a connection too many is in one row, which says so and where to look."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.load_rules("b", "legacy", _RULES)
    # A minute, where it takes a second on a machine that is not emulated.
    source = DropSource([find_namespace("b")], calibrate_s=60)
    source.open()
    with contextlib.closing(source), _room_for(_ROOM), nets.udp_listener("b", 7001):
        for sport in range(4001, 4001 + _ROOM):
            nets.send_udp("a", "10.1.0.2", 7001, 1, sport=sport)
        # Of one flow: others may push a connection out, where they meet one in the table.
        nets.send_udp("a", "10.1.0.2", 7001, 31, sport=4999)
        choice = Choice(Filter(), frozenset({find_namespace("b").inode}), None, "total")
        with Interrupts() as interrupts:
            DropWatch(source, choice, _WORDS).run(interrupts, Console())
    (row,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())

    assert 31 == row["packets"]
    assert ("prerouting", None) == (row["hook"], row["table"])
    assert "connection tracking: its table is full" in row["what"]
    assert "nf_conntrack_max" in row["look_at"]
