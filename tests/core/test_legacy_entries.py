"""Laws of reading a legacy table's block: whose entry is whose, and what may change."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.legacy_entries import EntriesLayout, EntryRow, lay_out_entries

HEAD = {"ip": (88, 112), "ip6": (140, 168)}


def entry(family: str, packets: int, octets: int, name: bytes = b"", data: bytes = b"") -> bytes:
    """Give an entry with no match, whose target is called *name*."""
    offsets_at, head = HEAD[family]
    data += bytes(-len(data) % 8)
    size = head + 32 + len(data)
    raw = bytearray(head)
    struct.pack_into("<HH", raw, offsets_at, head, size)
    struct.pack_into("<QQ", raw, head - 16, packets, octets)
    target = struct.pack("<H29sB", 32 + len(data), name, 0)
    return bytes(raw) + target + data


def error(family: str, name: bytes) -> bytes:
    """Give the entry that heads a user chain, or ends the table."""
    return entry(family, 0, 0, b"ERROR", name.ljust(30, b"\0"))


def build(
    family: str, packets: tuple[int, ...]
) -> tuple[bytes, list[int | None], list[int | None]]:
    """Give a table on input alone: two rules and a policy, and a user chain of one rule."""
    first, second, policy = (entry(family, n, n * 10, data=b"v" * 8) for n in packets[:3])
    user = error(family, b"own") + entry(family, packets[3], packets[3] * 10, b"LOG", b"x" * 16)
    implicit = entry(family, 999, 999, data=b"v" * 8)
    block = first + second + policy + user + implicit + error(family, b"ERROR")
    starts: list[int | None] = [None, 0, None, None, None]
    ends: list[int | None] = [None, len(first) + len(second), None, None, None]
    return block, starts, ends


def lay_out(family: str, packets: tuple[int, ...]) -> tuple[bytes, EntriesLayout]:
    """Give a table's block and its layout."""
    block, starts, ends = build(family, packets)
    return block, lay_out_entries(block, family, starts, ends)


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_each_rule_has_its_chain_number_and_counter(family: str) -> None:
    """Rules and policy are told in order, and no entry that nobody wrote."""
    block, found = lay_out(family, (2, 3, 5, 7))

    assert (
        EntryRow("INPUT", 1),
        EntryRow("INPUT", 2),
        EntryRow("INPUT", None),
        EntryRow("own", 1),
    ) == found.rows
    assert [[2, 3, 5, 7], [20, 30, 50, 70]] == found.counters(block).tolist()


def test_counters_alone_do_not_make_another_table() -> None:
    """Other numbers fit, another byte or length does not."""
    block, found = lay_out("ip", (2, 3, 5, 7))
    later, _ = lay_out("ip", (11, 13, 17, 19))
    other = bytearray(block)
    other[112 + 32] ^= 1

    assert found.fits(later)
    assert [11, 13, 17, 19] == found.counters(later)[0].tolist()
    assert not found.fits(bytes(other))
    assert not found.fits(block[:-8])


def test_cut_at_each_byte_it_has_the_entries_that_are_whole() -> None:
    """A block that ends too early has fewer rows, and nothing is raised or read beyond it."""
    block, starts, ends = build("ip", (2, 3, 5, 7))
    sizes = []
    for end in range(len(block) + 1):
        found = lay_out_entries(block[:end], "ip", starts, ends)
        assert (2, len(found.rows)) == found.counters(block[:end]).shape
        sizes.append(len(found.rows))

    # The row of the implicit RETURN is there until the entry behind it says what it is.
    assert [0, 1, 2, 3, 4, 5, 4] == [
        n for at, n in enumerate(sizes) if n != sizes[at - 1] or not at
    ]


@given(st.data())
def test_no_length_leads_out_of_the_block(data: st.DataObject) -> None:
    """Whatever two bytes of it say, every counter that is found lies within the block."""
    block, starts, ends = build("ip", (2, 3, 5, 7))
    at = data.draw(st.integers(0, len(block) - 2))
    lying = block[:at] + data.draw(st.binary(min_size=2, max_size=2)) + block[at + 2 :]

    found = lay_out_entries(lying, "ip", starts, ends)

    assert found.fits(lying)
    assert (2, len(found.rows)) == found.counters(lying).shape


@given(st.binary(max_size=600), st.sampled_from(["ip", "ip6"]))
def test_any_bytes_are_taken(block: bytes, family: str) -> None:
    """Bytes that are no block have no rows, or fewer."""
    found = lay_out_entries(block, family, [0] * 5, [None] * 5)

    assert found.fits(block)
