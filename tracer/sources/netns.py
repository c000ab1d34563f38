"""
Network namespaces: finding them by name, process or all, and entering them.

A thread's network namespace is its own, so the main thread stays where it was started
and whatever must happen inside a namespace happens between `setns` and back, or in a
thread that lives there.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import KernelRefusedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Netns", "all_namespaces", "current_namespace", "entered", "find_namespace"]

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_NAMED = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Netns:
    """
    One network namespace.

    *name* is what journeys call it: the first name under /run/netns in sorting order,
    `host` for the first process's, else `net:[INODE]`. *path* opens it.
    """

    name: str
    path: str
    inode: int


@contextmanager
def entered(namespace: Netns) -> Iterator[None]:
    """
    Run the body with the calling thread in *namespace*, and go back after it.

    Errors: KernelRefusedError where the kernel does not let us in.
    """
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace)
        try:
            yield
        finally:
            _setns(back, "the namespace we came from")
    finally:
        os.close(back)


def enter(namespace: Netns) -> None:
    """Move the calling thread into *namespace* for good."""
    try:
        descriptor = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        reason = f"network namespace {namespace.name} is gone ({exc.strerror})"
        raise KernelRefusedError(reason, "name one that exists: see `ip netns list`") from exc
    try:
        # A name can be given anew and a process can move: the path may lead elsewhere by now.
        if os.fstat(descriptor).st_ino != namespace.inode:
            message = f"network namespace {namespace.name} is not where it was found"
            raise KernelRefusedError(
                message, "its process moved or its name was given anew: try again"
            )
        _setns(descriptor, namespace.name)
    finally:
        os.close(descriptor)


def _setns(descriptor: int, name: str) -> None:
    # os.setns is in Python from 3.12 on only.
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        message = f"the kernel does not let us into network namespace {name} ({reason})"
        raise KernelRefusedError(message, "run as root (CAP_SYS_ADMIN)")


def current_namespace() -> Netns:
    """Return the calling thread's namespace."""
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    # The thread's own link would follow it wherever it goes: hold the process's.
    return Netns(_names().get(inode, f"net:[{inode}]"), f"/proc/{os.getpid()}/ns/net", inode)


def find_namespace(word: str) -> Netns:
    """
    Return the namespace that *word* names: a name under /run/netns, `host`, or a pid.

    Errors: UsageError where there is none such.
    """
    if word == "host":
        return _at("/proc/1/ns/net", word)
    named = _NAMED / word
    # A file, which "" and ".." are not.
    if "/" not in word and named.is_file():
        return _at(str(named), word)
    if word.isdecimal():
        return _at(f"/proc/{word}/ns/net", word)
    known = ", ".join(sorted(path.name for path in _named_paths())) or "none is named"
    message = f"no network namespace {word!r} (known: {known})"
    raise UsageError(message, "give a name of `ip netns list`, a process id, `host` or `all`")


def all_namespaces() -> list[Netns]:
    """Return every namespace that has a name or a process, each once, sorted by name."""
    names = _names()
    found: dict[int, str] = {}
    for path in [*_named_paths(), *_process_paths()]:
        inode = _find_inode(str(path))
        if inode is not None:
            found.setdefault(inode, str(path))
    listed = [
        Netns(names.get(inode, f"net:[{inode}]"), path, inode) for inode, path in found.items()
    ]
    return sorted(listed, key=lambda one: one.name)


def _at(path: str, word: str) -> Netns:
    try:
        inode = Path(path).stat().st_ino
    except OSError as exc:
        message = f"no network namespace {word!r} ({exc.strerror})"
        remedy = "give a name of `ip netns list`, a process id, `host` or `all`"
        raise UsageError(message, remedy) from exc
    return Netns(_names().get(inode, f"net:[{inode}]"), path, inode)


def _names() -> dict[int, str]:
    names: dict[int, str] = {}
    for path in _named_paths():
        inode = _find_inode(str(path))
        if inode is not None:
            names.setdefault(inode, path.name)
    host = _find_inode("/proc/1/ns/net")
    if host is not None:
        names.setdefault(host, "host")
    return names


def _named_paths() -> list[Path]:
    try:
        return sorted(_NAMED.iterdir())
    except OSError:
        return []


def _process_paths() -> list[Path]:
    pids = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [Path(f"/proc/{pid}/ns/net") for pid in pids]


def _find_inode(path: str) -> int | None:
    try:
        return Path(path).stat().st_ino
    except OSError:
        return None  # a process or a name that went away while we looked
