"""
What a scrape costs, beside what the tools need to print the same counters.

Five namespaces with 2,000 rules each, all of which drop, of one engine at a time. Every
round scrapes once and runs the engine's tool once in each namespace, so that the machine's
other work falls on both alike; medians of the rounds are told, and their ratio. The first
scrape, which reads the texts, is told apart, and so is one with every namespace's rules
loaded anew. What the daemon itself costs follows, see `daemon_watch`. `./dev bench daemon
soak [SECONDS]` runs `daemon_soak` alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from exporters.prometheus import Exporter
from tests.bench import daemon_soak, daemon_watch, load
from tests.kernel import nets
from tracer.core.health import Health
from tracer.sources.netns import find_namespace
from tracer.sources.rule_counters import CounterReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.core.drops import DropCount
    from tracer.core.rule_reading import NetnsCounters

_NAMESPACES = tuple(f"n{number}" for number in range(5))
_RULES = 2_000
_ROUNDS = 15
_TOOLS = {"legacy": ("iptables-legacy-save", "-c"), "nft": ("nft", "list", "ruleset")}


class _Host:
    """The namespaces, as a daemon reads them; their drops are not looked for."""

    def __init__(self) -> None:
        self._namespaces = [find_namespace(name) for name in _NAMESPACES]
        self._reader = CounterReader()

    def namespaces(self) -> dict[int, str]:
        return {one.inode: one.name for one in self._namespaces}

    def counters(self) -> list[NetnsCounters]:
        return [self._reader.read(one) for one in self._namespaces]

    def drops(self) -> list[DropCount]:
        return []

    def exemplars(self) -> tuple[()]:
        return ()

    def health(self) -> Health:
        return Health()


def main() -> None:
    """Run all and print one JSON object for each engine, and for each measure of the watch."""
    nets.enter_private_namespaces()
    if sys.argv[1:2] == ["soak"]:
        daemon_soak.run(*map(float, sys.argv[2:3]))
        return
    load.take_precedence()
    for engine in load.ENGINES:
        for name in _NAMESPACES:
            nets.add_netns(name)
        _lay_rules(engine)
        _compare(engine)
        for name in _NAMESPACES:
            nets.delete_netns(name)
    daemon_watch.run()


def _lay_rules(engine: str) -> None:
    text = load.many_rules(engine, _RULES).replace("ACCEPT", "DROP").replace("accept\n", "drop\n")
    for name in _NAMESPACES:
        if engine == "nft":
            nets.ip_netns_exec(name, "nft", "flush", "ruleset")
        nets.load_rules(name, "nftables" if engine == "nft" else engine, text)


def _compare(engine: str) -> None:
    exporter = Exporter(_Host())
    first = _milliseconds(lambda: exporter.write(openmetrics=True))
    scrapes, tools = [], []
    for _ in range(_ROUNDS):
        scrapes.append(_milliseconds(lambda: exporter.write(openmetrics=True)))
        tools.append(_milliseconds(lambda: _print_all(engine)))
    _lay_rules(engine)
    scrape, tool = statistics.median(scrapes), statistics.median(tools)
    row = {
        "engine": engine,
        "rules": len(_NAMESPACES) * _RULES,
        "namespaces": len(_NAMESPACES),
        "tool": " ".join(_TOOLS[engine]),
        "scrape_ms": round(scrape, 1),
        "tool_ms": round(tool, 1),
        "ratio": round(scrape / tool, 3),
        "first_scrape_ms": round(first, 1),
        "reloaded_scrape_ms": round(_milliseconds(lambda: exporter.write(openmetrics=True)), 1),
    }
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def _print_all(engine: str) -> None:
    for name in _NAMESPACES:
        with nets.in_netns(name):
            subprocess.run(_TOOLS[engine], stdout=subprocess.DEVNULL, check=True)


def _milliseconds(act: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    act()
    return (time.perf_counter() - started_s) * 1e3


if __name__ == "__main__":
    main()
