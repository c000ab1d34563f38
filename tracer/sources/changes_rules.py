"""
One namespace's rules, version by version: what they are, when they became so, and by whom.

nft announces each transaction with its process; legacy tables are compared. Either way the
rules are read when they have moved, table by table, and each table that reads otherwise is a
change. Readings take a fifth of the time at most: what changes faster is told together.
"""

from __future__ import annotations

import errno
import json
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracer.core.arm_hooks import OWN_PREFIX
from tracer.core.log_rows import Change
from tracer.core.nft_transactions import TransactionReader
from tracer.core.timeline_rules import render_table
from tracer.errors import KernelRefusedError, NftraceError
from tracer.sources.changes_process import NOBODY, Who, WhoReader
from tracer.sources.legacy_tables import LegacyFingerprint
from tracer.sources.netns import entered
from tracer.sources.ruleset import read_ruleset

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracer.core.nft_transactions import Transaction
    from tracer.core.ruleset import Ruleset
    from tracer.sources.changes_lock import Locker
    from tracer.sources.netns import Netns

__all__ = ["RuleChanges"]

_NETFILTER, _SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 12, 270, 1, 33
_GROUP_NFTABLES: Final = 7
_BUFFER: Final = 4 << 20
_DATAGRAM: Final = 1 << 16
#: Comparing legacy tables takes 0.13 ms for small ones, 46 ms for 20,000 rules.
_COMPARE_S: Final = 0.5
#: Reading and comparing, which nobody waits for, may take one part in so many of the time.
_SHARE: Final = 5
_COMPARE_SHARE: Final = 50
#: Transactions and runs of iptables that are remembered until the rules are read.
_DOERS_MAX: Final = 256
#: After a reading was refused.
_RETRY_S: Final = 5.0

_TableKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Doer:
    """Somebody who changed something: nft's *tables* in *generation*, or legacy ones."""

    time_ns: int
    who: Who
    tables: frozenset[tuple[str, str]] = frozenset()
    generation: int = 0


class RuleChanges:
    """
    The rules of one namespace.

    `read` takes what nft announced, `note_lock` who ran iptables-legacy, `look` returns what
    changed. Of a change the texts `before` and `after` are whole tables, as
    `tracer.core.timeline_rules` writes them: who keeps the change keeps them by content.
    """

    def __init__(self, namespace: Netns, who: WhoReader) -> None:
        """
        Listen; nothing is read yet.

        Errors: KernelRefusedError where the kernel does not let us.
        """
        self.namespace = namespace
        self.overruns = 0
        #: How many namespaces are compared: together they may take what `_COMPARE_SHARE` says.
        self.sharers = 1
        self._who = who
        self._reader = TransactionReader()
        self._versions: dict[_TableKey, str] | None = None
        self._legacy: LegacyFingerprint | None = None
        self._nft: deque[_Doer] = deque(maxlen=_DOERS_MAX)
        self._lockers: dict[int, _Doer] = {}
        self._ended: set[int] = set()
        self._is_stale = True
        self._unmoved_ns = 0
        self._read_due_s = self._compare_due_s = 0.0
        try:
            with entered(namespace):
                self._socket = _listen()
        except OSError as exc:
            message = f"netns {namespace.name}: the kernel does not tell of rules ({exc.strerror})"
            raise KernelRefusedError(message) from exc

    @property
    def malformed(self) -> int:
        """Announcements that were not what they claimed to be."""
        return self._reader.malformed

    @property
    def is_read(self) -> bool:
        """Whether the rules were read once, so that what changes has a before."""
        return self._versions is not None

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector."""
        return self._socket.fileno()

    def read(self, now_ns: int) -> list[Change]:
        """Take what nft announced; return what happened to sets' elements."""
        changes: list[Change] = []
        while True:
            try:
                datagram = self._socket.recv(_DATAGRAM)
            except BlockingIOError:
                return changes
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                self._is_stale = True
                continue
            for transaction in self._reader.read(datagram):
                changes += self._take(transaction, now_ns)

    def _take(self, transaction: Transaction, now_ns: int) -> list[Change]:
        if not transaction.tables and not transaction.elements:
            return []
        who = self._who.read(transaction.pid, transaction.process)
        if transaction.tables:
            self._is_stale = True
            self._nft.append(
                _Doer(now_ns, who, frozenset(transaction.tables), transaction.generation)
            )
        return [
            Change(
                now_ns,
                self.namespace.name,
                "set",
                "changed",
                f"{family} {table} {name}",
                engine="nft",
                detail=_detail(who, did="came" if sign == "+" else "went", messages=count),
                pid=who.pid,
                process=who.process,
                command=who.command,
            )
            for (family, table, name, sign), count in transaction.elements.items()
        ]

    def note_lock(self, locker: Locker, now_ns: int) -> None:
        """Take that somebody ran iptables-legacy, perhaps here."""
        if locker.netns not in {0, self.namespace.inode}:
            return
        pid = locker.who.pid
        if locker.is_done:
            self._compare_due_s = 0.0
            self._ended.add(pid)
        else:
            self._ended.discard(pid)
            self._lockers[pid] = _Doer(now_ns, locker.who)
        if len(self._lockers) + len(self._ended) > _DOERS_MAX:
            self._forget(frozenset(self._ended))

    def due_in(self, now_s: float) -> float:
        """Return in how many seconds `look` has something to do."""
        due_s = (
            min(self._compare_due_s, self._read_due_s) if self._is_stale else self._compare_due_s
        )
        return max(0.0, due_s - now_s)

    def look(self, now_s: float, hear: Callable[[], None]) -> list[Change]:
        """
        Return the tables that became others, if it is time to look; *now_s* is monotonic.

        *hear* is called before a change is laid at somebody's door: it notes who held the
        lock meanwhile.
        Errors: NftraceError where the kernel or a tool refuses; it is tried again later.
        """
        if now_s >= self._compare_due_s and self._versions is not None:
            self._compare()
        if not self._is_stale or now_s < self._read_due_s:
            return []
        began_ns = time.monotonic_ns()
        # Whose run ends while we read may have changed what was read before.
        ended = frozenset(self._ended)
        try:
            with entered(self.namespace):
                read = read_ruleset(with_nat=False)
        except NftraceError:
            self._read_due_s = now_s + _RETRY_S
            raise
        # Who made what was just read may have been announced meanwhile.
        told = self.read(time.time_ns())
        hear()
        took_s = (time.monotonic_ns() - began_ns) / 1e9
        self._read_due_s = now_s + took_s * _SHARE
        # Rules that moved while they were read are read again.
        self._is_stale = not read.exact or self._is_after(read.generation)
        self._legacy = read.legacy
        self._compare_due_s = now_s + took_s + _COMPARE_S
        changes = self._compare_versions(_texts(read.ruleset), read.generation or 0)
        self._forget(ended)
        return [*told, *changes]

    def _is_after(self, generation: int | None) -> bool:
        return any(not _is_within(one, generation or 0) for one in self._nft)

    def _compare(self) -> None:
        began_ns = time.monotonic_ns()
        with entered(self.namespace):
            legacy = LegacyFingerprint.take(self._legacy)
        if self._legacy is None or legacy.changed_since(self._legacy):
            self._is_stale = True
        elif not self._is_stale:
            # What was found and is yet to be read is somebody's among these.
            self._unmoved_ns = time.time_ns()
            self._forget(frozenset(self._ended))
        self._legacy = legacy
        ended_ns = time.monotonic_ns()
        cost_s = (ended_ns - began_ns) / 1e9
        wait_s = max(_COMPARE_S, cost_s * _COMPARE_SHARE * self.sharers)
        self._compare_due_s = ended_ns / 1e9 + wait_s

    def _forget(self, ended: frozenset[int]) -> None:
        """Forget whose run was over before we looked: what moves next was not theirs."""
        # One that began again meanwhile is not over.
        for pid in ended & self._ended:
            self._lockers.pop(pid, None)
        self._ended -= ended
        while len(self._lockers) > _DOERS_MAX:
            del self._lockers[next(iter(self._lockers))]

    def _compare_versions(self, texts: dict[_TableKey, str], generation: int) -> list[Change]:
        before, self._versions = self._versions, texts
        now_ns = time.time_ns()
        if before is None:
            changes = [self._standing(key, text, now_ns) for key, text in texts.items()]
        else:
            keys = [key for key in {**before, **texts} if before.get(key) != texts.get(key)]
            changes = [
                self._changed(key, (before.get(key, ""), texts.get(key, "")), generation, now_ns)
                for key in keys
            ]
        later = [one for one in self._nft if not _is_within(one, generation)]
        self._nft = deque(later, _DOERS_MAX)
        self._unmoved_ns = now_ns
        return changes

    def _standing(self, key: _TableKey, text: str, now_ns: int) -> Change:
        engine, family, table = key
        name = self.namespace.name
        subject = f"{family} {table}"
        return Change(now_ns, name, "ruleset", "stands", subject, text, text, engine=engine)

    def _changed(
        self, key: _TableKey, texts: tuple[str, str], generation: int, now_ns: int
    ) -> Change:
        engine, family, table = key
        before, after = texts
        doers = self._doers(key, generation)
        last = doers[-1] if doers else _Doer(now_ns, NOBODY)
        others = [one.who for one in doers[:-1] if one.who.pid != last.who.pid]
        # At this time it was not yet so: packets may have met it since then.
        since_ns = min((one.time_ns for one in doers), default=self._unmoved_ns)
        return Change(
            last.time_ns,
            self.namespace.name,
            "ruleset",
            "changed" if before and after else "new" if after else "gone",
            f"{family} {table}",
            before,
            after,
            _detail(last.who, others, since_ns=since_ns),
            engine,
            last.who.pid,
            last.who.process,
            last.who.command,
        )

    def _doers(self, key: _TableKey, generation: int) -> list[_Doer]:
        engine, family, table = key
        if engine == "legacy":
            return list(self._lockers.values())
        return [
            one
            for one in self._nft
            if (family, table) in one.tables and _is_within(one, generation)
        ]

    def close(self) -> None:
        """Stop listening; harmless when repeated."""
        self._socket.close()


def _is_within(doer: _Doer, generation: int) -> bool:
    """Tell whether a transaction was in force in *generation*, which is a u32 and wraps."""
    return (generation - doer.generation) & 0xFFFF_FFFF < 1 << 31


def _texts(ruleset: Ruleset) -> dict[_TableKey, str]:
    return {
        key: render_table(table)
        for key, table in ruleset.tables.items()
        if not key[2].startswith(OWN_PREFIX)
    }


def _detail(who: Who, others: list[Who] | None = None, **more: object) -> str:
    """Return what has no column of its own, as JSON."""
    told: dict[str, object] = dict(more)
    if who.parents:
        told["parents"] = list(who.parents)
    if others:
        told["others"] = [{"pid": one.pid, "command": one.command or one.process} for one in others]
    return json.dumps(told, separators=(",", ":"))


def _listen() -> socket.socket:
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        listening.setblocking(False)  # noqa: FBT003 - positional in socket's signature
        listening.bind((0, 0))
        listening.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
    except BaseException:
        listening.close()
        raise
    return listening
