"""The unit under a real systemd: it starts, watches, reloads and ends within its sandbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.unit_machine import booted
from tracer.daemon.privileges import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.unit_machine import Machine

_NFT = """table inet t {
  chain c {
    type filter hook prerouting priority 5
    udp dport 7002 drop
  }
}
"""
_MEMBER = ("setpriv", "--reuid=member", "--regid=member", "--init-groups")
_NF_LOG = ("ip", "netns", "exec", "b", "cat", "/proc/sys/net/netfilter/nf_log/2")
_LEGACY = ("ip", "netns", "exec", "b", "iptables-legacy", "-t", "mangle", "-A", "PREROUTING")
#: syslog's number for a warning; what is worse has a smaller one.
_WARNING = 4


@pytest.fixture(scope="module")
def machine(
    private_machine: nets.Outside, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """Give a machine with systemd, and two namespaces with rules that drop."""
    del private_machine
    with booted(tmp_path_factory.mktemp("machine")) as booted_machine:
        booted_machine.lay_cable()
        booted_machine.run("ip", "netns", "exec", "b", "nft", "-f", "-", stdin=_NFT)
        booted_machine.run(*_LEGACY, "-p", "udp", "--dport", "7003", "-j", "DROP")
        yield booted_machine


def test_the_sandbox_leaves_what_is_needed_and_no_more(machine: Machine) -> None:
    """Active, with the seven capabilities, no new ones, a filter; the journal has levels."""
    pid = machine.start()
    status = machine.status_of(pid)
    needed = sum(1 << number for number in CAPABILITIES.values())
    entries = machine.journal(pid)
    (ready,) = [one for one in entries if one["MESSAGE"].startswith("event='ready'")]
    made = ("/run/nftrace/nftrace.sock", "/var/lib/nftrace/log", "/run/nftrace")

    assert [needed] * 3 == [int(status[f"Cap{one}"], 16) for one in ("Prm", "Eff", "Bnd")]
    assert ("1", "2") == (status["NoNewPrivs"], status["Seccomp"])
    assert "6" == ready["PRIORITY"]
    assert [] == [one["MESSAGE"] for one in entries if int(one["PRIORITY"]) <= _WARNING]
    assert (
        "660 root nftrace\n750 root nftrace\n755 root root\n"
        == machine.run("stat", "--format=%a %U %G", *made).stdout
    )


def test_rules_are_named_within_the_sandbox(machine: Machine) -> None:
    """Both engines' rules are counted, and namespaces that come later are seen."""
    machine.start()
    machine.run("ip", "netns", "add", "late")
    nets.wait_until(lambda: 'netns="late"' in machine.metrics(), 20, "the later namespace")
    machine.run("ip", "netns", "delete", "late")
    before = machine.packets_of("dport 7002", "dport 7003")
    machine.send(7002, 7)
    machine.send(7003, 11)

    def rise() -> list[float]:
        now = machine.packets_of("dport 7002", "dport 7003")
        return [after - one for after, one in zip(now, before, strict=True)]

    nets.wait_until(lambda: rise() == [7, 11], 20, "seven and eleven packets")


def test_a_member_follows_by_the_unit(machine: Machine) -> None:
    """Tracing is armed by a follower within the sandbox, for one who is not root."""
    machine.start()
    words = ("nftrace", "follow", "--netns=b", "--dport=7003", "--count=3", "-o", "json")
    with machine.spawn(*_MEMBER, *words) as process:

        def has_ended() -> bool:
            machine.send(7003, 1)
            return process.poll() is not None

        nets.wait_until(has_ended, 60, "the member's third packet")
        out, err = process.communicate()
    assert (0, "") == (process.returncode, err)
    *journeys, summary = map(json.loads, out.splitlines())

    assert [7003] * 3 == [one["packet"]["dport"] for one in journeys]
    assert {"-A PREROUTING -p udp -m udp --dport 7003 -j DROP"} == {
        one["ending"]["text"] for one in journeys
    }
    assert "nftrace.summary/1" == summary["schema"]


def test_a_rule_is_asked_for_and_nothing_is_left(machine: Machine) -> None:
    """Where eBPF gives no rule a packet is traced; stopped, all is as it was, in time."""
    machine.run("systemctl", "stop", "nftrace")
    log_before = machine.run(*_NF_LOG).stdout
    before = machine.now()
    machine.start('[watch]\nrung = "reason"\n')
    named = r"text='-A PREROUTING -p udp -m udp --dport 7003 -j DROP'"
    with machine.waiting(named, before) as waiting:

        def is_named() -> bool:
            machine.send(7003, 1)
            return waiting.poll() is not None

        nets.wait_until(is_named, 60, "the rule's name")
        assert "event='rule_named'" in waiting.communicate()[0]
    machine.run("systemctl", "stop", "nftrace")
    tables = machine.run("ip", "netns", "exec", "b", "nft", "list", "tables", "inet").stdout
    left = machine.run("find", "/run/nftrace", "-type", "s", "-o", "-path", "*/nf_log/*").stdout

    assert ("inactive", "success") == (machine.show("ActiveState"), machine.show("Result"))
    assert "table inet t\n" == tables
    assert log_before == machine.run(*_NF_LOG).stdout
    assert not left


def test_a_hanging_daemon_is_started_anew(machine: Machine) -> None:
    """One that is stopped feeds no watchdog: systemd ends it and starts another."""
    settings = "/run/systemd/system/nftrace.service.d/hurry.conf"
    machine.write(settings, "[Service]\nWatchdogSec=3\nRestartSec=0\n")
    machine.run("systemctl", "daemon-reload")
    try:
        pid = machine.start()
        before = machine.now()
        machine.run("kill", "-STOP", str(pid))
        machine.wait("Watchdog timeout (limit 3s)!", before)
        machine.wait("Started nftrace.service", before)
    finally:
        machine.run("rm", "-r", settings)
        machine.run("systemctl", "daemon-reload")

    assert "1" == machine.show("NRestarts")
    assert str(pid) != machine.show("MainPID")


def test_a_reload_is_taken_or_refused(machine: Machine) -> None:
    """`systemctl reload` fails where the configuration is wrong, and the daemon goes on."""
    pid = machine.start()
    before = machine.now()
    machine.write("/etc/nftrace/nftrace.toml", "[trace]\nflows = 17\n")
    machine.run("systemctl", "reload", "nftrace")
    machine.wait("event='configuration_read'", before)
    machine.write("/etc/nftrace/nftrace.toml", "[trace]\nflow = 17\n")
    refused = machine.run("systemctl", "reload", "nftrace", check=False)
    machine.run("systemctl", "kill", "--kill-who=main", "--signal=HUP", "nftrace")
    machine.wait("event='configuration_refused'", before)
    nets.wait_until(lambda: machine.show("StatusText"), 20, "what the daemon itself says")

    assert 0 != refused.returncode
    assert "nftrace.toml:2: there is no setting 'flow'" in machine.show("StatusText")
    assert (str(pid), "active") == (machine.show("MainPID"), machine.show("ActiveState"))


def test_a_wrong_configuration_is_not_tried_again(machine: Machine) -> None:
    """The unit fails with status 2 and stays so: nobody wants it every five seconds."""
    machine.run("systemctl", "stop", "nftrace")
    machine.write("/etc/nftrace/nftrace.toml", "[trace]\nflow = 17\n")
    refused = machine.run("systemctl", "start", "nftrace", check=False)

    assert 0 != refused.returncode
    assert ("failed", "2") == (machine.show("ActiveState"), machine.show("ExecMainStatus"))


def test_the_sandbox_is_as_tight_as_is_said() -> None:
    """The measure that systemd itself has of what is open gives at most the documented 3.5."""
    unit = str(nets.ROOT / "packaging" / "nftrace.service")
    nets.run("systemd-analyze", "security", "--offline=yes", "--threshold=35", unit)
