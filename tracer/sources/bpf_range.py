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
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import KernelRefusedError, KernelUnsupportedError
from tracer.sources.bpf_range_rules import CHAINS, LEGACY, load_legacy, load_nft

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.sources.bpf_deadline import Deadline

__all__ = ["Shot", "build", "enter_new_namespace", "fire"]

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_SIOCSIFFLAGS = 0x8914  # include/uapi/linux/sockios.h
_IFF_UP = 1
_INET, _INET6, _NETDEV = 2, 10, 5  # NFPROTO
_PREROUTING, _INPUT, _OUTPUT = 0, 1, 3

_HOOKS = {"prerouting": _PREROUTING, "input": _INPUT, "output": _OUTPUT, "ingress": 0}
#: At which families' hooks a table's chains stand.
_FAMILIES = {
    "ip": (_INET,),
    "ip6": (_INET6,),
    "inet": (_INET, _INET6),
    "netdev": (_NETDEV,),
}
_ADDRESSES = {_INET: "127.0.0.1", _INET6: "::1", _NETDEV: "127.0.0.1"}


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


def build(deadline: Deadline, tell: Callable[[int], None] | None = None) -> list[Shot]:
    """
    Move the calling thread into a new namespace for good, and lay the rules there.

    *tell* is told the namespace's inode before anything can be dropped in it.
    What the machine has no tool or no kernel support for is left out.
    Errors: KernelRefusedError where namespaces are refused, KernelUnsupportedError where
    neither nft nor legacy rules can be made, or not in time.
    """
    enter_new_namespace()
    if tell is not None:
        tell(Path("/proc/thread-self/ns/net").stat().st_ino)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    handles = load_nft(deadline)
    loaded = load_legacy(deadline)
    legacy = [row for row in LEGACY if row[0] in loaded]
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


def _plan(handles: dict[int, int], legacy: list[tuple[str, int, str, str, int, int]]) -> list[Shot]:
    """Aim a shot at each dropper, its hook's entries numbered by priority."""
    entries: dict[tuple[int, int], list[int]] = {}
    chains = [row for row in CHAINS if row[4] in handles]
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
