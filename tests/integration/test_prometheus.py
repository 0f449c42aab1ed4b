"""Prometheus's own tool accepts the configuration and finds that the alerts fire when they should."""

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
