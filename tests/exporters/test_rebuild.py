"""Headers out of columns: what was read from headers comes back into the same places."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from exporters.rebuild import rebuild_headers
from tests.exporters.test_anonymize import checksum
from tracer.core.drop_events import packets_of
from tracer.core.log_rows import packet_columns

_RECORD = np.dtype([("lengths", "u1", (2,)), ("pad", "u1", (2,)), ("raw", "u1", (60,))])
_SAME = ("family", "proto", "ttl", "ip_id", "length", "src_high", "src_low", "dst_high", "dst_low")


@given(
    family=st.sampled_from([4, 6]),
    proto=st.sampled_from([1, 6, 17, 33, 47, 58, 132]),
    numbers=st.lists(st.integers(0, (1 << 32) - 1), min_size=6, max_size=6),
    length=st.integers(60, 0xFFFF),
)
def test_rebuilt_headers_read_as_the_columns_they_came_from(
    family: int, proto: int, numbers: list[int], length: int
) -> None:
    """Decoding what was rebuilt gives the row again, and IPv4's checksum is right."""
    high = 0 if family == 4 else numbers[0] << 32 | numbers[1]
    row = {
        "family": family,
        "proto": proto,
        "length": length,
        "ttl": numbers[2] & 0xFF,
        "ip_id": numbers[2] >> 16 if family == 4 else 0,
        "icmp": numbers[3] | 3 << 40 | 1 << 32,
        "src_high": high,
        "src_low": numbers[3] | (0xFFFF << 32 if family == 4 else 0),
        "dst_high": high,
        "dst_low": numbers[4] | (0xFFFF << 32 if family == 4 else 0),
        "sport": numbers[5] & 0xFFFF,
        "dport": numbers[5] >> 16,
        "tcp_flags": numbers[0] & 0xFF,
        "tcp_seq": numbers[1],
        "tcp_ack": numbers[2],
    }
    network, transport = rebuild_headers(row)
    record = np.zeros(1, _RECORD)
    record["lengths"] = (len(network), len(transport))
    record["raw"][0, : len(network)] = np.frombuffer(network, np.uint8)
    record["raw"][0, 40 : 40 + len(transport)] = np.frombuffer(transport, np.uint8)
    read = {name: int(values[0]) for name, values in packet_columns(packets_of(record)).items()}
    names = [*_SAME]
    names += ["tcp_seq", "tcp_ack", "tcp_flags"] if proto == 6 else []
    names += ["sport", "dport"] if proto in {6, 17, 33, 132} else []
    names += ["icmp"] if (family, proto) in {(4, 1), (6, 58)} else []

    assert {name: row[name] for name in names} == {name: read[name] for name in names}
    assert family == 6 or checksum(network) == 0xFFFF


def test_what_is_not_ip_has_no_headers() -> None:
    """A row of another family gives no bytes."""
    row = dict.fromkeys((*_SAME, "sport", "dport", "icmp"), 0)

    assert (b"", b"") == rebuild_headers(row)
