"""The benchmark runs and reports; how fast anything is, is not tested here."""

import subprocess
import sys
from pathlib import Path

import pytest

from streams.embedded.redis import find_redis_server
from streams.errors import ServiceUnavailable

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_quick_run_reports_ratio_stages_and_machine() -> None:
    """A quick run ends well, which means that both sides gave the same changes, and writes every section."""
    try:
        find_redis_server()
    except ServiceUnavailable as unavailable:
        pytest.skip(str(unavailable))
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for expected in ("times the events per second", "## Where the time goes", "all of it", "| Command | `python -m"):
        assert expected in done.stdout
    assert str(ROOT) not in done.stdout
