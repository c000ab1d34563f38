"""Dashboards: as Grafana's types have them, of declared metrics only, each link leading on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import yaml

from dashboards.files import make_dashboards
from exporters.prometheus_metrics import METRICS
from tests.dashboards.expressions import asked_by_alerts, asked_by_dashboards, panels_of
from tests.dashboards.promtool import promtool

if TYPE_CHECKING:
    from tests.dashboards.expressions import Asked

SCHEMA = json.loads(
    (Path(__file__).parent / "grafana-schema-13.2.3.json").read_text(encoding="utf-8")
)
UNITS = json.loads(
    (Path(__file__).parent / "grafana-units-13.2.3.json").read_text(encoding="utf-8")
)
DASHBOARDS = make_dashboards()
ASKED = [*asked_by_dashboards(), *asked_by_alerts()]
#: Prometheus adds the target's labels; `up` is its own metric.
TARGET = frozenset({"job", "instance"})
LABELS_OF = {name: {*metric.labels} | TARGET for metric in METRICS for name in metric.samples}
LABELS_OF["up"] = TARGET
ALL_LABELS = frozenset().union(*LABELS_OF.values())

_METRIC = re.compile(r"\b((?:nftrace|process)_\w+|up\b)\s*(?:\{((?:[^}\"]|\"[^\"]*\")*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left)\s*\(([\w, ]*)\)")


def _schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA["properties"][name]
    return found


def _dashboard_schema() -> dict[str, Any]:
    """
    Return the schema of dashboards.

    Prometheus' annotation queries put what they ask beside the declared fields, as
    Grafana's own sources of this type say; the type leaves it out.
    """
    schema = json.loads(json.dumps(_schema("dashboard")))
    annotations = schema["properties"]["annotations"]["properties"]["list"]["items"]
    del annotations["additionalProperties"]
    return dict(schema)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_what_grafana_declares(name: str) -> None:
    """The whole has no field and no value that Grafana's type of dashboards does not have."""
    jsonschema.validate(DASHBOARDS[name], _dashboard_schema())


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_panel_is_what_its_type_declares(name: str) -> None:
    """Each panel's options and its own field settings are those of its type, and whole."""
    for panel in panels_of(DASHBOARDS[name]):
        kind = panel["type"]
        custom = panel["fieldConfig"]["defaults"].get("custom")
        jsonschema.validate(panel["options"], _schema(kind))
        if custom is not None:
            jsonschema.validate(custom, _schema(f"{kind}Field"))


def _overridden(kind: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each setting of single fields in panels of *kind*, with its panel."""
    return [
        (panel, {"name": override["matcher"]["options"], **setting})
        for dashboard in DASHBOARDS.values()
        for panel in panels_of(dashboard)
        if panel["type"] == kind
        for override in panel["fieldConfig"]["overrides"]
        for setting in override["properties"]
    ]


def test_columns_are_set_that_exist_by_settings_that_exist() -> None:
    """Each override of a table is for a column's name here, and its type knows the setting."""
    settings = _overridden("table")

    assert settings
    for panel, setting in settings:
        *_, organize = panel["transformations"]
        assert setting["name"] in organize["options"]["renameByName"].values()
        kind, _, own = setting["id"].rpartition(".")
        if kind == "custom":
            whole = {**panel["fieldConfig"]["defaults"]["custom"], own: setting["value"]}
            jsonschema.validate(whole, _schema("tableField"))
        else:
            assert setting["id"] in {"unit", "links"}


def test_units_are_known_to_grafana() -> None:
    """Each unit is one of @grafana/data's, or counts things by a name of their own."""
    used = {
        panel["fieldConfig"]["defaults"].get("unit", "short")
        for dashboard in DASHBOARDS.values()
        for panel in panels_of(dashboard)
    }
    used |= {one["value"] for _, one in _overridden("table") if one["id"] == "unit"}

    assert "count:p/s" in used
    assert {unit for unit in used if not unit.startswith("count:")} <= {*UNITS}


def test_the_schema_refuses_what_grafana_does_not_know() -> None:
    """A field that no type declares, and a panel's option of the wrong kind, are found."""
    odd = {**DASHBOARDS["grafana/one-rule.json"], "colour": "red"}
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        jsonschema.validate(odd, _dashboard_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"inlineEditing": "no"}, _schema("canvas"))


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.where)
def test_only_declared_metrics_and_labels_are_asked_for(asked: Asked) -> None:
    """Each name that looks like a metric is one, with no matcher on a label that it has not."""
    metrics = _METRIC.findall(asked.expr)

    assert metrics
    for name, matchers in metrics:
        assert name in LABELS_OF
        assert set(_MATCHER.findall(matchers)) <= LABELS_OF[name]
    grouped = {
        label for inner in _GROUPING.findall(asked.expr) for label in re.findall(r"\w+", inner)
    }
    assert grouped <= ALL_LABELS
    assert asked.named - {"value"} <= ALL_LABELS


def test_every_metric_is_shown() -> None:
    """No declared metric is left out of all dashboards."""
    shown = {name for asked in asked_by_dashboards() for name, _ in _METRIC.findall(asked.expr)}

    assert {name for metric in METRICS for name in metric.samples} <= shown


def test_prometheus_parses_every_expression(tmp_path: Path) -> None:
    """Its own parser takes each one, as a recording rule."""
    rules = [{"record": f"e{at}", "expr": asked.expr} for at, asked in enumerate(ASKED)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))

    assert f"SUCCESS: {len(ASKED)} rules found" in promtool("check", "rules", file)


def test_links_lead_to_dashboards_that_exist() -> None:
    """Each /d/UID in a link is a dashboard of ours, and each var-NAME a variable of it."""
    by_uid = {one["uid"]: one for one in DASHBOARDS.values()}
    links = re.findall(r"/d/([\w-]+)\?([^\"]*)", json.dumps(list(DASHBOARDS.values())))

    assert len(DASHBOARDS) == len(by_uid)
    assert links
    for uid, words in links:
        has = {variable["name"] for variable in by_uid[uid]["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", words)) <= has


def test_links_take_values_from_columns_that_are_shown() -> None:
    """Each ${__data.fields.NAME} in a table's links is a column of that table."""
    for panel in (one for board in DASHBOARDS.values() for one in panels_of(board)):
        asked = set(re.findall(r"__data\.fields\.(\w+)", json.dumps(panel)))
        if asked:
            (organize,) = [t for t in panel["transformations"] if t["id"] == "organize"]
            assert asked <= set(organize["options"]["renameByName"].values())


def test_numbers_in_the_diagram_are_asked_for() -> None:
    """Each field of the canvas is the name of a query of its panel, and each query is shown."""
    canvas = DASHBOARDS["grafana/where-traffic-dies.json"]["panels"][0]
    elements = canvas["options"]["root"]["elements"]
    fields = {one["config"]["text"]["field"] for one in elements if one["type"] == "metric-value"}
    names = {one["name"] for one in elements}
    ends = {way["targetName"] for one in elements for way in one["connections"]}

    assert {target["legendFormat"] for target in canvas["targets"]} == fields
    assert len(elements) == len(names)
    assert ends <= names


def test_arrows_in_the_diagram_go_from_edge_to_edge() -> None:
    """Each lies flat, stands upright or climbs, and both ends are on the edges of their boxes."""
    canvas = DASHBOARDS["grafana/where-traffic-dies.json"]["panels"][0]
    elements = {one["name"]: one for one in canvas["options"]["root"]["elements"]}
    ways = [(one, way) for one in elements.values() for way in one["connections"]]

    assert len(ways) == 7
    for start, way in ways:
        for end in (way["source"], way["target"]):
            assert max(abs(end["x"]), abs(end["y"])) == 1
        (x1, y1), (x2, y2) = (
            _corner(start, way["source"]),
            _corner(elements[way["targetName"]], way["target"]),
        )
        assert (x1, y1) != (x2, y2)
        beside = start["placement"]["top"] == elements[way["targetName"]]["placement"]["top"]
        if beside:
            assert y1 == pytest.approx(y2)
        elif start["placement"]["left"] == elements[way["targetName"]]["placement"]["left"]:
            assert x1 == pytest.approx(x2)


def _corner(element: dict[str, Any], end: dict[str, float]) -> tuple[float, float]:
    """Return where an arrow's *end* is, in pixels: (1, 1) is the upper right corner."""
    at = element["placement"]
    x = at["left"] + at["width"] * (1 + end["x"]) / 2
    return x, at["top"] + at["height"] * (1 - end["y"]) / 2


def test_panels_do_not_lie_on_one_another() -> None:
    """No two panels of a dashboard share a place of the grid, and none leaves it."""
    for dashboard in DASHBOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in panels_of(dashboard):
            at = panel["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert not cells & taken
            assert at["x"] + at["w"] <= 24
            taken |= cells
