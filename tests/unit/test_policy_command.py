"""``segmenter policy``, ``segments`` and ``customer``: what they print, on a store in memory."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.instants import format_instant
from streams.activations import Activations
from streams.cli import main
from streams.commands import policy as command
from streams.commit import ShardHeader
from streams.preview import RecordedState
from streams.recorded import recorded_event
from streams.settings import ENV_PREFIX, read_policy
from streams.store import opened
from streams.store.memory import MemoryStore
from tests.unit.build import Event, Feeder, at, purchase, signup, text
from tests.unit.command_line import invoke, refused
from tests.unit.test_engines import model_of

LIFE = """version = 1
[attributes]
keep = ["country"]
[dimensions.lifecycle]
engine = "lifecycle"
"""
#: Lapses sooner, and two more dimensions.
QUICK = """version = 2
[attributes]
keep = ["country", "hobby"]
[dimensions.lifecycle]
engine = "lifecycle"
lapse_after = "40d"
[dimensions.spend]
engine = "bands"
of = "average_order"
bands = { low = 0, high = 20 }
[dimensions.spend.profiles.high]
title = "Big baskets"
channel = "phone"
needs = ["service"]
[dimensions.region]
engine = "attribute"
of = "country"
groups = { dach = ["DE"] }
"""
SCORED = """version = 3
[population]
every = "7d"
[dimensions.value]
engine = "pareto"
classes = { A = 80, B = 15, C = 5 }
viable = { customers = 4 }
profiles = { A = { title = "Class A", channel = "phone", description = "The best." } }
[dimensions.rfm]
engine = "rfm"
"""
EVENTS: list[Event] = [
    *(purchase(f"c{i}", f"p{i}", at(i), f"{10 * i + 5}.00", country="DE" if i < 3 else "FR") for i in range(10)),
    signup("ann", "s1", at(45)),
]
UNTIL = at(46)


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a policy, or events, to a file of its own."""
    number = iter(range(100))

    def write(content: str) -> Path:
        path = tmp_path / f"file{next(number)}.toml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A file of recorded events."""
    path = tmp_path / "events.ndjson"
    path.write_text("".join(json.dumps(event) + "\n" for event in EVENTS), encoding="utf-8")
    return path


def words(output: str) -> list[list[str]]:
    """The words of every line."""
    return [line.split() for line in output.splitlines()]


class Addressed(MemoryStore):
    """A store that says where it is."""

    address = "redis.example:6379"


def fill(monkeypatch: pytest.MonkeyPatch, policy: Path, events: Iterable[Event] = EVENTS, shards: int = 1) -> Addressed:
    """What a worker would have stored of the events by UNTIL."""
    run = RecordedState(read_policy(policy), shards)
    for _ in run.feed(recorded_event(json.dumps(event).encode(), "test", line) for line, event in enumerate(events, 1)):
        pass
    run.finish(UNTIL)
    store = Addressed()
    vars(store).update(vars(run.store))
    store.register(shards, "segmenter")
    monkeypatch.setattr(opened, "open_store", lambda settings: store)
    return store


# check


def test_check_shows_what_a_policy_has(file: Callable[[str], Path]) -> None:
    """Its version, and each dimension with its engine and segments; with --all the profiles."""
    path = file(QUICK)
    output = invoke("policy", "check", path).output
    assert output.startswith(f"{path}: policy version 2\n3 dimensions")
    assert ["lifecycle", "lifecycle", "4", "new,", "potential,", "regular,", "lapsed"] in words(output)
    assert ["spend", "bands", "2", "low,", "high"] in words(output)
    assert "warning" not in output
    everything = words(invoke("policy", "check", path, "--all").output)
    assert ["spend", "high", "Big", "baskets", "phone", "–"] in everything
    assert ["spend", "low", "–", "–", "–"] in everything


def test_check_warns(file: Callable[[str], Path]) -> None:
    """With the line, and without failing."""
    path = file(QUICK.replace('{ dach = ["DE"] }', "{ dach = [] }"))
    assert invoke("policy", "check", path).output.endswith(
        f"{path}:18: dimensions.region.groups.dach: has no texts, so nobody is in it (warning)\n"
    )


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (
            QUICK.replace("40d", "soon").replace('keep = ["country", "hobby"]', "keep = []\nspeed = 1"),
            [
                ":4: attributes.speed: is not a setting of this policy; check the spelling",
                ':7: dimensions.lifecycle.lapse_after: must be a duration such as "30d": a whole number with s, m, h, '
                "d or w (it is 'soon')",
            ],
        ),
        (QUICK.replace('"country", ', ""), [
            ":17: dimensions.region.of: the attribute country is not kept; add it to attributes.keep",
        ]),
        ("version = 1\nversion = 2\n", [":2: the policy is not valid TOML: Cannot overwrite a value (column 12)"]),
    ],
)  # fmt: skip
def test_check_tells_every_error_with_its_line(
    content: str,
    errors: list[str],
    file: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On standard error, with code 1, and nothing else."""
    path = file(content)
    monkeypatch.setattr(sys, "argv", ["segmenter", "policy", "check", str(path)])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr()
    assert (end.value.code, told.out) == (1, "")
    assert told.err.splitlines() == [f"{path}{error}" for error in errors]


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    """Is a sentence for every command that reads one."""
    sentence = f"cannot read the policy {tmp_path / 'no'}: No such file or directory"
    assert refused("policy", "check", tmp_path / "no") == sentence
    assert refused("policy", "apply", tmp_path / "no") == sentence
    assert refused("policy", "diff", tmp_path / "no", tmp_path / "no", "--on", "x") == sentence


def test_a_wrong_policy_is_told_by_every_command(file: Callable[[str], Path]) -> None:
    """With lines, as check tells them."""
    path = file("version = 1\nspeed = 2\n")
    assert refused("policy", "apply", path).splitlines() == [
        f"the policy {path} cannot be used:",
        f"{path}:1: dimensions: is required",
        f"{path}:2: speed: is not a setting of this policy; check the spelling",
    ]


# diff


def diff(*args: object) -> Any:
    """A diff as JSON."""
    return json.loads(invoke("policy", "diff", *args, "--json").output)


def test_diff_on_recorded_events(file: Callable[[str], Path], recorded: Path) -> None:
    """Who would move, from where to where, with the reason and the measures; totals, and what is not known."""
    old, new = file(LIFE), file(QUICK)
    output = invoke("policy", "diff", old, new, "--on", recorded, "--until", text(UNTIL)).output
    shown = words(output)
    assert output.startswith(f"policy version 1 → 2: 10 of 11 customers would move at {text(UNTIL)}\n")
    assert ["lifecycle:", "6", "move"] in shown
    assert ["new", "lapsed", "6", "54.5"] in shown
    assert ["–", "high", "8", "72.7"] in shown
    assert any(line[:7] == ["c0", "new", "→", "lapsed", "46", "1", "5.00"] for line in shown)
    assert "1 order, last purchase 46 days before" in output
    assert any(line[:6] == ["c2", "–", "→", "high", "44", "1"] for line in shown)
    assert "hobby; they are unknown until events arrive or the state is rebuilt" in output


def test_diff_as_json(file: Callable[[str], Path], recorded: Path) -> None:
    """Everything in one value."""
    found = diff(file(LIFE), file(QUICK), "--on", recorded, "--until", text(UNTIL), "--samples", 1)
    assert {name: found[name] for name in ("active_version", "version", "customers", "as_of", "moving")} == {
        "active_version": 1, "version": 2, "customers": 11, "as_of": text(UNTIL), "moving": 10,
    }  # fmt: skip
    assert found["dimensions"]["lifecycle"] == {
        "customers": 6,
        "moves": [{"from": "new", "to": "lapsed", "customers": 6, "share": 0.5455}],
        "samples": [
            {
                "customer_id": "c0", "from": "new", "to": "lapsed", "recency_days": 46, "frequency": 1,
                "monetary": "5.00", "currency": "USD", "reason": "1 order, last purchase 46 days before",
                "reason_before": "1 order, last purchase 46 days before",
            }
        ],
    }  # fmt: skip
    assert found["dimensions"]["region"]["moves"] == [{"from": None, "to": "dach", "customers": 3, "share": 0.2727}]
    assert (found["unpublished"], found["once_summarised"]) == (0, None)


def test_diff_of_a_policy_with_itself(file: Callable[[str], Path], recorded: Path) -> None:
    """Moves nobody."""
    same = file(QUICK)
    output = invoke("policy", "diff", same, same, "--on", recorded).output
    assert "0 of 11 customers would move" in output
    assert "nobody moves in lifecycle, spend, region" in output
    assert "note: this policy is the active one" in output


def test_diff_takes_several_files_of_events(file: Callable[[str], Path], tmp_path: Path) -> None:
    """Behind one --on, as a shell expands them, or each behind its own; what cannot be used is told."""
    parts = [tmp_path / name for name in ("one.ndjson", "two.ndjson")]
    for path, events in zip(parts, (EVENTS[::2], [*EVENTS[1::2], purchase("x", "x", at(46), currency="XXX")]),
                            strict=True):  # fmt: skip
        path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    old, new = file(LIFE), file(QUICK)
    found = diff(old, new, "--on", *parts)
    assert found["customers"] == 11
    assert found["notes"][0] == "1 events could not be used; `segmenter replay` says why"
    assert diff(old, new, "--on", parts[0], "--on", parts[1]) == found


@pytest.mark.parametrize("shards", [1, 3])
def test_diff_writes_the_changes(shards: int, file: Callable[[str], Path], recorded: Path, tmp_path: Path) -> None:
    """As NDJSON, each as it would be published; the same bytes again."""
    old, new, out = file(LIFE), file(QUICK), tmp_path / "out.ndjson"
    args = ("policy", "diff", old, new, "--on", recorded, "--until", text(UNTIL), "--shards", shards)
    invoke(*args, "--changes", out)
    changes = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(changes) == 6 + 10 + 3
    assert {(change["cause"], change["backfill"], change["policy_version"]) for change in changes} == {
        ("policy", True, 2),
    }  # fmt: skip
    assert invoke(*args, "--changes", "-").stdout_bytes == out.read_bytes()


def test_diff_foresees_the_first_summary(file: Callable[[str], Path], recorded: Path) -> None:
    """Which comes after the policy."""
    output = invoke("policy", "diff", file(LIFE), file(SCORED), "--on", recorded).output
    assert "0 of 11 customers would move" in output
    assert "Then, once the population is summarised, 10 customers would move" in output
    assert "note: nobody has a segment in value, rfm until the population is summarised" in output
    assert "note: the policy no longer has lifecycle" in output


@pytest.mark.parametrize(
    "args", [["a"], ["a", "--on", "x", "--live"], ["a", "b", "--live"], ["a", "b"], ["a", "--on", "x"]]
)
def test_diff_says_how_it_is_used(args: list[str]) -> None:
    """When what it is to compare is not clear."""
    assert refused("policy", "diff", *args) == "write `diff OLD NEW --on EVENTS...` or `diff NEW --live`"


def frozen(store: MemoryStore) -> str:
    return repr(vars(store))


def test_diff_live_only_reads(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what a diff on the same events says, and leaves no trace."""
    old, new = file(LIFE), file(QUICK)
    store = fill(monkeypatch, old, shards=3)
    before = frozen(store)
    found = diff(new, "--live", "--clock", "event")
    assert frozen(store) == before
    assert (found["active_version"], found["version"], found["customers"]) == (1, 2, 11)
    assert found["dimensions"]["region"]["customers"] == 3


def test_diff_live_is_as_of_now(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the ingestion clock, where time goes on though nothing is stored."""
    fill(monkeypatch, file(LIFE))
    monkeypatch.setattr(command.time, "time_ns", lambda: 1000 * UNTIL)
    found = diff(file(QUICK), "--live")
    assert (found["as_of"], found["dimensions"]["lifecycle"]["customers"]) == (text(UNTIL), 6)


def test_nothing_stored(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command says so; a store that no worker has started with says that."""
    store = Addressed()
    monkeypatch.setattr(opened, "open_store", lambda settings: store)
    path = file(LIFE)
    for args in (["diff", path, "--live"], ["apply", path], ["rollback"], ["show"]):
        assert "Redis at redis.example:6379 holds nothing under namespace 'segmenter'" in refused("policy", *args)
    store.register(1, "segmenter")
    for args in (["diff", path, "--live"], ["apply", path], ["rollback"], ["show"]):
        assert "start a worker first" in refused("policy", *args)
    assert "start a worker first" in refused("segments")
    assert store.latest_activation() == 0


# apply, rollback, show


class Working(Addressed):
    """A store whose shards a worker takes to the latest activation, one slice between any two looks at them."""

    steps: list[Callable[[], None]]

    def header(self, shard: int) -> ShardHeader:
        """See StateStore."""
        found = super().header(shard)
        if self.steps:
            self.steps.pop(0)()
        return found


def test_apply_activates_and_waits(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Until every shard has taken the policy and labelled everybody anew."""
    store = fill(monkeypatch, file(LIFE))
    worker = Feeder(read_policy(file(LIFE)), store=store)

    def follow() -> None:
        worker.processor.activations.refresh()
        step = worker.processor.follow()
        assert step is not None
        worker.processor.commit(step)
        worker.processor.load({}, {})
        worker.advance(at(45), most=4)

    def slice_of_it() -> None:
        worker.advance(at(45), most=4)

    working = Working()
    working.steps = steps = [lambda: None, follow, lambda: None, *[slice_of_it] * 4]
    vars(working).update(vars(store))
    monkeypatch.setattr(opened, "open_store", lambda settings: working)
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    output = invoke("policy", "apply", file(QUICK)).output
    assert output == (
        "policy version 2 is active (activation 2)\n"
        "the moves that it causes are marked as history, which fires no campaign\n"
        "1 of 1 shards with customers have taken it\n"
    )
    assert len(steps) < 4
    assert working.activation(2).backfill


def test_apply_without_a_worker(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is active all the same; who starts later takes it."""
    store = fill(monkeypatch, file(LIFE), shards=2)
    output = invoke("policy", "apply", file(QUICK), "--wait", "0", "--fire").output
    assert output == (
        "policy version 2 is active (activation 2)\n"
        "the moves that it causes are marked as new, and campaigns may fire from them\n"
        "0 of 2 shards with customers have taken it\n"
        "the others take it when their worker comes to it, or when a worker is started\n"
    )
    assert (store.latest_activation(), store.activation(2).backfill) == (2, False)
    assert store.policy_text(2) == QUICK


def test_apply_of_what_is_active(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told, and is no error; another text of that version is one, and an older version too."""
    store = fill(monkeypatch, file(QUICK))
    assert invoke("policy", "apply", file(QUICK)).output == "policy version 2 is already active\n"
    assert "give this one a version of its own" in refused("policy", "apply", file(QUICK.replace("40d", "41d")))
    assert "or use `segmenter policy rollback` to go back" in refused("policy", "apply", file(LIFE))
    assert store.latest_activation() == 1


def test_rollback(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Goes back to the policy before, and again to the one before that."""
    store = fill(monkeypatch, file(LIFE))
    assert refused("policy", "rollback") == "no other policy than version 1 was ever active"
    invoke("policy", "apply", file(QUICK), "--wait", "0")
    assert "policy version 1 is active (activation 3)" in invoke("policy", "rollback", "--wait", "0").output
    assert store.activation(3).policy_version == 1
    assert "policy version 2 is active (activation 4)" in invoke("policy", "rollback", "--wait", "0", "--fire").output
    assert not store.activation(4).backfill


def test_show(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The version and since when, cut-offs in days, orders and money, what is too small, and the history."""
    store = fill(monkeypatch, file(SCORED))
    active = store.activation(store.latest_activation())
    output = invoke("policy", "show").output
    assert output.startswith("policy version 3, activation 1, since the beginning\n1 of 1 shards")
    assert f"population: as of {format_instant(active.cutoffs.as_of)}, activation {active.number}\n" in output
    table = {tuple(line[:2]): line[2:] for line in words(output) if line[:1] in (["rfm"], ["value"])}
    assert table["value", "monetary"][0] == "USD"
    assert re.fullmatch(r"A from \d+\.\d\d, B from \d+\.\d\d, C below", " ".join(table["value", "monetary"][1:]))
    days = [float(day.strip(",")) for day in table["rfm", "recency"][1:]]
    assert len(days) == 4
    assert days == sorted(days)
    assert days[-1] < 46
    assert table["rfm", "orders"] == ["orders", "1,", "1,", "1,", "1"]
    assert "too small for a campaign: value:B, value:C" in output
    assert invoke("policy", "show", "--text").output == SCORED


def test_show_what_is_learned(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The version in force of each cluster dimension, and where there is more about it."""
    store = fill(monkeypatch, file(SCORED))
    active = store.activation(store.latest_activation())
    model = model_of(("orders",), (1.0,), (1.0,), (0.0,), (1.0,)).model_copy(update={"version": 7})
    store.activate(replace(active, number=active.number + 1, cutoffs=replace(active.cutoffs, clusters={"kind": model})))
    assert "kind: version 7 as of 2024-01-01T00:00:00Z; see segmenter clusters\n" in invoke("policy", "show").output


def test_show_the_history(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every activation of a policy, the latest first."""
    fill(monkeypatch, file(LIFE))
    monkeypatch.setattr(command.time, "time_ns", lambda: 1000 * at(60))
    invoke("policy", "apply", file(QUICK), "--wait", "0", "--fire")
    output = invoke("policy", "show").output
    assert output.startswith(f"policy version 2, activation 2, since {text(at(60))}\n0 of 1 shards with customers")
    assert words(output)[-3:] in (
        [["2", "2", text(at(60)), "new"], ["1", "1", "the", "beginning", "history"], []],
        [[], ["2", "2", text(at(60)), "new"], ["1", "1", "the", "beginning", "history"]],
    )


# Live figures


def test_segments_show_their_profiles_and_figures(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Title and channel, shares, the average order, and what is too small."""
    fill(monkeypatch, file(SCORED))
    shown = words(invoke("segments").output)
    found = {value["segment"]: value for value in map(json.loads, invoke("segments", "--json").output.splitlines())}
    best = found["A"]
    assert (best["title"], best["channel"], best["description"]) == ("Class A", "phone", "The best.")
    assert (best["viable"], found["B"]["viable"], found["C"]["viable"]) == (True, False, False)
    assert sum(found[label]["customers"] for label in "ABC") == 10
    assert sum(found[label]["share"] for label in "ABC") == pytest.approx(1)
    assert best["average_order"] == f"{float(best['revenue']) / best['orders']:.2f}"
    assert any(line[:4] == ["value", "A", "Class", "A"] for line in shown)
    assert any(line[:2] == ["value", "C"] and line[-2:] == ["too", "small"] for line in shown)
    assert list(found)[:3] == ["A", "B", "C"]


def test_segments_of_shards_that_have_not_taken_the_policy(
    file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Are shown behind those of the active one."""
    fill(monkeypatch, file(LIFE))
    invoke("policy", "apply", file(SCORED), "--wait", "0")
    found = [json.loads(line) for line in invoke("segments", "--json").output.splitlines()]
    assert [(each["dimension"], each["segment"], each["customers"]) for each in found[-2:]] == [
        ("rfm", "lost", 0), ("lifecycle", "new", 11),
    ]  # fmt: skip
    assert all(each["share"] is None for each in found[:-1])


def test_a_customer_and_the_reasons(file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """For each dimension that is stored, by the policy and cut-offs of the shard."""
    store = fill(monkeypatch, file(SCORED))
    found = json.loads(invoke("customer", "c9").output)
    assert found["segments"]["value"] == "A"
    assert found["reasons"]["value"].startswith("net revenue 95.00, A from ")
    assert re.fullmatch(r"R[1-5] F[1-5] M[1-5].*", found["reasons"]["rfm"])
    Activations(store, read_policy(file(LIFE))).apply(read_policy(file(QUICK.replace("= 2", "= 9", 1))), at(99), True)
    assert json.loads(invoke("customer", "c9").output) == found
