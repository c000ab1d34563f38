"""Who lost most: pairs by weight, in bounded memory."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bpf.layout import DROP_RECORD
from tracer.core.drop_talkers import Talkers
from tracer.core.drops import DropCount

_KIND = DropCount(7, "NO_SOCKET", 0, 0)


def _record(last: int, dport: int, *, weight: int = 1, ttl: int = 64) -> np.void:
    record = np.zeros(1, DROP_RECORD)
    header = struct.pack(
        "!BBHHHBBH4B4B", 0x45, 0, 28, 1, 0, ttl, 17, 0, *(10, 0, 0, last), *(10, 0, 1, 1)
    )
    raw = header.ljust(40, b"\0") + struct.pack("!HHHH", 4000, dport, 8, 0).ljust(20, b"\0")
    record["raw"] = np.frombuffer(raw, np.uint8)
    record["lengths"] = (20, 8)
    record["weight"] = weight
    return record[0]


def _talkers(*records: np.void) -> Talkers:
    talkers = Talkers()
    talkers.add([_KIND], np.zeros(len(records), np.intp), np.array(list(records), DROP_RECORD))
    return talkers


def test_the_heaviest_pair_comes_first() -> None:
    """One record that stands for 13 packets is more than seven that stand for themselves."""
    top = _talkers(*[_record(1, 53)] * 7, _record(2, 80, weight=13)).top(_KIND)

    assert top is not None
    assert ("udp", "10.0.0.2", "10.0.1.1:80", "10.0.1.1", 13 / 20) == top[:5]


def test_packets_without_ttl_are_told_by_their_majority() -> None:
    """Three of five with a TTL of 1 or less have expired, two of five have not."""
    expired = _record(1, 53, ttl=1)
    living = _record(1, 53, ttl=2)

    assert [True, False] == [
        _talkers(*[expired] * count, *[living] * (5 - count)).top(_KIND).expired  # type: ignore[union-attr]
        for count in (3, 2)
    ]


def test_what_nothing_was_recorded_of_has_no_talker() -> None:
    """Neither an unknown kind nor one of packets that are not IP names anybody."""
    talkers = _talkers(np.zeros(1, DROP_RECORD)[0])

    assert (None, None) == (talkers.top(_KIND), talkers.top(DropCount(8, "XDP", 0, 0)))


def test_forged_sources_do_not_fill_the_memory() -> None:
    """Beyond the limit of pairs new ones are not kept, those that are there go on counting."""
    talkers = _talkers(*[_record(n % 251, n // 251 + 1) for n in range(2003)])
    talkers.add([_KIND], np.zeros(1, np.intp), np.array([_record(0, 1, weight=11)], DROP_RECORD))
    top = talkers.top(_KIND)

    assert top is not None
    assert ("10.0.0.0", "10.0.1.1:1", 12 / 2014) == (top.source, top.destination, top.share)


@given(st.binary(min_size=DROP_RECORD.itemsize, max_size=DROP_RECORD.itemsize))
def test_any_record_is_survived(raw: bytes) -> None:
    """Whatever stands in a record, the kind has no top talker or one with a share."""
    top = _talkers(np.frombuffer(raw, DROP_RECORD)[0]).top(_KIND)

    assert top is None or 0 <= top.share <= 1
