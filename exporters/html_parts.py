"""Pieces of a page: text made safe, bars over time with marks, a packet's way, flows."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Mark", "bars", "flow_rows", "safe", "way"]

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})
_PLAIN: Final = re.compile(r"[ -~]*")
_HEIGHT: Final = 100.0
#: The hooks that a packet passes, by the one that it died at.
_WAYS: Final = {
    "prerouting": ("prerouting", "forward or input", "postrouting"),
    "input": ("prerouting", "input"),
    "forward": ("prerouting", "forward", "postrouting"),
    "output": ("output", "postrouting"),
    "postrouting": ("output or forward", "postrouting"),
    "ingress": ("ingress", "prerouting"),
    "egress": ("postrouting", "egress"),
}


class Mark(NamedTuple):
    """A change on the axis of time: *at* from 0 to 1, *kind* cause, fix or other."""

    at: float
    kind: str
    label: str
    title: str


def safe(text: str) -> str:
    """Return *text* for the page: nothing of it is markup, and what cannot be seen is told."""
    if not _PLAIN.fullmatch(text):
        text = "".join(_shown(character) for character in text)
    return html.escape(text, quote=True)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN:
        return character
    return f"\\u{ord(character):04x}"


def bars(series: Sequence[int], marks: Iterable[Mark], ends: tuple[str, str], what: str) -> str:
    """Return a picture of *series* over time; *ends* are the words below its ends."""
    most = max([*series, 1])
    width = 100.0 / max(1, len(series))
    drawn = []
    for number, count in enumerate(series):
        if count:
            high = max(2.0, count / most * _HEIGHT)
            drawn.append(
                f'<rect x="{number * width:.3f}" y="{_HEIGHT - high:.2f}" '
                f'width="{max(width * 0.9, 0.3):.3f}" height="{high:.2f}"/>'
            )
    lines = []
    for mark in marks:
        left = min(100.0, max(0.0, mark.at * 100))
        lines.append(
            f'<span class="mark {mark.kind}" style="left:{left:.2f}%" '
            f'title="{safe(mark.title)}"><b>{safe(mark.label)}</b></span>'
        )
    return (
        f'<div class="chart"><svg viewBox="0 0 100 {_HEIGHT:.0f}" preserveAspectRatio="none" '
        f'role="img" aria-label="{safe(what)}">{"".join(drawn)}</svg>{"".join(lines)}</div>'
        f'<div class="ends"><span>{safe(ends[0])}</span><span>{safe(ends[1])}</span></div>'
    )


def way(hook: str, inner: str) -> str:
    """Return the way through the hooks to *hook*, where the packet died; *inner* is markup."""
    hooks = _WAYS.get(hook, (hook,) if hook else ())
    boxes = []
    state = "passed"
    for name in hooks:
        if name == hook:
            boxes.append(f'<li class="died"><b>✗ {safe(name)}</b>{inner}</li>')
            state = "unreached"
        elif state == "passed":
            boxes.append(f'<li class="passed"><b>✓ {safe(name)}</b></li>')
        else:
            boxes.append(f'<li class="unreached"><b>{safe(name)}</b><i>not reached</i></li>')
    return f'<ol class="way">{"".join(boxes)}</ol>' if boxes else inner


def flow_rows(rows: Sequence[tuple[str, int]]) -> str:
    """Return flows with a bar each for their packets."""
    most = max((count for _, count in rows), default=1)
    told = [
        f'<li><span class="flow">{safe(name)}</span>'
        f'<span class="bar" style="width:{max(1.0, count / most * 100):.1f}%"></span>'
        f"<span>{count:,}</span></li>"
        for name, count in rows
    ]
    return f'<ul class="flows">{"".join(told)}</ul>'
