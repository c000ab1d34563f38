"""
The netfilter diagram as a canvas: hooks where they stand, in each its tables' drop rates.

A packet comes in on the left. What is for this host goes up through input to the local
processes and comes out of them through output; the rest is forwarded below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from dashboards.grafana.model import HERE, query
from dashboards.grafana.panels import ORANGE, PACKETS_PER_SECOND, RED, panel, thresholds
from dashboards.promql import rate_in

if TYPE_CHECKING:
    from dashboards.grafana.model import Json

__all__ = ["make_diagram"]


class _Box(NamedTuple):
    """A hook, or a place that is none: *tables* in the kernel's order, position in pixels."""

    name: str
    left: int
    top: int
    tables: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        """In pixels: its title, a line for each table, one for the others."""
        lines = 1 if self.name == _ITSELF else len(self.tables) + 2
        return lines * _ROW + 12


_BOX_WIDTH: Final = 190
_ROW: Final = 26
_ELSE: Final = "other tables"
_TOP: Final = 20
_MIDDLE: Final = 250
_HOOKS: Final = (
    _Box("prerouting", 20, _MIDDLE, ("raw", "mangle", "nat")),
    _Box("input", 390, _TOP, ("mangle", "nat", "filter")),
    _Box("forward", 390, _MIDDLE, ("mangle", "filter")),
    _Box("output", 760, _TOP, ("raw", "mangle", "nat", "filter")),
    _Box("postrouting", 1130, _MIDDLE, ("mangle", "nat")),
)
_DEVICES: Final = (_Box("ingress", 20, _TOP), _Box("egress", 1130, _TOP))
_ITSELF: Final = "kernel itself"
_KERNEL: Final = _Box(_ITSELF, 760, _MIDDLE)
#: What stands over the arrow from input to output.
_PROCESSES: Final = "this host's processes"
#: What nothing died at is there, and no more: the eye is to fall on the others.
_NOTHING: Final = "#6e7178"
_BOXES: Final = (*_HOOKS, *_DEVICES, _KERNEL)
_BY_NAME: Final = {box.name: box for box in _BOXES}
#: Arrows leave and reach boxes so far below their tops, and so lie flat.
_ARROW: Final = 64
#: From box to box, by their names.
_WAYS: Final = (
    ("prerouting", "input"),
    ("prerouting", "forward"),
    ("input", "output"),
    ("forward", "postrouting"),
    ("output", "postrouting"),
    ("ingress", "prerouting"),
    ("postrouting", "egress"),
)


def _rate(selector: str) -> str:
    """Return a rate that is 0 where nothing died, and nothing where nobody watched."""
    watched = f'max(nftrace_source_up{{{HERE.split(", ", maxsplit=1)[0]}, source="drops"}} == 1)'
    died = f"sum(\n{rate_in('nftrace_drops_total', f'{HERE}, {selector}')}\n)"
    return f"{died} or on () (0 * {watched})"


def _cells() -> dict[str, str]:
    """Return the selector of each number by its name, which is its field's."""
    cells = {}
    for box in (*_HOOKS, *_DEVICES):
        hook = f'hook="{box.name}", engine!=""'
        for table in box.tables:
            cells[f"{box.name} {table}"] = f'{hook}, table="{table}"'
        others = f', table!~"{"|".join(box.tables)}"' if box.tables else ""
        cells[f"{box.name} {_ELSE}"] = hook + others
    cells[_ITSELF] = 'engine=""'
    return cells


def _text(name: str, text: str, at: tuple[int, int], width: int, *, strong: bool) -> Json:
    left, top = at
    return {
        "type": "rectangle",
        "name": name,
        "config": {
            "text": {"mode": "fixed", "fixed": text},
            "color": {"fixed": "text"},
            "align": "left",
            "valign": "middle",
            "size": 16 if strong else 13,
        },
        "background": {"color": {"fixed": "transparent"}},
        "border": {"color": {"fixed": "transparent"}, "width": 0},
        "placement": {"left": left, "top": top, "width": width, "height": _ROW, "rotation": 0},
        "constraint": {"horizontal": "left", "vertical": "top"},
        "connections": [],
    }


def _value(field: str, left: int, top: int) -> Json:
    made = _text(f"{field} rate", "", (left, top), 80, strong=False)
    made["type"] = "metric-value"
    made["config"] |= {
        "text": {"mode": "field", "field": field, "fixed": ""},
        "color": {"field": field, "fixed": "text"},
        "align": "right",
    }
    return made


def _frame(box: _Box) -> Json:
    made = _text(box.name, "", (box.left, box.top), _BOX_WIDTH, strong=False)
    made["placement"]["height"] = box.height
    made["border"] = {"color": {"fixed": "semi-dark-blue"}, "width": 1}
    made["connections"] = [_way(box, _BY_NAME[end]) for start, end in _WAYS if start == box.name]
    return made


def _way(start: _Box, end: _Box) -> Json:
    """Return an arrow to the box *end*; (1, 1) is a box's upper right corner."""
    source = {"x": 1, "y": 1 - 2 * _ARROW / start.height}
    target = {"x": -1, "y": 1 - 2 * _ARROW / end.height}
    if start.left == end.left:
        side = 1 if end.top < start.top else -1
        source, target = {"x": 0, "y": side}, {"x": 0, "y": -side}
    return {
        "source": source,
        "target": target,
        "targetName": end.name,
        "path": "straight",
        "color": {"fixed": "text"},
        "size": {"fixed": 2, "min": 1, "max": 10},
    }


def _elements() -> list[Json]:
    made = [_frame(box) for box in _BOXES]
    for box in _BOXES:
        left, top = box.left + 10, box.top + 6
        made.append(_text(f"{box.name} title", box.name, (left, top), 160, strong=True))
        if box.name == _ITSELF:
            made.append(_value(_ITSELF, left + 90, top))
            continue
        for row, table in enumerate((*box.tables, _ELSE), 1):
            at = top + row * _ROW
            made.append(_text(f"{box.name} {table}", table, (left, at), 90, strong=False))
            made.append(_value(f"{box.name} {table}", left + 90, at))
    over_arrow = (_HOOKS[1].left + _BOX_WIDTH + 18, _TOP + _ARROW - 30)
    made.append(_text("processes", _PROCESSES, over_arrow, 150, strong=False))
    return made


def make_diagram() -> Json:
    """Return the panel; one query a number, so that each has its field."""
    targets = [query(_rate(selector), name, instant=True) for name, selector in _cells().items()]
    description = (
        "Packets that died, per second, by hook and table. The kernel itself: no netfilter"
        " hook had them, as without a route. Nothing where nobody watched."
    )
    made = panel("canvas", "Where in netfilter packets die", targets, description)
    made["fieldConfig"]["defaults"] = {
        "unit": PACKETS_PER_SECOND,
        "noValue": "?",
        "color": {"mode": "thresholds"},
        "thresholds": thresholds((None, _NOTHING), (0.0001, ORANGE), (10, RED)),
    }
    made["options"] = {
        "inlineEditing": False,
        "showAdvancedTypes": False,
        "panZoom": False,
        "zoomToContent": True,
        "tooltip": {"mode": "single"},
        "root": {"name": "netfilter", "type": "frame", "elements": _elements()},
    }
    return made
