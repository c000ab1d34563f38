"""What was not looked at goes to rules in proportion, and not a packet is lost on the way."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tracer.core.drop_ledger import DropLedger
from tracer.core.drop_sampling import spread
from tracer.core.drops import DropCount

_TABLE = DropCount(
    7, "NETFILTER_DROP", 0, 0, "table", "input", "legacy", "ip", "filter", sampled=True
)


def _rule(number: int, packets: int, octets: int = 0) -> DropCount:
    return replace(_TABLE, kind="rule", chain="INPUT", rule=number, packets=packets, octets=octets)


_ROWS = st.lists(
    st.builds(
        lambda number, packets, octets, sampled: replace(
            _rule(number, packets, octets) if number else _TABLE,
            packets=packets,
            octets=octets,
            sampled=sampled,
        ),
        st.integers(0, 5),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 50),
        st.booleans(),
    ),
    max_size=12,
)


def test_what_was_not_looked_at_is_shared_in_proportion() -> None:
    """Of 101 drops 20 were looked at, 15 and 5: the other 81 go three to one."""
    rows = spread([_rule(1, 15), _rule(2, 5), replace(_TABLE, packets=81)])

    assert {1: 76, 2: 25} == {row.rule: row.packets for row in rows}
    assert {True} == {row.sampled for row in rows}


def test_without_a_sample_no_rule_is_claimed() -> None:
    """A table of which nothing was looked at keeps its row, and its packets."""
    row = replace(_TABLE, packets=81)

    assert [row] == spread([row])


def test_other_tables_are_not_drawn_in() -> None:
    """What one table's sample says is nothing to another's, nor to what was all looked at."""
    other = replace(_TABLE, table="mangle", packets=13)
    exact = replace(_rule(1, 11), sampled=False)

    assert {other, exact, _rule(2, 10)} == set(
        spread([other, exact, _rule(2, 3), replace(_TABLE, packets=7)])
    )


@given(_ROWS)
def test_sums_stay_what_they_were(rows: list[DropCount]) -> None:
    """Packets and octets of all rows together are the same before and after."""
    told = spread(rows)

    assert sum(row.packets for row in rows) == sum(row.packets for row in told)
    assert sum(row.octets for row in rows) == sum(row.octets for row in told)


@given(_ROWS, st.integers(1, 6))
def test_a_ledger_is_bounded_and_loses_no_packet(rows: list[DropCount], most: int) -> None:
    """Beyond its limit kinds are told less exactly, never fewer packets."""
    ledger = DropLedger(most)
    for row in rows:
        ledger.add([row])

    assert sum(row.packets for row in rows) == sum(row.packets for row in ledger.rows)
    assert len(ledger.rows) <= most + 2


def test_what_a_ledger_tells_less_exactly_is_counted() -> None:
    """Of three rules that two rows are for, the ones with fewer packets lose their names."""
    ledger = DropLedger(2)
    ledger.add([_rule(1, 17), _rule(2, 5), _rule(3, 3)])

    assert [(1, 17), (None, 8)] == [(row.rule, row.packets) for row in ledger.rows]
    assert 8 == ledger.coarse
