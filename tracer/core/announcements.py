"""What nf_tables' announcements say: whether the rules are others now, and which generation."""

from __future__ import annotations

import struct

from tracer.core.arm_hooks import OWN_PREFIX

__all__ = ["find_generation", "is_ruleset_change"]

# include/uapi/linux/netfilter/nf_tables.h: tables, chains and rules, made and removed.
# Sets and their elements are left out: a rule's text names a set and not what is in it.
_CHANGES = frozenset({0, 2, 3, 5, 6, 8})
_NEWGEN = 15  # ends the announcements of a transaction; NFTA_GEN_ID is 1, big-endian
_GENERATION = 8
_SUBSYSTEM = 10
_HEADER = 20
_NAME = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and NFTA_RULE_TABLE are all 1


def is_ruleset_change(datagram: bytes) -> bool:
    """
    Tell whether a datagram of group NFNLGRP_NFTABLES announces a change of the rules.

    Shape: *datagram* holds one or more netlink messages of one transaction. Where it is cut
    short the answer is yes, since what is missing could be anything; but a transaction that
    changes a table of ours is ours, and changes nothing else.
    What happens to tables of ours is no change. Source: nft_commit_notify().
    """
    offset, is_ours = 0, False
    while offset < len(datagram):
        if offset + _HEADER > len(datagram):
            return not is_ours
        length, kind = struct.unpack_from("=IH", datagram, offset)
        if length < _HEADER or offset + length > len(datagram):
            return not is_ours
        if kind >> 8 == _SUBSYSTEM and kind & 0xFF in _CHANGES:
            table = _find_table(datagram[offset + _HEADER : offset + length])
            is_ours = table is not None and table.startswith(OWN_PREFIX.encode())
            if not is_ours:
                return True
        offset += (length + 3) & ~3
    return False


def find_generation(datagram: bytes) -> int | None:
    """
    Return the generation that a transaction brought, None where it is not announced here.

    Source: nf_tables_gen_notify(): a datagram of its own behind a transaction's others.
    """
    start = _HEADER + 4
    if len(datagram) < start + 4:
        return None
    _, kind = struct.unpack_from("=IH", datagram)
    attribute = struct.unpack_from("=HH", datagram, _HEADER)
    if kind != _SUBSYSTEM << 8 | _NEWGEN or attribute != (_GENERATION, _NAME):
        return None
    return int(struct.unpack_from(">I", datagram, start)[0])


def _find_table(attributes: bytes) -> bytes | None:
    offset = 0
    while offset + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, offset)
        if kind & 0x3FFF == _NAME and offset + length <= len(attributes):
            return attributes[offset + 4 : offset + length].rstrip(b"\0")
        if length < 4:  # noqa: PLR2004 - an attribute's own header
            return None
        offset += (length + 3) & ~3
    return None
