"""Prometheus's own tool accepts the configuration and finds that the alerts fire when they should."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

PROMETHEUS = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"


@pytest.fixture(scope="module")
def promtool() -> str:
    """The program; tests skip without it."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not on PATH: install Prometheus (Debian: apt-get install prometheus)")
    return program


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(promtool: str, arguments: tuple[str, ...]) -> None:
    """The configuration loads, the rules parse, and every alert fires in its cases and in no other."""
    done = subprocess.run(
        (promtool, *arguments), cwd=PROMETHEUS, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "SUCCESS" in done.stdout


def test_promtool_understands_the_dashboard(promtool: str, tmp_path: Path) -> None:
    """Every expression of the Grafana dashboard is PromQL, once Grafana has filled in its variables."""
    dashboard = json.loads((PROMETHEUS.parent / "grafana" / "segmenter.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions += [each["expr"] for each in dashboard["annotations"]["list"]]
    filled = [each.replace("$__rate_interval", "1m").replace("$dimension", "rfm") for each in expressions]
    rules = [{"record": f"shown:{place}", "expr": each} for place, each in enumerate(filled)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    done = subprocess.run((promtool, "check", "rules", path), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert f"SUCCESS: {len(expressions)} rules found" in done.stdout
