"""
Netlink attributes of many messages at once, and of one.

A message is a chain of type-length-value attributes, each beginning where the last one
ends, so one message cannot be read in parallel with itself. But all messages of a batch
can be walked in step: the first attribute of every message, then the second of every
message, and so on. The cost is attributes for each message, whatever the number of
layouts: 300 chains of different names are as fast as one.

Both readings take a message for malformed as a whole if one attribute is shorter than
its kind allows or runs past the message. Up to three bytes behind the last attribute
are ignored, as the kernel's own parser does. The last of two equal attributes counts.

Source: nla_parse() in lib/nlattr.c; struct nlattr in include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from tracer.core.protocols import ATTRIBUTE_HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

__all__ = [
    "HEADERS_SIZE",
    "Layout",
    "Spots",
    "Walk",
    "be32",
    "families",
    "fill",
    "sizes",
    "walk",
    "walk_one",
]

#: nlmsghdr (16 bytes) and nfgenmsg (4): where the attributes of a message begin.
HEADERS_SIZE = 20

#: Begin and end of attributes' values in bytes of their message, by type.
Spots: TypeAlias = dict[int, tuple[int, int]]

#: The two top bits of an attribute's type are flags (nested, byte order).
_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("<HH").unpack_from


class Layout:
    """
    Which attributes a kind of message is read for.

    *minimum* maps each wanted type to the least size its value may have, in bytes.
    `slot` maps it to its row in `Walk.at`.
    """

    def __init__(self, minimum: Mapping[int, int]) -> None:
        """Make the tables, by type with its two flag bits, that `walk` looks types up in."""
        self.sizes = {kind: size + ATTRIBUTE_HEADER for kind, size in minimum.items()}
        self.slot = {kind: row for row, kind in enumerate(minimum, start=1)}
        kinds = np.arange(1 << 16) & _TYPE_MASK
        self.slots = np.zeros(1 << 16, np.int64)
        self.least = np.full(1 << 16, ATTRIBUTE_HEADER, np.int64)
        for kind, size in self.sizes.items():
            self.slots[kinds == kind] = self.slot[kind]
            self.least[kinds == kind] = size


@dataclass(frozen=True, slots=True)
class Walk:
    """
    Where the wanted attributes of n messages are.

    *at* is `int64 (slots, n)`: word index of the attribute's header, 0 if absent (no
    attribute can stand at word 0). Row 0 is scratch. *sound* is `bool (n,)`: False for
    malformed messages, whose columns mean nothing.
    """

    at: npt.NDArray[np.int64]
    sound: npt.NDArray[np.bool_]

    def columns(self, layout: Layout) -> dict[int, npt.NDArray[np.int64]]:
        """Return `at` by the attributes' types."""
        return {kind: self.at[slot] for kind, slot in layout.slot.items()}


def families(
    words: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    """Return each message's nfgen_family."""
    return words.take(starts + 4) & np.uint32(0xFF)


def fill(
    events: npt.NDArray[np.void],
    rows: npt.NDArray[np.int64] | slice,
    words: npt.NDArray[np.uint32],
    places: dict[str, npt.NDArray[np.int64]],
) -> None:
    """Write the first word of each attribute at *places* into the column of its name."""
    for name, at in places.items():
        events[name][rows] = be32(words, at)


def walk(
    words: npt.NDArray[np.uint32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    layout: Layout,
) -> Walk:
    """
    Find the attributes of all messages, walking them in step.

    Shape: *starts* `(n,)` word indexes, *lengths* `(n,)` bytes, each message of at least
    `HEADERS_SIZE` bytes and within *words*. Nothing outside a message is read. Never
    raises for what the messages hold.
    """
    count = starts.size
    found = np.zeros((len(layout.slot) + 1, count), np.int64)
    flat = found.reshape(-1)
    sound = np.ones(count, np.bool_)
    index = np.arange(count)
    at = starts + HEADERS_SIZE // 4
    left = lengths - HEADERS_SIZE
    keep = left >= ATTRIBUTE_HEADER
    while True:
        if not keep.all():
            at, left, index = at[keep], left[keep], index[keep]
        if not at.size:
            return Walk(found, sound)
        header = words.take(at)
        size = (header & np.uint32(0xFFFF)).astype(np.int64)
        kind = (header >> np.uint32(16)).astype(np.int64)
        bad = (size < layout.least.take(kind)) | (size > left)
        if bad.any():
            sound[index[bad]] = False
            keep = ~bad
            size, kind, at, left, index = size[keep], kind[keep], at[keep], left[keep], index[keep]
        flat[layout.slots.take(kind) * count + index] = at
        step = (size + 3) >> 2
        at = at + step
        left = left - (step << 2)
        keep = left >= ATTRIBUTE_HEADER


def be32(
    words: npt.NDArray[np.uint32], at: npt.NDArray[np.int64], absent: int = 0
) -> npt.NDArray[np.uint32]:
    """Return the first word of each attribute's value, in host order; *absent* where at is 0."""
    has = np.flatnonzero(at)
    if has.size == at.size:
        return words.take(at + 1).byteswap()
    values = np.full(at.size, absent, np.uint32)
    values[has] = words.take(at[has] + 1).byteswap()
    return values


def sizes(words: npt.NDArray[np.uint32], at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the size of each attribute with its header, in bytes; 0 where *at* is 0."""
    has = np.flatnonzero(at)
    if has.size == at.size:
        return (words.take(at) & np.uint32(0xFFFF)).astype(np.int64)
    found = np.zeros(at.size, np.int64)
    found[has] = words.take(at[has]) & np.uint32(0xFFFF)
    return found


def walk_one(message: bytes, layout: Layout, at: int = HEADERS_SIZE) -> Spots | None:
    """
    Find one message's attributes: value's begin and end in bytes by type; None if malformed.

    Shape: *message* begins at its nlmsghdr, its attributes at byte *at*. The same rules
    as `walk`, but attributes that *layout* does not want are found as well.
    """
    found: Spots = {}
    least = layout.sizes
    end = len(message)
    while end - at >= ATTRIBUTE_HEADER:
        size, kind = _HEADER(message, at)
        kind &= _TYPE_MASK
        if size < least.get(kind, ATTRIBUTE_HEADER) or size > end - at:
            return None
        found[kind] = (at + 4, at + size)
        at += (size + 3) & ~3
    return found
