"""
What rtnetlink tells of one namespace: routes, rules, addresses, links, neighbours, switches.

At the start everything is read once, so that a change has a before. A device that goes down
takes its IPv4 routes with it, and nobody is told: they are read again then, as after a loss.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Final

from tracer.core.log_rows import Change
from tracer.core.net_changes import Fact, FactReader
from tracer.errors import KernelRefusedError
from tracer.sources.netns import entered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.sources.netns import Netns

__all__ = ["FACTS_MAX", "NetChanges"]

# include/uapi/linux/rtnetlink.h: link, neigh, ipv4 address, route, rule, ipv6 the same;
# netconf of both.
_GROUPS: Final = (1, 3, 5, 7, 8, 9, 11, 19, 24, 25)
_ADD_MEMBERSHIP, _SOL_NETLINK = 1, 270
_REQUEST_DUMP: Final = 0x301
_ERROR, _DONE = 2, 3
#: What is dumped at the start: links first, as the others name them.
_DUMPS: Final = ((18, 17), (22, 0), (26, 0), (34, 0), (82, 2), (82, 10))
_ROUTES: Final = (26, 0)
_BUFFER: Final = 1 << 20
_DATAGRAM: Final = 1 << 16
_ANSWER_S: Final = 5.0
#: Facts remembered in a namespace. Beyond it changes are told without what was before.
FACTS_MAX: Final = 65_536
#: Devices of which no change of a switch is told for itself.
_ALIKE: Final = frozenset({"forwarding"})
_SO_RCVBUFFORCE: Final = 33


class NetChanges:
    """One namespace's socket and what was true when it was last heard of."""

    def __init__(self, namespace: Netns) -> None:
        """
        Listen, and read what is true now.

        Errors: KernelRefusedError where the kernel does not let us.
        """
        self.overruns = 0
        self.forgotten = 0
        self._namespace = namespace
        self._reader = FactReader()
        self._facts: dict[tuple[str, tuple[object, ...]], Fact] = {}
        try:
            with entered(namespace):
                self._socket = _listen()
        except OSError as exc:
            message = f"netns {namespace.name}: the kernel does not tell changes ({exc.strerror})"
            raise KernelRefusedError(message) from exc
        try:
            for fact in self._dump(_DUMPS):
                self._remember(fact)
        except BaseException:
            self._socket.close()
            raise

    @property
    def malformed(self) -> int:
        """Messages that were not what they claimed to be."""
        return self._reader.malformed

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector."""
        return self._socket.fileno()

    def read(self, now_ns: int) -> list[Change]:
        """Return what changed since the last call; *now_ns* is the time it is given."""
        changes: list[Change] = []
        is_torn = False
        while True:
            try:
                datagram = self._socket.recv(_DATAGRAM)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                is_torn = True
                continue
            for fact in self._reader.read(datagram):
                is_torn |= fact.what == "link" and not fact.state.startswith("up,")
                changes += self._take(fact, now_ns)
        return [*changes, *self._compare(now_ns)] if is_torn else changes

    def _compare(self, now_ns: int) -> list[Change]:
        """Read all routes again, and return what is otherwise."""
        try:
            found = {("route", fact.key): fact for fact in self._dump((_ROUTES,))}
        except (OSError, KernelRefusedError):
            return []
        gone = [
            Fact("route", known.key, known.subject, "")
            for place, known in list(self._facts.items())
            if place[0] == "route" and place not in found
        ]
        return [change for fact in [*gone, *found.values()] for change in self._take(fact, now_ns)]

    def _take(self, fact: Fact, now_ns: int) -> Iterator[Change]:
        known = self._facts.get((fact.what, fact.key))
        before, after = known.state if known else "", fact.state
        is_renamed = known is not None and bool(after) and known.subject != fact.subject
        self._remember(fact)
        if (before == after and not is_renamed) or self._is_alike(fact):
            return
        # The switches of a device that is new are not switched.
        if fact.what == "sysctl" and not before:
            return
        action = "new" if not before else "changed" if after else "gone"
        if fact.what == "neighbour":
            action, before = "changed", before or "well or unknown"
            after = after or "reachable"
        elif known is not None and is_renamed:
            before, after = f"{before}, name {known.subject}", f"{after}, name {fact.subject}"
        yield Change(now_ns, self._namespace.name, fact.what, action, fact.subject, before, after)

    def _is_alike(self, fact: Fact) -> bool:
        """Tell whether a device was switched together with all devices, which is told."""
        if fact.what != "sysctl" or fact.key[1] == -1 or fact.key[2] not in _ALIKE:
            return False
        everywhere = self._facts.get(("sysctl", (fact.key[0], -1, fact.key[2])))
        return everywhere is not None and everywhere.state == fact.state

    def _remember(self, fact: Fact) -> None:
        place = fact.what, fact.key
        if not fact.state:
            self._facts.pop(place, None)
        elif place in self._facts or len(self._facts) < FACTS_MAX:
            self._facts[place] = fact
        else:
            self.forgotten += 1

    def _dump(self, dumps: tuple[tuple[int, int], ...]) -> list[Fact]:
        facts: list[Fact] = []
        try:
            with (
                entered(self._namespace),
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking,
            ):
                asking.settimeout(_ANSWER_S)
                for kind, family in dumps:
                    facts += self._answers(asking, kind, family)
        except OSError as exc:
            message = f"netns {self._namespace.name}: the kernel does not list ({exc.strerror})"
            raise KernelRefusedError(message) from exc
        return facts

    def _answers(self, asking: socket.socket, kind: int, family: int) -> Iterator[Fact]:
        # The largest of the bodies, so that older kernels do not take it for too short.
        body = struct.pack("=BxHiII", 0 if kind == 18 else family, 0, 0, 0, 0)  # noqa: PLR2004
        asking.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST_DUMP, 1, 0) + body)
        while True:
            datagram = asking.recv(_DATAGRAM)
            yield from self._reader.read(datagram)
            if _ends(datagram):
                return

    def close(self) -> None:
        """Stop listening; harmless when repeated."""
        self._socket.close()


def _listen() -> socket.socket:
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        listening.setblocking(False)  # noqa: FBT003 - positional in socket's signature
        listening.bind((0, 0))
        for group in _GROUPS:
            listening.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        listening.close()
        raise
    return listening


def _ends(datagram: bytes) -> bool:
    """Tell whether a dump is over; one that is refused has nothing to tell."""
    offset = 0
    while offset + 16 <= len(datagram):
        length, kind = struct.unpack_from("=IH", datagram, offset)
        if kind in {_ERROR, _DONE}:
            return True
        offset += max(16, (length + 3) & ~3)
    return False
