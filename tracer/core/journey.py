"""
What a packet's way through one network namespace is, as values.

A journey is one pass of one packet through the netfilter hooks of one namespace:
where it came in, every rule that matched and every policy that was reached, what
they changed, and how it ended. `exporters.json_lines` writes it as
`nftrace.journey/1`, `tracer.cli.render` as text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Change", "Ending", "EndingKind", "Journey", "Packet", "Step", "Verdict"]

#: A field's value before and after: text for addresses, a number for the rest.
Change: TypeAlias = tuple[str | int, str | int]


class Verdict(StrEnum):
    """What a rule or a policy decided; ACCEPT also for a NAT target."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    CONTINUE = "continue"
    QUEUE = "queue"
    STOLEN = "stolen"


class EndingKind(StrEnum):
    """How a journey ended, as far as it was observed."""

    DROPPED = "dropped"
    REJECTED = "rejected"
    SENT = "sent"
    DELIVERED = "delivered"
    QUEUED = "queued"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Packet:
    """
    A packet's headers as it was first seen, before any NAT.

    *family* is ipv4, ipv6 or other. *length* is the IP total length in bytes.
    *proto* is the name (tcp, udp, icmp, icmpv6, …) or the number as text.
    *tcp_flags* is a subset of FSRPAUEC in that order. What a protocol does not
    have is None.
    """

    family: str
    proto: str
    src: str | None = None
    dst: str | None = None
    sport: int | None = None
    dport: int | None = None
    length: int | None = None
    ttl: int | None = None
    ip_id: int | None = None
    tcp_flags: str | None = None
    tcp_seq: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    icmp_id: int | None = None
    icmp_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """
    One rule that matched, or one base chain's policy that was reached.

    *hook* is that of the base chain which led here, None where it is not known.
    *engine* is legacy or nft; *family* the table's (ip, ip6, inet, bridge, arp,
    netdev); *kind* rule or policy. *rule* counts from 1 in its chain; *handle* is
    nft's. *text* is None where the rule was gone before it could be read, and for
    policies. *form* (iptables or nft) says whose language *text* is in.
    *changes* maps a field (dst, dport, src, sport, mark, ttl, …) to its value
    before and after this step.
    """

    hook: str | None
    engine: str
    family: str
    table: str
    chain: str
    kind: str
    rule: int | None
    handle: int | None
    text: str | None
    form: str
    verdict: Verdict
    target: str | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """
    Where and how a journey ended.

    The place is that of the last step for a drop; a policy's drop has no *rule*.
    *reason* is the kernel's drop reason, `not observed`, or None; *device* is the
    name of the device that a sent packet left by.
    """

    kind: EndingKind
    hook: str | None = None
    engine: str | None = None
    family: str | None = None
    table: str | None = None
    chain: str | None = None
    rule: int | None = None
    handle: int | None = None
    text: str | None = None
    reason: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Journey:
    """
    One packet's pass through one namespace.

    *start_ns* is nanoseconds since the epoch, UTC, by the clock that *clock* names:
    kernel (stamped there) or received (when its first event was read). *duration_us* is
    from there to its end, None where one of them was not observed.
    *fingerprint* hashes what NAT leaves alone, so that the same packet has the same
    one in the next namespace. *in_device* and *out_device* are device names or None.
    *lost* counts the events that the socket lost while this journey was open;
    *complete* is False when some of them may have been this journey's.
    *whole* is False when tracing began behind the packet's first hook, so that
    earlier steps were not seen. *changes* is what changed where the packet passed no step
    at all that it could stand in: later packets of a connection that nat chains alone
    translate.
    """

    id: str
    fingerprint: str
    host: str
    netns: str
    start_ns: int
    packet: Packet
    in_device: str | None
    out_device: str | None
    steps: tuple[Step, ...]
    ending: Ending
    clock: str = "received"
    complete: bool = True
    lost: int = 0
    whole: bool = True
    duration_us: int | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)

    @property
    def all_changes(self) -> tuple[Mapping[str, Change], ...]:
        """All that changed, one mapping after the other in the order of the way."""
        return (*(step.changes for step in self.steps), self.changes)
