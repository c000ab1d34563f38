"""The namespace's own addresses by device: what MASQUERADE and REDIRECT write into packets."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_addresses"]


def read_addresses() -> Mapping[str, tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]]:
    """
    Return the addresses of the calling thread's namespace, by device name.

    Shape: devices without an address are left out.
    """
    with IPRoute() as route:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in route.get_links()}
        found: dict[str, list[ipaddress.IPv4Address | ipaddress.IPv6Address]] = {}
        for address in route.get_addr():
            text = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
            name = names.get(address["index"])
            if text is not None and name is not None:
                found.setdefault(str(name), []).append(ipaddress.ip_address(str(text)))
    return {name: tuple(addresses) for name, addresses in found.items()}
