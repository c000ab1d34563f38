"""Laws of totals over a restart: they go on, or are refused as a whole."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.prometheus import Exporter
from tests.exporters.watched import DROP, NFT_DROP, Watched, samples, table_of, values

PACKETS = "nftrace_rule_packets_total"


def restarted(exporter: Exporter, watched: Watched, **options: int) -> Exporter:
    """Give the next process's exporter, with what the last one kept."""
    again = Exporter(watched, **options)  # type: ignore[arg-type]
    again.restore(exporter.state())
    return again


def counters(exporter: Exporter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Give all of nftrace's counters that are not of the process itself."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for sample in samples(exporter)
        if sample.name.startswith("nftrace_") and sample.name.endswith("_total")
    }


def test_all_counters_go_on_after_a_restart() -> None:
    """Rules that began anew, attributed drops, folds and kinds: none falls, none jumps."""
    rules = tuple(replace(DROP, handle=n, number=n, rule_id=f"r{n}") for n in (1, 2, 5))
    has = (True, True, False)
    watched = Watched(tables=(table_of(rules, (7, 5, 0), has),))
    exporter = Exporter(watched, rules_max=2)
    exporter.refresh()
    watched.load(table_of(rules, (3, 6, 0), has))
    before = counters(exporter)
    watched.rows = []

    after = counters(restarted(exporter, watched, rules_max=2))

    assert before == after


def test_what_came_while_nobody_looked_is_added() -> None:
    """The kernel went on counting between the last reading and the restart."""
    watched = Watched(tables=(table_of((DROP,), (7,), (True,)),), rows=[])
    exporter = Exporter(watched)
    exporter.refresh()
    watched.load(table_of((replace(DROP, handle=9),), (2,), (True,)))
    exporter.refresh()
    watched.load(table_of((replace(DROP, handle=9),), (13,), (True,)))

    again = restarted(exporter, watched)

    assert [20] == list(values(again, PACKETS).values())


def test_drops_are_counted_from_the_restart_on() -> None:
    """The kernel's programs begin anew with the process: all that they count is new."""
    watched = Watched()
    exporter = Exporter(watched)
    exporter.refresh()
    watched.rows = [replace(NFT_DROP, packets=2)]

    again = restarted(exporter, watched)

    assert {"NETFILTER_DROP": 5, "NO_SOCKET": 2} == {
        labels[5]: value for labels, value in values(again, "nftrace_drops_total").items()
    }


def test_rules_that_were_gone_can_still_come_back() -> None:
    """What a former process remembered is remembered by the next one."""
    watched = Watched(tables=(table_of((DROP,), (7,), (True,)),), rows=[])
    exporter = Exporter(watched)
    exporter.refresh()
    watched.load()
    exporter.refresh()

    again = restarted(restarted(exporter, watched), watched)
    again.refresh()
    watched.load(table_of((replace(DROP, handle=9),), (2,), (True,)))

    assert [9] == list(values(again, PACKETS).values())


def test_what_is_told_was_kept_before() -> None:
    """No answer has a value that the next process would not know of."""
    kept: list[bytes] = []
    watched = Watched()
    exporter = Exporter(watched, keep=kept.append)
    told = counters(exporter)
    watched.rows = []
    again = Exporter(watched)
    again.restore(kept[-1])

    assert told == counters(again)


def _make_state() -> bytes:
    exporter = Exporter(Watched())
    exporter.refresh()
    return exporter.state()


STATE = json.loads(_make_state())


@pytest.mark.parametrize("name", sorted(STATE))
@pytest.mark.parametrize("value", [None, -1, 1 << 64, "x", [1], [[1]], {"a": "b"}, [["a"] * 6]])
def test_what_is_no_state_is_refused_as_a_whole(name: str, value: object) -> None:
    """Each member, replaced by nonsense, spoils all of it: nothing is taken."""
    exporter = Exporter(Watched())
    spoiled = json.dumps({**STATE, name: value}).encode()

    with pytest.raises(ValueError, match="no totals of this version"):
        exporter.restore(spoiled)

    assert counters(Exporter(Watched())) == counters(exporter)


def test_a_state_that_is_cut_off_is_refused() -> None:
    """At whatever byte, as when the machine lost power while it was written."""
    whole = json.dumps(STATE).encode()
    for end in range(len(whole)):
        with pytest.raises(ValueError, match="no totals of this version"):
            Exporter(Watched()).restore(whole[:end])


@settings(max_examples=50)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), st.lists, max_leaves=12))
def test_any_json_is_refused_or_understood(value: object) -> None:
    """Nothing but ValueError comes of what is no state."""
    with pytest.raises(ValueError, match="no totals of this version"):
        Exporter(Watched()).restore(json.dumps({**STATE, "rules": [value]}).encode())
