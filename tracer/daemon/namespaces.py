"""
Which network namespaces there are to watch, as they come and go.

Names come and go in /run/netns, which inotify tells of at once; namespaces that have
only a process are found by a look through /proc, now and then. No descriptor is held:
it would keep a namespace alive that everybody else has left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tracer.errors import UsageError
from tracer.sources.netns import all_namespaces, find_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracer.sources.netns import Netns

__all__ = ["Changes", "NamespaceWatch"]

_NAMED = Path("/run/netns")
# include/uapi/linux/inotify.h
_IN_CREATE, _IN_DELETE, _IN_MOVED = 0x100, 0x200, 0xC0
_IN_DELETE_SELF, _IN_UNMOUNT, _IN_IGNORED = 0x400, 0x2000, 0x8000
_IN_CLOEXEC, _IN_NONBLOCK = 0o2000000, 0o4000
_WATCHED = _IN_CREATE | _IN_DELETE | _IN_MOVED | _IN_DELETE_SELF
_FIRST = _IN_CREATE | 0x8000_0000  # IN_ONESHOT
#: `ip netns add` makes the file, which we are told of, and mounts the namespace on it next.
_SETTLE_S = 0.2
#: More namespaces than this are not watched, and counted: each has a few hundred bytes.
NAMESPACES_MAX = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class Changes(NamedTuple):
    """What came and what went since the last look."""

    added: list[Netns]
    removed: list[Netns]


class NamespaceWatch:
    """
    The namespaces that the configuration's *words* name, by inode in `known`.

    *unwatched* counts those beyond `NAMESPACES_MAX`, *absent* are names that have no
    namespace now. Its descriptor is readable when it is worth looking.
    """

    def __init__(self, words: Sequence[str], scan_s: float) -> None:
        self.known: dict[int, Netns] = {}
        self.unwatched = 0
        self.absent: list[str] = []
        self._words = tuple(words)
        self._scan_s = scan_s
        self._due_s = 0.0
        self._fd = int(_libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK))
        self._is_placed = False

    def fileno(self) -> int:
        """Return inotify's descriptor, for a selector; -1 where the kernel gives none."""
        return self._fd

    def close(self) -> None:
        """Stop being told; harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def due_in(self, now_s: float) -> float:
        """Return in how many seconds a look is due."""
        return max(0.0, self._due_s - now_s)

    def poll(self, now_s: float) -> Changes:
        """Look, if there is a reason to; *now_s* is monotonic."""
        if self._take_events():
            self._due_s = min(self._due_s, now_s + _SETTLE_S)
        if now_s < self._due_s:
            return Changes([], [])
        self._due_s = now_s + self._scan_s
        # The watch before the look: what comes in between is told.
        self._place()
        found = self._find()
        added = [one for inode, one in found.items() if self.known.get(inode) != one]
        removed = [one for inode, one in self.known.items() if found.get(inode) != one]
        self.known = found
        return Changes(added, removed)

    def _find(self) -> dict[int, Netns]:
        # A name whose namespace is not mounted yet is a plain file.
        nsfs = Path("/proc/self/ns/net").stat().st_dev
        self.absent = []
        found: dict[int, Netns] = {}
        for word in self._words:
            for namespace in self._named_by(word):
                with contextlib.suppress(OSError):
                    if Path(namespace.path).stat().st_dev == nsfs:
                        found.setdefault(namespace.inode, namespace)
        listed = list(found.items())
        self.unwatched = max(0, len(listed) - NAMESPACES_MAX)
        return dict(listed[:NAMESPACES_MAX])

    def _named_by(self, word: str) -> list[Netns]:
        if word == "all":
            return all_namespaces()
        try:
            return [find_namespace(word)]
        except UsageError:
            self.absent.append(word)
            return []

    def _place(self) -> None:
        if self._is_placed or self._fd < 0:
            return
        watched = _libc.inotify_add_watch(self._fd, os.fsencode(_NAMED), _WATCHED)
        self._is_placed = watched >= 0
        if not self._is_placed:
            # Nobody named a namespace since the machine came up: the folder comes with the
            # first, and its own is where that is told.
            _libc.inotify_add_watch(self._fd, os.fsencode(_NAMED.parent), _FIRST)

    def _take_events(self) -> bool:
        """Empty the queue; tell whether there was anything in it."""
        if self._fd < 0:
            return False
        told = False
        with contextlib.suppress(BlockingIOError):
            while raw := os.read(self._fd, 65_536):
                told = True
                self._is_placed = self._is_placed and not _ends_watch(raw)
        return told


def _ends_watch(raw: bytes) -> bool:
    """Tell whether the folder that is watched went away."""
    at, gone = 0, False
    while at + 16 <= len(raw):
        mask = int.from_bytes(raw[at + 4 : at + 8], "little")
        gone = gone or bool(mask & (_IN_DELETE_SELF | _IN_UNMOUNT | _IN_IGNORED))
        at += 16 + int.from_bytes(raw[at + 12 : at + 16], "little")
    return gone
