"""
Who changed nft's rules: transactions out of the announcements of group NFNLGRP_NFTABLES.

The kernel announces each thing that a transaction made or removed, and behind them the new
generation with the process that asked for it.
Source: nf_tables_commit() and nf_tables_gen_notify() in net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from tracer.core.arm_hooks import OWN_PREFIX
from tracer.core.attributes import HEADERS_SIZE, Layout, walk_one

__all__ = ["Transaction", "TransactionReader"]

# include/uapi/linux/netfilter/nf_tables.h: tables, chains, rules; sets' elements.
_RULES: Final = frozenset({0, 2, 3, 5, 6, 8})
_NEW_ELEMENTS, _GONE_ELEMENTS, _NEWGEN = 12, 14, 15
_SUBSYSTEM: Final = 10
_GENERATION = Layout({1: 4, 2: 4, 3: 1})
_NAMED = Layout({1: 1})
_ELEMENTS = Layout({1: 1, 2: 1})
_FAMILIES: Final = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
#: Tables and sets of one transaction that are told apart; more are known by a reading alone.
_TOUCHED_MAX: Final = 4096


@dataclass(slots=True)
class Transaction:
    """
    One generation of the ruleset, and who made it.

    *pid* is the thread that sent it (0 where it is not said), *process* its name; *tables* are
    (family, name) whose rules it touched, *elements* counts messages about elements by
    (family, table, set, sign), + for those that came and - for those that went.
    """

    generation: int = 0
    pid: int = 0
    process: str = ""
    tables: set[tuple[str, str]] = field(default_factory=set)
    elements: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)


class TransactionReader:
    """Takes datagrams in the order they came, and gives transactions when they are over."""

    def __init__(self) -> None:
        self.malformed = 0
        self._open = Transaction()

    def read(self, datagram: bytes) -> list[Transaction]:
        """
        Return the transactions that *datagram* ends.

        What is malformed is counted, and the rest of its datagram passed over. What happens
        to tables of ours is left out.
        """
        done = []
        offset = 0
        while offset + HEADERS_SIZE <= len(datagram):
            length, kind = struct.unpack_from("=IH", datagram, offset)
            if length < HEADERS_SIZE or offset + length > len(datagram):
                break
            message = datagram[offset : offset + length]
            if kind >> 8 == _SUBSYSTEM and self._take(kind & 0xFF, message):
                done.append(self._open)
                self._open = Transaction()
            offset += (length + 3) & ~3
        self.malformed += offset < len(datagram)
        return done

    def _take(self, kind: int, message: bytes) -> bool:
        """Take one message in; tell whether it ended the transaction."""
        if kind == _NEWGEN:
            return self._end(message)
        family = _FAMILIES.get(message[16], str(message[16]))
        if kind in _RULES:
            names = self._names(message, _NAMED)
            if names and len(self._open.tables) < _TOUCHED_MAX:
                self._open.tables.add((family, names[0]))
        elif kind in {_NEW_ELEMENTS, _GONE_ELEMENTS}:
            names = self._names(message, _ELEMENTS)
            if names and len(self._open.elements) < _TOUCHED_MAX:
                sign = "+" if kind == _NEW_ELEMENTS else "-"
                self._open.elements[family, names[0], names[1], sign] += 1
        return False

    def _names(self, message: bytes, layout: Layout) -> list[str]:
        """Return the names that the message's first attributes give, none for ours."""
        spots = walk_one(message, layout)
        if spots is None or any(kind not in spots for kind in layout.sizes):
            self.malformed += 1
            return []
        names = [_text(message, spots[kind]) for kind in layout.sizes]
        return [] if names[0].startswith(OWN_PREFIX) else names

    def _end(self, message: bytes) -> bool:
        spots = walk_one(message, _GENERATION)
        if spots is None or 1 not in spots:
            self.malformed += 1
            return False
        self._open.generation = int.from_bytes(message[slice(*spots[1])], "big")
        if 2 in spots:  # noqa: PLR2004 - NFTA_GEN_PROC_PID
            self._open.pid = int.from_bytes(message[slice(*spots[2])], "big")
        if 3 in spots:  # noqa: PLR2004 - NFTA_GEN_PROC_NAME
            self._open.process = _text(message, spots[3])
        return True


def _text(message: bytes, spot: tuple[int, int]) -> str:
    return message[slice(*spot)].partition(b"\0")[0].decode(errors="replace")
