"""Journeys as rows of the log, and back as the values that were put in."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from exporters.json_lines import render_journey
from tracer.core.journey import Ending, EndingKind, Journey, Packet, Step, Verdict
from tracer.core.log_rows import packet_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from tracer.core.log_rows import Columns

__all__ = ["StoredJourney", "journey_columns", "read_journey"]

_PLACE = {"hook": "hook", "engine": "engine", "table_family": "family", "table_name": "table"}


@dataclass(frozen=True, slots=True)
class StoredJourney:
    """A journey with its packet's headers as they were traced."""

    journey: Journey
    network: bytes
    transport: bytes


def journey_columns(journeys: Sequence[Journey], packets: npt.NDArray[np.void]) -> Columns:
    """
    Return journeys as `JOURNEYS`' columns.

    Shape: *packets* `PACKET (n,)`, the headers of each as it was first seen.
    """
    endings = [journey.ending for journey in journeys]
    raw = packets["raw"]
    return {
        **packet_columns(packets),
        "time_ns": [journey.start_ns for journey in journeys],
        "netns": [journey.netns for journey in journeys],
        "in_device": [journey.in_device or "" for journey in journeys],
        "device": [j.out_device or j.ending.device or "" for j in journeys],
        "ending": [ending.kind.value for ending in endings],
        **{name: [getattr(e, member) or "" for e in endings] for name, member in _PLACE.items()},
        "chain": [ending.chain or "" for ending in endings],
        "rule": [ending.rule or 0 for ending in endings],
        "handle": [ending.handle or 0 for ending in endings],
        "reason": [ending.reason or "" for ending in endings],
        "complete": [int(journey.complete) for journey in journeys],
        "lost": [journey.lost for journey in journeys],
        "id": [journey.id for journey in journeys],
        "json": [render_journey(journey) for journey in journeys],
        "network": [raw[i, :n].tobytes() for i, n in enumerate(packets["network_length"].tolist())],
        "transport": [
            raw[i, 40 : 40 + n].tobytes()
            for i, n in enumerate(packets["transport_length"].tolist())
        ],
    }


def read_journey(line: str, start_ns: int) -> Journey:
    """
    Return the journey that a line of `nftrace.journey/1` tells.

    Units: *start_ns* is nanoseconds since the epoch; the line has only microseconds.
    Errors: ValueError for what is no such line.
    """
    try:
        told = json.loads(line)
        ending = _of(Ending, told["ending"])
        kind = EndingKind(told["ending"]["kind"])
        # `out` is the way out, whether it was planned (journey) or observed (ending).
        sent = told["out"] if kind is EndingKind.SENT else None
        return Journey(
            **{name: told[name] for name in ("id", "fingerprint", "host", "netns")},
            **{name: told[name] for name in ("clock", "complete", "lost", "whole", "duration_us")},
            start_ns=start_ns,
            packet=Packet(**_of(Packet, told["packet"])),
            in_device=told["in"],
            out_device=told["out"],
            steps=tuple(_step(step) for step in told["steps"]),
            changes=_changes(told.get("changes", {})),
            ending=Ending(**{**ending, "kind": kind, "device": sent}),
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"not a journey: {exc}") from exc


def _step(told: dict[str, Any]) -> Step:
    values = _of(Step, told)
    changes = _changes(told["changes"])
    return Step(**{**values, "verdict": Verdict(told["verdict"]), "changes": changes})


def _changes(told: dict[str, Any]) -> dict[str, Any]:
    return {name: (before, after) for name, (before, after) in told.items()}


def _of(kind: type[Packet | Step | Ending], told: dict[str, Any]) -> dict[str, Any]:
    """Return of *told* what *kind* has: a later version may have added to it."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in told.items() if name in names}
