"""docs/RELIABILITY.md: the tests it names exist, and it is written from results."""

import ast
import json
from pathlib import Path

import pytest

from tests.faults.report import render
from tests.faults.rules import RULES, Rule

TESTS = Path(__file__).resolve().parents[1]
DESIGN = TESTS.parent / "docs" / "DESIGN.md"


def test_every_rule_of_the_design_has_tests() -> None:
    """The rules are those that the design numbers, in order, and each has tests."""
    rules = DESIGN.read_text(encoding="utf-8").partition("## Invariants")[2].partition("\n## ")[0]
    numbered = [int(line.partition(".")[0]) for line in rules.splitlines() if line[:1].isdigit()]
    assert [rule.number for rule in RULES] == numbered
    assert all(rule.tests for rule in RULES)


@pytest.mark.parametrize("rule", RULES, ids=[str(rule.number) for rule in RULES])
def test_the_tests_of_a_rule_are_there(rule: Rule) -> None:
    """Each names a file and a function in it."""
    for test in rule.tests:
        file, _, function = test.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in names, test


RUN = {
    "fault": "SIGKILL at any moment", "group": "worker", "seed": 1, "events": 1000, "good": True, "lost": 0,
    "doubled": 0, "repeats": 3, "recovered": 2.0, "seconds": 9.0, "stopped": 1.0, "restarts": 0, "attempts": 1,
    "said": "", "at": "",
}  # fmt: skip


def test_runs_of_a_fault_are_one_row(tmp_path: Path) -> None:
    """Sums over its runs, its seeds, the median and the longest time to recover."""
    results = tmp_path / "results.jsonl"
    runs = [RUN, {**RUN, "seed": 2, "recovered": 4.0}, {**RUN, "seed": 7, "lost": 1, "good": False, "said": "1 lost"}]
    results.write_text("".join(json.dumps(run) + "\n" for run in runs))
    document = render(results)
    assert "| SIGKILL at any moment | 3 | 1–2, 7 | 3,000 | 1 | 0 | 9 | 2.0 / 4.0 |" in document
    assert "- SIGKILL at any moment, seed 7: 1 lost" in document


def test_the_mutation_check_has_a_section(tmp_path: Path) -> None:
    """What was removed, and the tests that failed."""
    results, mutations = tmp_path / "results.jsonl", tmp_path / "mutations.jsonl"
    results.write_text(json.dumps(RUN) + "\n")
    mutations.write_text(json.dumps({"mutation": "the fence", "caught": ["unit/test_shards.py"]}) + "\n")
    assert "| the fence | `unit/test_shards.py` |" in render(results, mutations)
