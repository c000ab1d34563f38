"""The network as a drawing of 79 columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["draw_network"]

_CABLE: Final = "───"


@dataclass(frozen=True, slots=True)
class _Host:
    """One box of the drawing, as wide as its first note, and the notes below it."""

    inside: str
    notes: tuple[str, ...]


_CLIENT = _Host("client", ("183.62.15.118",))
_INET = _Host("inet", ("internet",))
_VR1 = _Host(
    "eth2   vr1   eth0",
    ("eth2 61.146.164.120", "eth2 61.146.164.82", "eth0 172.17.21.1, .2"),
)
_VR2 = _Host("eth2  vr2   eth0", ("eth2 172.17.21.105", "eth0 10.1.1.1"))
_VR2_FIXED = _Host(
    "eth2  vr2   eth0", ("eth2 172.17.21.105", "eth2 172.17.21.212", "eth0 10.1.1.1")
)
_VM = _Host("vm", ("10.1.1.69", "ssh on 22"))


def draw_network(*, fixed: bool) -> list[str]:
    """
    Return the drawing's lines, none longer than 79 columns.

    *fixed* draws it with the inner address that solves the case.
    """
    hosts = (_CLIENT, _INET, _VR1, _VR2_FIXED if fixed else _VR2, _VM)
    gap = " " * len(_CABLE)
    widths = [len(host.notes[0]) for host in hosts]
    top = gap.join(f"┌{'─' * (width - 2)}┐" for width in widths)
    bottom = gap.join(f"└{'─' * (width - 2)}┘" for width in widths)
    rows = range(max(len(host.notes) for host in hosts))
    notes = (_notes(hosts, widths, row) for row in rows)
    return [top, _middle(hosts, widths), bottom, *notes]


def _middle(hosts: tuple[_Host, ...], widths: list[int]) -> str:
    last = len(hosts) - 1
    boxes = []
    for index, (host, width) in enumerate(zip(hosts, widths, strict=True)):
        left = "│" if index == 0 else "┤"
        right = "│" if index == last else "├"
        boxes.append(f"{left}{host.inside:^{width - 2}}{right}")
    return _CABLE.join(boxes)


def _notes(hosts: tuple[_Host, ...], widths: list[int], row: int) -> str:
    line, start = "", 0
    for host, width in zip(hosts, widths, strict=True):
        line = f"{line:<{start}}{host.notes[row] if row < len(host.notes) else ''}"
        start += width + len(_CABLE)
    return line
