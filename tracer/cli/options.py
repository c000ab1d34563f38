"""The filter words and output words that every command shares."""

from __future__ import annotations

import ipaddress
import math
import os
import socket
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from tracer.core.filters import Filter
from tracer.core.packet_text import PROTOCOL_NAMES
from tracer.errors import UsageError
from tracer.sources.netns import all_namespaces, current_namespace, find_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracer.core.filters import IPNetwork
    from tracer.sources.netns import Netns

__all__ = [
    "Seconds",
    "color_option",
    "filter_options",
    "namespaces_of",
    "output_option",
    "read_filter",
    "wants_color",
]

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting", "ingress", "egress")
_VERDICTS = ("accept", "drop", "reject", "jump", "goto", "return", "continue", "queue", "stolen")
_MAX_PORT = 65_535
_MAX_PROTOCOL = 255
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
#: Terminals that move no cursor: what TERM says of them.
_DUMB = ("dumb", "unknown")
_MAX_DEVICE = 15  # IFNAMSIZ without its NUL, include/uapi/linux/if.h

Command = TypeVar("Command", bound="Callable[..., Any]")

_OPTIONS = (
    click.option("--src", metavar="ADDR", help="source address or prefix, IPv4 or IPv6"),
    click.option("--dst", metavar="ADDR", help="destination address or prefix"),
    click.option("--sport", metavar="PORT", help="source port"),
    click.option("--dport", metavar="PORT", help="destination port"),
    click.option("--proto", metavar="NAME", help="tcp, udp, icmp, … or a number"),
    click.option("--in", "in_device", metavar="DEV", help="device the packet came in by"),
    click.option("--out", "out_device", metavar="DEV", help="device it goes out by"),
    click.option(
        "--netns",
        metavar="NAME|PID|all",
        multiple=True,
        help="network namespace by name or process; may be repeated (default: this one)",
    ),
    click.option("--table", metavar="NAME", help="journeys with a step in this table"),
    click.option("--chain", metavar="NAME", help="… in this chain"),
    click.option("--hook", metavar="NAME", help="… at this hook"),
    click.option("--verdict", metavar="NAME", help="… with this verdict"),
)


class Seconds(click.FloatRange):
    """A span of time from a least one on; endless and "nan" are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 - as click declares it
        """Return the seconds; click's usage error for what is no number of them."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


def filter_options(command: Command) -> Command:
    """Give a command the filter's options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def color_option(command: Command) -> Command:
    """Give a command the option that chooses colours."""
    return click.option(
        "--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="colours"
    )(command)


def wants_color(color: str, file: IO[str]) -> bool:
    """
    Say what *color* auto, always or never comes to on *file*.

    auto is colour on a terminal that is not dumb and with no NO_COLOR in the environment;
    always is colour whatever the environment says.
    """
    return color == "always" or (
        color == "auto"
        and file.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") not in _DUMB
    )


def output_option(*forms: str) -> Callable[[Command], Command]:
    """Return what gives a command the option that chooses one of *forms*, the first unless told."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(forms),
        default=forms[0],
        help=f"how to tell it (default: {forms[0]})",
    )


def read_filter(words: Mapping[str, Any]) -> Filter:
    """
    Return the filter that the options say.

    Errors: UsageError that names the word which is wrong, and what it should be.
    """
    src, dst = _network("--src", words["src"]), _network("--dst", words["dst"])
    proto = _protocol(words["proto"])
    wanted = Filter(
        src=src,
        dst=dst,
        sport=_port("--sport", words["sport"]),
        dport=_port("--dport", words["dport"]),
        proto=proto,
        in_device=_device("--in", words["in_device"]),
        out_device=_device("--out", words["out_device"]),
        table=words["table"],
        chain=words["chain"],
        hook=_choice("--hook", words["hook"], _HOOKS),
        verdict=_choice("--verdict", words["verdict"], _VERDICTS),
    )
    if src is not None and dst is not None and src.version != dst.version:
        message = f"--src {words['src']} and --dst {words['dst']} are of different IP versions"
        raise UsageError(message, "no packet has both: name addresses of one version")
    if wanted.needs_ports and proto is not None and proto not in _WITH_PORTS:
        message = f"--proto {words['proto']} has no ports"
        raise UsageError(message, "leave out --sport and --dport, or name tcp, udp, …")
    return wanted


def namespaces_of(words: Sequence[str]) -> list[Netns]:
    """
    Return the namespaces that `--netns` names, each once; the current one for none.

    Errors: UsageError where one does not exist.
    """
    if not words:
        return [current_namespace()]
    found: dict[int, Netns] = {}
    for word in words:
        listed = all_namespaces() if word == "all" else [find_namespace(word)]
        for namespace in listed:
            found.setdefault(namespace.inode, namespace)
    return list(found.values())


def _network(option: str, word: str | None) -> IPNetwork | None:
    if word is None:
        return None
    try:
        return ipaddress.ip_network(word, strict=False)
    except ValueError as exc:
        message = f"{option} {word}: not an address"
        remedy = "give an IPv4 or IPv6 address or prefix, as 172.17.21.105 or 2001:db8::/32"
        raise UsageError(message, remedy) from exc


def _port(option: str, word: str | None) -> int | None:
    if word is None:
        return None
    if word.isascii() and word.isdecimal() and int(word) <= _MAX_PORT:
        return int(word)
    try:
        return socket.getservbyname(word)
    except (OSError, ValueError) as exc:
        message = f"{option} {word}: not a port"
        raise UsageError(message, f"give a number from 0 to {_MAX_PORT}, or a service") from exc


def _protocol(word: str | None) -> int | None:
    if word is None:
        return None
    if word.isascii() and word.isdecimal() and int(word) <= _MAX_PROTOCOL:
        return int(word)
    numbers = {name: number for number, name in PROTOCOL_NAMES.items()}
    number = numbers.get(word.lower())
    if number is None:
        message = f"--proto {word}: not a protocol"
        raise UsageError(message, "give tcp, udp, icmp, icmpv6, sctp, … or a number to 255")
    return number


def _device(option: str, word: str | None) -> str | None:
    if word is not None and not 0 < len(word.encode()) <= _MAX_DEVICE:
        message = f"{option} {word!r}: not a device's name"
        raise UsageError(message, f"give one of `ip link`, at most {_MAX_DEVICE} bytes")
    return word


def _choice(option: str, word: str | None, known: Sequence[str]) -> str | None:
    if word is None or word.lower() in known:
        return None if word is None else word.lower()
    raise UsageError(f"{option} {word}: there is none such", f"give one of {', '.join(known)}")
