"""
A network namespace of our own in which known drops are made, one packet for each.

The rules put droppers of every kind at known places among the entries of a hook. All
packets go over lo and none can leave: the namespace has no other device. It lives as
long as the thread that is in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import socket
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import KernelRefusedError, KernelUnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Deadline", "Shot", "build", "enter_new_namespace", "fire"]

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SIOCSIFFLAGS = 0x8914  # include/uapi/linux/sockios.h
_IFF_UP = 1
_INET, _INET6, _NETDEV = 2, 10, 5  # NFPROTO
_PREROUTING, _INPUT, _OUTPUT = 0, 1, 3

#: (family, chain, hook, priority, port of its rule, port that its policy drops). Between
#: them stand the legacy tables' entries: raw -300, mangle -150, filter 0.
_CHAINS = (
    ("ip", "a", "input", -400, 9001, 9101),
    ("ip", "b", "input", -160, 9002, 9102),
    ("ip", "c", "input", -10, 9003, 9103),
    ("ip", "d", "input", 300, 9004, 9104),
    ("ip", "e", "output", 310, 9005, 9105),
    ("ip", "f", "prerouting", 310, 9006, 9106),
    ("inet", "a", "input", -390, 9011, 9111),
    ("inet", "b", "input", 310, 9012, 9112),
    ("ip6", "a", "input", -400, 9021, 9121),
    ("ip6", "b", "input", -10, 9022, 9122),
    ("ip6", "c", "input", 300, 9023, 9123),
)
#: What not every kernel has, each loaded by itself. All of a device's ingress chains are
#: entries of one hook.
_MORE_CHAINS = (
    (
        ("netdev", "a", "ingress", -10, 9031, 9131),
        ("netdev", "b", "ingress", 10, 9032, 9132),
    ),
    (("inet", "x", "ingress", 0, 9041, 9141),),
)
#: (restore program, family, table, chain, priority, port).
_LEGACY = (
    ("iptables", _INET, "raw", "PREROUTING", -300, 9201),
    ("iptables", _INET, "mangle", "PREROUTING", -150, 9202),
    ("iptables", _INET, "mangle", "INPUT", -150, 9203),
    ("iptables", _INET, "filter", "INPUT", 0, 9204),
    ("iptables", _INET, "raw", "OUTPUT", -300, 9205),
    ("iptables", _INET, "mangle", "OUTPUT", -150, 9206),
    ("iptables", _INET, "filter", "OUTPUT", 0, 9207),
    ("ip6tables", _INET6, "raw", "PREROUTING", -300, 9211),
    ("ip6tables", _INET6, "mangle", "INPUT", -150, 9213),
    ("ip6tables", _INET6, "filter", "INPUT", 0, 9214),
)
_HOOKS = {"prerouting": _PREROUTING, "input": _INPUT, "output": _OUTPUT, "ingress": 0}
#: At which families' hooks a table's chains stand.
_FAMILIES = {
    "ip": (_INET,),
    "ip6": (_INET6,),
    "inet": (_INET, _INET6),
    "netdev": (_NETDEV,),
}
_ADDRESSES = {_INET: "127.0.0.1", _INET6: "::1", _NETDEV: "127.0.0.1"}
Chain = tuple[str, str, str, int, int, int]


class Deadline:
    """A limit in seconds from now for all that is done in a range."""

    def __init__(self, limit_s: float) -> None:
        """Begin to count."""
        self._limit_s = limit_s
        self._end_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Return the seconds that are left; KernelUnsupportedError where none are."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise self.over()
        return left_s

    def over(self) -> KernelUnsupportedError:
        """Return what is to be raised when time has run out."""
        msg = f"known drops took longer than {self._limit_s:g} s: the machine is too busy"
        return KernelUnsupportedError(msg, "try again, or give it longer with --calibrate S")


@dataclass(frozen=True, slots=True)
class Shot:
    """
    One packet to send to *port* over lo and the place that drops it.

    *kind* is rule, policy or legacy; *way* groups places whose drops take the same way
    through the kernel. Entry *index* of *count* at *hook* of *family* drops it; *handle*
    is the nft rule's. *table* and *chain* name the place, *chain* the base chain.
    """

    kind: str
    way: str
    family: int
    hook: int
    index: int
    count: int
    port: int
    table: str
    chain: str
    handle: int | None = None


def build(deadline: Deadline) -> list[Shot]:
    """
    Move the calling thread into a new namespace for good, and lay the rules there.

    What the machine has no tool or no kernel support for is left out.
    Errors: KernelRefusedError where namespaces are refused, KernelUnsupportedError where
    neither nft nor legacy rules can be made, or not in time.
    """
    enter_new_namespace()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    handles = _load_all(deadline)
    loaded = _load_legacy(deadline)
    legacy = [row for row in _LEGACY if row[0] in loaded]
    shots = _plan(handles, legacy)
    if not shots:
        msg = "neither nft nor iptables-legacy can make a rule to calibrate with"
        raise KernelUnsupportedError(msg, "apt install nftables iptables")
    return shots


def enter_new_namespace() -> None:
    """
    Move the calling thread into a new network namespace for good.

    Errors: KernelRefusedError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        msg = f"the kernel refuses a network namespace to calibrate in ({reason})"
        raise KernelRefusedError(msg, "run as root (CAP_SYS_ADMIN)")


def fire(shot: Shot, mark: int) -> None:
    """Send the shot's one packet with *mark*; it is dropped."""
    address = _ADDRESSES[shot.family]
    kind = socket.AF_INET6 if shot.family == _INET6 else socket.AF_INET
    with socket.socket(kind, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        # EPERM is what a drop on OUTPUT says.
        sock.sendto(b"", (address, shot.port))


def _load_all(deadline: Deadline) -> dict[int, int]:
    """Return the handle of each dropping rule by its port."""
    handles = _load_nft(_CHAINS, deadline)
    if not handles:
        return {}
    for chains in _MORE_CHAINS:
        handles |= _load_nft(chains, deadline)
    return handles


def _load_nft(chains: Sequence[Chain], deadline: Deadline) -> dict[int, int]:
    """Return the handles of *chains*' dropping rules by port; empty where nft refuses."""
    lines = []
    for family, chain, hook, priority, port, policy_port in chains:
        device = ' device "lo"' if hook == "ingress" else ""
        lines += [
            f"add table {family} t",
            (
                f"add chain {family} t {chain} "
                f"{{ type filter hook {hook}{device} priority {priority}; policy drop; }}"
            ),
            f"add rule {family} t {chain} udp dport {port} drop",
            f"add rule {family} t {chain} udp dport != {policy_port} accept",
            f"add rule {family} t {chain} ip6 nexthdr icmpv6 accept" if family != "ip" else "",
        ]
    try:
        done = subprocess.run(
            ["nft", "--echo", "--handle", "--file", "-"],
            input="\n".join(lines).encode(),
            capture_output=True,
            check=False,
            timeout=deadline.left_s(),
        )
    except FileNotFoundError:
        return {}
    except subprocess.TimeoutExpired as exc:
        raise deadline.over() from exc
    if done.returncode != 0:
        return {}
    echoed = re.findall(rb"udp dport (\d+) drop # handle (\d+)", done.stdout)
    return {int(port): int(handle) for port, handle in echoed}


def _load_legacy(deadline: Deadline) -> set[str]:
    """Load the legacy rules; return the tools whose rules are in force."""
    try:
        return {tool for tool in ("iptables", "ip6tables") if _restore(tool, deadline)}
    except subprocess.TimeoutExpired as exc:
        raise deadline.over() from exc


def _restore(tool: str, deadline: Deadline) -> bool:
    """Load one tool's rules; False where there is no such tool or it refuses."""
    tables: dict[str, list[str]] = {}
    for name, _, table, chain, _, port in _LEGACY:
        if name == tool:
            line = f"-A {chain} -p udp --dport {port} -j DROP"
            tables.setdefault(table, []).append(line)
    text = "".join(
        f"*{table}\n" + "\n".join(lines) + "\nCOMMIT\n" for table, lines in tables.items()
    )
    # The lock is the machine's, though the rules are ours alone: take one of our own.
    with tempfile.NamedTemporaryFile() as lock, contextlib.suppress(FileNotFoundError):
        done = subprocess.run(
            [f"{tool}-legacy-restore"],
            input=text.encode(),
            capture_output=True,
            check=False,
            env={**os.environ, "XTABLES_LOCKFILE": str(Path(lock.name))},
            timeout=deadline.left_s(),
        )
        return done.returncode == 0
    return False


def _plan(handles: dict[int, int], legacy: list[tuple[str, int, str, str, int, int]]) -> list[Shot]:
    """Aim a shot at each dropper, its hook's entries numbered by priority."""
    entries: dict[tuple[int, int], list[int]] = {}
    listed = (*_CHAINS, *(row for rows in _MORE_CHAINS for row in rows))
    chains = [row for row in listed if row[4] in handles]
    for family, _, hook, priority, _, _ in chains:
        for pf in _stands_at(family, hook):
            entries.setdefault((pf, _HOOKS[hook]), []).append(priority)
    for pf, number, priority in _legacy_entries(legacy):
        entries.setdefault((pf, number), []).append(priority)
    shots = []
    for family, chain, hook, priority, port, policy_port in chains:
        for pf in _stands_at(family, hook):
            row = sorted(entries[pf, _HOOKS[hook]])
            place = (pf, _HOOKS[hook], row.index(priority), len(row))
            # Each family has a function of its own between its hooks and nft.
            way = f"nft {family}" + (" ingress" if hook == "ingress" else "")
            shots += [
                Shot("rule", way, *place, port, "t", chain, handles[port]),
                Shot("policy", way, *place, policy_port, "t", chain),
            ]
    for tool, pf, name, chain, priority, port in legacy:
        row = sorted(entries[pf, _HOOKS[chain.lower()]])
        place = (pf, _HOOKS[chain.lower()], row.index(priority), len(row))
        shots.append(Shot("legacy", f"legacy {tool}", *place, port, name, chain))
    return shots


def _stands_at(family: str, hook: str) -> tuple[int, ...]:
    return (_NETDEV,) if hook == "ingress" else _FAMILIES[family]


def _legacy_entries(
    legacy: list[tuple[str, int, str, str, int, int]],
) -> set[tuple[int, int, int]]:
    """Return what the tables registered: each at all of its hooks."""
    hooks = {
        "raw": (_PREROUTING, _OUTPUT),
        "mangle": (_PREROUTING, _INPUT, _OUTPUT),
        "filter": (_INPUT, _OUTPUT),
    }
    return {
        (pf, hook, priority) for _, pf, table, _, priority, _ in legacy for hook in hooks[table]
    }
