"""Finding the dropping rules of a legacy table in its bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.core.drop_rules import DroppingRule, find_dropping_rules

_STANDARD, _ERROR, _REJECT, _MARK = 0x1000, 0x2000, 0x3000, 0x4000
_NAMES = {_STANDARD: "", _ERROR: "ERROR", _REJECT: "REJECT", _MARK: "MARK"}
_SIZES = {"ip": (88, 96, 112), "ip6": (140, 152, 168)}
_DROP, _ACCEPT, _RETURN = -1, -2, -5


def _entry(family: str, target: int, data: bytes, counter: int = 0, matches: int = 0) -> bytes:
    offsets_at, counter_at, header = _SIZES[family]
    target_offset = header + matches
    block = bytearray(target_offset + 32) + data
    struct.pack_into("<HH", block, offsets_at, target_offset, len(block))
    struct.pack_into("<Q", block, counter_at, counter)
    struct.pack_into("<Q", block, target_offset + 8, target)
    return bytes(block)


def _verdict(family: str, number: int, counter: int = 0) -> bytes:
    return _entry(family, _STANDARD, struct.pack("<i4x", number), counter, matches=40)


def _chain(family: str, name: bytes) -> bytes:
    return _entry(family, _ERROR, name.ljust(32, b"\0"))


def _table(family: str) -> tuple[bytes, list[int | None], list[int | None]]:
    """Build PREROUTING (mark, drop, policy drop), chain FW (accept, reject, drop, return)."""
    base = [
        _entry(family, _MARK, bytes(16)),
        _verdict(family, _DROP, 0xA1),
        _verdict(family, _DROP, 0xA2),
    ]
    user = [
        _chain(family, b"FW"),
        _verdict(family, _ACCEPT),
        _entry(family, _REJECT, bytes(8), 0xB2),
        _verdict(family, _DROP, 0xB3),
        _verdict(family, _RETURN),
        _chain(family, b"ERROR"),
    ]
    policy = len(base[0]) + len(base[1])
    return b"".join(base + user), [0, None, None, None, None], [policy, None, None, None, None]


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_rules_are_numbered_as_iptables_save_prints_them(family: str) -> None:
    """DROP, REJECT and a policy of DROP are found, each with its counter's address."""
    expected = [
        DroppingRule("PREROUTING", 2, "DROP", 0xA1),
        DroppingRule("PREROUTING", None, "DROP", 0xA2),
        DroppingRule("FW", 2, "REJECT", 0xB2),
        DroppingRule("FW", 3, "DROP", 0xB3),
    ]

    assert expected == find_dropping_rules(_table(family)[0], family, *_table(family)[1:], _name)


def _name(address: int) -> str:
    return _NAMES.get(address, "UNKNOWN")


@settings(deadline=None)  # the machine may be busy
@given(st.integers(0, 2000))
def test_a_cut_table_gives_a_part_of_its_rules(length: int) -> None:
    """At every length the rules before the cut are found, and none is made up."""
    blob, starts, ends = _table("ip")
    whole = find_dropping_rules(blob, "ip", starts, ends, _name)
    part = find_dropping_rules(blob[:length], "ip", starts, ends, _name)

    assert whole[: len(part)] == part


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=600))
def test_noise_ends(noise: bytes) -> None:
    """Any bytes come to an end, without an error."""
    assert len(find_dropping_rules(noise, "ip6", [0] * 5, [0] * 5, _name)) <= len(noise)


@pytest.mark.parametrize(("target", "following"), [(0, 0), (200, 100), (112, 0xFFFF), (8, 152)])
def test_lying_offsets_are_not_believed(target: int, following: int) -> None:
    """Offsets that lead back, out or into the header end the list."""
    blob, starts, ends = _table("ip")
    broken = bytearray(blob)
    struct.pack_into("<HH", broken, 88, target, following)

    assert [] == find_dropping_rules(bytes(broken), "ip", starts, ends, _name)
