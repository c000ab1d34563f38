"""
Who runs iptables-legacy: told by the lock that each run of it takes.

Legacy tables announce nothing, but every run of iptables-legacy and its restore opens
/run/xtables.lock, and closes it when it is done. fanotify tells both at once, with the
process: it is asked who it is while it runs, and the tables are compared when it has
closed. A run in another mount namespace with a /run of its own is not seen, nor one that is
told another lock; what it changed is found by comparison, without a name.

Source: xtables_lock() in iptables/xshared.c; fanotify(7).
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.sources.changes_process import Who, WhoReader

__all__ = ["LOCK", "LockWatch", "Locker"]

LOCK: Final = Path("/run/xtables.lock")
# include/uapi/linux/fanotify.h
_CLOEXEC, _NONBLOCK = 0x1, 0x2
_OPEN, _CLOSE, _ON_CHILD = 0x20, 0x08 | 0x10, 0x08000000
_MARK_ADD, _MARK_FLUSH = 0x1, 0x80
_METADATA: Final = struct.Struct("=IBBHQii")
_READ_BYTES: Final = 4096
#: How what was opened is handed to us: never waiting for whoever is at a pipe's other end.
_DESCRIPTORS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_AT_FDCWD: Final = -100
#: Processes that hold or wait for the lock at a time.
_KNOWN_MAX: Final = 256

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Locker:
    """A process that opened the lock, or, *is_done*, closed it; *netns* is an inode or 0."""

    who: Who
    netns: int
    is_done: bool


class LockWatch:
    """
    The watch of the lock; *trouble* says why there is none.

    Until the lock is there for the first time its folder is watched. Whatever else is
    opened in that is looked at and forgotten.
    """

    def __init__(self, who: WhoReader, path: Path = LOCK) -> None:
        self._who = who
        self.trouble: str | None = None
        self._path = path
        self._is_exact = False
        self._known: dict[int, Locker] = {}
        flags = _CLOEXEC | _NONBLOCK
        self._fd = int(_libc.fanotify_init(flags, _DESCRIPTORS))
        if self._fd < 0:
            self.trouble = os.strerror(ctypes.get_errno())
        else:
            self.renew()

    def fileno(self) -> int:
        """Return the descriptor, for a selector; -1 where the kernel gives none."""
        return self._fd

    def renew(self) -> None:
        """Watch the lock itself where there is one by now; called now and then."""
        if self._fd < 0 or (self._is_exact and self._path.exists()):
            return
        _libc.fanotify_mark(self._fd, _MARK_FLUSH, ctypes.c_uint64(0), _AT_FDCWD, None)
        self._is_exact = self._mark(self._path, _OPEN | _CLOSE)
        if not self._is_exact:
            self._mark(self._path.parent, _OPEN | _CLOSE | _ON_CHILD)

    def _mark(self, path: Path, mask: int) -> bool:
        raw = os.fsencode(path)
        done = _libc.fanotify_mark(self._fd, _MARK_ADD, ctypes.c_uint64(mask), _AT_FDCWD, raw)
        self.trouble = None if done == 0 else os.strerror(ctypes.get_errno())
        return bool(done == 0)

    def read(self) -> Iterator[Locker]:
        """Yield who opened and who closed since the last call."""
        while self._fd >= 0:
            try:
                raw = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:
                self.trouble = exc.strerror
                return
            yield from self._decode(raw)

    def _decode(self, raw: bytes) -> Iterator[Locker]:
        at = 0
        while at + _METADATA.size <= len(raw):
            length, *_, mask, descriptor, pid = _METADATA.unpack_from(raw, at)
            at += max(length, _METADATA.size)
            if descriptor < 0:
                continue  # the queue ran over: comparison finds what there is
            try:
                is_lock = str(Path(f"/proc/self/fd/{descriptor}").readlink()) == str(self._path)
            except OSError:
                is_lock = False
            finally:
                os.close(descriptor)
            if not (is_lock or self._is_exact):
                continue
            # Two events of one process that nobody read in between come as one.
            if mask & _OPEN:
                yield self._locker(pid, is_done=False)
            if mask & _CLOSE:
                yield self._locker(pid, is_done=True)

    def _locker(self, pid: int, *, is_done: bool) -> Locker:
        if is_done and pid in self._known:
            known = self._known.pop(pid)
            return Locker(known.who, known.netns, is_done=True)
        try:
            inode = Path(f"/proc/{pid}/ns/net").stat().st_ino
        except OSError:
            inode = 0
        locker = Locker(self._who.read(pid), inode, is_done=is_done)
        if not is_done:
            self._known[pid] = locker
            if len(self._known) > _KNOWN_MAX:
                del self._known[next(iter(self._known))]
        return locker

    def close(self) -> None:
        """Stop watching; harmless when repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
