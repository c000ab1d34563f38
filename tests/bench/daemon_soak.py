"""
Whether the daemon stays as large as it is: minutes of drops, names, new rules and scrapes.

A flood loses a thousand packets a second of a hundred flows, rules are loaded anew each
two seconds, a namespace comes and goes, and everything is scraped once a second. Memory
is looked at twenty times; what counts is the last third beside the second.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.kernel import nets
from tests.kernel.daemon_helper import daemon

if TYPE_CHECKING:
    from tests.kernel.daemon_helper import Daemon

__all__ = ["run"]

_SECONDS = 600.0
_LOOKS = 20
_RATE = 1009
_RULES = """*mangle
:FIREWALL - [0:0]
-A PREROUTING -p udp -j FIREWALL
{}-A FIREWALL -p udp -j DROP
COMMIT
"""
_BEFORE = "-A FIREWALL -p udp -m udp --dport 1 -j DROP\n"


def run(seconds: float = _SECONDS) -> None:
    """Print one JSON object; the caller is in private namespaces. *seconds* is how long."""
    for name in ("snd", "rtr"):
        nets.add_netns(name)
    nets.veth("snd", "s0", "10.1.0.1/24", "rtr", "r0", "10.1.0.2/24")
    with tempfile.TemporaryDirectory() as folder:
        parts = {"watch": {"rung": "reason"}, "log": {"directory": f"{folder}/log"}}
        with daemon(Path(folder), "snd", "rtr", "passing", **parts) as running:
            row = _soak(running, seconds)
    sys.stdout.write(json.dumps({"measure": "soak", **row}) + "\n")


def _soak(running: Daemon, seconds: float) -> dict[str, object]:
    started_s = time.monotonic()
    looks: list[tuple[int, int]] = []
    rounds = 0
    while (passed_s := time.monotonic() - started_s) < seconds:
        nets.load_rules("rtr", "legacy", _RULES.format(_BEFORE * (rounds % 3)))
        nets.add_netns("passing")
        for half in range(2):
            first = 5_000 + 100 * ((2 * rounds + half) % 500)
            nets.flood("snd", "10.1.0.2", 7002, _RATE, rate=_RATE, sport=first, ports=100)
            running.scrape()
        nets.delete_netns("passing")
        rounds += 1
        if len(looks) <= passed_s * _LOOKS / seconds:
            looks.append(_look(running))
    third = max(1, len(looks) // 3)
    second, last = (median(kb for kb, _ in part) for part in (looks[third:-third], looks[-third:]))
    return {
        "seconds": round(time.monotonic() - started_s),
        "dropped": rounds * 2 * _RATE,
        "named": running.sum_of("nftrace_trace_named_total"),
        "lost": running.sum_of("nftrace_events_lost_total"),
        "resident_kb": [kb for kb, _ in looks],
        "growth_of_last_third": round(last / second - 1, 4),
        "descriptors": [looks[0][1], looks[-1][1]],
    }


def _look(running: Daemon) -> tuple[int, int]:
    """Return resident kilobytes, and how many descriptors are open."""
    process = Path(f"/proc/{running.process.pid}")
    pages = int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024, len(list((process / "fd").iterdir()))
