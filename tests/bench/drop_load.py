"""
The load that drops are measured under: packets that die in a rule, faster than a socket sends.

`inject` makes them in a namespace of their own, pinned to one CPU, and dies of nothing but
its standard input's end. Each configuration is measured once a round, in turn; what is
told is the median over the rounds of the ratio within a round, and the interval that holds
it with 95 %: other work on the machine falls on all configurations alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tests.kernel import nets

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping, Sequence

VICTIM = "b"
PORT = 9000
CPU = 0
#: Rules of a chain, the last of which drops: with so many the load is what is asked for,
#: about 1.5 million packets a second, where the kernel alone would take in a million more.
_LEGACY_RULES, _NFT_RULES = 128, 30
_SRC, _DST = "10.9.0.1", "10.9.0.2"


def legacy(dropping: int) -> tuple[str, str]:
    """Return legacy rules, the last *dropping* of which drop; the last ends the load."""
    targets = ["ACCEPT"] * (_LEGACY_RULES - dropping) + ["DROP"] * (dropping - 1)
    lines = [f"-A PREROUTING -p tcp --dport {9100 + n} -j {t}" for n, t in enumerate(targets)]
    lines.append(f"-A PREROUTING -p udp --dport {PORT} -j DROP")
    return "legacy", "\n".join(["*mangle", *lines, "COMMIT"]) + "\n"


def nft(rules: int = _NFT_RULES) -> tuple[str, str]:
    """Return nft rules, the last of which ends the load."""
    lines = [f"tcp dport {9100 + n} accept" for n in range(rules - 1)]
    body = "\n".join([*lines, f"udp dport {PORT} drop"])
    return "nftables", f"table ip t {{ chain c {{\n{_HOOK}\n{body}\n}}\n}}\n"


_HOOK = "type filter hook prerouting priority 0;"


class Injector:
    """A running `inject`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take the *process*, whose input and output are pipes."""
        self._process = process

    def start(self, packets: int) -> None:
        """Have *packets* made; wait() tells when they were."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(f"{packets}\n")
        stdin.flush()

    def wait(self) -> int:
        """Return the nanoseconds that the packets of start() took."""
        stdout = self._process.stdout
        assert stdout is not None
        return int(stdout.readline())

    def send(self, packets: int) -> float:
        """Make *packets* and return the nanoseconds that each took."""
        self.start(packets)
        return self.wait() / packets


@contextlib.contextmanager
def injecting(rules: tuple[str, str], victim: str = VICTIM) -> Iterator[Injector]:
    """Make the namespace *victim* with *rules*, and what sends into it."""
    nets.add_netns(victim)
    try:
        nets.load_rules(victim, *rules)
        words = (str(_build()), _SRC, _DST, str(PORT), str(CPU))
        with nets.spawn(victim, *words, stdin=-1) as process:
            yield Injector(process)
    finally:
        nets.delete_netns(victim)


def _build() -> Path:
    source = Path(__file__).with_name("inject.c")
    program = (
        nets.ROOT / ".cache" / f"inject-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    )
    if not program.exists():
        program.parent.mkdir(exist_ok=True)
        nets.run("gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source))
    return program


class Switch(Protocol):
    """What is measured: it can be put on and off again."""

    def resume(self) -> None:
        """Put it on."""

    def pause(self) -> None:
        """Put it off."""


class Off:
    """Nothing."""

    def resume(self) -> None:
        """Do nothing."""

    def pause(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Cost:
    """
    What one configuration cost, against the one without it in the same rounds.

    Units: nanoseconds a packet; *lost* is the share of the throughput that was lost, with
    the 95 % interval of its median.
    """

    ns: float
    added_ns: float
    lost: float
    low: float
    high: float

    def row(self) -> dict[str, object]:
        """Return it for printing."""
        return {
            "ns_a_packet": round(self.ns),
            "packets_a_second": round(1e9 / self.ns),
            "added_ns": round(self.added_ns),
            "share_lost": round(self.lost, 4),
            "interval": [round(self.low, 4), round(self.high, 4)],
        }


def measure(
    injector: Injector, switches: Mapping[str, Switch], packets: int, rounds: int
) -> dict[str, Cost]:
    """Send *packets* in each of *rounds* with each of *switches* on; the first is the base."""
    taken: dict[str, list[float]] = {name: [] for name in switches}
    for at in range(rounds + 1):
        for name, switch in switches.items():
            switch.resume()
            ns = injector.send(packets)
            switch.pause()
            # The first round only warms up.
            if at:
                taken[name].append(ns)
    return costs(taken)


def costs(taken: Mapping[str, Sequence[float]]) -> dict[str, Cost]:
    """Return what each of *taken*, nanoseconds round by round, cost against the first."""
    base = next(iter(taken.values()))
    told = {}
    for name, each in taken.items():
        lost = sorted(1 - off / on for off, on in zip(base, each, strict=True))
        low, high = _interval(len(lost))
        ns = statistics.median(each)
        added = statistics.median(on - off for off, on in zip(base, each, strict=True))
        told[name] = Cost(ns, added, statistics.median(lost), lost[low], lost[high])
    return told


def _interval(count: int) -> tuple[int, int]:
    """Return the positions in *count* sorted values between which the median is with 95 %."""
    reach = 1.96 * math.sqrt(count) / 2
    low = max(math.floor((count - 1) / 2 - reach), 0)
    return low, count - 1 - low
