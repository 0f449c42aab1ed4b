"""The audit: it finds nothing where nothing is wrong, and says of what is wrong what, where and why."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson
import pytest
from click.testing import CliRunner, Result

from models.instants import parse
from streams import shard_log
from streams.activations import Activations
from streams.cli import cli
from streams.commands import verify
from streams.generator import Population, generate
from streams.processor import Clock
from streams.verify_report import Finding
from tests.support.audited import CHANGES, LETTERS, SNAPSHOTS, Fleet
from tests.unit.build import at, erasure, make_policy, purchase, refund, signup, tick
from tests.unit.command_line import refused


def history() -> list[dict[str, object]]:
    """Ann becomes regular, Bob lapses, Cid is forgotten."""
    return [
        signup("ann", "s-1", at(0)),
        purchase("ann", "e-1", at(1), "10.00"),
        purchase("bob", "e-2", at(2), "7.00"),
        signup("cid", "s-2", at(3)),
        purchase("ann", "e-3", at(4), "20.00", country="DE"),
        refund("ann", "e-4", at(5), "5.00"),
        purchase("ann", "e-5", at(6), "30.00"),
        erasure("cid", "x-1", at(7)),
        tick(at(120)),
        purchase("bob", "e-6", at(121), "1.00"),
    ]


def fleet(events: Sequence[dict[str, object]] | None = None, *, run: bool = True) -> Fleet:
    made = Fleet(make_policy())
    made.put(history() if events is None else events)
    if run:
        made.run()
    return made


def found(made: Fleet) -> list[Finding]:
    report = made.verify()
    assert report.unverified is None
    return report.findings


def one(made: Fleet) -> Finding:
    (finding,) = found(made)
    return finding


def set_orders(row: bytes, orders: int) -> bytes:
    return row[:32] + struct.pack("<I", orders) + row[36:]


def rows(made: Fleet) -> dict[str, bytes]:
    return made.store._shard(0).customers


class TestAgreement:
    def test_says_what_it_compared(self) -> None:
        report = fleet().verify()
        assert (report.findings, report.notes, report.unverified) == ([], [], None)
        assert (report.events, report.customers, report.snapshots, report.repeated) == (10, 2, 2, 0)
        assert report.changes > 0

    def test_a_fleet_that_has_read_nothing_agrees(self) -> None:
        report = fleet([], run=False).verify()
        assert (report.findings, report.events) == ([], 0)

    def test_what_has_not_been_folded_yet_is_no_difference(self) -> None:
        made = fleet()
        made.put([purchase("ann", "e-9", at(122))])
        assert found(made) == []

    def test_changes_that_wait_in_the_outbox_are_not_lost(self) -> None:
        made = Fleet(make_policy())
        made.put(history())
        made.run(publish=False)
        report = made.verify()
        assert report.findings == []
        assert report.pending > 0

    def test_repeated_ids_are_counted_and_harmless(self) -> None:
        made = Fleet(make_policy())
        made.put(history())
        made.run(publish=False)
        made.publish(acknowledge=False)
        made.publish()
        report = made.verify()
        assert report.findings == []
        assert report.repeated == report.changes > 0

    def test_refused_records_have_their_letters(self) -> None:
        made = fleet([*history(), {**purchase("ann", "e-7", at(122)), "currency": "XXX"}])
        report = made.verify()
        assert (report.findings, report.letters) == ([], 1)

    def test_another_policy_is_followed_as_far_as_it_is_known(self) -> None:
        made = fleet()
        later = make_policy(version=2, dimensions={"lifecycle": ("30d", 2, "60d")})
        Activations(made.store, make_policy()).apply(later, at(121), backfill=False)
        made.put([purchase("ann", "e-9", at(122)), tick(at(300))])
        made.run()
        report = made.verify()
        assert report.findings == []
        assert any("other policies were in force before" in note for note in report.notes)

    @pytest.mark.parametrize("clock", list(Clock))
    def test_under_both_clocks(self, clock: Clock) -> None:
        made = Fleet(make_policy(), clock)
        events = list(generate(Population(customers=60, days=150, seed=3)))
        made.put(events, [parse(str(each["occurred_at"])) + 5 for each in events] if clock is Clock.INGESTION else None)
        made.run(crashes=2)
        assert found(made) == []

    def test_the_order_of_topics_is_no_difference_but_said(self) -> None:
        made = Fleet(make_policy())
        made.put([purchase("ann", "e-1", at(200))])
        made.run()
        made.put([signup("bob", "s-1", at(1))])
        made.run()
        report = made.verify()
        assert report.findings == []
        assert ["another order of the topics" in note for note in report.notes] == [True]


class TestState:
    def test_a_row_changed_by_hand(self) -> None:
        made = fleet()
        rows(made)["ann"] = set_orders(rows(made)["ann"], 2)
        finding = one(made)
        assert (finding.what, finding.customer) == ("state", "ann")
        assert finding.sentence == "orders: 2 stored, 3 from the topics"
        assert "changed by something other than events" in finding.why[0]
        assert any("purchases/0@0 (purchase e-1)" in line and "offset 7 covers" in line for line in finding.why)

    def test_a_label_changed_by_hand(self) -> None:
        made = fleet()
        row = rows(made)["ann"]
        rows(made)["ann"] = row[:72] + struct.pack("<h", 0) + row[74:]
        finding = one(made)
        assert "segment lifecycle: new stored, " in finding.sentence

    def test_a_row_that_is_missing(self) -> None:
        made = fleet()
        del rows(made)["bob"]
        finding = one(made)
        assert (finding.what, finding.customer) == ("missing", "bob")
        assert any("e-2" in line for line in finding.why)

    def test_a_row_too_many(self) -> None:
        made = fleet()
        rows(made)["eve"] = rows(made)["ann"]
        finding = one(made)
        assert (finding.what, finding.customer) == ("unknown", "eve")
        assert "there is no event of this customer on the topics" in finding.why

    def test_a_row_that_cannot_be_read(self) -> None:
        made = fleet()
        rows(made)["ann"] = rows(made)["ann"][:50]
        assert one(made).what == "damaged"

    def test_an_event_that_was_not_counted(self) -> None:
        made, without = fleet(), fleet([event for event in history() if event.get("event_id") != "e-4"])
        rows(made)["ann"] = rows(without)["ann"]
        finding = one(made)
        assert finding.sentence == "refunds: 0 stored, 1 from the topics; refunded: 0.00 stored, 5.00 from the topics"
        assert finding.why[0].startswith("purchases/0@3 (refund e-4) is not among the events that the stored row")

    def test_an_event_that_is_on_no_topic(self) -> None:
        made, more = fleet(), fleet([*history(), refund("ann", "e-8", at(122))])
        rows(made)["ann"] = rows(more)["ann"]
        assert "the stored row remembers 1 events that are not on the topics" in one(made).why

    def test_a_segment_counted_wrong(self) -> None:
        made = fleet()
        sizes = made.store._shard(0).segments
        name = next(name for name, size in sizes.items() if size.customers)
        sizes[name] = sizes[name]._replace(customers=7)
        finding = one(made)
        assert (finding.what, finding.customer) == ("segment", None)
        assert f"segment {name}: 7 customers" in finding.sentence

    def test_only_one_customer_is_asked_for(self) -> None:
        made = fleet()
        for customer in ("ann", "bob"):
            rows(made)[customer] = set_orders(rows(made)[customer], 9)
        assert [each.customer for each in made.verify(customer="bob").findings] == ["bob"]


class TestPublished:
    def test_a_change_that_is_lost(self) -> None:
        made = fleet()
        kept = made.log.records[CHANGES, 0]
        (lost,) = [each for each in kept if json.loads(each.value or b"")["event_id"] == "e-5"]
        kept.remove(lost)
        finding = one(made)
        assert (finding.what, finding.customer) == ("lost", "ann")
        assert finding.why == [
            "lifecycle new → regular (number 2) was caused by purchases/0@4 (purchase e-5), and is not on the topic"
        ]

    def test_a_change_that_nothing_has_caused(self) -> None:
        made = fleet()
        change = json.loads(made.log.records[CHANGES, 0][-1].value or b"")
        forged = {**change, "change_id": "0" * 32, "event_id": "e-99", "sequence": change["sequence"] + 1}
        made.log.put(CHANGES, b"bob", orjson.dumps(forged))
        finding = one(made)
        assert (finding.what, finding.customer) == ("never_caused", "bob")
        assert "names event e-99, which is not on the topics" in finding.why[0]

    def test_changes_in_another_order(self) -> None:
        made = fleet()
        kept = made.log.records[CHANGES, 0]
        mine = [i for i, each in enumerate(kept) if each.key == b"bob"]
        kept[mine[0]], kept[mine[1]] = (
            kept[mine[1]]._replace(offset=kept[mine[0]].offset),
            kept[mine[0]]._replace(offset=kept[mine[1]].offset),
        )
        finding = one(made)
        assert (finding.what, finding.customer) == ("order", "bob")
        assert finding.why[0].startswith("sequences: 2, 1")

    @pytest.mark.parametrize(
        "value",
        [
            b"hello", b"[]", b"1", b"null", b'{"customer_id":"bob","change_id":"00"}', {"sequence": "1"},
            {"sequence": 10**30}, {"sequence": 1.5}, {"customer_id": 5}, {"change_id": "00"}, {"change_id": []},
            {"segments": [1]}, {"from": {}}, {"event_id": 1}, {"cause": None}, {"change_id": " 0" * 16},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_record_that_is_no_change(self, value: bytes | dict[str, object]) -> None:
        made = fleet()
        if isinstance(value, dict):
            value = json.dumps(json.loads(made.log.records[CHANGES, 0][-1].value or b"") | value).encode()
        rows(made)["bob"] = set_orders(rows(made)["bob"], 9)
        made.log.put(CHANGES, b"bob", value)
        assert sorted(each.what for each in found(made)) == ["foreign", "state"]

    @pytest.mark.parametrize(
        ("customer", "spoil", "says"),
        [
            ("ann", lambda value: None, "was removed"),
            (
                "ann",
                lambda value: value.replace(b'"regular"', b'"new"').replace(b'"lapsed"', b'"new"'),
                "says lifecycle",
            ),
            ("ann", lambda value: value.replace(b'"sequence":3', b'"sequence":1'), "is of change 1"),
            ("ann", lambda value: b"{", "cannot be read"),
            ("ann", lambda value: b'{"segments":[],"sequence":3}', "cannot be read"),
            ("cid", lambda value: b"{}", "nothing is known about this customer"),
        ],
        ids=["removed", "label", "sequence", "damaged", "no labels", "erased"],
    )
    def test_a_stale_snapshot(self, customer: str, spoil: Callable[[bytes], bytes | None], says: str) -> None:
        made = fleet()
        last = [each for each in made.log.records[SNAPSHOTS, 0] if each.key == customer.encode()][-1]
        made.log.put(SNAPSHOTS, customer.encode(), spoil(last.value or b""))
        finding = one(made)
        assert (finding.what, finding.customer) == ("snapshot", customer)
        assert says in finding.sentence

    def test_a_snapshot_that_is_missing(self) -> None:
        made = fleet()
        kept = made.log.records[SNAPSHOTS, 0]
        kept[:] = [each for each in kept if each.key != b"ann"]
        assert one(made).sentence == "there is no snapshot of this customer"

    def test_a_dead_letter_that_is_missing(self) -> None:
        made = fleet([*history(), {**purchase("ann", "e-7", at(122)), "currency": "XXX"}])
        made.log.records[LETTERS, 0].clear()
        finding = one(made)
        assert finding.what == "dead_letter"
        assert finding.sentence == "purchases/0@7 cannot be used, and there is no dead letter of it"

    def test_a_dead_letter_of_a_good_record(self) -> None:
        made = fleet()
        letter = {"topic": "purchases", "partition": 0, "offset": 2, "code": "invalid_json"}
        made.log.put(LETTERS, None, orjson.dumps(letter), 0)
        assert one(made).sentence == "purchases/0@2 was refused (invalid_json), and it can be used"


class TestWhatIsKept:
    def test_changes_before_those_that_are_kept_are_not_missed(self) -> None:
        made = fleet()
        made.log.expire(CHANGES, 0, 2)
        report = made.verify()
        assert report.findings == []
        assert ["is kept since" in note for note in report.notes] == [True]

    def test_letters_before_those_that_are_kept_are_not_missed(self) -> None:
        spoiled = [{**purchase("ann", f"e-{i}", at(122)), "currency": "XXX"} for i in (7, 8)]
        made = fleet([*history(), *spoiled])
        made.log.expire(LETTERS, 0, 1)
        report = made.verify()
        assert report.findings == []
        assert ["dead-letters is kept since" in note for note in report.notes] == [True]

    def test_a_lost_change_among_those_that_are_kept_is_found(self) -> None:
        made = fleet()
        made.log.expire(CHANGES, 0, 1)
        del made.log.records[CHANGES, 0][-2]
        assert one(made).what == "lost"

    def test_state_that_followed_from_deleted_records_cannot_be_verified(self) -> None:
        made = fleet()
        made.log.expire("purchases", 0, 1)
        report = made.verify()
        assert report.findings == []
        assert "purchases, partition 0: Kafka has deleted everything below 1" in (report.unverified or "")

    def test_a_topic_that_was_recreated_cannot_be_verified(self) -> None:
        made = fleet()
        made.log.records["purchases", 0].clear()
        assert "the topic was recreated or truncated" in (made.verify().unverified or "")

    def test_deadlines_that_nobody_applies_are_said(self) -> None:
        made = fleet()
        made.store._shard(0).settled = at(1)
        report = made.verify()
        assert report.findings == []
        assert "start a worker" in (report.unverified or "")

    def test_a_shard_of_which_nothing_is_stored_cannot_be_verified(self) -> None:
        report = fleet(run=False).verify()
        assert report.findings == []
        assert "nothing of it is stored" in (report.unverified or "")

    def test_what_a_clock_refuses_meanwhile_cannot_be_verified(self) -> None:
        made = fleet()
        look = made.store.moment
        letter = {"topic": "purchases", "partition": 0, "offset": 2, "code": "recorded_ahead"}

        def moment(shard: int, cursor: int | None, customers: Sequence[str] = (), count: int = 5_000) -> object:
            if cursor is None and not made.log.records[LETTERS, 0]:
                made.log.put(LETTERS, None, orjson.dumps(letter), 0)
            return look(shard, cursor, customers, count)

        made.store.moment = moment  # type: ignore[method-assign,assignment]
        report = made.verify()
        assert (report.findings, "try again" in (report.unverified or "")) == ([], True)

    def test_more_customers_than_can_be_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("streams.verify._SUSPECTS", 1)
        made = Fleet(make_policy())
        for number in range(3):
            made.put([purchase(f"c-{number}", f"e-{number}", at(200 + number))])
            made.run()
            made.put([signup(f"d-{number}", f"s-{number}", at(1))])
            made.run()
        report = made.verify()
        assert (report.findings, "too many" in (report.unverified or "")) == ([], True)


class TestUpkeep:
    def test_a_shard_that_is_being_rebuilt_is_not_verified(self) -> None:
        made = fleet()
        assert made.store.rewind(0, "again", 1)
        assert "it is being rebuilt" in (made.verify().unverified or "")

    def test_a_shard_that_was_rebuilt_agrees_with_what_it_had_published(self) -> None:
        made = fleet()
        assert made.store.rewind(0, "again", 1)
        made.put([purchase("bob", "e-9", at(122))])
        made.run()
        report = made.verify()
        assert (report.findings, report.notes, report.unverified) == ([], [], None)

    def test_a_shard_that_was_rebuilt_under_another_policy_agrees(self) -> None:
        made = fleet()
        later = make_policy(version=2, dimensions={"lifecycle": ("30d", 2, "60d")})
        Activations(made.store, make_policy()).apply(later, at(121), backfill=False)
        made.run()
        assert made.store.rewind(0, "again", 2)
        made.put([purchase("bob", "e-9", at(122))])
        made.run()
        report = made.verify()
        assert report.findings == []
        assert any("was rebuilt under a later policy" in note for note in report.notes)

    def test_customers_from_before_a_repartition_are_not_verified(self) -> None:
        made = fleet()
        header = made.store.header
        made.store.header = lambda shard: replace(header(shard), lineage="4")  # type: ignore[method-assign]
        assert "repartitioned" in (made.verify().unverified or "")


class TestCommand:
    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> Fleet:
        made = fleet()
        monkeypatch.setattr(shard_log, "KafkaLog", lambda *_: made.log)
        monkeypatch.setattr(verify, "open_stored", lambda _: (made.store, 1))
        return made

    @staticmethod
    def run(*args: str) -> Result:
        return CliRunner().invoke(cli, args)

    def test_all_agrees(self, made: Fleet) -> None:
        result = self.run("verify", "--clock", "event")
        assert result.exit_code == 0
        assert result.output.endswith("What is stored and what was published is what follows from the topics.\n")

    def test_what_differs_is_listed_and_ends_with_3(self, made: Fleet) -> None:
        for customer in ("ann", "bob"):
            rows(made)[customer] = set_orders(rows(made)[customer], 9)
        result = self.run("verify", "--clock", "event", "--most", "1")
        assert result.exit_code == 3
        assert "shard 0: customer ann: orders: 9 stored, 3 from the topics" in result.output
        assert "1 more are not shown; see --most" in result.output
        assert result.output.endswith("2 differences were found.\n")

    def test_as_json(self, made: Fleet) -> None:
        del rows(made)["ann"]
        result = self.run("verify", "--clock", "event", "--json")
        finding, last = map(json.loads, result.output.splitlines())
        assert (finding["shard"], finding["what"], finding["customer_id"]) == (0, "missing", "ann")
        assert (last["summary"]["findings"], last["summary"]["events"]) == (1, 10)

    def test_what_cannot_be_verified_ends_with_1(self, made: Fleet) -> None:
        made.log.expire("purchases", 0, 1)
        result = self.run("verify", "--clock", "event", "--shard", "0")
        assert result.exit_code == 1
        assert "shard 0 could not be verified: purchases, partition 0: Kafka has deleted" in result.output

    def test_a_shard_that_is_not_there(self, made: Fleet) -> None:
        assert "there is no shard 4" in refused("verify", "--shard", "4")


def test_a_worker_goes_on_meanwhile() -> None:
    """Rows are read in parts, and between two parts the fleet folds and publishes more."""
    made = fleet(list(generate(Population(customers=80, days=100, seed=9))))
    more = list(generate(Population(customers=80, days=40, seed=10)))
    look, looks = made.store.moment, []

    def moment(shard: int, cursor: int | None, customers: Sequence[str] = (), count: int = 5_000) -> object:
        whole = look(shard, None if cursor is None else 0, customers, count)
        looks.append(cursor)
        part = more[len(looks) * 5 : len(looks) * 5 + 5]
        made.put(part or [tick(at(300 + len(looks)))])
        made.run()
        if cursor is None:
            return whole
        half = sorted(whole.rows)[cursor * 40 : cursor * 40 + 40]
        return whole._replace(rows=half, cursor=cursor + 1 if len(half) == 40 else 0)

    made.store.moment = moment  # type: ignore[method-assign,assignment]
    assert found(made) == []
    assert len(looks) > 4
