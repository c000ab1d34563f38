"""Keys of steps are looked up by hash and told apart by their words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tracer.core.interning import KEY_WORDS, TAG_WORDS, UNPARSED, KeyCache, Keys, KeySpans


def keys_of(rows: list[list[int]]) -> Keys:
    """Return the keys of messages whose spans hold the given words."""
    size = np.array([len(row) for row in rows], np.int64)
    words = np.array([word for row in rows for word in row], "<u4")
    tags = np.zeros((TAG_WORDS, len(rows)), np.uint32)
    tags[0] = size
    at = np.cumsum(size) - size
    spans = KeySpans(tags, at, size, np.ones(len(rows), np.bool_))
    return Keys(words, spans, np.arange(len(rows)))


class Parser:
    """Numbers messages by their words as they come, and remembers which it was asked for."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        self.asked: list[int] = []
        self.known: dict[tuple[int, ...], int] = {}

    def __call__(self, message: int) -> int:
        """Return the message's number."""
        self.asked.append(message)
        return self.known.setdefault(tuple(self.rows[message]), len(self.known))


def intern(cache: KeyCache, parser: Parser, keys: Keys | None = None) -> list[int]:
    """Return the numbers of a parser's messages."""
    numbers = np.full(len(parser.rows), UNPARSED, np.int32)
    cache.intern(keys_of(parser.rows) if keys is None else keys, numbers, parser)
    return numbers.tolist()


ROWS = [[7, 8], [7], [7, 8], [7, 8, 0], [1] * (KEY_WORDS - TAG_WORDS), [7]]


def test_each_key_is_parsed_once_in_the_order_of_the_messages() -> None:
    """Equal keys have one number, unequal ones different ones, also with zeros behind."""
    cache, parser = KeyCache(), Parser(ROWS)

    assert [0, 1, 0, 2, 3, 1] == intern(cache, parser)
    assert [0, 1, 3, 4] == parser.asked
    parser.asked.clear()
    assert [0, 1, 0, 2, 3, 1] == intern(cache, parser)
    assert [] == parser.asked


def test_keys_of_one_hash_are_never_taken_for_each_other() -> None:
    """Even if every key had the same hash, each would get its own number."""
    cache, parser = KeyCache(), Parser(ROWS)
    for _ in range(2):
        keys = keys_of(ROWS)
        keys.hashes[:] = 5

        assert [0, 1, 0, 2, 3, 1] == intern(cache, parser, keys)


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_full_cache_costs_time_and_changes_nothing(limit: int) -> None:
    """Keys for which there is no room are parsed each time."""
    cache, parser = KeyCache(limit), Parser(ROWS)
    for _ in range(2):
        assert [0, 1, 0, 2, 3, 1] == intern(cache, parser)


def test_thousands_of_keys_are_found_again() -> None:
    """The table grows, and every key is found by later batches."""
    rows: Any = [[number, number * 3, 1] for number in range(5003)]
    cache, parser = KeyCache(), Parser(rows)
    assert list(range(5003)) == intern(cache, parser)
    parser.asked.clear()

    assert list(range(5003)) == intern(cache, parser)
    assert [] == parser.asked
