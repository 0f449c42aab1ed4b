"""The mutation check: without any one of its safeguards the suite must fail, or it would prove nothing.

``python -m tests.faults.mutations --results FILE`` removes each safeguard in a copy of the project and says which tests
notice, first of the quick ones, then (``--servers``) of the fault runs on real servers alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("models", "streams", "tests", "docs", "deploy", "pyproject.toml", "docker-compose.yml", "README.md")
_SCRIPTS, _REDIS = "streams/store/scripts.py", "streams/store/redis.py"
_OWNER = "if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 'stale' end\n"
_NUMBER = "if commits ~= ARGV[2] then return 'lost commit ' .. commits end\n"
_STARTS = "  if stored ~= ARGV[i + 1] then return 'lost ' .. ARGV[i] .. ' ' .. (stored or 'nothing') end\n"
_OFFSETS = "for i = first, last, 3 do redis.call('HSET', KEYS[1], 'offset:' .. ARGV[i], ARGV[i + 2]) end\n"

Change = tuple[str, str, str]


@dataclass(frozen=True)
class Mutation:
    """``changes`` are file, text and what stands there instead; ``tests`` must fail then, and a run of ``faults``."""

    name: str
    changes: Sequence[Change]
    tests: Sequence[str]
    faults: Sequence[str] = ()
    runs: int = 3


MUTATIONS = (
    Mutation(
        "the fence: commits of former owners are taken",
        [(_SCRIPTS, _OWNER, "")],
        ["tests/contract/test_redis_store.py"],
    ),
    Mutation(
        "the whole guard: owner, number and offsets of a commit are not looked at",
        [(_SCRIPTS, _OWNER, ""), (_SCRIPTS, _NUMBER, ""), (_SCRIPTS, _STARTS, "")],
        ["tests/contract/test_redis_store.py"],
        ["SIGSTOP beyond the session, SIGCONT", "rebalance storm"],
    ),
    Mutation("where a batch begins is not compared", [(_SCRIPTS, _STARTS, "")], ["tests/contract/test_redis_store.py"]),
    Mutation(
        "offsets are not written with the state",
        [(_SCRIPTS, _OFFSETS, "")],
        ["tests/contract/test_redis_store.py"],
        ["SIGKILL at any moment"],
    ),
    Mutation(
        "the outbox: changes are published from memory only",
        [(_REDIS, "        entries = {} if commit.entry is None else {", "        entries = {} if True else {")],
        ["tests/contract/test_redis_store.py"],
        ["SIGKILL after the commit", "SIGKILL at any moment"],
    ),
    Mutation(
        "the outbox is emptied before the broker has the changes",
        [
            (
                "streams/outbox.py",
                "                await self._publisher.publish(entries)\n",
                "                await self._acknowledge([entry.id for entry in entries])\n"
                "                await self._publisher.publish(entries)\n",
            )
        ],
        ["tests/unit/test_outbox.py"],
        ["SIGKILL after publishing", "broker killed and started again"],
    ),
    Mutation(
        "the dedupe: an event that comes twice counts twice",
        [("models/fold.py", "table.seen.has(rows, hashes)\n", "np.zeros(len(rows), dtype=np.bool_)\n")],
        ["tests/unit/test_fold.py"],
        ["records delivered twice"],
    ),
    Mutation(
        "a change that is found again has another id",
        [("models/changes.py", "(text.encode())\n", "(text.encode() + __import__('os').urandom(8))\n")],
        ["tests/unit/test_changes.py", "tests/unit/test_outbox.py", "tests/unit/test_shards.py"],
        ["Redis emptied under a running fleet"],
    ),
)


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A copy of the project without the safeguard."""
    copy = folder / "project"
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            copy.mkdir(exist_ok=True)
            shutil.copy(source, copy / name)
    if (ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(ROOT.parent / "shared")
    for name, text, instead in mutation.changes:
        file = copy / name
        whole = file.read_text(encoding="utf-8")
        assert whole.count(text) == 1, f"{mutation.name}: {text!r} stands {whole.count(text)} times in {name}"
        file.write_text(whole.replace(text, instead), encoding="utf-8")
    return copy


def _run(copy: Path, *arguments: str, within: float) -> subprocess.CompletedProcess[str]:
    # Before what is installed: the copy, in this process and in the workers that tests start.
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = (sys.executable, "-m", *arguments)
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=within, check=False
    )


def noticed_by_tests(mutation: Mutation, copy: Path) -> list[str]:
    """The first of the tests that fails without the safeguard; none if all pass."""
    done = _run(copy, "pytest", "-x", "-q", "-p", "no:xdist", *mutation.tests, within=300)
    assert done.returncode in (0, 1), f"{mutation.name}: the tests could not be run:\n{done.stdout}{done.stderr}"
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)


def noticed_by_faults(mutation: Mutation, copy: Path) -> list[str]:
    """The faults of which a run fails without the safeguard."""
    only = [part for name in mutation.faults for part in ("--only", name)]
    done = _run(copy, "tests.faults", *only, "--seed", "1", "--runs", str(mutation.runs), within=1200)
    assert done.returncode in (0, 1), f"{mutation.name}: the faults could not be run:\n{done.stdout}{done.stderr}"
    return sorted(set(re.findall(r"^FAIL (.*), seed \d+:", done.stdout, flags=re.MULTILINE)))


@click.command()
@click.option("--results", type=click.Path(path_type=Path), help="write what noticed each to this file, as JSON lines")
@click.option("--servers", is_flag=True, help="see also whether fault runs alone notice")
def main(results: Path | None, servers: bool) -> None:
    """Remove each safeguard in a copy of the project, and see which tests notice."""
    lines = []
    for mutation in MUTATIONS:
        with tempfile.TemporaryDirectory(prefix="segmenter-mutation-") as folder:
            copy = mutated(mutation, Path(folder))
            caught = noticed_by_tests(mutation, copy)
            if servers and mutation.faults:
                caught += noticed_by_faults(mutation, copy)
        lines.append({"mutation": mutation.name, "caught": caught})
        click.echo(f"{mutation.name}: {', '.join(caught) or 'NOBODY NOTICED'}")
    if results is not None:
        results.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    sys.exit(0 if all(line["caught"] for line in lines) else 1)


if __name__ == "__main__":
    main()
