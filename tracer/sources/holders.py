"""Who else listens to a namespace's traces, by the names of processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["find_nflog_holder", "find_nflog_port", "find_trace_listeners"]

_NETLINK_NETFILTER = "12"
_TRACE_GROUP = 1 << (9 - 1)  # NFNLGRP_NFTRACE in /proc/net/netlink's mask of groups


def find_nflog_port() -> int | None:
    """
    Return the netlink port that listens on NFLOG group 0 of the calling thread's namespace.

    Source: seq_show() in net/netfilter/nfnetlink_log.c: group, port id, …
    """
    try:
        lines = Path("/proc/thread-self/net/netfilter/nfnetlink_log").read_text().splitlines()
    except OSError:
        return None
    rows = map(str.split, lines)
    return next((int(fields[1]) for fields in rows if fields[:1] == ["0"]), None)


def find_nflog_holder() -> str | None:
    """Say who listens on NFLOG group 0 of the calling thread's namespace; None for nobody."""
    port = find_nflog_port()
    if port is None:
        return None
    owners = _find_owners(lambda fields: fields[2] == str(port))
    return next(owners, f"another process (netlink port {port})")


def find_trace_listeners() -> list[str]:
    """Say who receives nft's trace events of the calling thread's namespace."""
    return sorted(set(_find_owners(lambda fields: bool(int(fields[3], 16) & _TRACE_GROUP))))


def _find_owners(is_meant: Callable[[list[str]], bool]) -> Iterator[str]:
    """Walk the processes that hold a netfilter netlink socket that is meant."""
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
    rows = [fields for fields in map(str.split, lines) if fields[1] == _NETLINK_NETFILTER]
    wanted = {f"socket:[{fields[-1]}]" for fields in rows if is_meant(fields)}
    if not wanted:
        return
    for process in Path("/proc").glob("[0-9]*"):
        try:
            held = {str(descriptor.readlink()) for descriptor in (process / "fd").iterdir()}
            name = (process / "comm").read_text().strip()
        except OSError:
            continue  # it ended while we looked
        if wanted & held:
            yield f"{name} (pid {process.name})"
