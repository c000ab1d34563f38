"""
Trace messages to columns: nft's and NFLOG's, mixed, a batch at a time.

There are two readings of a batch with one result, byte for byte. A large batch is read
in step (`attributes.walk`), which takes some 200 array operations whatever its size; a
small one message by message. Both find the same spans; what is in the packets is read
from these in one place, `headers.read_packets`.

Everything in a message can lie. A message that is not what it claims is counted and
passed over, and what is read for one message never lies outside it, so that a bad one
does its neighbours no harm. Nothing here raises for what a message holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from tracer.core import nflog, nft_trace
from tracer.core.attributes import HEADERS_SIZE, walk_one
from tracer.core.events import NO_PACKET, TraceBatch
from tracer.core.headers import read_packets
from tracer.core.interning import UNPARSED, KeyCache, Keys, join_spans
from tracer.core.trace_rows import Refusal, TraceRows
from tracer.core.trace_steps import MAX_STEPS, StepTable

if TYPE_CHECKING:
    import numpy.typing as npt

    from tracer.core.attributes import Spots
    from tracer.core.trace_rows import Fields
    from tracer.core.trace_steps import TraceStep

    Words = npt.NDArray[np.uint32]
    Indexes = npt.NDArray[np.int64]

__all__ = ["PLAIN_BELOW", "TraceDecoder", "message_types"]

#: Batches of fewer messages are read one by one: measured, below this that is faster.
PLAIN_BELOW = 64

#: nlmsghdr: shorter messages have no type.
_NLMSGHDR_SIZE = 16

#: Bytes kept of a malformed message: a log line of hexadecimal digits.
_KEPT = 256

_READERS = {reader.MESSAGE_TYPE: reader for reader in (nft_trace, nflog)}


def message_types(words: Words, starts: Indexes) -> npt.NDArray[np.uint16]:
    """
    Return each message's nlmsg_type; 0 (no type of the kernel's) for a start outside *words*.

    Shape: as in `TraceDecoder.decode`; the result is `uint16 (n,)`.
    """
    inside = (starts >= 0) & (starts < words.size - 1)
    kinds = np.zeros(starts.size, np.uint16)
    kinds[inside] = words.take(starts[inside] + 1) & np.uint32(0xFFFF)
    return kinds


class TraceDecoder:
    """
    Decodes the messages of one socket; keeps the steps and what was refused.

    *malformed* counts messages that are not what they claim, *last_malformed* has the
    latest one's first 256 bytes. *foreign* counts NFLOG packets that no TRACE logged.
    Events of new steps that find the table full are in `table.overflowed`. What was lost
    before it came here is the socket's to count.
    """

    def __init__(self, *, max_steps: int = MAX_STEPS, plain_below: int = PLAIN_BELOW) -> None:
        """Begin with no steps; *plain_below* is there to compare the two readings."""
        self.table: Final = StepTable(max_steps)
        self.malformed = 0
        self.foreign = 0
        self.last_malformed: bytes | None = None
        self._plain_below = plain_below
        self._cache = KeyCache()
        self._known: dict[tuple[int | bytes, ...], int] = {}

    def decode(self, words: Words, starts: Indexes, lengths: Indexes) -> TraceBatch:
        """
        Decode n messages; rows are in their order, one for each that is an event.

        Shape: *words* is a flat little-endian view of a buffer; message i begins with its
        nlmsghdr at word `starts[i]` and is `lengths[i]` bytes long, both `int64 (n,)`.
        Messages of other types are ignored.
        """
        words = np.ascontiguousarray(words, "<u4").reshape(-1)
        starts, lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
        if starts.size < self._plain_below:
            rows = self._read_one_by_one(words, starts, lengths)
        else:
            rows = self._read_in_step(words, starts, lengths)
        self._count(words, starts, lengths, rows)
        return _batch(words, rows)

    def _read_one_by_one(self, words: Words, starts: Indexes, lengths: Indexes) -> TraceRows:
        rows = TraceRows(starts.size)
        numbers: list[int] = []
        fields: list[tuple[int, Fields]] = []
        for place, (start, length) in enumerate(
            zip(starts.tolist(), lengths.tolist(), strict=True)
        ):
            message = _cut(words, start, length)
            number, found = self._read(message)
            numbers.append(number)
            if found is None:
                continue
            reader = _READERS[int.from_bytes(message[4:6], "little")]
            fields.append((place, reader.read_one(start, message, found)))
        rows.numbers[:] = numbers
        if fields:
            places = [place for place, _ in fields]
            rows.events[places] = [event for _, (event, _) in fields]
            rows.spans[places] = [span for _, (_, span) in fields]
        return rows

    def _read_in_step(self, words: Words, starts: Indexes, lengths: Indexes) -> TraceRows:
        rows = TraceRows(starts.size)
        kinds = message_types(words, starts)
        whole = (starts >= 0) & (starts < words.size) & (lengths >= _NLMSGHDR_SIZE)
        whole &= lengths <= (words.size - starts) * 4
        rows.numbers[:] = np.where(whole, Refusal.IGNORED, Refusal.MALFORMED)
        keys, messages = [], []
        for reader in _READERS.values():
            of_kind = whole & (kinds == reader.MESSAGE_TYPE)
            rows.numbers[of_kind] = Refusal.MALFORMED
            at = np.flatnonzero(of_kind & (lengths >= HEADERS_SIZE))
            if at.size:
                rows.numbers[at] = UNPARSED
                every = slice(None) if at.size == starts.size else at
                keys.append(reader.read_many(words, starts[at], lengths[at], rows, every))
                messages.append(at)
        if keys:
            joined = Keys(words, join_spans(keys), np.concatenate(messages))

            def parse(place: int) -> int:
                return self._read(_cut(words, int(starts[place]), int(lengths[place])))[0]

            self._cache.intern(joined, rows.numbers, parse)
        return rows

    def _read(self, message: bytes) -> tuple[int, Spots | None]:
        """Return a message's number, and its attributes if it has sound ones."""
        kind = int.from_bytes(message[4:6], "little")
        reader = _READERS.get(kind)
        if reader is None and len(message) >= _NLMSGHDR_SIZE:
            return Refusal.IGNORED, None
        if reader is None or len(message) < HEADERS_SIZE:
            return Refusal.MALFORMED, None
        found = walk_one(message, reader.LAYOUT)
        if found is None:
            return Refusal.MALFORMED, None
        key = (kind, *reader.read_key(message, found))
        number = self._known.get(key)
        if number is None:
            number = self._number(reader.read_step(message, found))
            if len(self._known) < self.table.limit:
                self._known[key] = number
        return number, found

    def _number(self, step: TraceStep | Refusal) -> int:
        if isinstance(step, Refusal):
            return step
        number = self.table.find_or_add(step)
        return Refusal.OVERFLOWED if number is None else number

    def _count(self, words: Words, starts: Indexes, lengths: Indexes, rows: TraceRows) -> None:
        if not (rows.numbers < 0).any():
            return
        malformed = np.flatnonzero(rows.numbers == Refusal.MALFORMED)
        if malformed.size:
            self.malformed += malformed.size
            last = malformed[-1]
            start, length = int(starts[last]), int(lengths[last])
            kept = words[start : start + _KEPT // 4] if start >= 0 else words[:0]
            self.last_malformed = kept.tobytes()[: max(0, length)]
        self.foreign += int(np.count_nonzero(rows.numbers == Refusal.FOREIGN))
        self.table.overflowed += int(np.count_nonzero(rows.numbers == Refusal.OVERFLOWED))


def _cut(words: Words, start: int, length: int) -> bytes:
    """Return a message's bytes; none if it does not lie within *words* or has no type."""
    if not (0 <= start < words.size and _NLMSGHDR_SIZE <= length <= (words.size - start) * 4):
        return b""
    return words[start : start + (length + 3) // 4].tobytes()[:length]


def _batch(words: Words, rows: TraceRows) -> TraceBatch:
    places = np.flatnonzero(rows.numbers >= 0)
    events, spans = rows.events[places], rows.spans[places]
    has_packet = spans["network_size"] > 0
    events["step"] = rows.numbers[places]
    events["packet"] = np.where(has_packet, np.cumsum(has_packet) - 1, NO_PACKET)
    return TraceBatch(events, read_packets(words, spans[has_packet]))
