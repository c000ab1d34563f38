"""
The one setting of the machine that cannot die with us: which logger a namespace uses.

Legacy tables deliver trace events only where `net.netfilter.nf_log.2` (10 for IPv6) of
the namespace says `nfnetlink_log`, and the setting stays when its user ends. So the value
found is written down before it is changed, restored on every way out, and put right by
the next start or `nftrace check --repair` when we were killed.

A note is a JSON file in `STATE_DIR` named by its writer's process id and start time, so
that a dead writer is told from a living one whose id was reused.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.errors import KernelRefusedError, KernelUnsupportedError
from tracer.sources.netns import Netns, all_namespaces, entered

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = [
    "FAMILIES",
    "LOGGER",
    "STATE_DIR",
    "NfLogSwitch",
    "Note",
    "leftovers",
    "read_logger",
    "repair",
    "started_at",
]

LOGGER = "nfnetlink_log"
STATE_DIR = Path("/run/nftrace/nf_log")

#: Packet family by its name: PF_INET and PF_INET6, as the files are called.
FAMILIES = {"ip": 2, "ip6": 10}

_NOTES_KEPT = 1024  # more unread notes than this are no accident: refuse to add to them


@dataclass(frozen=True, slots=True)
class Note:
    """What one namespace's setting was before we changed it."""

    netns: str
    inode: int
    family: str
    before: str
    pid: int
    started: int


def _file(family: str) -> Path:
    # /proc/sys/net shows the opening thread's namespace.
    return Path(f"/proc/sys/net/netfilter/nf_log/{FAMILIES[family]}")


def read_logger(family: str) -> str | None:
    """Return the calling thread's namespace's logger, None where the kernel has no such file."""
    try:
        return _file(family).read_text().strip()
    except OSError:
        return None


def _write_logger(family: str, logger: str) -> None:
    _file(family).write_text(logger)


def started_at(pid: int) -> int | None:
    """Return the process's start time in clock ticks since boot, None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


class NfLogSwitch:
    """
    The settings that this process changed, for putting them back.

    `turn_on` is called by a thread inside the namespace. Two processes may switch the
    same namespace: the one that ends first sees the other's note and leaves the setting
    to it.
    """

    def __init__(self, state_dir: Path = STATE_DIR) -> None:
        self._dir = state_dir
        self._notes: dict[Path, tuple[Note, Netns]] = {}

    def turn_on(self, namespace: Netns, family: str) -> None:
        """
        Point the namespace's logger at nfnetlink_log, having written down what it was.

        Errors: KernelUnsupportedError where the kernel has no nfnetlink_log,
        KernelRefusedError where we may not switch it.
        """
        before = read_logger(family)
        if before is None:
            message = f"netns {namespace.name}: the kernel has no nf_log setting for {family}"
            raise KernelUnsupportedError(message, "load nfnetlink_log (modprobe nfnetlink_log)")
        if before == LOGGER:
            self._adopt(namespace, family)
            return
        self._write_note(namespace, family, before)
        try:
            _write_logger(family, LOGGER)
        except OSError as exc:
            message = f"netns {namespace.name}: cannot switch nf_log to {LOGGER} ({exc.strerror})"
            raise KernelRefusedError(message, "modprobe nfnetlink_log, and run as root") from exc

    def restore(self) -> list[str]:
        """Put every setting back; return a line with the command for each that resisted."""
        resisted = []
        for path, (note, namespace) in self._notes.items():
            resisted += _restore_note(path, note, namespace, self._dir)
        self._notes.clear()
        return resisted

    def _adopt(self, namespace: Netns, family: str) -> None:
        # Another of us switched it: keep its memory alive should it end before us.
        for note in _read_notes(self._dir).values():
            if note.inode == namespace.inode and note.family == family:
                self._write_note(namespace, family, note.before)
                return

    def _write_note(self, namespace: Netns, family: str, before: str) -> None:
        pid = os.getpid()
        note = Note(namespace.name, namespace.inode, family, before, pid, started_at(pid) or 0)
        path = self._dir / f"{pid}-{namespace.inode}-{family}.json"
        try:
            self._dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            if sum(1 for _ in self._dir.iterdir()) > _NOTES_KEPT:
                message = f"{self._dir} holds more than {_NOTES_KEPT} notes"
                raise KernelRefusedError(message, "run `nftrace check --repair`")
            partial = path.with_suffix(".tmp")
            partial.write_text(json.dumps(asdict(note)))
            partial.rename(path)
        except OSError as exc:
            message = f"cannot write down the nf_log setting in {self._dir} ({exc.strerror})"
            raise KernelRefusedError(message, "make it writable for root") from exc
        self._notes[path] = (note, namespace)


def _read_notes(state_dir: Path) -> dict[Path, Note]:
    notes = {}
    for path in sorted(state_dir.glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            note = Note(**json.loads(path.read_text()))
            if _is_sound(note):
                notes[path] = note
    return notes


def _is_sound(note: Note) -> bool:
    numbers, words = (note.inode, note.pid, note.started), (note.netns, note.before)
    return (
        note.family in FAMILIES
        and all(isinstance(number, int) for number in numbers)
        and all(isinstance(word, str) and word for word in words)
    )


def _remove_unreadable(state_dir: Path, read: Container[Path]) -> list[str]:
    """Remove what is no note, or half of one; say so where a setting may hang on it."""
    done = []
    for path in sorted(state_dir.glob("*")):
        if path in read or _is_being_written(path):
            continue
        path.unlink(missing_ok=True)
        if path.suffix == ".json":
            done.append(
                f"{path.name} was damaged and is removed: see `sysctl net.netfilter.nf_log`"
                " in the namespaces that it may have been of"
            )
    return done


def _is_being_written(path: Path) -> bool:
    pid = path.name.partition("-")[0]
    return path.suffix == ".tmp" and pid.isdecimal() and started_at(int(pid)) is not None


def _is_alive(note: Note) -> bool:
    return started_at(note.pid) == note.started


def _restore_note(path: Path, note: Note, namespace: Netns, state_dir: Path) -> list[str]:
    others = [
        other
        for where, other in _read_notes(state_dir).items()
        if where != path
        and (other.inode, other.family) == (note.inode, note.family)
        and _is_alive(other)
    ]
    if not others:
        try:
            with entered(namespace):
                # Only what we put there is ours to take back.
                if read_logger(note.family) == LOGGER:
                    _write_logger(note.family, note.before)
        except (OSError, KernelRefusedError) as exc:
            if namespace.inode in {one.inode for one in all_namespaces()}:
                number = FAMILIES[note.family]
                command = f"sysctl -w net.netfilter.nf_log.{number}={note.before}"
                return [f"netns {note.netns}: nf_log could not be put back ({exc}): {command}"]
    path.unlink(missing_ok=True)
    return []


def leftovers(state_dir: Path = STATE_DIR) -> list[str]:
    """Name the settings that killed processes left behind."""
    notes = _read_notes(state_dir).values()
    return [f"netns {note.netns} {note.family}" for note in notes if not _is_alive(note)]


def repair(state_dir: Path = STATE_DIR) -> list[str]:
    """
    Put right what killed processes left; return a line for each setting that was.

    Notes of living processes are left alone. A namespace that is gone needs nothing, and
    a note that cannot be read is removed.
    """
    namespaces: dict[int, Netns] = {}
    notes = _read_notes(state_dir)
    done = _remove_unreadable(state_dir, notes)
    for path, note in notes.items():
        if _is_alive(note):
            continue
        namespaces = namespaces or {one.inode: one for one in all_namespaces()}
        namespace = namespaces.get(note.inode)
        if namespace is None:
            path.unlink(missing_ok=True)
            continue
        resisted = _restore_note(path, note, namespace, state_dir)
        done += resisted or [f"netns {note.netns}: nf_log for {note.family} is {note.before} again"]
    return done
