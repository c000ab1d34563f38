"""How the watch itself does: what its metrics are made from, beside drops and rules."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - dataclass fields
from dataclasses import dataclass, field

__all__ = ["Exemplar", "Health", "SourceHealth"]


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """
    One source: *source* is its name, as ebpf_drops, *netns* empty where it is the host's.

    *up*: it tells what it is there to tell. *events* and *lost* since the daemon's start.
    """

    source: str
    netns: str
    up: bool
    events: int = 0
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Exemplar:
    """
    A packet that a counter counted: the journey *journey_id* says how it died.

    The place is that of its `Ending`. *time_s* is seconds since the epoch.
    """

    netns: str
    journey_id: str
    time_s: float
    reason: str | None = None
    hook: str | None = None
    engine: str | None = None
    family: str | None = None
    table: str | None = None
    chain: str | None = None
    rule: int | None = None
    handle: int | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """
    What the daemon says of itself at one moment.

    *values* are further metrics by their names in `exporters.prometheus.METRICS`, each
    without labels. *loops* and *loop_s*: how often the daemon's wheel turned, and the
    seconds that it was busy. *can_attribute*: the engines and families whose drops are
    given to their rule, as ("nft", "inet"): a rule of theirs without a counter that
    dropped nothing is known to be at 0.
    """

    sources: tuple[SourceHealth, ...] = ()
    loops: int = 0
    loop_s: float = 0.0
    can_attribute: frozenset[tuple[str, str]] = frozenset()
    values: Mapping[str, float] = field(default_factory=dict)
