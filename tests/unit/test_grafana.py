"""The dashboard shows metrics that exist, says what each panel is, and is what docker-compose.yml gives to Grafana."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_deploy import ALERTS, METRIC, SAMPLES, SERVICES

ROOT = Path(__file__).resolve().parents[2]
GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "segmenter.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
SHOWN = [panel for panel in PANELS if panel["type"] != "row"]


def expressions(panel: dict[str, Any]) -> Iterator[str]:
    for target in panel["targets"]:
        yield target["expr"]


def title(panel: dict[str, Any]) -> str:
    return str(panel["title"])


@pytest.mark.parametrize("panel", SHOWN, ids=title)
def test_panels_show_what_exists(panel: dict[str, Any]) -> None:
    """Each metric is one that workers expose, with the labels by which it is selected, grouped and named."""
    for target in panel["targets"]:
        named = set(METRIC.findall(target["expr"]))
        assert named <= set(SAMPLES), target["expr"]
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        labels = {"job", "instance", "le", *(label for name in named for label in SAMPLES[name])}
        for listed in re.findall(r"by \(([^)]*)\)", target["expr"]):
            assert set(listed.split(", ")) <= labels, target["expr"]
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels
        assert set(re.findall(r"(\w+)=~?\"", target["expr"])) <= labels


@pytest.mark.parametrize("panel", SHOWN, ids=title)
def test_panels_say_what_they_are(panel: dict[str, Any]) -> None:
    """A title, a sentence, a unit; and a number that can be bad has a colour for it."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    if panel["type"] == "stat":
        colours = [step["color"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert {"green", "red"} <= set(colours)


def test_what_matters_is_seen_first() -> None:
    """Whether it is well fills the first row of a screen, one number each."""
    first = [panel for panel in PANELS if panel["gridPos"]["y"] <= 1 and panel["type"] == "stat"]
    assert sum(panel["gridPos"]["w"] for panel in first) == 24


def test_panels_do_not_overlap() -> None:
    """Each has an id and a place of its own within the 24 columns."""
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_alerts_are_marked_on_every_graph() -> None:
    """When something fired is seen beside what it did."""
    (marks,) = DASHBOARD["annotations"]["list"]
    pattern = re.search(r'alertname=~"([^"]+)"', marks["expr"])
    assert pattern
    assert all(re.fullmatch(pattern[1], name) for name in ALERTS)


def test_variables_can_be_filled() -> None:
    """The Prometheus to ask, and a dimension to look at."""
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "dimension"}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(PANELS))) - {"__rate_interval"}
    assert used == set(variables)
    assert "label_values(segmenter_segment_customers, dimension)" in variables["dimension"]["query"]["query"]
    assert "dimension" in SAMPLES["segmenter_segment_customers"]


def test_compose_gives_it_to_grafana() -> None:
    """The folder is where Grafana looks, and holds the data source and the dashboard that it names."""
    (mount,) = SERVICES["grafana"]["volumes"]
    assert mount == "./deploy/grafana:/etc/grafana/provisioning:ro"
    (provider,) = yaml.safe_load((GRAFANA / "dashboards" / "segmenter.yml").read_text())["providers"]
    shown = provider["options"]["path"]
    assert shown == SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert shown == "/etc/grafana/provisioning/" + (GRAFANA / "segmenter.json").name
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in SERVICES
