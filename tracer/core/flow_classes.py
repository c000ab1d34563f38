"""
Flows, kinds of flow, and the rules that are remembered for them.

A flow is what all packets of one connection and direction have in common at their first
hook and where they die: source, protocol, and the first word of the transport header, the
source port, or type and code of ICMP. Destination translation, which comes in between,
leaves these alone; source translation comes behind the last filter.

A flow's class is what its rule most likely depends on: destination, protocol, destination
port and the device it came in by, and the source's address where a rule of the table looks
at that. Rules may look at more, as source ports and marks: an answer for a class is what
one of its flows met, and is told as such.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable

    import numpy.typing as npt

    from tracer.core.journey import Ending
    from tracer.core.ruleset import Ruleset

__all__ = [
    "FLOW_CLASS",
    "TRACED_FLOW",
    "Answers",
    "Flow",
    "RuleAnswer",
    "class_keys",
    "flow_keys",
    "tables_by_source",
]

#: *word* is the first 16 bits of the transport header; *src* four words in network order.
TRACED_FLOW = np.dtype([("src", "<u4", (4,)), ("word", "<u2"), ("family", "u1"), ("proto", "u1")])
FLOW_CLASS = np.dtype(
    [
        ("src", "<u4", (4,)),
        ("dst", "<u4", (4,)),
        ("iif", "<u4"),
        ("dport", "<u2"),
        ("family", "u1"),
        ("proto", "u1"),
    ]
)
#: How rules look at who sent a packet, or may: by address, in sets, lists and classes of them.
_BY_SOURCE = re.compile(r"(?:^|\s)(?:-s|--mac-source)\s|src|saddr|@|-m recent|socket|fib")

#: Where the transport header begins in `PACKET["raw"]`.
_TRANSPORT = 40
_WORD_BYTES = 2


class Flow(NamedTuple):
    """A `TRACED_FLOW` row as a value; *src* is the address's bytes."""

    family: int
    src: bytes
    proto: int
    word: int

    @classmethod
    def of_row(cls, row: np.void) -> Flow:
        """Return the value of one row."""
        family = int(row["family"])
        size = 4 if family == 4 else 16  # noqa: PLR2004 - the IP version's number
        return cls(family, row["src"].tobytes()[:size], int(row["proto"]), int(row["word"]))

    def render(self) -> str:
        """Return the flow as an element of an nft set: address . protocol . number."""
        address = IPv4Address(self.src) if self.family == 4 else IPv6Address(self.src)  # noqa: PLR2004
        return f"{address} . {self.proto} . {self.word}"


def flow_keys(
    packets: npt.NDArray[np.void],
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.bool_]]:
    """
    Return each packet's flow, `TRACED_FLOW (n,)`, and whether it has one.

    Shape: *packets* is `PACKET (n,)`. What is not IP, and what carries no transport
    header, as later fragments do, has none.
    """
    flows = np.zeros(len(packets), TRACED_FLOW)
    raw = packets["raw"]
    first, second = raw[:, _TRANSPORT].astype(np.uint16), raw[:, _TRANSPORT + 1]
    for name in ("src", "family", "proto"):
        flows[name] = packets[name]
    flows["word"] = first << 8 | second
    usable = (packets["family"] != 0) & (packets["transport_length"] >= _WORD_BYTES)
    return flows, usable


def class_keys(packets: npt.NDArray[np.void], iif: npt.NDArray[np.integer]) -> npt.NDArray[np.void]:
    """Return each packet's class, `FLOW_CLASS (n,)`; *iif* `(n,)` are the devices."""
    classes = np.zeros(len(packets), FLOW_CLASS)
    for name in ("src", "dst", "dport", "family", "proto"):
        classes[name] = packets[name]
    classes["iif"] = iif
    return classes


def tables_by_source(ruleset: Ruleset) -> frozenset[str]:
    """Return the names of tables in which a rule may look at who sent a packet."""
    return frozenset(
        table.name
        for table in ruleset.tables.values()
        if any(_BY_SOURCE.search(rule.text) for c in table.chains.values() for rule in c.rules)
    )


@dataclass(frozen=True, slots=True)
class RuleAnswer:
    """
    The rule, or with *rule* and *handle* None the policy, that a traced packet died by.

    Members are those of `Ending`.
    """

    engine: str
    family: str
    hook: str | None
    table: str
    chain: str
    rule: int | None
    handle: int | None
    text: str | None

    @classmethod
    def of_ending(cls, ending: Ending) -> RuleAnswer | None:
        """Return the answer that *ending* gives; None where it names no chain."""
        place = ending.engine, ending.family, ending.table, ending.chain
        engine, family, table, chain = place
        if engine is None or family is None or table is None or chain is None:
            return None
        return cls(
            engine, family, ending.hook, table, chain, ending.rule, ending.handle, ending.text
        )


class Answers:
    """
    What was learned, the least recently asked for forgotten first.

    Keys hold the version of the ruleset, so that answers of an old one are never given
    and fall out by themselves. *evicted* counts those that had to go.
    """

    def __init__(self, limit: int) -> None:
        self.evicted = 0
        self._limit = limit
        self._known: OrderedDict[Hashable, RuleAnswer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: Hashable) -> RuleAnswer | None:
        """Return the answer for *key*, None where there is none."""
        found = self._known.get(key)
        if found is not None:
            self._known.move_to_end(key)
        return found

    def remember(self, key: Hashable, answer: RuleAnswer) -> None:
        """Keep *answer*, in place of what was known."""
        self._known[key] = answer
        self._known.move_to_end(key)
        if len(self._known) > self._limit:
            self._known.popitem(last=False)
            self.evicted += 1
