"""
From the words that name a step to the step's number, for a whole batch at once.

Each message brings a key: a few words that say all that a `TraceStep` says, in the
kernel's encoding. Keys are hashed (a multiply-add a word) and looked up in a sorted
table; a key that is not there is parsed once, as a message of its own.

**A hash decides nothing here.** It proposes a row, and the key is compared with that
row's words. So two keys with one hash, by chance or because the owner of a namespace
made them so (the sum is linear, it could be done with chain names), never get each
other's rule: the second is just parsed each time it comes. The comparison costs about
as much as a second hash would, and it is certain where that would be likely.

Two encodings of one step (another order, dirt in the padding) are two keys; they get
one number, because the number is looked up by the parsed step. So the table of keys is
a cache: how full it is has no influence on what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracer.core.mixing import finish, multipliers
from tracer.core.trace_steps import MAX_STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

__all__ = ["KEY_WORDS", "TAG_WORDS", "UNPARSED", "KeyCache", "KeySpans", "Keys", "join_spans"]

#: Words of a key that are looked up; longer ones are parsed each time. With chain, table
#: and target of 40 characters each a key has 46.
KEY_WORDS = 64

#: Words of a key that are not taken from the message as they are.
TAG_WORDS = 2

#: Keys that are remembered, at most 67 MB: as many as there can be steps.
_MAX_KEYS = MAX_STEPS

_FIRST_CAPACITY = 1_024
_MULTIPLIERS = multipliers(0x6B65_7973, KEY_WORDS)

#: No message's number.
UNPARSED = -(1 << 31)


@dataclass(frozen=True, slots=True)
class KeySpans:
    """
    Where the keys of n messages are.

    *tags* `uint32 (TAG_WORDS, n)` say what is not in the span; the low byte of the first
    is the span's size. *at* `(n,)` is the span's word index, *size* its words, at most
    KEY_WORDS - TAG_WORDS where *usable*; other messages have no key to look up.
    """

    tags: npt.NDArray[np.uint32]
    at: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    usable: npt.NDArray[np.bool_]


def join_spans(spans: Sequence[KeySpans]) -> KeySpans:
    """Put the spans of several kinds of message one behind the other."""
    return KeySpans(
        np.concatenate([each.tags for each in spans], axis=1),
        np.concatenate([each.at for each in spans]),
        np.concatenate([each.size for each in spans]),
        np.concatenate([each.usable for each in spans]),
    )


class Keys:
    """
    The usable keys of some messages, gathered.

    Shape: *messages* `(n,)` are where they are from. *columns* `(most, n)` has the words
    of one key below each other, zero behind its end; *counts* says how many keys have
    each row, since keys are sorted by size, largest first. *hashes* `uint64 (n,)`.
    """

    def __init__(
        self,
        words: npt.NDArray[np.uint32],
        spans: KeySpans,
        messages: npt.NDArray[np.int64],
    ) -> None:
        """Gather the usable ones of *spans*, which are those of *messages*."""
        usable = np.flatnonzero(spans.usable)
        falling = (KEY_WORDS - spans.size[usable]).astype(np.uint8)
        order = np.argsort(falling, kind="stable")
        falling, usable = falling[order], usable[order]
        self.messages = messages[usable]
        at, count = spans.at[usable], usable.size
        most = KEY_WORDS - int(falling[0]) if count else 0
        limits = np.arange(KEY_WORDS, KEY_WORDS - most, -1)
        self.counts = [count] * TAG_WORDS + np.searchsorted(falling, limits).tolist()
        self.columns = np.zeros((TAG_WORDS + most, count), np.uint32)
        self.columns[:TAG_WORDS] = spans.tags[:, usable]
        sums = np.zeros(count, np.uint64)
        for row, having in enumerate(self.counts):
            column = self.columns[row, :having]
            if row >= TAG_WORDS:
                column[:] = words.take(at[:having] + (row - TAG_WORDS))
            sums[:having] += column.astype(np.uint64) * _MULTIPLIERS[row]
        self.hashes = finish(sums)


class KeyCache:
    """The numbers of keys already seen, at most *limit* of them."""

    def __init__(self, limit: int = _MAX_KEYS) -> None:
        """Begin with no keys."""
        self._limit = limit
        self._words = np.zeros((KEY_WORDS, _FIRST_CAPACITY), np.uint32)
        self._numbers = np.zeros(_FIRST_CAPACITY, np.int32)
        self._hashes = np.zeros(0, np.uint64)
        self._rows = np.zeros(0, np.int64)

    def intern(
        self, keys: Keys, numbers: npt.NDArray[np.int32], parse: Callable[[int], int]
    ) -> None:
        """
        Give every message that is UNPARSED in *numbers* its number, in place.

        Shape: *numbers* has one element for each message of the batch. Messages
        without a key are parsed. *parse* must give equal numbers for equal keys; it is
        called in rising order, so that new steps are numbered as they first occur.
        """
        found = self._find(keys)
        numbers[keys.messages] = found
        new = np.flatnonzero(found == UNPARSED)
        if new.size:
            fresh = _first_of_each(keys, new)
            pending = numbers == UNPARSED
            pending[keys.messages[new]] = False
            pending[keys.messages[fresh]] = True
            _parse_all(pending, numbers, parse)
            self._remember(keys, fresh, numbers[keys.messages[fresh]])
            again = new[numbers[keys.messages[new]] == UNPARSED]
            numbers[keys.messages[again]] = self._find(keys)[again]
        # Without a key, or with another key's hash, or the table is full.
        _parse_all(numbers == UNPARSED, numbers, parse)

    def _find(self, keys: Keys) -> npt.NDArray[np.int32]:
        """Look keys up, in the keys' own order; UNPARSED where they are not there."""
        if not self._hashes.size:
            return np.full(keys.hashes.size, UNPARSED, np.int32)
        place = np.searchsorted(self._hashes, keys.hashes)
        row = self._rows.take(place, mode="clip")
        same = np.ones(row.size, np.bool_)
        for words, column, count in zip(self._words, keys.columns, keys.counts, strict=False):
            same[:count] &= words.take(row[:count]) == column[:count]
        return np.where(same, self._numbers.take(row), np.int32(UNPARSED))

    def _remember(
        self, keys: Keys, places: npt.NDArray[np.int64], numbers: npt.NDArray[np.int32]
    ) -> None:
        """Add keys, all of different hash, as far as there is room and no other has the hash."""
        hashes = keys.hashes[places]
        at = np.searchsorted(self._hashes, hashes)
        if self._hashes.size:
            taken = self._hashes.take(at, mode="clip") == hashes
            places, numbers, hashes, at = (
                places[~taken],
                numbers[~taken],
                hashes[~taken],
                at[~taken],
            )
        count = self._hashes.size
        room = self._limit - count
        places, numbers, hashes, at = places[:room], numbers[:room], hashes[:room], at[:room]
        self._grow(count + places.size)
        rows = np.arange(count, count + places.size)
        self._words[: len(keys.columns), rows] = keys.columns[:, places]
        self._numbers[rows] = numbers
        self._hashes = np.insert(self._hashes, at, hashes)
        self._rows = np.insert(self._rows, at, rows)

    def _grow(self, needed: int) -> None:
        capacity = self._numbers.size
        if needed <= capacity:
            return
        while capacity < needed:
            capacity *= 2
        more = capacity - self._numbers.size
        self._words = np.pad(self._words, ((0, 0), (0, more)))
        self._numbers = np.pad(self._numbers, (0, more))


def _first_of_each(keys: Keys, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Choose of *places* the earliest message's for each hash, sorted by hash."""
    rising = places[np.argsort(keys.messages[places], kind="stable")]
    _, first = np.unique(keys.hashes[rising], return_index=True)
    return rising[first]


def _parse_all(
    pending: npt.NDArray[np.bool_],
    numbers: npt.NDArray[np.int32],
    parse: Callable[[int], int],
) -> None:
    for message in np.flatnonzero(pending).tolist():
        numbers[message] = parse(message)
