"""
What counting, naming and recording drops costs the traffic, as ratios within one run.

A flood of UDP goes through a cable into a DROP rule. Every round runs each
configuration once, in the same order, so that the machine's other work falls on all
alike; the ratio of the best rounds to the best without anything attached is told.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from tests.kernel import nets
from tracer.core.drops import Rung
from tracer.sources.drops import DropSource, Mode
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKETS = 40_000
_ROUNDS = 15
_RULES = {
    "legacy, 1 rule": ("legacy", "*mangle\n-A PREROUTING -p udp --dport 9000 -j DROP\nCOMMIT\n"),
    "legacy, 40 rules": (
        "legacy",
        "*mangle\n{}-A PREROUTING -p udp --dport 9000 -j DROP\nCOMMIT\n".format(
            "".join(f"-A PREROUTING -p tcp --dport {9100 + n} -j DROP\n" for n in range(39))
        ),
    ),
    "nft": (
        "nftables",
        """table ip t {
  chain c {
    type filter hook prerouting priority 0
    udp dport 9000 drop
  }
}
""",
    ),
}
#: Name: (rung, mode, one rule looked for in so many drops); None is nothing attached.
_CONFIGURATIONS: dict[str, tuple[Rung, Mode, int] | None] = {
    "off": None,
    "reason": (Rung.REASON, Mode.COUNT, 1),
    "hook": (Rung.HOOK, Mode.COUNT, 1),
    "rule": (Rung.RULE, Mode.COUNT, 1),
    "rule, 1 in 50": (Rung.RULE, Mode.COUNT, 50),
    "hook, recorded": (Rung.HOOK, Mode.RECORD, 1),
}


def main() -> None:
    """Run all and print one JSON object for each configuration."""
    nets.enter_private_namespaces()
    for name, (backend, rules) in _RULES.items():
        nets.add_netns("a")
        nets.add_netns("b")
        nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
        nets.load_rules("b", backend, rules)
        _compare(name)
        nets.delete_netns("a")
        nets.delete_netns("b")


def _compare(rules: str) -> None:
    with contextlib.ExitStack() as stack:
        sources = {
            name: stack.enter_context(_opened(configuration))
            for name, configuration in _CONFIGURATIONS.items()
        }
        best = dict.fromkeys(sources, float("inf"))
        for _ in range(_ROUNDS):
            for name, source in sources.items():
                if source is not None:
                    source.resume()
                done = nets.flood("a", "10.1.0.2", 9000, _PACKETS, cpu=0)
                best[name] = min(best[name], done.elapsed_ns / done.sent)
                if source is not None:
                    source.pause()
                    source.read()
        for name, source in sources.items():
            _tell(rules, name, best, source)


def _tell(rules: str, name: str, best: dict[str, float], source: DropSource | None) -> None:
    row: dict[str, object] = {
        "rules": rules,
        "configuration": name,
        "ns_a_packet": round(best[name]),
        "packets_a_second": round(1e9 / best[name]),
        "share_lost": round(1 - best["off"] / best[name], 3),
    }
    if source is not None:
        row["losses"] = source.losses()._asdict()
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _opened(configuration: tuple[Rung, Mode, int] | None) -> Iterator[DropSource | None]:
    if configuration is None:
        yield None
        return
    rung, mode, rules = configuration
    source = DropSource([find_namespace("b")], rung)
    source.open()
    with contextlib.closing(source):
        source.set_mode(mode, rules=rules)
        source.pause()
        yield source


if __name__ == "__main__":
    main()
