"""
Headers as nft matches, read from the packet itself or from its connection's tuples.

Headers that name single values go into named sets, one lookup for any number of them;
the rest becomes rules.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tracer.core.nat_headers import PORT_PROTOCOLS
from tracer.core.nat_ranges import Ranges, count

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tracer.core.nat_headers import Devices, Headers

__all__ = [
    "MAX_RULES",
    "WITH_PORTS",
    "View",
    "Wanting",
    "quote_device",
    "render_lookup",
    "render_matches",
    "render_port_sets",
    "render_set",
    "split_wanted",
]

#: So many rules stand in each packet's way at most (about 10 ns each); headers that name
#: single values are not rules but elements of sets.
MAX_RULES = 256

#: Products of so many values at most are written out as a set's elements.
_MAX_PRODUCT = 1024

_FIELDS = ("src", "dst", "proto", "sport", "dport")
_KEYWORDS = {4: "ip", 6: "ip6"}
_TYPES = {
    "src": {4: "ipv4_addr", 6: "ipv6_addr"},
    "dst": {4: "ipv4_addr", 6: "ipv6_addr"},
    "proto": {4: "inet_proto", 6: "inet_proto"},
    "sport": {4: "inet_service", 6: "inet_service"},
    "dport": {4: "inet_service", 6: "inet_service"},
}
#: Matches packets of protocols that begin with two ports.
WITH_PORTS: Final = f"meta l4proto {{ {', '.join(str(low) for low, _ in PORT_PROTOCOLS)} }}"
_DEVICE: Final = re.compile(r"[A-Za-z0-9_.@:+-]+\*?")


@dataclass(frozen=True, slots=True)
class View:
    """
    Where each field is read: an nft expression by field name, for one IP *version*.

    *guard* are matches that must stand first. *ports*, for a connection's tuples, names a
    set for each limit on a port: nft 1.0.6 cannot load again what it lists for a tuple's
    port compared with a number (`0x16 [invalid type]`). It grows as matches are rendered.
    """

    version: int
    fields: Mapping[str, str]
    guard: str = ""
    ports: dict[Ranges, str] | None = None

    @property
    def port_guard(self) -> str:
        """The match that must precede ports: nft refuses a tuple's unless there was one."""
        return "" if self.ports is None else WITH_PORTS

    @staticmethod
    def packet(version: int, guard: str = "") -> View:
        """Read the packet's own headers, as they are at the hook."""
        ip = _KEYWORDS[version]
        return View(
            version,
            {
                "src": f"{ip} saddr",
                "dst": f"{ip} daddr",
                "proto": "meta l4proto",
                "sport": "th sport",
                "dport": "th dport",
            },
            guard,
        )

    @staticmethod
    def connection(
        version: int,
        source: tuple[str, str],
        target: tuple[str, str],
        ports: dict[Ranges, str],
        guard: str = "",
    ) -> View:
        """
        Read the connection's tuples.

        *source* and *target* say in which tuple (original or reply) and on which end of
        it (src or dst) the packet's source and destination are looked up.
        """
        ip = _KEYWORDS[version]
        (one, one_end), (two, two_end) = source, target
        return View(
            version,
            {
                "src": f"ct {one} {ip} {one_end[0]}addr",
                "dst": f"ct {two} {ip} {two_end[0]}addr",
                "proto": "meta l4proto",
                "sport": f"ct {one} proto-{one_end}",
                "dport": f"ct {two} proto-{two_end}",
            },
            guard,
            ports,
        )


@dataclass
class Wanting:
    """
    What to look for, split into sets and rules.

    *sets* maps the fields of a key to its elements, each a value for each field. *boxes*
    are the headers that need a rule of their own. *is_cut*: some had no place.
    """

    sets: dict[tuple[str, ...], list[tuple[int, ...]]] = field(default_factory=dict)
    boxes: list[Headers] = field(default_factory=list)
    is_cut: bool = False


def split_wanted(boxes: Iterable[Headers]) -> Wanting:
    """
    Put headers of single values into sets, and up to `MAX_RULES` others into rules.

    Where many name devices, the later ones lose them, to fit into a set.
    """
    found = Wanting()
    keys: dict[tuple[str, ...], dict[tuple[int, ...], None]] = {}
    for box in boxes:
        limits = _limits(box)
        has_place = len(found.boxes) < MAX_RULES // 2
        is_listed = bool(limits) and _is_listed(limits.values())
        if not is_listed or (box.iif.is_limited and has_place):
            found.boxes.append(box)
            continue
        values = [
            [number for low, high in ranges for number in range(low, high + 1)]
            for ranges in limits.values()
        ]
        keys.setdefault(tuple(limits), {}).update(dict.fromkeys(itertools.product(*values)))
    for names, elements in keys.items():
        found.sets[names] = list(elements)
    found.is_cut = len(found.boxes) > MAX_RULES
    del found.boxes[MAX_RULES:]
    return found


def _limits(box: Headers) -> dict[str, Ranges]:
    every = {name: getattr(box, name) for name in _FIELDS}
    return {name: limit for name, limit in every.items() if limit is not None}


def _is_listed(limits: Iterable[Ranges]) -> bool:
    total = 1
    for ranges in limits:
        total *= count(ranges)
    return total <= _MAX_PRODUCT


def render_set(
    name: str, names: tuple[str, ...], elements: list[tuple[int, ...]], version: int
) -> str:
    """Render a named set of *elements*, each with a value for each field in *names*."""
    kinds = " . ".join(_TYPES[part][version] for part in names)
    rows = ",\n   ".join(
        " . ".join(_value(part, number, version) for part, number in zip(names, row, strict=True))
        for row in elements
    )
    return f" set {name} {{ type {kinds};\n  elements = {{ {rows} }}\n }}\n"


def render_port_sets(ports: Mapping[Ranges, str]) -> str:
    """Render the sets that a view named for its limits on ports."""
    return "".join(
        f" set {name} {{ type inet_service; flags interval; elements = {{ "
        f"{', '.join(_span('dport', low, high, 4) for low, high in ranges)} }} }}\n"
        for ranges, name in ports.items()
    )


def render_lookup(name: str, names: tuple[str, ...], view: View) -> str:
    """Render the match that looks *names* up in the set *name*."""
    key = " . ".join(view.fields[part] for part in names)
    port_guard = view.port_guard if {"sport", "dport"} & set(names) else ""
    return " ".join(part for part in (view.guard, port_guard, key, f"@{name}") if part)


def render_matches(box: Headers, view: View) -> str:
    """Render the matches that hold for exactly the packets of *box*; empty for all."""
    # The protocol stands before the ports: nft wants to know what header it reads them in.
    parts = [view.guard, *_devices(box.iif)]
    if box.proto is None and not (box.sport is None and box.dport is None):
        parts.append(view.port_guard)
    for name, ranges in _limits(box).items():
        value = _render_ranges(name, ranges, view.version)
        if view.ports is not None and name in ("sport", "dport"):
            value = f"@{view.ports.setdefault(ranges, f'ports{len(view.ports)}')}"
        parts.append(f"{view.fields[name]} {value}")
    return " ".join(part for part in parts if part)


def _render_ranges(name: str, ranges: Ranges, version: int) -> str:
    texts = [_span(name, low, high, version) for low, high in ranges]
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def _span(name: str, low: int, high: int, version: int) -> str:
    if low == high:
        return _value(name, low, version)
    return f"{_value(name, low, version)}-{_value(name, high, version)}"


def _value(name: str, number: int, version: int) -> str:
    if name not in ("src", "dst"):
        return str(number)
    return str((ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address)(number))  # noqa: PLR2004


def quote_device(name: str) -> str | None:
    """Return *name* as nft reads it, or None where its characters cannot be written."""
    return f'"{name}"' if _DEVICE.fullmatch(name) else None


def _devices(devices: Devices) -> list[str]:
    """
    Render which devices a packet may come in by.

    A name that cannot be written, and more than one pattern, are left out: more packets
    are traced then than asked for, and cut by the follower.
    """
    parts = []
    if devices.only is not None:
        names = [quote_device(name) for name in sorted(devices.only)]
        patterns = [name for name in sorted(devices.only) if name.endswith("*")]
        if None not in names and (not patterns or len(names) == 1):
            listed = ", ".join(name for name in names if name is not None)
            parts.append(f"iifname {listed}" if len(names) == 1 else f"iifname {{ {listed} }}")
    for name in sorted(devices.but_not):
        quoted = quote_device(name)
        if quoted is not None:
            parts.append(f"iifname != {quoted}")
    return parts
