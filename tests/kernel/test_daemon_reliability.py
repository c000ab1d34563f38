"""A daemon that is killed, starved or has its rules changed under it goes on or comes back."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.daemon_helper import daemon, spawn_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TO_B = "10.1.0.2"
_LEGACY = """*mangle
:FIREWALL - [0:0]
-A PREROUTING -p udp -j FIREWALL
{}-A FIREWALL -p udp -m udp --dport 7002 -j DROP
COMMIT
"""
_SIDES = 5
_KILLS = 50


@pytest.fixture
def cable(cable: None) -> None:
    """Have b drop what comes by the cable."""
    del cable
    nets.load_rules("b", "legacy", _LEGACY.format(""))


@contextlib.contextmanager
def _load(ns: str, to: str) -> Iterator[None]:
    """Lose packets of one flow a thousand times a second, 60 s at most, until the end."""
    over = threading.Event()

    def send() -> None:
        for _ in range(600):
            if over.is_set():
                return
            nets.flood(ns, to, 7002, 101, rate=1000, sport=5001)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()


def _left(ns: str) -> tuple[str, str]:
    """Return our tables in *ns*, and its logger."""
    tables = nets.ip_netns_exec(ns, "nft", "list", "tables").stdout
    logger = nets.ip_netns_exec(ns, "cat", "/proc/sys/net/netfilter/nf_log/2").stdout
    return "".join(line for line in tables.splitlines() if "nftrace_" in line), logger.strip()


def test_killed_again_and_again_it_leaves_nothing(
    tmp_path: Path, netns: Callable[..., str]
) -> None:
    """Five at a time, at any moment, under load: no table, and the logger is put right."""
    for side in range(_SIDES):
        netns(f"a{side}")
        netns(f"b{side}")
        ends = f"10.{side}.0.1/24", f"10.{side}.0.2/24"
        nets.veth(f"a{side}", "east0", ends[0], f"b{side}", "west0", ends[1])
        nets.load_rules(f"b{side}", "legacy", _LEGACY.format(""))
    chance = random.Random(4)  # noqa: S311 - which moments, not a secret
    with contextlib.ExitStack() as loads:
        for side in range(_SIDES):
            loads.enter_context(_load(f"a{side}", f"10.{side}.0.2"))
        for _ in range(_KILLS // _SIDES):
            _kill_five(tmp_path, chance)
    with daemon(tmp_path, *(f"b{side}" for side in range(_SIDES)), watch={"rung": "reason"}):
        # The start has repaired what those that were killed had switched.
        assert {("", "nf_log_ipv4")} == {_left(f"b{side}") for side in range(_SIDES)}
    assert not list(Path("/run/nftrace/nf_log").glob("*"))


def _kill_five(folder: Path, chance: random.Random) -> None:
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                spawn_daemon(folder, (f"b{side}",), name=f"d{side}", watch={"rung": "reason"})
            )
            for side in range(_SIDES)
        ]
        # Anywhere from the first instruction on; two of the five while they watch and trace.
        for running in started[:2]:
            running.until("ready", timeout_s=40)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started[0].process.wait(chance.random() / 2)
        for running in started:
            running.process.send_signal(signal.SIGKILL)
            assert -signal.SIGKILL == running.process.wait(10)
    for side in range(_SIDES):
        nets.wait_until(lambda side=side: not _left(f"b{side}")[0], 5, "the table's end")


@pytest.mark.usefixtures("cable")
def test_rules_replaced_all_the_time_are_no_obstacle(tmp_path: Path) -> None:
    """1,009 rulesets under load: it still watches, and every drop is counted."""
    with daemon(tmp_path, "b") as watch, _load("a", _TO_B):
        for number in range(1009):
            rules = "-A FIREWALL -p udp -m udp --dport 1 -j DROP\n" * (number % 3)
            nets.load_rules("b", "legacy", _LEGACY.format(rules))
            if number % 100 == 0:
                watch.scrape()
        place = {"netns": "b", "table": "mangle"}
        told = watch.sum_of("nftrace_drops_total", **place)
        nets.send_udp("a", _TO_B, 7002, 7)

        assert told > 101
        assert told + 7 <= watch.sum_of("nftrace_drops_total", **place)
        assert 0 == watch.sum_of("nftrace_events_lost_total", source="drops")


def test_two_hundred_namespaces_come_and_go(tmp_path: Path, private_machine: nets.Outside) -> None:
    """All are watched when they are there, and nothing is held of them when they are gone."""
    del private_machine
    names = [f"many{number}" for number in range(199)]
    with daemon(tmp_path, *names) as watch:
        opened = Path(f"/proc/{watch.process.pid}/fd")
        before = len(list(opened.iterdir()))
        for name in names:
            nets.add_netns(name)
        watch.until("namespace_added", number=199, timeout_s=60)
        assert 199 == watch.sum_of("nftrace_source_up", source="rule_counters")
        for name in names:
            nets.delete_netns(name)
        watch.until("namespace_removed", number=199, timeout_s=60)
        assert 0 == watch.sum_of("nftrace_namespaces")
        nets.wait_until(lambda: len(list(opened.iterdir())) <= before, 60, "what was open")


@pytest.mark.usefixtures("cable")
def test_a_full_disk_stops_neither_watching_nor_metrics(tmp_path: Path) -> None:
    """With no room for messages and totals the numbers are right, and the loss is told."""
    folder = tmp_path / "small"
    folder.mkdir()
    nets.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    try:
        with daemon(folder, "b") as watch:
            filler = folder / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
                while out.write(bytes(512)):
                    pass
            nets.send_udp("a", _TO_B, 7002, 13)
            rule = {"netns": "b", "chain": "FIREWALL", "verdict": "drop"}

            assert 13 == watch.sum_of("nftrace_rule_packets_total", **rule)

            def is_told() -> bool:
                # Each says a line; the page that the last one fits in is full at some time.
                watch.process.send_signal(signal.SIGHUP)
                return watch.sum_of("nftrace_messages_lost_total") > 0

            nets.wait_until(is_told, 20, "the loss")
            filler.unlink()
    finally:
        nets.run("umount", "--lazy", str(folder))


@pytest.mark.usefixtures("cable")
def test_the_units_capabilities_are_enough(tmp_path: Path) -> None:
    """Within the unit's bounding set it starts, proves the same rung, and names the rule."""
    unit = (nets.ROOT / "packaging" / "nftrace.service").read_text(encoding="utf-8")
    (line,) = [one for one in unit.splitlines() if one.startswith("CapabilityBoundingSet=")]
    names = line.partition("=")[2].lower().replace("cap_", "+").split()
    within = ("setpriv", f"--bounding-set=-all,{','.join(names)}", "--no-new-privs")
    with daemon(tmp_path, "b") as watch:
        rung = watch.until("drops_watched")["rung"]
    with daemon(tmp_path, "b", within=within) as watch:
        assert rung == watch.until("drops_watched")["rung"]
        nets.send_udp("a", _TO_B, 7002, 13)
        assert 13 == watch.sum_of("nftrace_rule_packets_total", netns="b", chain="FIREWALL")


@pytest.mark.usefixtures("cable")
def test_a_stepped_clock_stops_nothing(tmp_path: Path) -> None:
    """
    A wall clock that runs years back and forth neither ends waits nor starts them.

    The machine's own clock is not touched, and time namespaces do not move it: a library
    that is loaded in front gives this process another CLOCK_REALTIME.
    """
    library = tmp_path / "stepped.so"
    source = tmp_path / "stepped.c"
    source.write_text(_STEPPED, encoding="ascii")
    nets.run("gcc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source))
    step = tmp_path / "step"
    step.write_text("0\n", encoding="ascii")
    env = {"LD_PRELOAD": str(library), "STEP_FILE": str(step)}
    parts = {"watch": {"rung": "reason"}, "trace": {"wait_s": 2.0}}
    this_year = time.gmtime().tm_year
    with daemon(tmp_path, "b", env=env, **parts) as watch:
        for at, years in enumerate((-30, 30), 1):
            step.write_text(f"{years * 365 * 86_400}\n", encoding="ascii")
            watch.process.send_signal(signal.SIGHUP)
            read = watch.until("configuration_read", number=at)
            assert abs(years) - 1 <= abs(int(read["timestamp"][:4]) - this_year) <= abs(years) + 1
            nets.send_udp("a", _TO_B, 7002, 1, sport=5000 + at)
            for what in ("armed", "expired"):
                metric = f"nftrace_trace_{what}_total"
                nets.wait_until(lambda metric=metric, at=at: watch.sum_of(metric) == at, 20, metric)


_STEPPED = """
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long step(void)
{
	char text[32] = "";
	FILE *file = fopen(getenv("STEP_FILE"), "r");

	if (file) {
		fgets(text, sizeof(text), file);
		fclose(file);
	}
	return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
	int result = syscall(SYS_clock_gettime, clock, time);

	if (clock == CLOCK_REALTIME)
		time->tv_sec += step();
	return result;
}
"""
