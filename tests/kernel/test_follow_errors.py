"""What goes wrong is one line that says what and what to do, and a status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tests.kernel.follow_helper import follow

if TYPE_CHECKING:
    from collections.abc import Callable

FOLLOW = (sys.executable, "-m", "tracer.cli.main", "follow")
LEGACY = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp --dport 7001 -j DROP\nCOMMIT\n"
NFT = "table ip mine { chain in { type filter hook input priority 0; udp dport 7001 drop; }; }"


@pytest.fixture
def cable(netns: Callable[..., str]) -> None:
    """Lay a cable from a to b."""
    netns("a")
    netns("b")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")


def _assert_line(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert status == done.returncode, done.stderr
    assert 1 == done.stderr.count("\n"), done.stderr
    assert done.stderr.startswith("nftrace: ")
    assert "internal" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--dst 10.0.0.300", "--dst 10.0.0.300: not an address"),
        ("--src nowhere", "--src nowhere: not an address"),
        ("--dport 70000", "--dport 70000: not a port"),
        ("--dport -1", "--dport -1: not a port"),
        ("--src 10.0.0.1 --dst fd00::1", "different IP versions"),
        ("--proto icmp --dport 22", "has no ports"),
        ("--proto nonsense", "not a protocol"),
        ("--hook nowhere", "--hook nowhere"),
        ("--verdict maybe", "--verdict maybe"),
        ("--bogus", "No such option"),
        ("--in a-device-of-many-letters", "not a device"),
        ("--netns no-such", "no network namespace 'no-such'"),
        ("--netns 999999999", "no network namespace"),
        ("--count 0", "--count"),
        ("--pcap -", "--pcap"),
    ],
)
def test_a_wrong_word_is_named(netns: Callable[..., str], line: str, said: str) -> None:
    """Wrong usage is status 2 and one line with the word that is wrong."""
    netns("b")
    _assert_line(nets.nftrace("b", "follow", *line.split()), 2, said)


def test_without_root_it_says_how(netns: Callable[..., str]) -> None:
    """Who is not root is told so, with status 3."""
    netns("b")
    plain = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    _assert_line(nets.ip_netns_exec("b", *plain, *FOLLOW, check=False), 3, "sudo")


def test_without_nft_it_says_what_to_install(netns: Callable[..., str], tmp_path: Path) -> None:
    """Where the program nft is missing everywhere its package is named, with status 3."""
    netns("b")
    hide = f"for d in /usr/sbin /usr/local/sbin /sbin; do mount --bind {tmp_path} $d; done; exec "
    command = ("unshare", "--mount", "sh", "-c", hide + " ".join(FOLLOW))
    done = nets.ip_netns_exec("b", "env", "PATH=/usr/bin:/bin", *command, check=False)

    _assert_line(done, 3, "nft is missing", "apt install nftables")


@pytest.mark.usefixtures("cable")
@pytest.mark.parametrize("form", ["text", "compact", "json"])
def test_a_full_disk_is_one_line(form: str) -> None:
    """Output that cannot be written is status 4 and one line, and the logger is put back."""
    nets.load_rules("b", "legacy", LEGACY)
    before = _logger("b")
    with (
        Path("/dev/full").open("wb") as full,
        nets.spawn("b", *FOLLOW, "-o", form, "--dport", "7001", stdout=full) as process,
    ):
        if form == "json":
            _wait_armed("b", process.pid)
            nets.send_udp("a", "10.1.0.2", 7001, 3)
        _, errors = process.communicate(timeout=20)

    _assert_line(subprocess.CompletedProcess((), process.returncode, "", errors), 4, "No space")
    assert before == _logger("b")


def _logger(ns: str) -> str:
    with nets.in_netns(ns):
        return Path("/proc/sys/net/netfilter/nf_log/2").read_text()


@pytest.mark.usefixtures("cable")
@pytest.mark.parametrize("form", ["text", "compact", "json"])
def test_a_reader_that_goes_away_ends_it_quietly(form: str) -> None:
    """After `head -1` it ends with 0 and says nothing, with no packet coming any more."""
    nets.load_rules("b", "nftables", NFT)
    with nets.spawn("b", *FOLLOW, "-o", form, "--dport", "7001") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        _wait_armed("b", process.pid)
        nets.send_udp("a", "10.1.0.2", 7001, 3)
        process.stdout.readline()
        process.stdout.close()
        status = process.wait(10)
        errors = process.stderr.read()

    assert (0, "") == (status, errors)


def _wait_armed(ns: str, pid: int) -> None:
    tables = ("nft", "list", "tables")
    nets.wait_until(
        lambda: f"nftrace_follow_{pid}" in nets.ip_netns_exec(ns, *tables).stdout, 20, "arming"
    )


@pytest.mark.usefixtures("cable")
def test_a_capture_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A --pcap in a folder that does not exist is status 4, before anything is armed."""
    target = str(tmp_path / "none" / "x.pcap")
    _assert_line(nets.nftrace("b", "follow", "--pcap", target), 4, target)


@pytest.mark.usefixtures("cable")
def test_a_full_disk_under_the_capture_is_one_line() -> None:
    """A capture that cannot grow is status 4."""
    nets.load_rules("b", "nftables", NFT)
    with nets.spawn(
        "b", *FOLLOW, "-o", "json", "--dport", "7001", "--pcap", "/dev/full"
    ) as process:
        nets.wait_until(
            lambda: process.poll() is not None or _is_armed("b", process.pid), 20, "arming"
        )
        nets.send_udp("a", "10.1.0.2", 7001, 3)
        _, errors = process.communicate(timeout=20)

    _assert_line(subprocess.CompletedProcess((), process.returncode, "", errors), 4)


def _is_armed(ns: str, pid: int) -> bool:
    return f"nftrace_follow_{pid}" in nets.ip_netns_exec(ns, "nft", "list", "tables").stdout


def test_a_namespace_whose_name_goes_away_ends_well(netns: Callable[..., str]) -> None:
    """What is followed goes on without its name, and its logger is put back at the end."""
    netns("a")
    nets.add_netns("gone")
    nets.veth("a", "a0", "10.1.0.1/24", "gone", "b0", "10.1.0.2/24")
    nets.load_rules("gone", "legacy", LEGACY)
    with (
        nets.spawn("gone", "sleep", "60"),
        follow("a", "--netns", "gone", armed_in=("gone",)) as run,
    ):
        nets.delete_netns("gone")
        nets.send_udp("a", "10.1.0.2", 7001, 5)
        told = run.finish(5)

    assert (130, "") == (told.status, told.errors)
    assert {(("filter", "INPUT", 1, "drop"),): 5} == dict(told.ways())


@pytest.mark.usefixtures("cable")
def test_who_asks_twice_is_not_kept_waiting() -> None:
    """A reader that takes nothing does not keep a run from ending at the second signal."""
    nets.load_rules("b", "nftables", NFT)
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb"),
        os.fdopen(writing, "wb") as out,
        nets.spawn("b", *FOLLOW, "-o", "json", "--dport", "7001", stdout=out) as process,
    ):
        _wait_armed("b", process.pid)
        nets.flood("a", "10.1.0.2", 7001, 1009)
        wait = Path(f"/proc/{process.pid}/wchan")
        nets.wait_until(lambda: "pipe" in wait.read_text(), 10, "a full pipe")
        process.send_signal(signal.SIGTERM)
        nets.wait_until(lambda: "pipe" in wait.read_text(), 10, "a full pipe")
        process.send_signal(signal.SIGTERM)
        status = process.wait(10)

    assert 130 == status
    assert "nftrace_" not in nets.ip_netns_exec("b", "nft", "list", "tables").stdout


def test_a_defect_of_ours_is_one_line_and_a_traceback_where_asked(tmp_path: Path) -> None:
    """What nobody foresaw is one line with status 1; --debug lets its traceback through."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from tracer.cli.check import check\nfrom tracer.cli.main import main\n"
        "def broken(**_):\n    raise RuntimeError('two\\nlines')\n"
        "check.callback = broken\nmain()\n"
    )
    plain = nets.run(sys.executable, str(broken), "check", check=False)
    shown = nets.run(sys.executable, str(broken), "--debug", "check", check=False)

    assert 1 == plain.returncode
    assert (
        "nftrace: internal error: RuntimeError: two lines:"
        " run with `nftrace --debug` and report it\n"
    ) == plain.stderr
    assert "Traceback" in shown.stderr


@pytest.mark.usefixtures("cable")
def test_json_has_standard_output_to_itself() -> None:
    """Each line of -o json is one object, the summary the last, whatever else is said."""
    nets.load_rules("b", "nftables", NFT)
    done = nets.nftrace("b", "follow", "-o", "json", "--timeout", "0.3")
    lines = [json.loads(line) for line in done.stdout.splitlines()]

    assert ["nftrace.summary/1"] == [line["schema"] for line in lines]
    assert 1 == done.returncode
