"""The matches and translations of one rule as `nft -j` prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tracer.core.nat_headers import Headers, narrow
from tracer.core.nat_iptables import NAT_TARGETS
from tracer.core.nat_nft_values import (
    Json,
    Sets,
    Unreadable,
    read_element,
    read_fields,
    read_limit,
    read_match,
    unwrap,
)
from tracer.core.nat_rules import Branch, Side, Translation

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find_effects", "read_nft_rule"]

_SIDES = {"dnat": Side.DST, "redirect": Side.DST, "snat": Side.SRC, "masquerade": Side.SRC}
_VERSIONS = {"ip": 4, "ip6": 6}


def read_nft_rule(expressions: Sequence[Json], version: int, sets: Sets) -> list[Branch]:
    """
    Return what a rule does with packets of one IP *version*: its jumps and translations.

    *expressions* is the rule's `expr`; *sets* the named sets and maps of its table.
    Matches that are no limit on a header field are left out. A branch with neither jump
    nor translations is a statement that cannot be read.
    """
    boxes = [Headers(version)]
    found: list[Branch] = []
    for expression in expressions:
        if not isinstance(expression, Mapping):
            # Printed as text because this nft has no JSON for it, as with `jump { … }`.
            return [*found, *(Branch(box) for box in boxes)]
        for kind, body in expression.items():
            if kind == "match" and isinstance(body, Mapping):
                boxes = narrow(boxes, read_match(body, version, sets))
            else:
                found += _read_statement(kind, body, boxes, sets)
    return found


def find_effects(expressions: Sequence[Json]) -> set[str | None] | None:
    """
    Return the chains that a rule can lead to, and None among them where it translates.

    None where that takes reading the rule: this is for the many rules that no filter
    concerns. *expressions* is the rule's `expr`.
    """
    found: set[str | None] = set()
    for expression in expressions:
        # A dict, as json makes it: asking for a Mapping takes ten times as long.
        if not isinstance(expression, dict) or "vmap" in expression:
            return None
        for kind, body in expression.items():
            if kind in ("jump", "goto"):
                found.add(_target(body))
            elif kind in _SIDES or kind == "xt":
                found.add(None)
    return found


def _read_statement(
    kind: str, body: Json, boxes: Sequence[Headers], sets: Sets
) -> Iterator[Branch]:
    if kind in ("jump", "goto"):
        for box in boxes:
            yield Branch(box, jump=_target(body))
    elif kind == "vmap" and isinstance(body, Mapping):
        yield from _read_verdict_map(body, boxes, sets)
    elif kind in _SIDES:
        yield from _read_nat(kind, body if isinstance(body, Mapping) else {}, boxes, sets)
    elif kind == "xt" and isinstance(body, Mapping) and str(body.get("name")) in NAT_TARGETS:
        for box in boxes:
            yield Branch(box)


def _target(body: Json) -> str:
    return str(body.get("target")) if isinstance(body, Mapping) else ""


def _list_pairs(data: Json, sets: Sets) -> Sequence[Json]:
    """Return a map's [key, value] elements; errors: Unreadable."""
    if isinstance(data, str):
        elements: object = sets.get(data.removeprefix("@"))
    else:
        elements = data.get("set") if isinstance(data, Mapping) else None
    if not isinstance(elements, Sequence) or isinstance(elements, str):
        raise Unreadable(data)
    return elements


def _read_pairs(
    body: Mapping[str, Json], box: Headers, sets: Sets
) -> Iterator[tuple[Headers, Json]]:
    """Walk a map's elements as the headers that have the key, and the value."""
    fields = read_fields(body.get("key"), box.version)
    for element in _list_pairs(body.get("data"), sets):
        if not isinstance(element, list) or len(element) != 2:  # noqa: PLR2004
            raise Unreadable(element)
        key, value = element
        headers = box.meet(read_element(fields, key, box.version))
        if not headers.is_empty:
            yield headers, unwrap(value)


def _read_verdict_map(
    body: Mapping[str, Json], boxes: Sequence[Headers], sets: Sets
) -> Iterator[Branch]:
    for box in boxes:
        try:
            for headers, verdict in _read_pairs(body, box, sets):
                for kind in ("jump", "goto"):
                    if isinstance(verdict, Mapping) and kind in verdict:
                        yield Branch(headers, jump=_target(verdict[kind]))
        except Unreadable:
            yield Branch(box)


def _read_nat(
    kind: str, body: Mapping[str, Json], boxes: Sequence[Headers], sets: Sets
) -> Iterator[Branch]:
    family = body.get("family")
    for box in boxes:
        if isinstance(family, str) and _VERSIONS.get(family) != box.version:
            continue
        try:
            branches = list(_read_results(kind, body, box, sets))
        except Unreadable:
            branches = [Branch(box)]
        yield from branches


def _read_results(
    kind: str, body: Mapping[str, Json], box: Headers, sets: Sets
) -> Iterator[Branch]:
    for headers, address in _choices(body.get("addr"), box, sets):
        for narrowed, port in _choices(body.get("port"), headers, sets):
            yield Branch(narrowed, translations=(_make(kind, body, address, port, box.version),))


def _choices(value: Json, box: Headers, sets: Sets) -> Iterator[tuple[Headers, Json]]:
    """Walk what an address or a port can be: one value, or a map's, each with its headers."""
    inner = value.get("map") if isinstance(value, Mapping) else None
    if isinstance(inner, Mapping):
        yield from _read_pairs(inner, box, sets)
    else:
        yield box, value


def _make(
    kind: str, body: Mapping[str, Json], address: Json, port: Json, version: int
) -> Translation:
    side = _SIDES[kind]
    concat = address.get("concat") if isinstance(address, Mapping) else None
    if isinstance(concat, list) and len(concat) == 2:  # noqa: PLR2004
        address, port = concat
    addresses = None if address is None else read_limit(side.value, address, version)
    ports = None if port is None else read_limit("dport", port, version)
    flags = body.get("flags")
    flags = [flags] if isinstance(flags, str) else flags if isinstance(flags, list) else []
    block = None
    if "netmap" in flags and addresses:
        # nf_nat_core.c, find_best_ips_proto: the bits in which the range's ends differ
        # are kept; what is no prefix is widened to one.
        low, high = addresses[0][0], addresses[-1][1]
        block = 1 << (low ^ high).bit_length()
        low &= ~(block - 1)
        addresses = ((low, low + block - 1),)
    return Translation(
        side,
        addresses,
        ports,
        own=kind in ("redirect", "masquerade"),
        block=block,
        shuffled="random" in flags or "fully-random" in flags,
    )
