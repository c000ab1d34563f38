"""
The chains that catch packets which the first hook could not know, and learn from them.

They need connection tracking and stand only where it is in use. A translated connection
has two tuples: each direction's packets come in with that direction's own, are called by
the other tuple's far end after the destination is translated, and by both of its ends
after the source is. So a filter meets a packet in one of three ways, and the first of
them, the packet's own header, is what the first hook looks at.

What is caught is put into the set that the first hook looks up: by the tuple that the
packets of that direction come in with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tracer.core.matches import WITH_PORTS, View, render_matches, render_port_sets
from tracer.core.nat_headers import PORT_PROTOCOLS
from tracer.core.nat_ranges import covers, meet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tracer.core.nat_headers import Headers
    from tracer.core.nat_ranges import Ranges

__all__ = ["Learning", "list_flow_lookups", "render_flow_sets", "render_learning"]

#: Conntrack looks connections up at -200 (NF_IP_PRI_CONNTRACK).
_BEHIND_CONNTRACK = -199

#: Two sets of 65,535 elements of at most 40 bytes are some 20 MB when full; what has no
#: place in them is traced from behind conntrack on.
_FLOWS_SIZE = 65535

#: Each packet that is looked up renews its element, so this is for how long a silent
#: connection is remembered.
_FLOWS_TIMEOUT = "5m"

_OTHER = {"original": "reply", "reply": "original"}
_IP = {4: "ip", 6: "ip6"}

#: For each set of connections: the packets that it is for, and its key in their headers.
_HEADER_KEYS = {
    "flows": "{ip} saddr . {ip} daddr . meta l4proto . th sport . th dport",
    "pairs": "{ip} saddr . {ip} daddr . meta l4proto",
}
_TUPLE_KEYS = {
    "flows": (
        "ct {way} {ip} saddr . ct {way} {ip} daddr . meta l4proto"
        " . ct {way} proto-src . ct {way} proto-dst"
    ),
    "pairs": "ct {way} {ip} saddr . ct {way} {ip} daddr . meta l4proto",
}
#: Which packets go into which set.
_GUARDS = {"flows": WITH_PORTS, "pairs": WITH_PORTS.replace("l4proto", "l4proto !=")}


@dataclass(frozen=True, slots=True)
class Learning:
    """
    What the chains behind conntrack are made from.

    *filters* are the headers asked for; *known* renders, for a view, the matches of what
    the first hook arms by itself. *behind* maps the hooks at which addresses are
    translated to a priority behind that. *both*: a caught packet's replies are wanted
    too. *is_paced*: a limit named `pace` and a counter named `over_limit` exist. *ports*
    gathers the sets of ports that the rules look up.
    """

    version: int
    filters: tuple[Headers, ...]
    known: Callable[[View], list[str]]
    behind: Mapping[str, int]
    both: bool
    is_paced: bool
    ports: dict[Ranges, str] = field(default_factory=dict)

    @property
    def guards(self) -> dict[str, str]:
        """The sets that the filters can need, and which packets go into each."""
        protos = [box.proto for box in self.filters]
        needed = {
            "flows": any(meet(proto, PORT_PROTOCOLS) for proto in protos),
            "pairs": not all(covers(PORT_PROTOCOLS, proto) for proto in protos),
        }
        return {name: guard for name, guard in _GUARDS.items() if needed[name]}


def render_flow_sets(learning: Learning) -> str:
    """Render the sets of connections, with ports and without, as far as they are needed."""
    version = learning.version
    address = f"ipv{version}_addr . ipv{version}_addr . inet_proto"
    kinds = {"flows": f"{address} . inet_service . inet_service", "pairs": address}
    return "".join(
        f" set {name} {{ type {kind}; flags dynamic,timeout;"
        f" timeout {_FLOWS_TIMEOUT}; size {_FLOWS_SIZE}; }}\n"
        for name, kind in kinds.items()
        if name in learning.guards
    )


def list_flow_lookups(learning: Learning) -> list[str]:
    """Return the matches of packets whose own header is in one of the sets."""
    return [f"{_header_key(name, learning.version)} @{name}" for name in learning.guards]


def _header_key(name: str, version: int) -> str:
    return _HEADER_KEYS[name].format(ip=_IP[version])


def render_learning(learning: Learning) -> str:
    """Render all chains behind conntrack, those that they go to, and their sets of ports."""
    chains = []
    for name in ("learn", "learn_both") if learning.both else ("learn",):
        chains.append(_render_learn(name, learning, both=name == "learn_both"))
        if learning.is_paced:
            chains.append(_chain(f"pace_{name}", "", [f'limit name "pace" goto {name}', _OVER]))
    for hook in ("prerouting", "output"):
        chains.append(_render_old(hook, learning))
        chains.append(_render_translated(hook, learning))
    chains += [_render_new(hook, learning) for hook in ("postrouting", "input")]
    return "".join([render_port_sets(learning.ports), *chains])


_OVER = 'counter name "over_limit"'
#: A rule that ends a chain shows as one event of a traced packet; without it, the chain's
#: end and its policy show as two.
_END = "accept"
#: The headers of what is not translated never change: the first hook saw all there is.
_UNTRANSLATED = "ct status & (snat | dnat) == 0 accept"


def _chain(name: str, head: str, rules: Iterable[str]) -> str:
    body = "".join(f"  {rule}\n" for rule in rules)
    return f" chain {name} {{\n{head}{body} }}\n"


def _base(name: str, hook: str, priority: int, rules: Iterable[str]) -> str:
    head = f"  type filter hook {hook} priority {priority}; policy accept;\n"
    return _chain(name, head, rules)


def _key(name: str, way: str, version: int) -> str:
    return _TUPLE_KEYS[name].format(way=way, ip=_IP[version])


def _update(name: str, way: str, version: int) -> str:
    return f"update @{name} {{ {_key(name, way, version)} }}"


def _render_learn(name: str, learning: Learning, *, both: bool) -> str:
    rules = []
    for way, other in _OTHER.items():
        for flows, guard in learning.guards.items():
            learned = [_update(flows, way, learning.version)]
            if both:
                learned.append(_update(flows, other, learning.version))
            # A full set ends the rule: switch tracing on first.
            start = f"ct direction {way} {guard} meta nftrace set 1"
            rules.append(f"{start} {' '.join(learned)} accept")
    return _chain(name, "", rules)


def _goto(name: str, learning: Learning) -> str:
    return f"goto pace_{name}" if learning.is_paced else f"goto {name}"


def _render_old(hook: str, learning: Learning) -> str:
    """Render the chain just behind conntrack, for connections that are older than us."""
    version = learning.version
    rules = [_UNTRANSLATED]
    for name in learning.guards:
        own = _header_key(name, version)
        rules.append(f"{own} @{name} update @{name} {{ {own} }} accept")
    rules += [f"{match} accept".strip() for match in learning.known(View.packet(version))]
    target = _goto("learn_both" if learning.both else "learn", learning)
    rules += [f"{match} {target}" for way in _OTHER for match in _list_ways(way, learning)]
    return _base(f"old_{hook}", hook, _BEHIND_CONNTRACK, [*rules, _END])


def _render_translated(hook: str, learning: Learning) -> str:
    """Render the chain behind the destination's translation, for rules that none can read."""
    version = learning.version
    rules = [_UNTRANSLATED]
    for way in _OTHER:
        start = f"ct direction {way}"
        own = View.connection(version, (way, "src"), (way, "dst"), learning.ports, start)
        rules += [
            f"{start} {guard} {_key(name, way, version)} @{name} accept"
            for name, guard in learning.guards.items()
        ]
        rules += [f"{match} accept" for match in learning.known(own)]
    view = View.packet(version)
    target = _goto("learn", learning)
    rules += [f"{render_matches(box, view)} {target}".strip() for box in learning.filters]
    return _base(f"translated_{hook}", hook, learning.behind[hook], [*rules, _END])


def _render_new(hook: str, learning: Learning) -> str:
    """
    Render the chain behind the source's translation, where both tuples are final.

    A new connection's first packet tells here how its later ones and its replies will
    come in. Nothing is traced: behind us there is nothing to see.
    """
    version = learning.version
    rules = ["ct state != new accept", _UNTRANSLATED]
    original = View.connection(version, ("original", "src"), ("original", "dst"), learning.ports)
    for way in ("reply", "original"):
        if way == "original":
            rules += [f"{match} accept".strip() for match in learning.known(original)]
        for match in _list_ways(way, learning, any_packet=True):
            rules += [
                f"{match} {guard} {_update(name, way, version)}"
                for name, guard in learning.guards.items()
            ]
    return _base(f"new_{hook}", hook, learning.behind[hook], [*rules, _END])


def _list_ways(way: str, learning: Learning, *, any_packet: bool = False) -> Iterator[str]:
    """
    Walk the matches of connections whose packets of direction *way* come to meet a filter.

    With *any_packet* the packet that is looked at may be of either direction, and what
    the filter says of devices is not asked.
    """
    other = _OTHER[way]
    guard = "" if any_packet else f"ct direction {way}"
    found: dict[str, None] = {}
    for box in learning.filters:
        stages = []
        if box.dst is not None or box.dport is not None:
            stages.append(((way, "src"), (other, "src")))
        if box.src is not None or box.sport is not None:
            stages.append(((other, "dst"), (other, "src")))
        for source, target in stages:
            view = View.connection(box.version, source, target, learning.ports, guard)
            asked = box.without_devices() if any_packet else box
            found[render_matches(asked, view)] = None
    return iter(found)
