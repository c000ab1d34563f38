"""Which announcements mean that the rules are others now."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.core.announcements import find_generation, is_ruleset_change

NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE = 0, 2, 3, 5, 6, 8
NEWSET, NEWELEM, NEWGEN = 9, 12, 15
CHANGES = (NEWTABLE, DELTABLE, NEWCHAIN, DELCHAIN, NEWRULE, DELRULE)
NF_TABLES, CTNETLINK = 10, 1
TABLE = b"filter\0"
OWN = b"nftrace_follow_17\0"


def _attribute(kind: int, value: bytes, length: int | None = None) -> bytes:
    length = len(value) + 4 if length is None else length
    return struct.pack("=HH", length, kind) + value + bytes(-len(value) % 4)


def _message(
    kind: int,
    table: bytes = TABLE,
    *,
    before: bytes = b"",
    subsystem: int = NF_TABLES,
    length: int | None = None,
) -> bytes:
    body = struct.pack("=BBH", 2, 0, 0) + before + _attribute(1, table) + _attribute(7, b"12345")
    total = 16 + len(body) if length is None else length
    return struct.pack("=IHHII", total, subsystem << 8 | kind, 0, 0, 0) + body


@pytest.mark.parametrize("kind", CHANGES)
def test_tables_chains_and_rules_are_changes(kind: int) -> None:
    """What makes or removes a table, a chain or a rule changes the rules; ours does not."""
    assert is_ruleset_change(_message(kind))
    assert not is_ruleset_change(_message(kind, OWN))


@pytest.mark.parametrize("kind", [NEWSET, NEWELEM, NEWGEN, 1, 4, 7, 255])
def test_others_are_no_changes(kind: int) -> None:
    """Sets, their elements, generations and answers change no rule's text."""
    assert not is_ruleset_change(_message(kind))


def test_other_subsystems_are_no_changes() -> None:
    """The same numbers in another subsystem of netfilter mean something else."""
    assert not is_ruleset_change(_message(NEWRULE, subsystem=CTNETLINK))


def test_nothing_is_no_change() -> None:
    """An empty datagram announces nothing."""
    assert not is_ruleset_change(b"")


def test_each_message_is_looked_at() -> None:
    """One change behind others that are none is enough, wherever padding puts it."""
    quiet = _message(NEWGEN) + _message(NEWRULE, OWN)

    assert not is_ruleset_change(quiet)
    assert is_ruleset_change(quiet + _message(NEWRULE))
    assert is_ruleset_change(_message(NEWRULE) + quiet)


def test_the_name_may_stand_behind_other_attributes() -> None:
    """The table's name is found by its number, also with the flags of nesting and order."""
    before = _attribute(9, b"x") + _attribute(2 | 0x8000, b"chain\0")

    assert not is_ruleset_change(_message(NEWRULE, OWN, before=before))
    assert is_ruleset_change(_message(NEWRULE, before=before))


@pytest.mark.parametrize("own", [_message(NEWRULE, OWN), _message(NEWGEN)])
def test_what_is_cut_is_a_change(own: bytes) -> None:
    """A message cut at any offset could have said anything, and so is a change."""
    for size in range(1, len(own)):
        assert is_ruleset_change(own[:size])
        assert is_ruleset_change(_message(NEWGEN) + own[:size])


def test_what_is_cut_behind_a_change_of_ours_is_ours() -> None:
    """No transaction changes a table of ours and another."""
    ours = _message(NEWRULE, OWN)

    assert not is_ruleset_change(ours + _message(NEWRULE)[:-4])
    assert not is_ruleset_change(ours + b"12")


@pytest.mark.parametrize("length", [0, 1, 15, 19, 57, 1000, 2**32 - 1])
def test_lying_message_lengths_are_changes(length: int) -> None:
    """A length below the header or beyond the datagram is a change, and ends the reading."""
    assert is_ruleset_change(_message(NEWGEN, length=length))


@pytest.mark.parametrize("length", [0, 1, 3, 200, 65535])
def test_lying_attribute_lengths_are_changes(length: int) -> None:
    """Where no name can be read, the rule may be anybody's."""
    broken = _attribute(9, b"abcd", length)

    assert is_ruleset_change(_message(NEWRULE, OWN, before=broken))


def test_a_name_of_lying_length_is_no_name() -> None:
    """A name that runs past its message is not taken for ours."""
    body = struct.pack("=BBH", 2, 0, 0) + _attribute(1, OWN, 100)
    message = struct.pack("=IHHII", 16 + len(body), NF_TABLES << 8 | NEWRULE, 0, 0, 0) + body

    assert is_ruleset_change(message)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_answered(datagram: bytes) -> None:
    """Whatever comes, the answer is yes or no, and no endless loop."""
    assert is_ruleset_change(datagram) in (True, False)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 70))
def test_any_attributes_are_answered(attributes: bytes, length: int) -> None:
    """The same for a rule's message with any attributes."""
    message = struct.pack("=IHHIII", 20 + length, NF_TABLES << 8 | NEWRULE, 0, 0, 0, 0) + attributes

    assert is_ruleset_change(message) in (True, False)


def test_the_generation_is_told_by_its_own_message_alone() -> None:
    """NEWGEN tells the generation; every other message, and every cut of this one, tells none."""
    generation = 0xFFFF_FFFE
    body = b"\0\0\0\0" + struct.pack("=HH", 8, 1) + struct.pack(">I", generation)
    kind = NF_TABLES << 8 | NEWGEN
    whole = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body

    assert generation == find_generation(whole)
    assert not is_ruleset_change(whole)
    assert {None} == {find_generation(whole[:end]) for end in range(len(whole))}
    assert find_generation(_message(NEWRULE)) is None
