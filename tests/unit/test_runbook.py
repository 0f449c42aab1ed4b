"""docs/RUNBOOK.md knows every alert and every code of refusal, and quotes sentences that the program says."""

import re
from pathlib import Path

import pytest

from tests.unit.test_deploy import ALERTS, METRIC, SAMPLES, VARIABLE, Settings

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs" / "RUNBOOK.md").read_text(encoding="utf-8")
SOURCES = [path for package in ("models", "streams") for path in sorted((ROOT / package).rglob("*.py"))]
#: All string literals run together: a sentence may be spread over several lines of the source.
SAID = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in SOURCES))


def section(title: str) -> str:
    return RUNBOOK.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


QUOTED = [quote for row in rows("When a worker ends") for quote in re.findall(r"`([^`]+)`", row[0])]


def test_every_alert_has_a_paragraph() -> None:
    """Under its own name, and no alert is described that is no more."""
    assert sorted(re.findall(r"^### (\w+)$", section("Alerts"), flags=re.MULTILINE)) == sorted(ALERTS)


def test_every_refusal_is_explained() -> None:
    """By the code that its dead letter bears."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.parts[-2] == "models")
    codes = set(re.findall(r'Refused\(\s*"(\w+)"', text)) | set(
        re.findall(r'^\s+"(\w+_\w+_large)",$', text, re.MULTILINE)
    )
    assert len(codes) >= 12
    assert {code for row in rows("Refused records") for code in re.findall(r"`(\w+)`", row[0])} == codes


def test_everything_that_verify_finds_is_explained() -> None:
    """By its code."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.name.startswith("verify"))
    codes = set(re.findall(r'(?:Finding\([\w.]+, |_suspect\(customer, |Explained\(|Suspect\()"(\w+)"', text))
    found = {code for row in rows("When verify finds differences") for code in re.findall(r"`(\w+)`", row[0])}
    assert found == codes


@pytest.mark.parametrize("quote", QUOTED)
def test_quoted_sentences_are_said(quote: str) -> None:
    """What stands between the dots is in the source, in this order, within one sentence."""
    parts = [part for part in (each.strip(" :…") for each in re.split(r"…|\b(?=SEGMENTER_…)", quote)) if part]
    if quote.startswith("SEGMENTER_…") or "file:line" in quote:
        parts = parts[:1]
    pattern = r"[^\n]{0,200}?".join(re.escape(part) for part in parts)
    assert re.search(pattern, SAID), pattern


def test_names_are_right() -> None:
    """Metrics and variables exist, and so does what is linked to."""
    families = {sample.removesuffix("_bucket") for sample in SAMPLES}
    assert set(METRIC.findall(RUNBOOK)) <= set(SAMPLES) | families
    assert {name.lower() for name in VARIABLE.findall(RUNBOOK)} <= set(Settings.model_fields)
    for target in re.findall(r"\]\(([^)#]+)", RUNBOOK):
        assert (ROOT / "docs" / target).exists(), target
    headings = {
        re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in re.findall(r"^#+ (.+)$", RUNBOOK, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= headings
