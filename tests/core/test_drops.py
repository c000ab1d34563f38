"""Counts with names: what is claimed of a drop, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from bpf.layout import DROP_COUNT, DROP_KEY, PLACE
from tracer.core.drop_reasons import explain
from tracer.core.drops import DropCount, Place, hook_name, merge_counts, name_counts, name_place

_REASONS = {3: "NO_SOCKET", 12: "NETFILTER_DROP"}
_LEGACY = Place("legacy", "ip", "mangle", None, 7)
_NFT = Place("nft", "inet", "t", "c", 8)


def _name(**members: int) -> DropCount:
    key, count = np.zeros(1, DROP_KEY), np.zeros(1, DROP_COUNT)
    key["hook"], key["certain"], key["family"], key["reason"] = 255, 1, 2, 12
    for name, value in members.items():
        key[name] = value
    count["packets"], count["bytes"] = 13, 1300
    rules: list[tuple[str, int | None]] = [("FW", 5), ("INPUT", None)]
    places = {(0x10, 0): _LEGACY, (0x20, 9): _NFT}
    (row,) = name_counts(key, count, _REASONS, places, {(0x10, 2): rules})
    return row


def test_a_legacy_rule_is_named_by_its_readings_generation() -> None:
    """Index 1 of generation 2 is rule 5 of FW; of generation 1 nothing is known."""
    known = _name(site=1, place=0x10, hook=0, rule=2 << 32 | 1)
    old = _name(site=1, place=0x10, hook=0, rule=1 << 32 | 1)

    assert ("FW", 5, "rule") == (known.chain, known.rule, known.kind)
    assert (None, None, "table") == (old.chain, old.rule, old.kind)


def test_a_policy_has_no_rule() -> None:
    """A legacy policy and an nft one have the chain and no number and no handle."""
    legacy = _name(site=1, place=0x10, hook=1, rule=2 << 32 | 2)
    nft = _name(site=3, place=0x20, tag=9, hook=1)

    assert ("INPUT", None, None, "policy") == (
        legacy.chain,
        legacy.rule,
        legacy.handle,
        legacy.kind,
    )
    assert ("c", None, None, "policy") == (nft.chain, nft.rule, nft.handle, nft.kind)


def test_an_index_beyond_the_table_is_not_claimed() -> None:
    """A rule that was not read has no name."""
    assert _name(site=1, place=0x10, hook=0, rule=2 << 32 | 3).rule is None


def test_what_is_not_netfilters_has_its_freeing_address() -> None:
    """No engine, no hook, no table; the address instead."""
    row = _name(site=0, place=0xFFFF, reason=3)

    assert ("NO_SOCKET", 0xFFFF, None, None, None) == (
        row.reason,
        row.location,
        row.engine,
        row.hook,
        row.table,
    )


def test_an_unknown_reason_is_its_number() -> None:
    """A number without a name stays a number."""
    assert "999" == _name(site=0, reason=999).reason


def test_an_unknown_function_is_no_table() -> None:
    """A hook entry that is not legacy's is a hook, whatever its private pointer points at."""
    row = np.zeros(1, PLACE)
    row["function"], row["table"] = 5, b"garbage"

    assert Place("hook", "ip", None, None, 5) == name_place(1, 2, row[0], frozenset({7}))
    assert Place("legacy", "ip", "garbage", None, 5) == name_place(1, 2, row[0], frozenset({5}))


@pytest.mark.parametrize(
    ("number", "family", "name"),
    [(0, 2, "prerouting"), (4, 10, "postrouting"), (0, 5, "ingress"), (2, 3, "forward")],
)
def test_hooks_are_named_by_family(number: int, family: int, name: str) -> None:
    """The same number is another hook in another family."""
    assert name == hook_name(number, family)


def test_a_hook_beyond_the_family_has_no_name() -> None:
    """255 is no hook."""
    assert hook_name(255, 2) is None


def test_counts_of_one_kind_are_added() -> None:
    """Equal kinds become one row, the greater first; nothing is lost."""
    one = DropCount(1, "NO_SOCKET", 2, 20)
    other = DropCount(2, "NO_SOCKET", 11, 70)

    assert [other, DropCount(1, "NO_SOCKET", 7, 70)] == merge_counts(
        [one, other, DropCount(1, "NO_SOCKET", 5, 50)]
    )


def test_reasons_are_told_in_words_and_unknown_ones_as_they_are() -> None:
    """A known reason has words and a hint, another its own name."""
    assert "rp_filter" in explain("IP_RPFILTER").look_at
    assert ("brand new", "") == explain("BRAND_NEW")
