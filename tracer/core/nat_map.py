"""
Which headers a packet has before NAT, given those that it will have, and the reverse.

A filter may name what a packet is called after NAT, but tracing must be switched on at its
first hook. So each translation whose result can meet the filter is followed back: its
rule's matches, and those of the jumps that lead to it, say which packets come in that
will be called so. Matches that only a later hook can answer are left out: the map holds
at least the packets that are meant, and the follower cuts the rest.

In the order of the hooks, a packet is translated at prerouting or output (destination)
and then at postrouting or input (source). For a reply it is the other way round: what
left as the translated source comes back as the destination. So the replies that will meet
a filter are the reversed images of what the reversed filter is translated into.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tracer.core.nat_headers import (
    ANY_DEVICE,
    PORT_PROTOCOLS,
    Devices,
    Headers,
    reduce,
)
from tracer.core.nat_ranges import Limit, count, meet, move, move_back
from tracer.core.nat_rules import Branch, Side, Translation

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tracer.core.nat_chains import NatChains, Site

__all__ = ["MAX_MAPPED", "LocalAddresses", "Mapped", "headers_behind", "map_filter"]

#: So many different headers are looked for at the first hook. They are elements of a set
#: with one lookup, so that the limit is the time to plan and load them (0.2 s), not the
#: packets' time.
MAX_MAPPED = 16384


@dataclass(frozen=True)
class LocalAddresses:
    """The namespace's own addresses by device: what REDIRECT and MASQUERADE write."""

    by_device: Mapping[str, tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]] = field(
        default_factory=dict
    )

    def find(self, devices: Devices, version: int) -> Iterator[tuple[str, Limit]]:
        """Walk the devices that are meant and have addresses of IP *version*."""
        for name, addresses in self.by_device.items():
            if devices.has(name):
                found = sorted(int(a) for a in addresses if a.version == version)
                if found:
                    yield name, tuple((number, number) for number in found)


@dataclass
class Mapped:
    """
    What to look for at the first hook, and where the map has holes.

    *boxes* begins with the filter itself. *unreadable* and *wide* name rules whose
    packets cannot be told at the first hook, by the side that they translate: they
    cannot be read, or match without address and port. *is_cut* says that `MAX_MAPPED`
    was reached.
    """

    boxes: list[Headers]
    unreadable: set[tuple[Side, str]] = field(default_factory=set)
    wide: set[tuple[Side, str]] = field(default_factory=set)
    is_cut: bool = False


def map_filter(wanted: Headers, tables: Sequence[NatChains], addresses: LocalAddresses) -> Mapped:
    """Return the headers at the first hook of all packets that will meet *wanted*."""
    found = Mapped([wanted])
    after = [wanted]
    if wanted.src is not None or wanted.sport is not None:
        after += _follow(wanted, Side.SRC, tables, addresses, found)
    before = list(after)
    for box in after:
        if box.dst is not None or box.dport is not None:
            before += _follow(box, Side.DST, tables, addresses, found)
    found.boxes = reduce([*before, *_map_replies(wanted, tables, addresses)])
    if len(found.boxes) > MAX_MAPPED:
        found.boxes = found.boxes[:MAX_MAPPED]
        found.is_cut = True
    return found


def headers_behind(
    wanted: Headers,
    tables: Sequence[NatChains],
    addresses: LocalAddresses,
    *,
    shared: bool = False,
) -> list[Headers]:
    """
    Return what NAT turns packets of *wanted* into, *wanted* itself first.

    *shared*: also where others' packets get the same address (a masquerading router's).
    """
    return reduce(_map_forward(wanted, tables, addresses, shared=shared))


def _follow(
    wanted: Headers,
    side: Side,
    tables: Sequence[NatChains],
    addresses: LocalAddresses,
    found: Mapped,
) -> Iterator[Headers]:
    """Walk the headers that a translation of *side* turns into *wanted*; note the holes."""
    for table in tables:
        if table.is_unread:
            found.unreadable.add((side, f"table {table.family} {table.name}"))
    for table, site, branch in _list_branches(tables):
        if not branch.translations and table.find_ways(site.chain, side):
            found.unreadable.add((side, table.name_site(site)))
        for translation in branch.translations:
            if translation.side is not side:
                continue
            box = replace(_undo(branch.headers, translation, wanted, addresses), oif=ANY_DEVICE)
            ways = () if box.is_empty else table.find_ways(site.chain, side)
            before = [each for each in map(box.meet, ways) if not each.is_empty]
            if any(each.is_wide for each in before):
                found.wide.add((side, table.name_site(site)))
            yield from (each for each in before if not each.is_wide)


def _list_branches(
    tables: Sequence[NatChains],
) -> Iterator[tuple[NatChains, Site, Branch]]:
    return (
        (table, site, branch)
        for table in tables
        for site in table.translations
        for branch in site.branches
    )


def _mirror(box: Headers) -> Headers:
    """Exchange source and destination, and keep the devices."""
    return replace(box, src=box.dst, dst=box.src, sport=box.dport, dport=box.sport)


def _undo(
    matched: Headers, translation: Translation, wanted: Headers, addresses: LocalAddresses
) -> Headers:
    """Return which of the *matched* headers *translation* can turn into *wanted*."""
    if translation.side is Side.SRC:
        return _mirror(_undo_target(_mirror(matched), translation, _mirror(wanted), addresses))
    return _undo_target(matched, translation, wanted, addresses)


def _undo_target(
    matched: Headers, translation: Translation, wanted: Headers, addresses: LocalAddresses
) -> Headers:
    # What is translated is called the destination here, whichever it is.
    results = translation.addresses
    kept = wanted
    if translation.own:
        kept = replace(kept, iif=kept.iif.meet(_find_own(matched, translation, wanted, addresses)))
    if translation.own or results is not None:
        kept = replace(kept, dst=() if meet(results, wanted.dst) == () else None)
    if translation.ports is not None:
        hit = meet(translation.ports, wanted.dport)
        proto = meet(kept.proto, PORT_PROTOCOLS)
        kept = replace(kept, dport=() if hit == () else None, proto=proto)
    elif translation.shuffled and translation.side is Side.SRC:
        kept = replace(kept, dport=None)
    before = matched.meet(kept)
    if translation.block is not None and results is not None and before.dst:
        hit = meet(results, wanted.dst) or ()
        before = replace(before, dst=move_back(hit, translation.block, matched.dst))
    return before


#: What REDIRECT writes at the output hook (nf_nat_redirect.c).
_LOOPBACK: dict[int, Limit] = {4: ((0x7F000001, 0x7F000001),), 6: ((1, 1),)}


def _find_own(
    matched: Headers, translation: Translation, wanted: Headers, addresses: LocalAddresses
) -> Devices:
    """Return the incoming devices of packets that get an address which *wanted* names."""
    version = matched.version
    if wanted.dst is None:
        return ANY_DEVICE
    masquerades = translation.side is Side.SRC
    names = frozenset(
        name
        for name, own in addresses.find(matched.oif if masquerades else matched.iif, version)
        if meet(own, wanted.dst)
    )
    if masquerades:
        return ANY_DEVICE if names else Devices(frozenset())
    return ANY_DEVICE if meet(_LOOPBACK[version], wanted.dst) else Devices(names)


def _map_replies(
    wanted: Headers, tables: Sequence[NatChains], addresses: LocalAddresses
) -> Iterator[Headers]:
    """Walk the headers, at their first hook, of replies that NAT will turn into *wanted*."""
    asked = replace(wanted.swapped, iif=ANY_DEVICE)
    for box in _map_forward(asked, tables, addresses):
        yield replace(box.swapped, iif=wanted.iif)


def _map_forward(
    asked: Headers,
    tables: Sequence[NatChains],
    addresses: LocalAddresses,
    *,
    shared: bool = False,
) -> list[Headers]:
    after = [asked]
    if asked.dst is not None or asked.dport is not None:
        after += _apply(asked, Side.DST, tables, addresses, shared=shared)
    final = list(after)
    for box in after:
        if box.src is not None or box.sport is not None or shared:
            final += _apply(box, Side.SRC, tables, addresses, shared=shared)
    return final


def _apply(
    asked: Headers,
    side: Side,
    tables: Sequence[NatChains],
    addresses: LocalAddresses,
    *,
    shared: bool = False,
) -> Iterator[Headers]:
    """
    Walk what the translations of *side* make of *asked*.

    Where that does not say whose packet it is any more, only with *shared*.
    """
    turn: Callable[[Headers], Headers] = _mirror if side is Side.SRC else _same
    for table, site, branch in _list_branches(tables):
        for translation in branch.translations:
            if translation.side is not side or branch.headers.meet(asked).is_empty:
                continue
            for way in table.find_ways(site.chain, side):
                matched = branch.headers.meet(way)
                box = matched.meet(asked)
                if box.is_empty:
                    continue
                after = _translate(turn(box), translation, addresses)
                is_told = shared or _is_telling(turn(matched), after, translation)
                if not after.is_empty and is_told:
                    yield turn(after).without_devices()


def _translate(box: Headers, translation: Translation, addresses: LocalAddresses) -> Headers:
    # What is translated is called the destination here, whichever it is.
    results = translation.addresses
    if translation.own:
        devices = box.oif if translation.side is Side.SRC else box.iif
        pairs = [pair for _, own in addresses.find(devices, box.version) for pair in own or ()]
        loopback = _LOOPBACK[box.version] if translation.side is Side.DST else ()
        results = tuple(sorted({*pairs, *(loopback or ())}))
    elif translation.block is not None and results is not None and box.dst is not None:
        results = move(box.dst, translation.block, results[0][0])
    box = box if results is None else replace(box, dst=results)
    if translation.ports is not None:
        return replace(box, dport=translation.ports, proto=meet(box.proto, PORT_PROTOCOLS))
    if translation.shuffled and translation.side is Side.SRC:
        return replace(box, dport=None)
    return box


def _is_telling(matched: Headers, after: Headers, translation: Translation) -> bool:
    """
    Tell whether the translated header still says whose packet it is.

    Replies to an address that many share (a masquerading router's, a proxy's) are not
    looked for by that address: conntrack names the right ones.
    """
    if after.dst is not None and matched.dst is not None and not translation.own:
        one_to_one = count(matched.dst) <= count(after.dst)
    else:
        # A port forwarding that names no address is as good as one that does.
        one_to_one = (
            translation.side is Side.DST and not translation.own and matched.dport is not None
        )
    if one_to_one:
        return True
    kept_port = None if translation.ports is not None else after.dport
    return not replace(after, dst=None, dport=kept_port).is_wide


def _same(box: Headers) -> Headers:
    return box
