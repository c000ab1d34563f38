"""What the two readings of a batch, one by one and in step, hand to the decoder."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import numpy as np

from tracer.core.events import EVENT
from tracer.core.interning import UNPARSED
from tracer.core.transport import SPAN

__all__ = ["Fields", "Refusal", "TraceRows"]

#: One message's `EVENT` and its `SPAN`, as numbers.
Fields: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


class Refusal(IntEnum):
    """Why a message is no event; stands where an event has its step's number."""

    MALFORMED = -1
    FOREIGN = -2
    OVERFLOWED = -3
    IGNORED = -4


class TraceRows:
    """
    Columns of n messages, whatever each of them is.

    *numbers* `int32 (n,)`: the step's number, a `Refusal`, or UNPARSED. *events* `EVENT
    (n,)` without step and packet. *spans* `SPAN (n,)`.
    """

    def __init__(self, count: int) -> None:
        """Make *count* rows of which nothing is known."""
        self.numbers = np.full(count, UNPARSED, np.int32)
        self.events = np.zeros(count, EVENT)
        self.spans = np.zeros(count, SPAN)
