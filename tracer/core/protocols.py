"""Numbers on the wire that more than one module reads, and their names."""

from __future__ import annotations

__all__ = [
    "ATTRIBUTE_HEADER",
    "ICMP",
    "ICMPV6",
    "IPV4",
    "IPV6",
    "PORTS_SIZE",
    "PROTOCOLS_WITH_PORTS",
    "PROTOCOL_NAMES",
    "TCP",
]

#: `PACKET["family"]`: the version in the first byte of the packet.
IPV4 = 4
IPV6 = 6

ICMP = 1
TCP = 6
ICMPV6 = 58

#: Those whose header begins with two ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
PROTOCOLS_WITH_PORTS = (6, 17, 33, 132, 136)
PORTS_SIZE = 4

#: By IP protocol number, as iptables and nft name them.
#: Source: IANA's protocol numbers; ipip and icmpv6 as in include/uapi/linux/in.h and in6.h.
PROTOCOL_NAMES = {
    1: "icmp",
    2: "igmp",
    4: "ipip",
    6: "tcp",
    17: "udp",
    33: "dccp",
    41: "ipv6",
    47: "gre",
    50: "esp",
    51: "ah",
    58: "icmpv6",
    89: "ospf",
    103: "pim",
    112: "vrrp",
    115: "l2tp",
    132: "sctp",
    136: "udplite",
}

#: struct nlattr: length and type, two bytes each.
ATTRIBUTE_HEADER = 4
