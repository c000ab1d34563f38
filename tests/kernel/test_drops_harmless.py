"""Watching drops is never in the way, and nothing of it stays."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel import nets
from tracer.core.drops import Rung
from tracer.sources.drops import DropSource
from tracer.sources.netns import find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CYCLES = 30
_PACKETS = 100_003
_WATCH = """
import sys
from tracer.core.drops import Rung
from tracer.sources.drops import DropSource, Mode
from tracer.sources.netns import all_namespaces
source = DropSource(all_namespaces(), Rung(sys.argv[1]) if sys.argv[1:] else None)
source.open()
source.set_mode(Mode.RECORD)
print("ready", flush=True)
sys.stdin.read()
"""
# include/uapi/linux/bpf.h
_SYS_BPF = 321
#: How the next number of each kind is asked for: BPF_PROG_GET_NEXT_ID and the like.
_NEXT = {"prog": 11, "map": 12, "link": 31}
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def road(netns: Callable[..., str]) -> str:
    """Lay a road from a by b, which forwards, to c, which takes everything in silently."""
    netns("a")
    netns("b", forward=True)
    netns("c")
    nets.veth("a", "a0", "10.1.0.1/24", "b", "b0", "10.1.0.2/24")
    nets.veth("b", "b1", "10.2.0.1/24", "c", "c0", "10.2.0.2/24")
    nets.route("a", "default", "via", "10.1.0.2")
    nets.load_rules(
        "c",
        "nftables",
        "table ip t { chain c { type filter hook prerouting priority 0;\n"
        "udp dport 9 counter drop\n}\n}\n",
    )
    return "c"


def _arrived(ns: str) -> int:
    text = nets.ip_netns_exec(ns, "nft", "list", "chain", "ip", "t", "c").stdout
    return int(text.split("packets")[1].split()[0])


@pytest.mark.parametrize("rung", [Rung.REASON, Rung.RULE, Rung.LINKS])
def test_attaching_and_detaching_lose_no_packet(road: str, rung: Rung) -> None:
    """While packets flow and die, ten times on and off: all that were sent arrive."""
    source = DropSource([find_namespace(road)], rung)
    source.open()
    words = (str(nets.build_flood()), "--dst=10.2.0.2", "--port=9", f"--count={_PACKETS}")
    with nets.spawn("a", *words) as process:
        turns = 0
        while process.poll() is None or turns < 10:
            source.pause()
            source.resume()
            turns += 1
        sent = int(process.communicate()[0].split()[0])
    source.close()

    assert _PACKETS == sent
    nets.wait_until(lambda: _arrived(road) >= _PACKETS, 10, "the last packet")
    assert _PACKETS == _arrived(road)


def _numbers(next_id: int) -> set[int]:
    """Return the numbers of all programs, maps or links of this machine."""
    found: set[int] = set()
    number = 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("=II", number, 0), 128)
        if _libc.syscall(_SYS_BPF, next_id, attr, 128) < 0:
            assert ctypes.get_errno() == errno.ENOENT
            return found
        number = struct.unpack_from("=I", attr.raw, 4)[0]
        found.add(number)


def _held(pid: int) -> set[tuple[str, int]]:
    """Return kind and number of all of eBPF that process *pid* has descriptors of."""
    held = set()
    for file in Path(f"/proc/{pid}/fdinfo").iterdir():
        # One that was closed meanwhile is none.
        with contextlib.suppress(FileNotFoundError):
            held |= {
                (line.split("_")[0], int(line.split()[1]))
                for line in file.read_text("ascii").splitlines()
                if line.startswith(tuple(f"{kind}_id:" for kind in _NEXT))
            }
    return held


@contextlib.contextmanager
def _watching(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _WATCH, *words]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=nets.ROOT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _existing() -> set[tuple[str, int]]:
    return {(kind, number) for kind, next_id in _NEXT.items() for number in _numbers(next_id)}


def _tables() -> list[str]:
    commands = (("nft", "-s", "list", "ruleset"), ("cat", "/proc/net/ip_tables_names"))
    return [nets.ip_netns_exec(ns, *words).stdout for ns in "abc" for words in commands]


@pytest.mark.usefixtures("road")
def test_nothing_stays_of_killed_watchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Thirty times started and killed under load, nothing of theirs is there.

    No program, map or link, no table in any namespace, and no file. Of three that are
    started at once one is killed as soon as it has any, in the midst of its start, the
    others when they watch.
    """
    endless = (str(nets.build_flood()), "--dst=10.2.0.2", "--port=9", "--count=1000000000")
    held: set[tuple[str, int]] = set()
    before = _tables()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with nets.spawn("a", *endless, "--rate=20000"):
        for _ in range(_CYCLES // 3):
            with _watching() as early, _watching() as whole, _watching("links") as lean:
                held |= nets.wait_until(lambda pid=early.pid: _held(pid), 60, "a program")
                early.kill()
                for process in (whole, lean):
                    assert process.stdout is not None
                    assert "ready\n" == process.stdout.readline()
                    held |= _held(process.pid)

    assert len(held) > _CYCLES
    assert {"prog", "map", "link"} == {kind for kind, _ in held}
    assert (before, []) == (_tables(), list(tmp_path.iterdir()))
    # Numbers only grow, so that others' objects are not taken for these.
    nets.wait_until(lambda: not held & _existing(), 10, "the end of all of them")
