"""Real drops into a log: a flood, and SYNs from many sources, recorded in namespaces."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bpf.layout import Mode
from exporters.log import LogOptions, LogWriter
from tests.kernel import nets
from tracer.core.log_rows import drop_columns
from tracer.sources.drops import DropSource
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from pathlib import Path

_PACKETS = 20_000
_ROUNDS = 8
_RULES = """*mangle
:FIREWALL - [0:0]
-A PREROUTING -p udp -j FIREWALL
-A FIREWALL -p udp --dport 9000 -j DROP
-A FIREWALL -p udp --dport 9001 -j DROP
COMMIT
*filter
-A INPUT -p udp --dport 9002 -j DROP
COMMIT
"""


def record(directory: Path) -> tuple[int, int]:
    """Write what dies of three rules into a log; return the rows and the kinds."""
    nets.enter_private_namespaces()
    nets.add_netns("a")
    nets.add_netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.load_rules("b", "legacy", _RULES)
    source = DropSource([find_namespace("b")])
    source.open()
    rows, names = 0, set()
    with contextlib.closing(source), LogWriter(directory, "bench", LogOptions()) as writer:
        source.set_mode(Mode.RECORD)
        for number in range(_ROUNDS):
            nets.flood("a", "10.1.0.2", 9000 + number % 3, _PACKETS, cpu=0)
            records = source.read()
            kinds, kind_of = source.kinds_of(records)
            netns = ["b"] * len(kinds)
            writer.append_drops(drop_columns(records, kinds, kind_of, netns, {}), len(records))
            writer.flush(60)
            rows += len(records)
            names |= {(kind.chain, kind.rule) for kind in kinds}
    return rows, len(names)
