"""The preview asks what Grafana would ask, and the pictures it made are there to be seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards.files import make_dashboards
from dashboards.preview.__main__ import main
from dashboards.preview.answers import Window, put_in
from dashboards.preview.draw import PAGE, find_height
from dashboards.preview.traffic import Flow, find_rate
from tests.dashboards.expressions import panels_of

ROOT = Path(__file__).parents[2]
DASHBOARDS = make_dashboards()
MANIFEST = json.loads((PAGE / "package.json").read_text(encoding="utf-8"))
LOCK = (PAGE / "package-lock.json").read_text(encoding="utf-8")
CHOSEN = dict.fromkeys(("host", "netns", "table", "chain", "rule"), ".*")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_no_variable_is_left_in_what_is_asked(name: str) -> None:
    """Prometheus is asked nothing that only Grafana understands."""
    dashboard = DASHBOARDS[name]
    targets = [target["expr"] for panel in panels_of(dashboard) for target in panel["targets"]]
    notes = [note["expr"] for note in dashboard["annotations"]["list"]]

    asked = [put_in(expr, Window(0, 300, 5), CHOSEN) for expr in [*targets, *notes]]

    assert not [expr for expr in asked if "$" in expr]


@given(st.integers(10, 10**6), st.integers(1, 300))
def test_the_rate_interval_holds_scrapes_enough(lasts_s: int, scrape_s: int) -> None:
    """It is four scrapes or more, and no packet falls between two points of a line."""
    window = Window(1000, 1000 + lasts_s, scrape_s)

    rate_ms, rate_s, step_s = (
        int(re.sub(r"\D", "", put_in(name, window, {})))
        for name in ("$__rate_interval_ms", "$__rate_interval", "$__interval")
    )

    assert rate_s * 1000 == rate_ms
    assert rate_s >= 4 * scrape_s
    assert rate_s >= step_s + scrape_s
    assert put_in("$__range", window, {}) == f"{lasts_s}s"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 1000), st.floats(1, 100))
def test_a_flow_swells_between_a_tenth_and_its_peak(
    begin: float, part: float, period_s: float, peak: float
) -> None:
    """Nothing is sent before a flow begins, and never more than its peak says."""
    rate = find_rate(Flow("a", ("192.0.2.1", 9), peak, period_s, begin), part * 300, 300)

    if part * 300 < begin * 300:
        assert rate == 0
    else:
        assert peak * 0.0999 <= rate <= peak * 1.0001


def test_a_picture_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Too short a time, or none, is told in a line, and nothing is begun."""
    for words, said in ((["13"], "lines need 60 or more"), (["soon"], "invalid int value")):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_missing_programs_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With none of them on the path, one line says what to install."""
    monkeypatch.setenv("PATH", "/nowhere")

    assert main([]) == 3
    assert capsys.readouterr().err == (
        "preview: npm chromium pngquant prometheus not installed:"
        " apt-get install npm chromium pngquant prometheus\n"
    )


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_picture_is_as_high_as_its_dashboard(name: str) -> None:
    """The last panel's end is in the picture, with a margin below."""
    lowest = max(
        panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels_of(DASHBOARDS[name])
    )

    # Of Grafana's grid: 30 pixels a cell, 8 between two.
    assert find_height(DASHBOARDS[name]) > lowest * 38 - 8


def test_components_are_those_that_are_locked() -> None:
    """Each dependency is of one version, the lock's, and the lock names no host to take it from."""
    locked = json.loads(LOCK)["packages"]

    for name, version in MANIFEST["dependencies"].items():
        assert re.fullmatch(r"[\d.]+", version)
        assert version == locked[f"node_modules/{name}"]["version"]
    assert all("integrity" in one for name, one in locked.items() if name)
    assert "resolved" not in LOCK
    assert "://" not in LOCK


@pytest.mark.parametrize("name", DASHBOARDS)
def test_each_dashboard_is_shown(name: str) -> None:
    """Its picture is a PNG of less than 250 kB, and dashboards/README.md shows it."""
    picture = ROOT / "docs" / "images" / f"{Path(name).stem}.png"
    readme = (ROOT / "dashboards" / "README.md").read_text(encoding="utf-8")

    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 250_000
    assert f"(../docs/images/{picture.name})" in readme
