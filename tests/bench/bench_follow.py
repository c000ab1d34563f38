"""
What following costs, and up to where it is whole.

Run as `./dev bench follow [--messages N] [MEASURE...]`, as root, on two cores. Measures:
decode, columns, json, beside, burst, memory, traffic, start; all of them unless named.
Ratios mean more than numbers: a shared machine's speed changes while it is measured, so
what can be repeated is, and the best of the attempts stands.
"""

from __future__ import annotations

import argparse
import functools
import ipaddress
import json
import os
import selectors
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import bench_decode, load
from tracer.core.filters import Filter
from tracer.pipeline import choose
from tracer.sources.follow import Follow, FollowOptions
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tracer.sources.trace import Told

ATTEMPTS = 3
BUFFER_MB = 256
LADDER = (10, 100, 1_000, 5_000, 10_000, 20_000, 50_000, 80_000, 100_000, 120_000)
LOAD_S = 1.5
WANTED = Filter(dst=ipaddress.ip_network(load.DST))


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)  # noqa: T201 - what a bench is for


@dataclass(slots=True)
class Seen:
    """What came of *packets* sent: messages read and lost, journeys, and those complete."""

    packets: int
    events: int = 0
    lost: int = 0
    journeys: int = 0
    complete: int = 0
    cpu_s: float = 0.0
    elapsed_s: float = 1.0

    @property
    def is_exact(self) -> bool:
        """Whether received and lost messages are what was sent."""
        return self.events + self.lost == self.packets * load.MESSAGES

    @property
    def is_whole(self) -> bool:
        """Whether each packet is told, completely."""
        return self.complete == self.packets == self.journeys

    def __str__(self) -> str:
        """Tell it in one line."""
        rate = self.packets * load.MESSAGES / self.elapsed_s
        exact = "exact" if self.is_exact else "NOT EXACT"
        lost = f"lost {self.lost:,} ({exact})" if self.events else "losses not told in lines"
        return (
            f"{rate:>9,.0f} messages/s  {self.packets:>7,} packets  {self.journeys:>7,} journeys"
            f"  {self.complete:>7,} complete  {lost}"
            f"  {self.cpu_s / self.elapsed_s:4.0%} of a core"
        )


# --- the classes themselves ---------------------------------------------------------------


def follow_to_columns(rate: int, packets: int) -> Seen:
    """Follow *packets* with the classes, in this process, up to columns."""
    seen = Seen(packets)
    namespaces = [find_namespace(load.ROUTER)]
    options = FollowOptions(WANTED, both=False, rate=0, buffer_bytes=BUFFER_MB << 20, ends=False)

    def take(ended: Iterable[Told]) -> None:
        for told in ended:
            chosen = choose(told.journeys, told.paths, WANTED, both=False, device=told.trace.device)
            seen.journeys += len(chosen)
            seen.complete += int((chosen.complete & chosen.whole).sum())

    with Follow(namespaces, options) as follow, selectors.DefaultSelector() as selector:
        (trace,) = follow.traces
        selector.register(trace.socket, selectors.EVENT_READ)
        began_s = time.process_time()
        with load.sending(packets, rate) as sender:
            while sender.poll() is None:
                selector.select(0.05)
                told, count = trace.receive()
                take(told)
                if count < 2048:
                    time.sleep(0.004)
            seen.elapsed_s = _elapsed_s(sender.communicate()[0])
        take(follow.drain())
        seen.cpu_s = time.process_time() - began_s
        seen.events, seen.lost = trace.events, trace.socket.lost
    return seen


def _elapsed_s(printed: str) -> float:
    return int(printed.split()[1]) / 1e9


# --- the command --------------------------------------------------------------------------


def follow_to_file(form: str, rate: int, packets: int, *, ends: str = "wait") -> Seen:
    """Follow *packets* with `nftrace follow -o FORM > FILE`, the file in memory."""
    seen = Seen(packets)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        output = Path(file.name)
        with load.follow(form, output, "--ends", ends) as command:
            load.wait_until_armed()
            seen.elapsed_s = load.send(packets, rate).elapsed_ns / 1e9
            seen.cpu_s = command.end().cpu_s
        if form == "json":
            _count_json(output, seen)
        else:
            seen.journeys = seen.complete = _count(output, f"{load.DST}:{load.PORT} ")
    return seen


def _count_json(output: Path, seen: Seen) -> None:
    last = b""
    with output.open("rb") as lines:
        for line in lines:
            seen.journeys += line.startswith(b'{"schema":"nftrace.journey/1"')
            seen.complete += line.endswith(b'"complete":true,"lost":0,"whole":true}\n')
            last = line
    summary = json.loads(last)
    seen.events, seen.lost = summary["events"], summary["lost"]


def _count(output: Path, text: str) -> int:
    wanted = text.encode()
    with output.open("rb") as lines:
        return sum(wanted in line for line in lines)


def monitor_to_file(words: tuple[str, ...], sign: str, rate: int, packets: int) -> Seen:
    """Follow *packets* with another tool, whose every trace line has *sign*."""
    seen = Seen(packets)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file, load.mark():
        output = Path(file.name)
        with load.Background(words, output) as command:
            load.wait_until_listening(command.process.pid)
            seen.elapsed_s = load.send(packets, rate).elapsed_ns / 1e9
            command.settle()
            seen.cpu_s = command.end().cpu_s
        seen.events = _count(output, sign)
    seen.journeys = seen.complete = seen.events // load.MESSAGES
    return seen


def best_of(measure: Callable[[int, int], Seen], rate: int, load_s: float = LOAD_S) -> Seen:
    """Return the first attempt with nothing lost, or else the one that lost least."""
    best: Seen | None = None
    for _ in range(ATTEMPTS):
        seen = measure(rate, round(rate * load_s))
        if best is None or seen.complete > best.complete:
            best = seen
        if seen.is_whole:
            break
    assert best is not None
    return best


def find_limit(measure: Callable[[int, int], Seen]) -> int:
    """
    Return the highest rate of `LADDER`, in packets a second, at which all is told.

    Where the sender could not make the rate, it is what the sender made.
    """
    low, high, limit = 0, len(LADDER), 0
    while low < high:
        middle = (low + high) // 2
        seen = best_of(measure, LADDER[middle])
        if seen.is_whole:
            low, limit = middle + 1, min(LADDER[middle], round(seen.packets / seen.elapsed_s))
        else:
            high = middle
    return limit


# --- the measures -------------------------------------------------------------------------


def measure_decode(_: int) -> None:
    """Tell messages a second, and the ratio to pyroute2's class on the same bytes."""
    bench_decode.main()


def measure_columns(_: int) -> None:
    """Follow live, the whole way to journeys in columns."""
    for engine in load.ENGINES:
        with load.rules(engine):
            for rate in (50_000, 100_000, 120_000):
                say(f"{engine:7}{best_of(follow_to_columns, rate)}")


def measure_json(_: int) -> None:
    """Follow live, the whole way to JSON and compact lines in a file."""
    for engine in load.ENGINES:
        with load.rules(engine):
            for form in ("json", "compact"):
                for rate in (50_000, 80_000, 100_000):
                    seen = best_of(functools.partial(follow_to_file, form), rate)
                    say(f"{engine:7}{form:8}{seen}")
            # So long that the buffer holds less than a tenth of it.
            seen = best_of(functools.partial(follow_to_file, "json"), 80_000, 6.0)
            say(f"{engine:7}{'json':8}{seen}")


def measure_beside(_: int) -> None:
    """Find the highest rate at which each tool tells all, to a file."""
    tools: dict[str, Callable[[int, int], Seen]] = {
        "nft monitor trace": functools.partial(
            monitor_to_file, ("nft", "monitor", "trace"), " (verdict "
        ),
        "xtables-monitor --trace": functools.partial(
            monitor_to_file, ("xtables-monitor", "--trace"), "TRACE: "
        ),
        "nftrace follow -o compact": functools.partial(follow_to_file, "compact"),
        "nftrace follow -o json": functools.partial(follow_to_file, "json"),
        "the same, --ends off": functools.partial(follow_to_file, "json", ends="off"),
    }
    with load.rules("nft"):
        limits = {name: find_limit(measure) for name, measure in tools.items()}
    best_other = max(list(limits.values())[:2])
    for name, limit in limits.items():
        ratio = limit / best_other if best_other else float("inf")
        say(f"{name:28}{limit:>9,} packets/s{ratio:>8.1f}")


def measure_burst(_: int) -> None:
    """Tell what is kept of 100,000 packets at full speed."""
    for engine in load.ENGINES:
        with load.rules(engine):
            for form in ("json", "columns"):
                most = max((_burst(form) for _ in range(ATTEMPTS)), key=lambda seen: seen.complete)
                say(f"{engine:7}{form:8}{most}  {most.complete / most.packets:.2%} kept")


def _burst(form: str) -> Seen:
    if form == "columns":
        return follow_to_columns(0, 100_000)
    return follow_to_file(form, 0, 100_000)


def measure_memory(messages: int) -> None:
    """Tell the resident memory while *messages* pass."""
    parts = 5
    with load.rules("nft"), load.follow("json", Path(os.devnull)) as command:
        load.wait_until_armed()
        for part in range(1, parts + 1):
            load.send(messages // load.MESSAGES // parts, 50_000)
            size = command.resident_bytes() / 1e6
            say(f"after {messages * part // parts:>12,} messages{size:>8.1f} MB")
        command.end()


def measure_traffic(_: int) -> None:
    """Tell what following costs the packets."""
    other = ("--dst", "10.9.9.9")
    states = {
        "off": None,
        "armed, no match": (*other, "--ends", "off"),
        "the same, with ends": other,
        "traced": ("--ends", "off"),
        "the same, with ends ": (),
    }
    rates: dict[str, list[float]] = {name: [] for name in states}
    with load.rules("nft"):
        for _ in range(ATTEMPTS):
            for name, words in states.items():
                rates[name].append(_speed(words))
    off = max(rates["off"])
    for name, found in rates.items():
        say(f"{name:20}{max(found):>11,.0f} packets/s{max(found) / off:>7.2f}")


def _speed(words: Sequence[str] | None) -> float:
    packets = 200_000 if words is None or "--dst" in words else 50_000
    if words is None:
        done = load.send(packets)
    else:
        with load.follow("compact", Path(os.devnull), *words) as command:
            load.wait_until_armed()
            done = load.send(packets)
            command.end()
    return done.sent / done.elapsed_ns * 1e9


def measure_start(_: int) -> None:
    """Tell the time from the start of the process to packets being traced."""
    for engine in load.ENGINES:
        for count in (4, 20_000):
            with load.rules(engine, count):
                with_ends, waiting, without = (
                    min(_start_s(ends) for _ in range(ATTEMPTS)) for ends in ("auto", "wait", "off")
                )
            say(
                f"{engine:7}{count:>7,} rules{with_ends:>7.2f} s"
                f"{waiting:>7.2f} s --ends wait{without:>7.2f} s --ends off"
            )


def _start_s(ends: str) -> float:
    began = time.monotonic()
    # On all processors, as it is started in earnest: it does some things side by side.
    cpus = range(os.cpu_count() or 1)
    with load.follow("json", Path(os.devnull), "--ends", ends, cpus=cpus) as command:
        load.wait_until_armed()
        elapsed = time.monotonic() - began
        command.end()
    return elapsed


MEASURES: dict[str, Callable[[int], None]] = {
    "decode": measure_decode,
    "columns": measure_columns,
    "json": measure_json,
    "beside": measure_beside,
    "burst": measure_burst,
    "memory": measure_memory,
    "traffic": measure_traffic,
    "start": measure_start,
}


def main() -> None:
    """Run the measures that were named, or all."""
    parser = argparse.ArgumentParser(description="what following costs")
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=", ".join(MEASURES))
    parser.add_argument("--messages", type=int, default=2_000_000, help="for memory")
    words = parser.parse_args()
    wrong = set(words.measures) - set(MEASURES)
    if wrong:
        parser.error(f"no such measure: {', '.join(wrong)}")
    load.build()
    load.take_precedence()
    os.sched_setaffinity(0, {load.FOLLOWER_CPU})
    for name in words.measures or MEASURES:
        say(f"{name}: {MEASURES[name].__doc__}")
        MEASURES[name](words.messages)
        say()


if __name__ == "__main__":
    main()
