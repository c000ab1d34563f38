"""Laws of the drops that a configuration names as intended."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.expected import ENTRIES_MAX, DropFeatures, Expected, parse_expected
from tracer.errors import UsageError

RULE = DropFeatures(
    "vr2", "legacy", "ip", "mangle", "FIREWALL_1", "-A FIREWALL_1 -s 10.0.0.0/8 -j DROP", "scanners"
)


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        ({"table": "mangle"}, True),
        ({"table": "man"}, False),
        ({"table": "man*"}, True),
        ({"table": "MANGLE"}, False),
        ({"netns": "vr2", "chain": "FIREWALL_*"}, True),
        ({"netns": "vr1", "chain": "FIREWALL_*"}, False),
        ({"text": "*-j DROP"}, True),
        ({"text": "*-s 10*DROP*"}, True),
        ({"text": "-j DROP"}, False),
        ({"text": "~-s 10[.]"}, True),
        ({"text": "~^-j"}, False),
        ({"comment": "*"}, True),
        ({"reason": "*"}, False),
        ({"engine": "legacy", "family": "ip"}, True),
    ],
)
def test_an_entry_fits_where_all_that_it_names_does(
    entry: dict[str, object], *, fits: bool
) -> None:
    """Each named feature must fit; what the drop does not have fits nothing."""
    assert fits == parse_expected([entry]).fits(RULE)


def test_any_of_several_entries_is_enough() -> None:
    """One that fits among others makes the drop expected; none at all never does."""
    entries: list[dict[str, object]] = [{"table": "nat"}, {"comment": "scan*"}]

    assert parse_expected(entries).fits(RULE)
    assert not parse_expected(entries[:1]).fits(RULE)
    assert not Expected().fits(RULE)


@given(st.text("ab[.\n", max_size=12), st.text("ab[.*\n", min_size=1, max_size=8))
def test_a_star_is_any_run_and_all_else_itself(text: str, pattern: str) -> None:
    """A pattern fits what the shell's would where only the star is special."""
    literal = "".join(f"[{c}]" if c == "[" else c for c in pattern)
    drop = DropFeatures("n", text=text)

    assert fnmatch.fnmatchcase(text, literal) == parse_expected([{"text": pattern}]).fits(drop)


def test_many_stars_are_no_slower_than_few() -> None:
    """A pattern that fits nothing is given up without trying each way to divide the text."""
    pattern = "*".join("a" * 60) + "*b"

    assert not parse_expected([{"text": pattern}]).fits(DropFeatures("n", text="a" * 4000))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{}], "expected drop 1 names nothing"),
        ([{"table": "raw"}, {"tabel": "raw"}], "expected drop 2 has an unknown key 'tabel'"),
        ([{"table": 1}], "expected drop 1, table: 1 is no pattern"),
        ([{"table": ""}], "expected drop 1, table: '' is no pattern"),
        ([{"text": "~("}], "expected drop 1, text: '(' is no regular expression"),
        ([{"text": "x" * 5000}], "expected drop 1, text: a pattern of 5000 characters"),
        ([{"table": "raw"}] * (ENTRIES_MAX + 1), f"{ENTRIES_MAX + 1} expected drops"),
    ],
)
def test_what_is_wrong_is_named(entries: list[dict[str, object]], said: str) -> None:
    """The entry's number and key are told, and what to do."""
    with pytest.raises(UsageError) as raised:
        parse_expected(entries)

    assert raised.value.message.startswith(said)
    assert raised.value.remedy
