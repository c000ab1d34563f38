"""The demo's network: the case as it was listed, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.cli.theme import make_console
from tracer.core.journey import Ending, EndingKind, Journey, Packet
from tracer.demo.conclusion import conclude_broken
from tracer.demo.demo import DemoOptions, run_demo
from tracer.demo.drawing import draw_network
from tracer.demo.lab import HOSTS, ROUTERS, Backend, Lab
from tracer.demo.page import Page
from tracer.demo.private import run_in_private
from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHAIN = "FIREWALL_172.17.21.105"


def _appended(text: str) -> list[str]:
    """Return the rules of an iptables-save text, in order."""
    return [line for line in text.splitlines() if line.startswith(("-A ", "*"))]


def _words(text: str) -> list[str]:
    """Return an nft ruleset's lines without comments, counters' numbers and indentation."""
    lines = [line.strip() for line in text.splitlines() if not line.startswith("#")]
    kept = [line for line in lines if line and not re.match(r"(add|delete) table", line)]
    # nft prints what it was given in its own words.
    spoken = {"icmp code 0": "icmp code net-unreachable"}
    for said, printed in spoken.items():
        kept = [line.replace(said, printed) for line in kept]
    return kept


def _names() -> set[str]:
    """Return the named network namespaces that there are."""
    return {path.name for path in Path("/run/netns").iterdir()}


@pytest.mark.parametrize("state", ["", "-fixed"])
@pytest.mark.parametrize("backend", Backend)
def test_the_rules_are_loaded_as_listed(backend: Backend, state: str) -> None:
    """What the backend's own tool prints is the listing, rule for rule, before and after."""
    suffix, read = ("nft", _words) if backend is Backend.NFTABLES else ("rules", _appended)
    with Lab(backend) as lab:
        if state:
            lab.fix()
        for router in ROUTERS:
            file = resources.files("tracer.demo") / "rules" / f"{router}{state}.{suffix}"
            expected = read(file.read_text("utf-8"))
            printed = read(lab.rules(router))

            # The tools print tables in an order of their own; a chain's is the rules'.
            assert sorted(expected) == sorted(printed)
            chain = [rule for rule in printed if CHAIN in rule]
            assert [rule for rule in expected if CHAIN in rule] == chain


@pytest.mark.parametrize("backend", Backend)
def test_three_syns_leave_and_die_in_vr2_rule_5(backend: Backend) -> None:
    """One attempt is three packets, all at vr2's fifth rule; after the fix none dies."""
    with Lab(backend) as lab:
        broken = lab.attempt()
        counters = nets.rule_counters("vr2", backend, "mangle", CHAIN)

        assert (broken.greeting, broken.error) == (None, "Connection timed out")
        assert [0, 0, 0, 0, 3] == counters

        lab.fix()
        fixed = lab.attempt()

        assert fixed.error is None
        assert str(fixed.greeting).startswith("SSH-2.0-vm vm 10.1.1.69:22 ")
        assert nets.rule_counters("vr2", backend, "mangle", CHAIN)[-1] == 0
        assert lab.attempt("61.146.164.82", 8080).error is None


def test_an_attempt_ends_when_it_connects() -> None:
    """A try to a port that is let through is over in far less than the time-out."""
    with Lab(Backend.NFTABLES) as lab:
        attempt = lab.attempt("61.146.164.82", 300)

    assert attempt.error is None
    assert attempt.elapsed_s < 1


def test_the_lab_goes_with_its_block() -> None:
    """After the block no namespace and no process of the lab is there; close() repeats."""
    before = _names()
    with Lab(Backend.NFTABLES) as lab:
        assert set(HOSTS) <= _names()
        listener = lab.listener_pid
    lab.close()

    assert before == _names()
    assert listener is not None
    assert not Path(f"/proc/{listener}").exists()


# --- private namespaces -----------------------------------------------------------------


def test_private_namespaces_show_nothing_of_ours() -> None:
    """Inside are a network, names, processes and mounts of its own; status comes through."""
    outside = str(Path("/proc/self/ns/net").readlink())

    def look(_outer_pid: int) -> int:
        alone = os.getpid() == 1 and Path("/proc/self").readlink() == Path("1")
        empty = not _names()
        devices = nets.run("ip", "-br", "link").stdout.split()[0]
        apart = str(Path("/proc/self/ns/net").readlink()) != outside
        return 42 if (alone, empty, devices, apart) == (True, True, "lo", True) else 1

    assert run_in_private(look) == 42


def test_the_action_learns_its_outer_process_id() -> None:
    """The number that the action gets is the one by which the caller can enter."""
    reader, writer = os.pipe()

    def tell(outer_pid: int) -> int:
        os.write(writer, f"{outer_pid} {Path('/proc/self/ns/net').readlink()}".encode())
        os.read(gate, 1)
        return 0

    gate, opener = os.pipe()
    helper = os.fork()
    if helper == 0:
        os._exit(run_in_private(tell))
    pid, inside = os.read(reader, 200).decode().split(" ")
    seen = str(Path(f"/proc/{pid}/ns/net").readlink())
    os.write(opener, b"x")
    os.waitpid(helper, 0)
    for fd in (reader, writer, gate, opener):
        os.close(fd)

    assert inside == seen


def test_an_error_inside_has_its_own_status(capfd: pytest.CaptureFixture[str]) -> None:
    """An NftraceError in the action is one line on standard error and its exit status."""

    def refuse(_outer_pid: int) -> int:
        raise UsageError("no such thing", "name another")

    status = run_in_private(refuse)

    assert status == 2
    assert capfd.readouterr().err == "nftrace: no such thing: name another\n"


_STORY = """
import os, sys
from tracer.demo.lab import Backend, Lab
from tracer.demo.private import run_in_private

def story(outer_pid):
    with Lab(Backend("nft")) as lab:
        lab.start_attempt()
        print(outer_pid, os.stat("/proc/self/ns/pid").st_ino, flush=True)
        if sys.argv[1] == "stay":
            lab.attempt("10.255.255.255", 9)
            sys.stdin.read()
    return 0

sys.exit(run_in_private(story))
"""


def _processes_in(pid_namespace: str) -> list[str]:
    """
    Return the living processes of a pid namespace.

    One that has ended and waits for the machine's own process 1 to take note is not ours.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/pid"):
        with contextlib.suppress(OSError):
            state = (path.parents[1] / "stat").read_text("utf-8").rpartition(") ")[2][0]
            if state != "Z" and str(path.stat().st_ino) == pid_namespace:
                found.append(str(path))
    return found


@contextlib.contextmanager
def _story(mode: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Start a demo-like program; give it, its inner pid and its pid namespace."""
    process = subprocess.Popen(
        [sys.executable, "-c", _STORY, mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=nets.ROOT,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        inner, namespace = process.stdout.readline().split()
        yield process, inner, namespace


@pytest.mark.parametrize(
    ("mode", "sig", "expected"),
    [
        ("end", None, 0),
        ("stay", signal.SIGINT, 130),
        ("stay", signal.SIGTERM, 130),
        ("stay", signal.SIGHUP, 130),
        ("stay", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_is_left_behind(mode: str, sig: int | None, expected: int) -> None:
    """However the caller ends, its namespaces, processes and mounts are gone at once."""
    names = _names()
    mounts = Path("/proc/self/mounts").read_text("utf-8")
    with _story(mode) as (process, _, namespace):
        if sig is not None:
            assert _processes_in(namespace)
            process.send_signal(sig)
        status = process.wait(10)
        nets.wait_until(lambda: not _processes_in(namespace), 5, "the end of all inside")

    assert expected == status
    assert names == _names()
    assert mounts == Path("/proc/self/mounts").read_text("utf-8")


def test_a_holder_that_is_killed_takes_all_with_it() -> None:
    """Killing the process between caller and namespaces ends what is inside, too."""
    with _story("stay") as (process, inner, namespace):
        status = Path(f"/proc/{inner}/status").read_text("utf-8")
        found = re.search(r"^PPid:\t(\d+)", status, re.MULTILINE)
        assert found is not None
        os.kill(int(found.group(1)), signal.SIGKILL)

        assert process.wait(10) == 128 + signal.SIGKILL
        nets.wait_until(lambda: not _processes_in(namespace), 5, "the end of all inside")


# --- the story --------------------------------------------------------------------------


class _Counting:
    """A follower that sees what vr2's own counters say."""

    def start(self, namespaces: Sequence[str]) -> None:
        assert tuple(namespaces) == ROUTERS

    def watch(self, until: Callable[[], bool]) -> None:
        while not until():
            time.sleep(0.02)

    def finish(self) -> Sequence[Journey]:
        dead = nets.rule_counters("vr2", "nftables", "mangle", CHAIN)[-1]
        return [_journey(rule=5)] * dead


def _journey(rule: int) -> Journey:
    packet = Packet("ipv4", "tcp", "183.62.15.118", "172.17.21.105", 22449, 22)
    text = f"-A {CHAIN} -j DROP"
    place = ("prerouting", "nft", "ip", "mangle", CHAIN, rule)
    ending = Ending(EndingKind.DROPPED, *place, None, text)
    return Journey("1", "f", "h", "vr2", 0, packet, "eth2", None, (), ending)


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("fixed", [False, True])
def test_the_story_fits_its_width(
    width: int, *, fixed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole story is told within the columns that there are, and ends as it is known to."""
    console = make_console("never", file=sys.stdout, width=width)

    status = run_demo(DemoOptions(Backend.NFTABLES, fixed=fixed), console, _Counting)

    out, err = capfd.readouterr()
    assert (0, "") == (status, err)
    assert max(map(len, out.splitlines())) <= width
    assert "\033" not in out
    if fixed:
        assert "✓ ssh connects" in out
    else:
        assert f"3 packets died in vr2, mangle PREROUTING › {CHAIN}" in " ".join(out.split())  # noqa: RUF001
        assert "udp dport 300-65535 counter return" in out


def test_another_end_is_not_explained_as_the_known_one() -> None:
    """Where the journeys show another rule, the conclusion claims no cause."""
    out = io.StringIO()
    page = Page(make_console("never", file=out, width=80))
    with Lab(Backend.NFTABLES) as lab:
        attempt = lab.attempt("61.146.164.82", 300)

        as_known = conclude_broken(page, lab, attempt, [_journey(rule=4)])

    assert not as_known
    assert "rule 4" in out.getvalue()
    assert "translates both" not in out.getvalue()


def test_nothing_seen_is_not_a_success() -> None:
    """A follower that saw nothing proves nothing, and says so."""
    out = io.StringIO()
    page = Page(make_console("never", file=out, width=80))
    with Lab(Backend.NFTABLES) as lab:
        attempt = lab.attempt("61.146.164.82", 300)

        assert not conclude_broken(page, lab, attempt, [])
    assert "nothing is proved" in out.getvalue()


@pytest.mark.parametrize("fixed", [False, True])
def test_the_drawing_is_79_columns(*, fixed: bool) -> None:
    """The drawing fits the narrowest usual terminal, its three lines of boxes exactly."""
    lines = draw_network(fixed=fixed)

    assert {79} == {len(line) for line in lines[:3]}
    assert max(map(len, lines)) == 79
    assert ("172.17.21.212" in "\n".join(lines)) == fixed
