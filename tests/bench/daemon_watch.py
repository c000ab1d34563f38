"""What the watch costs, and how soon it knows: the daemon's own measures."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.kernel import nets
from tests.kernel.daemon_helper import Daemon, daemon
from tracer.daemon.messages import Messages
from tracer.daemon.settings import MessageSettings, Settings, WatchSettings
from tracer.daemon.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

_REST_S = 20.0
_ROUNDS = 21
_PACKETS = 40_000
_DROPS = 7
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
_BUFFER_BYTES = 256 << 20
_RULES = """*mangle
:FIREWALL - [0:0]
-A PREROUTING -p tcp -j FIREWALL
{}COMMIT
"""
_RULE = "-A FIREWALL -p tcp -m tcp --dport {} -j DROP\n"


def run() -> None:
    """Print one JSON object a measure; the caller is in private namespaces."""
    for name, measure in (
        ("rest, no log", lambda: _measure_rest(with_log=False)),
        ("rest", lambda: _measure_rest(with_log=True)),
        ("forwarding", _measure_forwarding),
        ("first drop, named by eBPF", lambda: _measure_first("auto")),
        ("first drop, named by its retransmission", lambda: _measure_first("reason")),
    ):
        sys.stdout.write(json.dumps({"measure": name, **measure()}) + "\n")
        sys.stdout.flush()


@contextmanager
def _router() -> Iterator[socket.socket]:
    """Lay a sender, a router, and a receiver whose socket takes a whole flood."""
    for name in ("snd", "rtr", "rcv"):
        nets.add_netns(name, forward=name == "rtr")
    nets.veth("snd", "s0", "10.1.0.1/24", "rtr", "r0", "10.1.0.2/24")
    nets.veth("rtr", "r1", "10.2.0.1/24", "rcv", "c0", "10.2.0.2/24")
    nets.route("snd", "10.2.0.0/24", "via", "10.1.0.2")
    nets.route("rcv", "10.1.0.0/24", "via", "10.2.0.1")
    try:
        with nets.udp_listener("rcv", 9) as receiver:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            receiver.setblocking(False)  # noqa: FBT003 - positional in socket's signature
            yield receiver
    finally:
        for name in ("snd", "rtr", "rcv"):
            nets.delete_netns(name)


def _drain(receiver: socket.socket) -> int:
    """Take everything off the socket; return how many packets it was."""
    count = 0
    with suppress(BlockingIOError):
        while receiver.recv(64):
            count += 1
    return count


@contextmanager
def _daemon(rung: str, *namespaces: str, with_log: bool = False) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory() as folder:
        # What is measured is a configuration as it comes, but for the files.
        parts: dict[str, dict[str, object]] = {
            "watch": {"rung": rung},
            "trace": {"records_per_second": 50_000},
            "log": {"directory": str(Path(folder, "log")) if with_log else ""},
        }
        with daemon(Path(folder), *namespaces, **parts) as running:
            yield running


def _measure_rest(*, with_log: bool) -> dict[str, object]:
    """CPU of the daemon, and its memory, while nothing in its namespaces happens."""
    names = [f"idle{number}" for number in range(5)]
    for name in names:
        nets.add_netns(name)
    try:
        with _daemon("auto", *names, with_log=with_log) as running:
            running.scrape()
            time.sleep(1)
            before_s, started_s = _cpu_s(running), time.monotonic()
            time.sleep(_REST_S)
            used_s = _cpu_s(running) - before_s
            share = used_s / (time.monotonic() - started_s)
            pages = int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[1])
    finally:
        for name in names:
            nets.delete_netns(name)
    resident_mb = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return {"share_of_a_core": round(share, 5), "resident_mb": round(resident_mb, 1)}


def _cpu_s(running: Daemon) -> float:
    stat = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def _measure_forwarding() -> dict[str, object]:
    """Packets forwarded a second with the watch attached and turning, over those without."""
    with _router() as receiver:
        settings = Settings(watch=WatchSettings(("snd", "rtr", "rcv")))
        watch = Watch(settings, Messages(MessageSettings(), StringIO()))
        watch.open()
        over = threading.Event()
        wheel = threading.Thread(target=_turn, args=(watch, over))
        wheel.start()
        times: dict[bool, list[float]] = {True: [], False: []}
        try:
            for number in range(2 * _ROUNDS):
                # On and off take turns at going first, as the machine's other work drifts.
                is_on = number % 4 in {0, 3}
                watch.resume() if is_on else watch.pause()
                done = nets.flood("snd", "10.2.0.2", 9, _PACKETS, cpu=0)
                # A packet that was lost on the way costs less than one that arrived.
                times[is_on].append(done.elapsed_ns / _drain(receiver))
        finally:
            over.set()
            wheel.join()
            watch.close()
    on_ns, off_ns = median(times[True]), median(times[False])
    return {
        "ns_a_packet_off": round(off_ns),
        "ns_a_packet_on": round(on_ns),
        "throughput_on_over_off": round(off_ns / on_ns, 4),
    }


def _turn(watch: Watch, over: threading.Event) -> None:
    while not over.is_set():
        watch.turn()


def _measure_first(rung: str) -> dict[str, object]:
    """Seconds from a connection's first SYN, which dies, to its rule's name in an answer."""
    nets.add_netns("snd")
    nets.add_netns("rtr")
    nets.veth("snd", "s0", "10.1.0.1/24", "rtr", "r0", "10.1.0.2/24")
    ports = range(7001, 7001 + _DROPS)
    nets.load_rules("rtr", "legacy", _RULES.format("".join(_RULE.format(p) for p in ports)))
    try:
        with _daemon(rung, "rtr") as running:
            running.scrape()
            took = [_first(running, port, rung) for port in ports]
    finally:
        for name in ("snd", "rtr"):
            nets.delete_netns(name)
    return {"median_s": round(median(took), 3), "most_s": round(max(took), 3), "of": _DROPS}


def _first(running: Daemon, port: int, rung: str) -> float:
    text = _RULE.format(port).strip()
    named = running.sum_of("nftrace_trace_named_total")

    def is_told() -> bool:
        samples = running.scrape()
        ids = {
            dict(labels)["rule_id"]
            for (name, labels) in samples
            if name == "nftrace_rule_info" and dict(labels)["text"] == text
        }
        counted = any(
            name == "nftrace_rule_packets_total" and dict(labels)["rule_id"] in ids and value > 0
            for (name, labels), value in samples.items()
        )
        if rung == "auto":
            return counted
        return samples["nftrace_trace_named_total", ()] > named

    started_s = time.monotonic()
    with nets.in_netns("snd"):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with client:
        client.setblocking(False)  # noqa: FBT003 - positional in socket's signature
        client.connect_ex(("10.1.0.2", port))
        nets.wait_until(is_told, 20, "the rule's name")
    return time.monotonic() - started_s


if __name__ == "__main__":
    nets.enter_private_namespaces()
    run()
