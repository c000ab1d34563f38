"""Filters as the words that the kernel's programs compare a packet's headers with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    from tracer.core.filters import Filter, IPNetwork

__all__ = ["fill_matches"]


def fill_matches(filters: Iterable[Filter], matches: npt.NDArray[np.void]) -> int:
    """
    Write each of *filters* as a value and a mask; return how many.

    Shape: *matches* `(m,)`, zero, of members *value* and *mask*, each a flow of src, dst
    (four words in network order), sport, dport, family, proto. Devices, tables, chains,
    hooks and verdicts are not looked at.
    Errors: UsageError where there are more filters than *matches* holds.
    """
    count = 0
    for one in filters:
        if count == len(matches):
            msg = f"more than {len(matches)} kinds of packet cannot be followed at once"
            raise UsageError(msg, "give fewer filters, or wider ones")
        _fill(one, matches[count])
        count += 1
    return count


def _fill(one: Filter, match: np.void) -> None:
    value, mask = match["value"], match["mask"]
    for name, network in (("src", one.src), ("dst", one.dst)):
        if network is not None:
            value[name], mask[name] = _words(network)
    for name, port in (("sport", one.sport), ("dport", one.dport)):
        if port is not None:
            value[name] = int.from_bytes(port.to_bytes(2, "big"), "little")
            mask[name] = 0xFFFF
    for name, number in (("family", one.family), ("proto", one.proto)):
        if number is not None:
            value[name], mask[name] = number, 0xFF


def _words(network: IPNetwork) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    blocks = (network.network_address.packed, network.netmask.packed)
    value, mask = (np.frombuffer(block.ljust(16, b"\0"), "<u4") for block in blocks)
    return value, mask
