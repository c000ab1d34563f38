"""What became of drops whose rule was asked for: counts, and how they change a table of drops."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tracer.core.drops import DropCount, Rung, merge_counts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracer.core.flow_classes import RuleAnswer

__all__ = ["Amount", "NamingCounts", "is_named", "move_attributed", "needs_name"]

_FAMILIES = {None, "inet", "ip", "ip6"}


@dataclass(slots=True)
class Amount:
    """How many packets, and bytes of them."""

    packets: int = 0
    octets: int = 0

    def add(self, other: Amount) -> None:
        """Add *other* to this."""
        self.packets += other.packets
        self.octets += other.octets


@dataclass
class NamingCounts:
    """
    What became of drops whose rule the kernel's record did not name.

    *armed*, *named* and *expired* count flows; *passed* those whose next packet did not
    die; *elsewhere* those that died by another table. *attributed* has packets by kind of
    drop and the rule found for their class; *untraced* counts all others by what kept us
    from finding it, *unattributed* those for which there was no room.
    *bounded* counts the times that a flow was not armed for want of budget,
    *unanswered* twice-seen SYNs that left or were delivered.
    """

    armed: int = 0
    named: int = 0
    passed: int = 0
    elsewhere: int = 0
    expired: int = 0
    bounded: int = 0
    unanswered: int = 0
    over_limit: int = 0
    attributed: dict[tuple[DropCount, RuleAnswer], Amount] = field(default_factory=dict)
    unattributed: int = 0
    untraced: Counter[str] = field(default_factory=Counter)


def needs_name(kind: DropCount, rung: Rung) -> bool:
    """Tell whether a rule killed packets of *kind*, and *rung* will not say which one."""
    if kind.family not in _FAMILIES:
        return False
    if kind.engine is None:
        return kind.reason == "NETFILTER_DROP"
    if kind.engine == "legacy":
        # The other rungs know it, now or when a table that is new was read.
        return kind.kind == "table" and rung in {Rung.REASON, Rung.HOOK}
    return kind.engine == "nft" and kind.kind != "policy" and kind.handle is None


def is_named(kind: DropCount) -> bool:
    """Tell whether the kernel's record said for certain which rule or policy killed *kind*."""
    if kind.family not in _FAMILIES or kind.engine not in {"legacy", "nft"} or not kind.certain:
        return False
    return kind.kind == "policy" or kind.rule is not None or kind.handle is not None


def move_attributed(
    rows: Iterable[DropCount], attributed: Mapping[tuple[DropCount, RuleAnswer], Amount]
) -> list[DropCount]:
    """
    Return *rows* with what was attributed moved to its rule, which is not certain.

    Never more is moved than there is, so that the sums stay what they are. Where not even
    the table was known nothing is moved: it would be another series.
    """
    by_kind: dict[DropCount, list[tuple[RuleAnswer, Amount]]] = {}
    for (kind, answer), amount in attributed.items():
        if kind.table is not None:
            by_kind.setdefault(kind, []).append((answer, amount))
    told: list[DropCount] = []
    for row in rows:
        left = row
        for answer, amount in by_kind.pop(row.kind_only, ()):
            packets, octets = min(left.packets, amount.packets), min(left.octets, amount.octets)
            told.append(_named(row, answer, packets, octets))
            left = replace(left, packets=left.packets - packets, octets=left.octets - octets)
        told.append(left)
    return merge_counts(told)


def _named(row: DropCount, answer: RuleAnswer, packets: int, octets: int) -> DropCount:
    is_policy = answer.rule is None and answer.handle is None
    return replace(
        row,
        kind="policy" if is_policy else "rule",
        chain=answer.chain,
        # As the counts have it: nft's rules by their handle alone.
        rule=answer.rule if answer.handle is None else None,
        handle=answer.handle,
        certain=False,
        packets=packets,
        octets=octets,
    )
