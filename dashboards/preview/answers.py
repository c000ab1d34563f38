"""What Prometheus answers to everything that a dashboard asks, as its panels would ask it."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracer.demo.services import PROMETHEUS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dashboards.grafana.model import Json

__all__ = ["Window", "collect", "put_in"]

#: Points of a line over the time shown, about as many as Grafana asks for a panel's width.
_POINTS: Final = 240
_ANSWER_S: Final = 30.0


class Window(NamedTuple):
    """The time shown, in seconds since 1970, and how often Prometheus scraped in it."""

    start_s: float
    end_s: float
    scrape_s: float

    @property
    def step_s(self) -> float:
        """Return the distance of two points, not less than that of two scrapes."""
        return max(self.scrape_s, round((self.end_s - self.start_s) / _POINTS))


def put_in(text: str, window: Window, chosen: Mapping[str, str]) -> str:
    """
    Return *text* with Grafana's variables replaced.

    *chosen* has the dashboard's own ones. The rate interval is four scrapes, or a point
    and a scrape: as Grafana's Prometheus data source says.
    """
    rate_s = max(4 * window.scrape_s, window.step_s + window.scrape_s)
    values = {
        "__rate_interval_ms": f"{rate_s * 1000:.0f}",
        "__rate_interval": f"{rate_s:.0f}s",
        "__range": f"{window.end_s - window.start_s:.0f}s",
        "__interval": f"{window.step_s:.0f}s",
        **chosen,
    }
    for name, value in values.items():
        text = text.replace(f"${name}", value)
    return text


def collect(dashboard: Json, window: Window, chosen: Mapping[str, str]) -> Json:
    """
    Ask all that *dashboard* asks; each answer is Prometheus' `result`.

    Shape: `panels` by id and refId, `marks` of the annotations, `from` and `to` in ms,
    `step` in ms, and the dashboard itself.
    """
    panels = {
        panel["id"]: {
            target["refId"]: _ask(put_in(target["expr"], window, chosen), window, target["range"])
            for target in panel["targets"]
        }
        for panel in dashboard["panels"]
    }
    marks = [
        _ask(put_in(note["expr"], window, chosen), window, over_time=True)
        for note in dashboard["annotations"]["list"]
    ]
    return {
        "dashboard": dashboard,
        "panels": panels,
        "marks": marks,
        "from": window.start_s * 1000,
        "to": window.end_s * 1000,
        "step": window.step_s * 1000,
    }


def _ask(expr: str, window: Window, over_time: bool) -> list[Any]:  # noqa: FBT001 - of a target
    """Return the answer at the window's end, or for each moment of it."""
    path, words = "query", {"query": expr, "time": f"{window.end_s}"}
    if over_time:
        path = "query_range"
        words = {
            "query": expr,
            "start": f"{window.start_s}",
            "end": f"{window.end_s}",
            "step": f"{window.step_s}",
        }
    url = f"http://{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(words)}"
    with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
        result: list[Any] = json.load(answer)["data"]["result"]
    return result
