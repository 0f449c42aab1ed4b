"""The command line: help, wrong options, and what the commands do that need no server."""

import csv
import gzip
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from models.partitioner import partition_of
from models.schemas import schemas
from streams.cli import cli, main
from streams.commands import subscribe
from streams.commit import ShardHeader
from streams.settings import ENV_PREFIX, Settings
from streams.store import opened
from streams.store.memory import MemoryStore
from tests.unit.build import Event, Feeder, at, make_policy, purchase, refund, signup, text
from tests.unit.command_line import invoke, refused

COMMANDS = [
    "changes", "clusters", "customer", "dead-letters", "dead-letters retry", "demo", "export", "policy", "policy apply",
    "policy check", "policy diff", "policy rollback", "policy show", "produce", "rebuild", "repartition", "replay",
    "schemas", "segments", "stack", "topics", "topics create", "verify", "worker",
]  # fmt: skip

EVENTS: list[Event] = [
    signup("ann", "1", at(0)),
    purchase("bob", "2", at(1), "10.00", country="DE"),
    purchase("bob", "3", at(2), "5.00"),
    refund("bob", "4", at(3), "2.50"),
    purchase("bob", "5", at(4), "1.00"),
    signup("cid", "6", at(50)),
]


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A file of recorded events."""
    path = tmp_path / "events.ndjson"
    path.write_text("".join(json.dumps(event) + "\n" for event in EVENTS), encoding="utf-8")
    return path


@pytest.fixture
def lifecycle(tmp_path: Path) -> Path:
    """A policy of the lifecycle alone."""
    path = tmp_path / "lifecycle.toml"
    path.write_text(
        '[attributes]\nkeep = ["country"]\n[dimensions.lifecycle]\nengine = "lifecycle"\n', encoding="utf-8"
    )
    return path


def lines(content: str) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def run_main(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """The exit code of the installed command."""
    monkeypatch.setattr(sys, "argv", ["segmenter", *map(str, args)])
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else -1
    return 0


# Help


def test_the_help_lists_every_command() -> None:
    """With a line for each; every command is there and every line has one."""
    output = invoke("--help").output
    listed = re.findall(r"^  ([a-z-]+)  +\S", output, re.MULTILINE)
    assert sorted(name for name in listed if not name.startswith("-")) == [c for c in COMMANDS if " " not in c]
    assert invoke("-h").output == output


def command_of(words: str) -> click.Command:
    """The command that these words name."""
    found: click.Command = cli
    for word in words.split():
        assert isinstance(found, click.Group)
        made = found.get_command(click.Context(found), word)
        assert made is not None
        found = made
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    """--help works without any server, says what the command does, and lists every option."""
    output = invoke(*command.split(), "--help").output
    assert output.startswith(f"Usage: cli {command}")
    found = command_of(command)
    assert found.help
    for option in found.params:
        if isinstance(option, click.Option):
            assert option.opts[-1] in output


def test_every_option_is_described() -> None:
    """A few words for each option of each command."""
    options = [(name, option) for name in COMMANDS for option in command_of(name).params]
    assert not [(name, o.name) for name, o in options if isinstance(o, click.Option) and not o.help]


def test_help_names_the_variable_of_every_setting() -> None:
    """An option of a worker and its environment variable are one thing, with one description and one default."""
    output = " ".join(invoke("worker", "--help").output.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in output
        assert f"env var: {ENV_PREFIX}{name.upper()}" in output
        assert field.description is not None
        assert field.description.split(",")[0] in output


def test_help_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The password in the environment is no default."""
    monkeypatch.setenv("SEGMENTER_REDIS", "redis://:hunter2@redis:6379/0")
    assert "hunter2" not in invoke("worker", "--help").output


def test_without_a_command_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the exit code says that nothing was done."""
    assert run_main(monkeypatch) == 2
    told = capsys.readouterr()
    assert "Usage:" in told.out + told.err


def test_the_version() -> None:
    """What the package says."""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", invoke("--version").output)


# Wrong options


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["replay"], "Missing argument 'FILE...'"),
        (["replay", "x", "--batch-size", "0"], "0 is not in the range"),
        (["replay", "x", "--shards", "1025"], "1025 is not in the range"),
        (["replay", "x", "--until", "tomorrow"], "'tomorrow' is not an instant; write it like 2024-01-31T09:30:00Z"),
        (["replay", "x", "--until", "2024-02-30T00:00:00Z"], "'2024-02-30T00:00:00Z' is no real date and time"),
        (["replay", "x", "--nonsense"], "No such option"),
        (["produce"], "Missing argument 'FILE...'"),
        (["produce", "x", "--rate", "0"], "0.0 is not in the range"),
        (["demo", "--customers", "0"], "0 is not in the range"),
        (["demo", "--days", "1"], "1 is not in the range"),
        (["customer"], "Missing argument 'CUSTOMER_ID'"),
        (["export", "--format", "xml"], "'xml' is not one of 'ndjson', 'csv'"),
        (["topics", "create", "--partitions", "0"], "0 is not in the range"),
        (["topics", "create", "--replication", "11"], "11 is not in the range"),
    ],
)
def test_wrong_usage_is_told(
    args: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with code 2, and without a traceback."""
    assert run_main(monkeypatch, *args) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert told.out == ""
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["worker", "--http-port", "99999"], "SEGMENTER_HTTP_PORT: must be less than or equal to 65535"),
        (["worker", "--clock", "sun"], "SEGMENTER_CLOCK: must be 'ingestion' or 'event'"),
        (["worker", "--redis", "http://:hunter2@x"], "SEGMENTER_REDIS: must begin with redis://"),
        (["customer", "a", "--namespace", "a b"], "SEGMENTER_NAMESPACE: "),
        (["changes", "--broker", "nowhere"], "SEGMENTER_BROKER: must be host:port"),
        (["changes", "--segment", "lapsed"], "--segment lapsed: write DIMENSION:LABEL, such as lifecycle:lapsed"),
        (["changes", "--segment", "lifecycle:"], "write DIMENSION:LABEL"),
        (["topics", "create", "--purchases-topic", "x", "--signups-topic", "x"], "each topic must have a name"),
    ],
)
def test_a_wrong_setting_is_told(
    args: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with code 1, before anything is started; never with a secret."""
    assert run_main(monkeypatch, *args) == 1
    told = capsys.readouterr()
    assert told.err.startswith("segmenter: ")
    assert sentence in told.err
    assert "hunter2" not in told.err
    assert "Traceback" not in told.err


def test_a_variable_is_an_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the environment says counts like an option, and an option wins."""
    monkeypatch.setenv("SEGMENTER_HTTP_PORT", "x")
    assert run_main(monkeypatch, "worker", "--clock", "sun") == 1
    told = capsys.readouterr().err
    assert "SEGMENTER_HTTP_PORT: " in told
    assert "SEGMENTER_CLOCK: " in told
    assert run_main(monkeypatch, "worker", "--http-port", "1", "--clock", "sun") == 1
    assert "SEGMENTER_HTTP_PORT: " not in capsys.readouterr().err


# replay


def test_replay_shows_sizes_and_moves(recorded: Path, lifecycle: Path) -> None:
    """Without an output it tells what the events caused, as tables."""
    output = invoke("replay", recorded, "--policy", lifecycle, "--until", text(at(200))).output
    assert output.startswith("6 events, 9 changes, 0 dead letters, ")
    shown = [line.split() for line in output.splitlines()]
    assert ["lifecycle:lapsed", "3", "13.50"] in shown
    assert ["lifecycle:new", "0", "0.00"] in shown
    assert ["lifecycle:", "regular", "→", "lapsed", "time", "1"] in shown


def test_replay_writes_changes_to_standard_output(recorded: Path, lifecycle: Path) -> None:
    """And nothing else, so that it can be piped."""
    changes = lines(invoke("replay", recorded, "--policy", lifecycle, "--changes", "-").stdout)
    assert [(change["customer_id"], change["to"], change["cause"]) for change in changes] == [
        ("ann", "new", "signup"), ("bob", "new", "purchase"), ("bob", "regular", "purchase"),
        ("ann", "potential", "time"), ("cid", "new", "signup"),
    ]  # fmt: skip
    assert changes[1]["rfm"] == {"recency_days": 0, "frequency": 1, "monetary": "10.00", "currency": "USD"}


def test_replay_writes_files(recorded: Path, lifecycle: Path, tmp_path: Path) -> None:
    """Changes, dead letters and customers, each line a JSON value."""
    bad = [*EVENTS, purchase("bob", "7", at(51), currency="XXX")]
    recorded.write_text("".join(json.dumps(event) + "\n" for event in bad) + "\nnonsense\n", encoding="utf-8")
    outs = {name: tmp_path / f"{name}.ndjson" for name in ("changes", "dead-letters", "customers")}
    options = [part for name, path in outs.items() for part in (f"--{name}", path)]
    output = invoke("replay", recorded, "--policy", lifecycle, *options).output
    found = {name: lines(path.read_text(encoding="utf-8")) for name, path in outs.items()}
    assert len(found["changes"]) == 5
    assert [(letter["code"], letter["topic"], letter["offset"]) for letter in found["dead-letters"]] == [
        ("unknown_currency", "events.ndjson", 7), ("invalid_json", "events.ndjson", 9),
    ]  # fmt: skip
    assert [customer["customer_id"] for customer in found["customers"]] == ["ann", "bob", "cid"]
    assert found["customers"][1]["net"] == "13.50"
    assert "8 events, 5 changes, 2 dead letters" in output
    assert "unknown_currency" in output


@pytest.mark.parametrize("options", [["--batch-size", 1], ["--batch-size", 2], ["--shards", 3], []])
def test_replay_gives_the_same_bytes(recorded: Path, options: list[object]) -> None:
    """Whatever the batch size; with several shards all but decided_at."""
    whole = invoke("replay", recorded, "--changes", "-", "--until", text(at(400))).stdout_bytes
    other = invoke("replay", recorded, "--changes", "-", "--until", text(at(400)), *options).stdout_bytes
    if "--shards" not in options:
        assert other == whole
    plain = [{k: v for k, v in change.items() if k != "decided_at"} for change in lines(whole.decode())]
    assert [{k: v for k, v in change.items() if k != "decided_at"} for change in lines(other.decode())] == plain


def test_replay_reads_gzip_and_standard_input(recorded: Path, tmp_path: Path) -> None:
    """Each form gives what the plain file gives."""
    plain = invoke("replay", recorded, "--changes", "-").stdout_bytes
    packed = tmp_path / "events.ndjson.gz"
    packed.write_bytes(gzip.compress(recorded.read_bytes()))
    assert invoke("replay", packed, "--changes", "-").stdout_bytes == plain
    assert invoke("replay", "-", "--changes", "-", stdin=recorded.read_bytes()).stdout_bytes == plain


def test_replay_merges_files_by_time(recorded: Path, tmp_path: Path) -> None:
    """Signups and purchases may lie in files of their own."""
    apart = {kind: tmp_path / f"{kind}.ndjson" for kind in ("signup", "purchase", "refund")}
    for kind, path in apart.items():
        chosen = [event for event in EVENTS if event["kind"] == kind]
        path.write_text("".join(json.dumps(event) + "\n" for event in chosen), encoding="utf-8")
    merged = lines(invoke("replay", *apart.values(), "--changes", "-").stdout)
    whole = lines(invoke("replay", recorded, "--changes", "-").stdout)
    assert [change["change_id"] for change in merged] == [change["change_id"] for change in whole]


def test_replay_takes_a_policy(recorded: Path, tmp_path: Path) -> None:
    """To try a definition before any campaign sees it."""
    policy = tmp_path / "policy.toml"
    policy.write_text('[dimensions.vip]\nengine = "lifecycle"\nregular_orders = 2\n', encoding="utf-8")
    changes = lines(invoke("replay", recorded, "--policy", policy, "--changes", "-").stdout)
    assert {change["dimension"] for change in changes} == {"vip"}
    assert [c["event_id"] for c in changes if c["to"] == "regular"] == ["3"]


def test_replay_of_nothing(tmp_path: Path) -> None:
    """An empty file is no error."""
    path = tmp_path / "empty.ndjson"
    path.write_bytes(b"\n\n")
    assert invoke("replay", path, "--changes", "-").stdout == ""
    assert "0 events, 0 changes" in invoke("replay", path).output


def test_files_that_cannot_be_read_or_written_are_told(recorded: Path, tmp_path: Path) -> None:
    """Each in a sentence that names the file."""
    absent = tmp_path / "absent.ndjson"
    assert refused("replay", absent) == (
        f"cannot read {absent}: No such file or directory; name an NDJSON file, or - for input"
    )
    assert f"cannot read {tmp_path}: Is a directory" in refused("replay", tmp_path)
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(recorded.read_bytes())[:-9])
    assert f"cannot read {broken} to its end" in refused("replay", broken)
    nowhere = tmp_path / "absent" / "out.ndjson"
    assert refused("replay", recorded, "--changes", nowhere) == f"cannot write {nowhere}: No such file or directory"
    assert f"cannot read the policy {absent}" in refused("replay", recorded, "--policy", absent)
    policy = tmp_path / "policy.toml"
    policy.write_text("speed = 1", encoding="utf-8")
    told = refused("replay", recorded, "--policy", policy)
    assert "speed: is not a setting of this policy" in told
    assert "dimensions: is required" in told


def test_an_error_for_a_person_is_a_sentence_and_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The installed command shows no traceback."""
    assert run_main(monkeypatch, "replay", tmp_path / "absent") == 1
    told = capsys.readouterr()
    assert told.err.startswith("segmenter: cannot read ")
    assert told.out == ""


def test_a_reader_that_has_seen_enough_is_no_error(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``segmenter replay … | head`` ends quietly."""

    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("streams.commands.replay.write_lines", closed)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert run_main(monkeypatch, "replay", recorded, "--changes", "-") == 0


# schemas


def test_schemas_are_written(tmp_path: Path) -> None:
    """A file for each topic, in a folder that is made if need be; again gives the same bytes."""
    folder = tmp_path / "a" / "b"
    output = invoke("schemas", folder).output
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {name: json.loads(content) for name, content in written.items()} == {
        f"{topic}.schema.json": schema for topic, schema in schemas().items()
    }
    assert sorted(output.split()) == sorted(str(folder / name) for name in written)
    invoke("schemas", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written


def test_schemas_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    """With the folder."""
    taken = tmp_path / "file"
    taken.write_text("x", encoding="utf-8")
    assert refused("schemas", taken / "below") == f"cannot write {taken / 'below'}: Not a directory"


# What Redis holds


class Stored(MemoryStore):
    """A store with two shards of customers, as a worker would have left it."""

    address = "redis.example:6379"

    def __init__(self) -> None:
        super().__init__()
        self.on_header: Callable[[], None] | None = None

    def header(self, shard: int) -> ShardHeader:
        """See StateStore. Calls ``on_header`` once it has been read, once."""
        found = super().header(shard)
        if self.on_header is not None:
            call, self.on_header = self.on_header, None
            call()
        return found


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Stored:
    store = Stored()
    monkeypatch.setattr(opened, "open_store", lambda settings: store)
    return store


@pytest.fixture
def filled(stored: Stored) -> Feeder:
    """Ann, Bob and Cid on the only shard there is."""
    stored.register(1, "segmenter")
    feeder = Feeder(make_policy(), store=stored)
    feeder.feed(*EVENTS)
    return feeder


def test_a_customer_is_shown(filled: Feeder) -> None:
    """As JSON, as it is stored, and why each segment is theirs."""
    shown = json.loads(invoke("customer", "bob").output)
    assert shown == {
        **filled.customer("bob"), "reasons": {"lifecycle": "3 orders, last purchase 46 days before"},
    }  # fmt: skip
    assert (shown["net"], shown["segments"], shown["attributes"]) == (
        "13.50", {"lifecycle": "regular"}, {"country": "DE"},
    )  # fmt: skip


def test_a_customer_is_looked_for_on_the_right_shard(stored: Stored) -> None:
    """Kafka's partitioner says which one that is."""
    stored.register(64, "segmenter")
    source = Feeder()
    source.feed(purchase("bob", "1", at(0)))
    stored._shards[partition_of(b"bob", 64)] = source.store._shards[0]
    found = json.loads(invoke("customer", "bob").output)
    assert (found["customer_id"], found["reasons"]) == ("bob", {})


def test_a_customer_nobody_knows(filled: Feeder) -> None:
    """Is told by name."""
    assert refused("customer", "eve") == "nothing is known about customer 'eve'"


@pytest.mark.parametrize("command", [["customer", "bob"], ["segments"], ["export"]])
def test_a_namespace_that_was_never_used(stored: Stored, command: list[str]) -> None:
    """The sentence says where nothing was found, and what to do."""
    assert refused(*command, "--namespace", "other") == (
        "Redis at redis.example:6379 holds nothing under namespace 'other'; start a worker, or set SEGMENTER_NAMESPACE"
    )


def test_segments_are_shown(filled: Feeder) -> None:
    """Every segment with its customers, revenue and orders, also those without any, in the policy's order."""
    output = invoke("segments").output
    shown = [line.split() for line in output.splitlines() if line.lstrip().startswith("lifecycle")]
    assert "revenue (USD)" in output
    assert shown == [
        ["lifecycle", "new", "–", "1", "33.3", "0.00", "0.0", "–", "0.0", "–"],
        ["lifecycle", "potential", "–", "1", "33.3", "0.00", "0.0", "–", "0.0", "–"],
        ["lifecycle", "regular", "–", "1", "33.3", "13.50", "100.0", "4.50", "3.0", "–"],
        ["lifecycle", "lapsed", "–", "0", "0.0", "0.00", "0.0", "–", "–", "–"],
    ]


def test_segments_as_json_add_up_over_shards(filled: Feeder, stored: Stored) -> None:
    """One line for each segment of the fleet, not of a shard."""
    stored._fleet = (2, "segmenter")
    stored._shards[1] = stored._shards[0]
    found = {value["segment"]: value for value in lines(invoke("segments", "--json").output)}
    assert found["regular"] == {
        "dimension": "lifecycle", "segment": "regular", "title": None, "customers": 2, "share": 0.3333,
        "revenue": "27.00", "currency": "USD", "revenue_share": 1.0, "orders": 6, "average_order": "4.50",
        "orders_per_customer": 3.0, "channel": None, "viable": True, "description": None, "needs": [], "offers": [],
    }  # fmt: skip
    assert set(found) == {"new", "potential", "regular", "lapsed"}


def test_export_writes_every_customer(filled: Feeder, tmp_path: Path) -> None:
    """As NDJSON, to standard output or a file."""
    everybody = filled.customers()
    assert {value["customer_id"]: value for value in lines(invoke("export").output)} == everybody
    out = tmp_path / "customers.ndjson"
    assert invoke("export", "--out", out).output == ""
    assert {value["customer_id"]: value for value in lines(out.read_text(encoding="utf-8"))} == everybody


def test_export_as_csv(filled: Feeder, tmp_path: Path) -> None:
    """A column for each attribute and dimension; what is absent is empty; any id survives."""
    awkward = 'a "quoted",\nid'
    filled.feed(purchase(awkward, "9", at(60), country="Côte d’Ivoire"))
    out = tmp_path / "customers.csv"
    invoke("export", "--format", "csv", "--out", out)
    rows = {row["customer_id"]: row for row in csv.DictReader(io.StringIO(out.read_bytes().decode(), newline=""))}
    assert set(rows) == {"ann", "bob", "cid", awkward}
    assert rows["bob"]["net"] == "13.50"
    assert rows["bob"]["segments.lifecycle"] == "regular"
    assert (rows["ann"]["first_purchase_at"], rows["ann"]["attributes.country"]) == ("", "")
    assert rows[awkward]["attributes.country"] == "Côte d’Ivoire"
    assert invoke("export", "--format", "csv").stdout_bytes == out.read_bytes()


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_export_while_a_worker_runs(filled: Feeder, stored: Stored, form: str) -> None:
    """Customers and attribute values that are committed meanwhile may be missing or there, but end nothing."""

    def work() -> None:
        filled.feed(purchase("zoe", "9", at(60), country="NZ"))

    stored.on_header = work
    output = invoke("export", "--format", form).output
    assert all(name in output for name in ("ann", "bob", "cid"))
    assert "zoe" not in output or "NZ" in output


# What is published


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The values of any topic that is read."""
    values: list[bytes] = []
    monkeypatch.setattr(subscribe, "read_topic", lambda *_, **__: iter(values))
    return values


def test_changes_are_shown_once(topic: list[bytes]) -> None:
    """In a line each, with its cause; a repeated id is dropped."""
    feeder = Feeder()
    found = [*feeder.feed(*EVENTS), *feeder.advance(at(60))]
    topic += [json.dumps(change).encode() for change in [*found, *found[:2]]]
    shown = invoke("changes", "--from-beginning").output.splitlines()
    assert len(shown) == len(found)
    assert shown[0] == ("2024-01-01T00:00:00Z  ann  lifecycle: – → new  by signup 1  [0 orders, 0.00 USD]")
    assert "bob  lifecycle: new → regular  by purchase 5  [3 orders, 13.50 USD, last 0 d ago]" in shown[2]
    assert lines(invoke("changes", "--from-beginning", "--json").output) == found


def test_changes_of_one_segment(topic: list[bytes]) -> None:
    """Moves into it and out of it."""
    feeder = Feeder()
    topic += [json.dumps(change).encode() for change in [*feeder.feed(*EVENTS), *feeder.advance(at(300))]]
    found = lines(invoke("changes", "--segment", "lifecycle:regular", "--json").output)
    assert [(change["from"], change["to"]) for change in found] == [("new", "regular"), ("regular", "lapsed")]
    assert invoke("changes", "--segment", "other:regular").output == ""


def test_history_is_marked(topic: list[bytes]) -> None:
    """Who reads along sees what fires no campaign."""
    topic += [json.dumps(change).encode() for change in Feeder(backfill_until=99).feed(*EVENTS)]
    assert all(line.endswith("  (backfill)") for line in invoke("changes").output.splitlines())


def test_dead_letters_are_shown(topic: list[bytes]) -> None:
    """Code, place, key and reason; or everything as JSON."""
    letter = {
        "code": "wrong_key", "reason": "the record's key must be the customer_id, as UTF-8", "topic": "purchases",
        "partition": 3, "offset": 41, "timestamp": 0, "key": None, "value": "{}", "headers": [], "encoding": "utf-8",
    }  # fmt: skip
    topic.append(json.dumps(letter).encode())
    output = invoke("dead-letters").output
    assert output.startswith("1 dead letters")
    assert "purchases/3@41" in output
    assert letter["reason"] in output
    assert lines(invoke("dead-letters", "--json").output) == [letter]


def test_repeats_are_remembered_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription that runs for ever does not grow for ever."""
    monkeypatch.setattr(subscribe, "_REMEMBERED", 2)
    values = [json.dumps({"change_id": name}).encode() for name in "aabbccab"]
    assert [each["change_id"] for each in subscribe.without_repeats(iter(values))] == ["a", "b", "c", "a", "b"]
