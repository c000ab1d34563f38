"""The matches and translations of one rule as `iptables-save` prints it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from tracer.core.iptables_lines import split_arguments
from tracer.core.nat_headers import Devices, Headers, narrow
from tracer.core.nat_ranges import Limit, Ranges, complement, make_ranges, meet, read_addresses
from tracer.core.nat_rules import TOPS, Branch, Side, Translation
from tracer.core.nat_sets import IpSets, read_match_set

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NAT_TARGETS", "PROTOCOLS", "read_iptables_rule"]

#: Targets that change an address or a port in a nat table.
NAT_TARGETS = frozenset(("DNAT", "REDIRECT", "NETMAP", "SNAT", "MASQUERADE"))

#: The names that iptables and nft print instead of numbers (iptables' xtables_chain_protos
#: and nft's inet_proto; other names of /etc/protocols are not followed).
PROTOCOLS: Final = {
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "ospf": 89,
    "pim": 103,
    "comp": 108,
    "ipcomp": 108,
    "vrrp": 112,
    "sctp": 132,
    "mobility-header": 135,
    "mh": 135,
    "udplite": 136,
}

_TOP_PORT = 65535
_TOP_PROTOCOL = 255
#: Options whose one argument is free text and could look like an option.
_FREE_TEXT = frozenset(
    ("--comment", "--string", "--hex-string", "--log-prefix", "--nflog-prefix", "--bytecode")
)


def _split(text: str) -> list[str]:
    return split_arguments(text) if '"' in text else text.split()


def read_iptables_rule(text: str, version: int, sets: IpSets) -> list[Branch]:
    """
    Read what a rule of a nat table matches and does, from `-A CHAIN …` on.

    Several branches do the same with different packets, where a set of *sets* says which;
    none where it holds nothing. Matches other than addresses, ports, protocol, devices and
    sets are left out. A branch without jump and translations is a target that changes
    nothing or cannot be read.
    """
    rule = _Rule(_split(text), version, sets)
    rule.read()
    target = rule.target
    translations = (
        _read_translations(target, rule.options, version) if target in NAT_TARGETS else ()
    )
    jump = None if target in NAT_TARGETS else target
    return [Branch(box, jump, translations) for box in rule.boxes]


class _Rule:
    """The words of one rule, and what has been read of them."""

    def __init__(self, words: list[str], version: int, sets: IpSets) -> None:
        self._words = words
        self._version = version
        # With this option members and nomatch members change places.
        self._sets = {} if "--return-nomatch" in words else sets
        self._limits: dict[str, Limit] = {}
        self._devices: dict[str, Devices] = {}
        self.boxes: list[Headers] = [Headers(version)]
        self.target = ""
        self.options: dict[str, str] = {}

    def read(self) -> None:
        words, negated, index = self._words, False, 2
        while index < len(words):
            word = words[index]
            index += 1
            if word == "!":
                negated = True
                continue
            argument = words[index] if index < len(words) else ""
            self._take(word, argument, words[index + 1 : index + 2], negated=negated)
            if word in _FREE_TEXT or (argument and not argument.startswith(("-", "!"))):
                index += 1
            negated = False
        fields: dict[str, Limit | Devices] = {**self._limits, **self._devices}
        headers = Headers(self._version, **fields)  # type: ignore[arg-type]
        self.boxes = narrow([headers], self.boxes)

    def _take(self, word: str, argument: str, rest: list[str], *, negated: bool) -> None:
        if word in _READERS:
            field, read = _READERS[word]
            limit = _read_limit(read, argument, self._version, negated=negated)
            self._limits[field] = meet(self._limits.get(field), limit)
        elif word == "--match-set":
            ways = [way for words in rest for way in words.split(",")]
            found = read_match_set(self._sets, argument, ways, self._version, negated=negated)
            self.boxes = narrow(self.boxes, found)
        elif word in _DEVICES:
            self._devices[_DEVICES[word]] = _read_device(argument, negated=negated)
        elif word in ("-j", "-g", "--jump", "--goto"):
            self.target = argument
        elif self.target:
            self.options[word] = argument


_DEVICES = {"-i": "iif", "--in-interface": "iif", "-o": "oif", "--out-interface": "oif"}


def _read_device(name: str, *, negated: bool) -> Devices:
    name = f"{name[:-1]}*" if name.endswith("+") else name
    if name == "*":
        return Devices(frozenset()) if negated else Devices()
    only = frozenset((name,))
    return Devices(but_not=only) if negated else Devices(only)


def _read_limit(
    read: Callable[[str, int], tuple[Ranges, int]], argument: str, version: int, *, negated: bool
) -> Limit:
    try:
        ranges, top = read(argument, version)
    except ValueError:
        return None
    if negated:
        return complement(ranges, top)
    return None if ranges == ((0, top),) else ranges


def _read_address(text: str, version: int) -> tuple[Ranges, int]:
    return read_addresses(text, version), TOPS[version]


def _read_ports(text: str, _version: int) -> tuple[Ranges, int]:
    pairs = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        last = high or (_TOP_PORT if colon else low)
        pairs.append((int(low or 0), int(last)))
    return make_ranges(pairs), _TOP_PORT


def _read_protocol(text: str, _version: int) -> tuple[Ranges, int]:
    number = PROTOCOLS[text] if text in PROTOCOLS else int(text)
    # iptables: protocol 0 is every protocol.
    return ((number, number) if number else (0, _TOP_PROTOCOL),), _TOP_PROTOCOL


#: Option -> field of `Headers` and how its argument is read. `--ports` (source or
#: destination) is no product and is left out.
_READERS: dict[str, tuple[str, Callable[[str, int], tuple[Ranges, int]]]] = {
    "-s": ("src", _read_address),
    "--source": ("src", _read_address),
    "--src-range": ("src", _read_address),
    "-d": ("dst", _read_address),
    "--destination": ("dst", _read_address),
    "--dst-range": ("dst", _read_address),
    "-p": ("proto", _read_protocol),
    "--protocol": ("proto", _read_protocol),
    "--sport": ("sport", _read_ports),
    "--source-port": ("sport", _read_ports),
    "--sports": ("sport", _read_ports),
    "--source-ports": ("sport", _read_ports),
    "--dport": ("dport", _read_ports),
    "--destination-port": ("dport", _read_ports),
    "--dports": ("dport", _read_ports),
    "--destination-ports": ("dport", _read_ports),
}


def _read_translations(
    target: str, options: dict[str, str], version: int
) -> tuple[Translation, ...]:
    shuffled = "--random" in options or "--random-fully" in options
    try:
        if target == "NETMAP":
            network = ipaddress.ip_network(options["--to"], strict=False)
            low, size = int(network.network_address), network.num_addresses
            found = ((low, low + size - 1),)
            return tuple(Translation(side, found, block=size) for side in Side)
        if target in ("REDIRECT", "MASQUERADE"):
            side = Side.DST if target == "REDIRECT" else Side.SRC
            ports = _read_target_ports(options.get("--to-ports", ""))
            return (Translation(side, None, ports, own=True, shuffled=shuffled),)
        side = Side.DST if target == "DNAT" else Side.SRC
        text = options["--to-destination" if side is Side.DST else "--to-source"]
        addresses, ports = _read_socket(text, version)
        return (Translation(side, addresses, ports, shuffled=shuffled),)
    except (KeyError, ValueError):
        return ()


def _read_socket(text: str, version: int) -> tuple[Limit, Limit]:
    """Read `ADDRESS[-ADDRESS][:PORT[-PORT[/BASE]]]`, an IPv6 address with ports in brackets."""
    if text.startswith("["):
        address, _, ports = text[1:].partition("]")
        ports = ports.removeprefix(":")
    elif version == 4:  # noqa: PLR2004
        address, _, ports = text.partition(":")
    else:
        address, ports = text, ""
    return read_addresses(address, version) if address else None, _read_target_ports(ports)


def _read_target_ports(text: str) -> Limit:
    if not text:
        return None
    low, _, high = text.partition("/")[0].partition("-")
    return ((int(low), int(high or low)),)
