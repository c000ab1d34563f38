"""Events as columns: what goes in is what the columns say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.core.drops import DropCount
from tracer.core.log_rows import (
    Words,
    address_halves,
    drop_columns,
    join,
    packet_columns,
    pick,
    render_halves,
)
from tracer.core.log_schema import DROPS, JOURNEYS, TABLES, Kind

if TYPE_CHECKING:
    import ipaddress

_KEY = np.dtype([("certain", "u1")])
#: Of the ring's records, the members that are read here.
_RECORD = np.dtype(
    [
        *(("time_ns", "<u8"), ("key", _KEY), ("pad", "u1", (3,)), ("ifindex", "<u4")),
        *(("iif", "<u4"), ("mark", "<u4"), ("length", "<u4"), ("weight", "<u4")),
        *(("ct", "u1"), ("pad2", "u1"), ("lengths", "u1", (2,)), ("raw", "u1", (60,))),
    ]
)
_SYN = bytes.fromhex("45000034bcf040003e06000bb73e0f76ac111569") + bytes(20)
_TCP = bytes.fromhex("57b100163e948e3a000000005002ffff00000000")


@given(st.ip_addresses())
def test_an_address_is_its_two_numbers(address: ipaddress.IPv4Address) -> None:
    """Both ways between text and the log's numbers give the address again."""
    assert str(address) == render_halves(address.version, *address_halves(address))


@given(st.lists(st.lists(st.integers(0, 255), max_size=7), min_size=1, max_size=5), st.data())
def test_joined_columns_are_the_rows_one_after_another(
    parts: list[list[int]], data: st.DataObject
) -> None:
    """Whatever form each part's column has, the joined one tells its rows in order."""
    columns = []
    for rows in parts:
        form = data.draw(st.sampled_from(["array", "list", "words", "scalar"]))
        words = [str(row) for row in rows]
        if form == "words":
            columns.append({"a": Words(words, np.arange(len(rows)))})
        elif form == "scalar" and len(set(words)) == 1:
            columns.append({"a": words[0]})
        else:
            columns.append({"a": np.array(words) if form == "array" else words})
    counts = [len(rows) for rows in parts]
    joined = join(columns, counts)["a"]

    assert [str(row) for rows in parts for row in rows] == _values(joined, sum(counts))


def _values(column: object, rows: int) -> list[str]:
    if isinstance(column, Words):
        return [column.words[number] for number in column.of]
    return [column] * rows if isinstance(column, str) else [str(value) for value in column]


def test_picked_rows_are_those_of_every_form() -> None:
    """A choice of rows takes them from arrays, lists and words, and leaves constants."""
    columns = {
        "array": np.array([2, 3, 5, 7]),
        "list": ["b", "c", "e", "g"],
        "words": Words(["x", "y"], np.array([0, 1, 1, 0])),
        "constant": 11,
    }
    picked = pick(columns, np.array([3, 1]))

    assert [7, 3] == picked["array"].tolist()
    assert (["g", "c"], 11) == (picked["list"], picked["constant"])
    assert ["x", "y"] == _values(picked["words"], 2)


def test_recorded_drops_become_columns_with_names() -> None:
    """Headers, kinds, namespaces and devices of each record stand in its row."""
    records = np.zeros(3, _RECORD)
    records["time_ns"] = (7, 11, 13)
    records["weight"], records["mark"], records["key"]["certain"] = (1, 64, 1), 5, (1, 0, 1)
    records["lengths"][:2], records["length"] = (20, 20), 99
    records["raw"][:2] = np.frombuffer(_SYN + _TCP, np.uint8)
    records["ifindex"], records["iif"] = (3, 3, 0), (2, 9, 0)
    rule = DropCount(
        1, "NETFILTER_DROP", 0, 0, "rule", "prerouting", "legacy", "ip", "mangle", "F", 5
    )
    other = DropCount(2, "NO_SOCKET", 0, 0, location=77)
    columns = drop_columns(
        records, [rule, other], np.array([0, 0, 1]), ["vr2", "host"], {2: "eth2", 3: "br0"}
    )

    assert ["vr2", "vr2", "host"] == _values(columns["netns"], 3)
    assert ["mangle", "mangle", ""] == _values(columns["table_name"], 3)
    assert ["eth2", "if9", ""] == _values(columns["in_device"], 3)
    assert ["br0", "br0", ""] == _values(columns["device"], 3)
    numbers = {name: columns[name].tolist() for name in ("rule", "location", "length", "certain")}
    assert {
        "rule": [5, 5, 0],
        "location": [0, 0, 77],
        "length": [52, 52, 99],
        "certain": [1, 0, 1],
    } == numbers
    halves = int(columns["src_high"][0]), int(columns["src_low"][0])
    assert "183.62.15.118" == render_halves(4, *halves)
    assert [22, 22, 0] == columns["dport"].tolist()
    assert columns.keys() <= set(DROPS.names)


def test_no_drops_are_no_rows() -> None:
    """An empty reading makes empty columns."""
    columns = drop_columns(np.zeros(0, _RECORD), [], np.zeros(0, np.intp), [], {})

    assert {0} == {len(_values(values, 0)) for values in columns.values()}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_tables_begin_alike_and_have_plain_columns(table: object) -> None:
    """Each table has time, ordinal, host and netns first, and no column twice."""
    assert ("time_ns", "ordinal", "host", "netns") == table.names[:4]
    assert len(set(table.names)) == len(table.names)
    assert {Kind.TEXT, Kind.BYTES}.isdisjoint({column.kind for column in DROPS.columns})


def test_drops_and_journeys_share_the_packets_columns() -> None:
    """What a packet's headers become has a place in both tables."""
    from tracer.core.events import PACKET  # noqa: PLC0415 - here only

    names = set(packet_columns(np.zeros(1, PACKET)))

    assert names <= set(DROPS.names) & set(JOURNEYS.names)
