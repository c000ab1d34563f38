"""`nftrace daemon` as a process: what it tells, takes in, and gives back."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.daemon_helper import daemon, spawn_daemon, write_config
from tracer.daemon.privileges import CAPABILITIES, NEEDED
from tracer.daemon.settings_file import parse_settings

if TYPE_CHECKING:
    from collections.abc import Callable

_TO_B = "10.1.0.2"
_LEGACY = """*mangle
:FIREWALL_10.1.0.2 - [0:0]
-A PREROUTING -d 10.1.0.2/32 -j FIREWALL_10.1.0.2
-A FIREWALL_10.1.0.2 -p udp -m udp --dport 7001 -j RETURN
-A FIREWALL_10.1.0.2 -p udp -m udp --dport 7002 -j DROP
COMMIT
"""


@pytest.fixture
def cable(cable: None) -> None:
    """Have b drop what comes by the cable."""
    del cable
    nets.load_rules("b", "legacy", _LEGACY)


@pytest.mark.usefixtures("cable")
def test_the_rule_that_killed_is_in_the_metrics(tmp_path: Path) -> None:
    """Prime numbers of packets: by the rule's counter, by kind of drop, and its text."""
    with daemon(tmp_path, "b") as watch:
        watch.scrape()
        nets.send_udp("a", _TO_B, 7002, 13)
        rule = {"netns": "b", "chain": "FIREWALL_10.1.0.2", "verdict": "drop"}

        assert 13 == watch.sum_of("nftrace_rule_packets_total", **rule)
        assert 13 * 28 == watch.sum_of("nftrace_rule_bytes_total", **rule)
        place = {"netns": "b", "engine": "legacy", "hook": "prerouting", "table": "mangle"}
        assert 13 == watch.sum_of("nftrace_drops_total", **place)
        text = "-A FIREWALL_10.1.0.2 -p udp -m udp --dport 7002 -j DROP"
        assert 1 == watch.sum_of("nftrace_rule_info", netns="b", text=text)
        assert 1 == watch.sum_of("nftrace_source_up", source="rule_counters", netns="b")
        assert 1 == watch.sum_of("nftrace_namespaces")


@pytest.mark.usefixtures("cable")
def test_running_needs_little_and_keeps_no_more(tmp_path: Path) -> None:
    """After the start every thread has the needed capabilities, the bounding set as well."""
    wanted = f"{sum(1 << CAPABILITIES[name] for name in NEEDED):016x}"
    with daemon(tmp_path, "b") as watch:
        watch.scrape()
        tasks = sorted(Path(f"/proc/{watch.process.pid}/task").iterdir())
        told = [
            dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            for task in tasks
        ]

    assert len(told) > 1
    for one in told:
        assert {wanted} == {one["CapPrm"], one["CapEff"], one["CapBnd"]}
        assert ("0" * 16, "1") == (one["CapInh"], one["NoNewPrivs"])


@pytest.mark.usefixtures("cable")
def test_a_new_configuration_is_taken_or_refused(tmp_path: Path) -> None:
    """SIGHUP: what is wrong is said and the former stays; what is right holds at once."""
    with daemon(tmp_path, "a") as watch:
        good = watch.config.read_text(encoding="utf-8")
        watch.reload(good.replace("[watch]", "[watch]\nrang = 1"))
        refused = watch.until("configuration_refused")
        assert f"{watch.config}:2: there is no setting 'rang'" in refused["why"]
        assert 1 == watch.sum_of("nftrace_source_up", netns="a")

        watch.reload(good.replace('["a"]', '["b"]'))
        watch.until("configuration_read")
        watch.until("namespace_added", lambda one: one["netns"] == "b")
        nets.send_udp("a", _TO_B, 7002, 7)
        assert 7 == watch.sum_of("nftrace_drops_total", netns="b", table="mangle")
        assert 0 == watch.sum_of("nftrace_source_up", netns="a")


@pytest.mark.usefixtures("cable")
def test_who_follows_goes_before_the_daemons_own_tracing(tmp_path: Path) -> None:
    """While a flow waits in a legacy namespace, following there is not refused."""
    parts = {"watch": {"rung": "reason"}, "trace": {"wait_s": 60.0}}
    words = ("follow", "--daemon", "--netns=b", "--dport=7002", "--count=2", "-o", "json")
    command = (sys.executable, "-m", "tracer.cli.main", *words)
    with daemon(tmp_path, "b", **parts) as watch:
        nets.send_udp("a", _TO_B, 7002, 1, sport=5001)
        nets.wait_until(lambda: watch.sum_of("nftrace_trace_armed_flows") == 1, 10, "arming")
        env = {**os.environ, "NFTRACE_SOCKET": str(watch.socket)}
        with nets.spawn("a", *command, cwd=nets.ROOT, env=env) as process:

            def has_ended() -> bool:
                nets.send_udp("a", _TO_B, 7002, 1, sport=5002)
                return process.poll() is not None

            nets.wait_until(has_ended, 30, "the follower's end")
            out, err = process.communicate()

    assert (0, "") == (process.returncode, err)
    assert 3 == len(out.splitlines())


@pytest.mark.usefixtures("cable")
def test_what_is_dropped_now_can_be_learned(tmp_path: Path) -> None:
    """The printed entries name just the rule that dropped, and can be loaded."""
    nets.send_udp("a", _TO_B, 7002, 3)
    config = write_config(tmp_path, "d", {"watch": {"namespaces": ["b"]}})
    command = (sys.executable, "-m", "tracer.cli.main", "daemon", "--config", str(config))
    done = nets.run(*command, "--learn", "0.5")
    settings = parse_settings(config.read_text(encoding="utf-8") + done.stdout, "learned")

    assert 1 == len(settings.expected), done.stderr
    (entry,) = settings.expected
    assert ("b", "mangle", "FIREWALL_10.1.0.2") == (entry["netns"], entry["table"], entry["chain"])
    assert "-A FIREWALL_10.1.0.2 -p udp -m udp --dport 7002 -j DROP" == entry["text"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(tmp_path: Path, netns: Callable[..., str], number: int) -> None:
    """Both signals end it with status 0, the socket is gone and systemd was told."""
    netns("b")
    with daemon(tmp_path, "b") as watch:
        assert watch.socket.exists()
        watch.process.send_signal(number)

        assert 0 == watch.process.wait(20)
        assert not watch.socket.exists()
        assert "ending" == watch.messages()[-1]["event"]


def test_systemd_is_told_what_happens(tmp_path: Path, netns: Callable[..., str]) -> None:
    """Ready, alive, reloading and ready again, stopping: each in its datagram."""
    netns("b")
    address = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(address)
        told.settimeout(20)
        env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
        with daemon(tmp_path, "b", env=env) as watch:
            assert b"READY=1" == told.recv(999)
            assert b"WATCHDOG=1" == told.recv(999)
            watch.process.send_signal(signal.SIGHUP)
            seen = [told.recv(999)]
            while seen[-1] != b"READY=1":
                seen.append(told.recv(999))
            assert any(one.startswith(b"RELOADING=1\nMONOTONIC_USEC=") for one in seen)
            watch.process.terminate()
            while seen[-1] != b"STOPPING=1":
                seen.append(told.recv(999))
            assert 0 == watch.process.wait(20)


@pytest.mark.usefixtures("cable")
def test_totals_go_on_after_a_restart(tmp_path: Path) -> None:
    """A counter that the firewall set back in between is not set back in the metrics."""
    rule = {"netns": "b", "chain": "FIREWALL_10.1.0.2", "verdict": "drop"}
    with daemon(tmp_path, "b") as watch:
        nets.send_udp("a", _TO_B, 7002, 13)
        before = watch.sum_of("nftrace_rule_packets_total", **rule)
    nets.ip_netns_exec("b", "iptables-legacy", "-t", "mangle", "-Z")
    with daemon(tmp_path, "b") as watch:
        nets.send_udp("a", _TO_B, 7002, 5)
        after = watch.sum_of("nftrace_rule_packets_total", **rule)

    assert (13, 18) == (before, after)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"metrics": {"address": "192.0.2.77"}}, "192.0.2.77"),
        ({"control": {"socket": "/proc/none/x.sock"}}, "no control socket at /proc/none/x.sock"),
        ({"metrics": {"totals": "/proc/none/x"}}, "/proc/none cannot be made"),
        ({"watch": {"rung": "nonsense"}}, "rung = 'nonsense'"),
    ],
)
def test_a_start_that_cannot_be_says_why(
    tmp_path: Path, parts: dict[str, dict[str, object]], said: str
) -> None:
    """One line with what was wrong, no traceback, a status of its own, and nothing left."""
    with spawn_daemon(tmp_path, (str(os.getpid()),), **parts) as watch:
        status = watch.process.wait(30)
        lines = (tmp_path / "d.log").read_text(encoding="utf-8").splitlines()

    assert status in {2, 3, 4}
    assert said in lines[-1]
    assert lines[-1].startswith("nftrace: ")
    assert not any("Traceback" in line for line in lines)
    assert not watch.socket.exists()


@pytest.mark.parametrize("before_all", [":", "mount -t tmpfs tmpfs /run"])
def test_two_hundred_namespaces_come_and_go(before_all: str) -> None:
    """All 200 are seen, also where the folder of names comes with the first; none is held."""
    script = f"""
import subprocess, sys, time
sys.path.insert(0, {str(nets.ROOT)!r})
from pathlib import Path
from tracer.daemon.namespaces import NamespaceWatch

def until(condition):
    for _ in range(2000):
        watch.poll(time.monotonic())
        if condition():
            return
        time.sleep(0.005)
    raise SystemExit("it did not come: " + str(len(watch.known)))

watch = NamespaceWatch(["all"], 60.0)
watch.poll(time.monotonic())
first = len(watch.known)
lines = [f"netns add n{{n}}" for n in range(200)]
subprocess.run(["ip", "-batch", "-"], input="\\n".join(lines), text=True, check=True)
until(lambda: len(watch.known) == first + 200)
names = {{one.name for one in watch.known.values()}}
assert {{f"n{{n}}" for n in range(200)}} <= names
lines = [f"netns delete n{{n}}" for n in range(200)]
subprocess.run(["ip", "-batch", "-"], input="\\n".join(lines), text=True, check=True)
until(lambda: len(watch.known) == first)
print(first, len(watch.known), len(list(Path("/proc/self/fd").iterdir())))
"""
    alone = ("unshare", "--pid", "--fork", "--mount", "--mount-proc")
    command = ("sh", "-c", f'{before_all} && exec "$@"', "sh", nets.sys.executable, "-c", script)
    before, after, descriptors = map(int, nets.run(*alone, *command).stdout.split())

    assert before == after
    assert descriptors < 8
