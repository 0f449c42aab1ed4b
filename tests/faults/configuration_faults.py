"""What operators may do to a running fleet by mistake."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka.admin import NewPartitions

from models.partitioner import partition_of
from streams.kafka.topics import create
from tests.faults.kafka_faults import admin, ends_with
from tests.faults.load import PARTITIONS, Load, sample
from tests.faults.oracle import settings_of
from tests.faults.run import Lane, Outcome, Run, Servers, fault, servers
from tests.support.commands import SEGMENTER, Running, Worker, eventually, output_of, segmenter
from tests.support.stored import Stored

GROWN = 2 * PARTITIONS


@dataclass
class TwoKafkas(Servers):
    """Another Kafka beside the run's own; neither is harmed."""

    other: Any = None


@servers("two kafkas")
def _two_kafkas(lane: Lane) -> Iterator[Servers]:
    """The lane's Kafka for the fleet, the shared one for whoever comes by mistake."""
    yield TwoKafkas(lane.kafka(), lane.shared.servers.redis, other=lane.shared.servers.kafka)


def own_records(rng: Any) -> Load:
    """The usual load in a list of the run's own, so that what is yet to be produced can go elsewhere."""
    return replace(sample(), records=list(sample().records))


@fault("partitions added to an input topic", group="configuration", selected=True, load=own_records)
def partitions_added(run: Run) -> Outcome:
    """Every worker ends and names ``segmenter repartition``; nothing wrong is written."""
    said = _refused(run)
    changes = {change["change_id"] for change in run.topics.changes()}
    assert changes <= run.expected.changes.keys(), "changes that nobody expected"
    assert run.topics.size("dead-letters") == 0
    return Outcome(f"the workers ended: {said}")


def _refused(run: Run) -> str:
    """Add partitions to the purchases under load; what the workers end with."""
    run.supervised = False
    run.until_produced(run.rng.uniform(0.2, 0.6))
    run.hold()
    _grow(run, "purchases")
    said = [ends_with(run, worker, 30, "segmenter repartition") for worker in run.workers]
    return said[0]


def _grow(run: Run, *topics: str) -> None:
    client = admin(run)
    names = [run.settings[f"SEGMENTER_{topic.upper()}_TOPIC"] for topic in topics]
    for answer in client.create_partitions([NewPartitions(name, GROWN) for name in names]).values():
        answer.result(10)


@fault("partitions added, then repartitioned", group="configuration", load=own_records)
def repartitioned(run: Run) -> None:
    """After ``segmenter repartition``, which is killed once half-way, workers and producers go on with more."""
    _refused(run)
    said = ("repartition", "--partitions", str(GROWN))
    eventually(lambda: _members(run) == 0, 30, "Kafka has noticed that all workers have ended")
    with Running(run.folder, run.settings, (*SEGMENTER, *said), "repartition") as half:
        half.exit_code(within=run.rng.uniform(0.5, 3))
        half.kill()
    output_of(*said, settings=run.settings)
    assert f"for {GROWN} partitions already" in output_of(*said, settings=run.settings)
    _send_elsewhere(run)
    run.partitions = GROWN
    run.state = Stored(run.state.client, run.settings["SEGMENTER_NAMESPACE"], GROWN)
    for worker in run.workers:
        run.restart(worker, ready=False)
    for worker in run.workers:
        worker.ready()
    run.supervised = True
    run.release()


def _members(run: Run) -> int:
    client, group = admin(run), run.settings["SEGMENTER_GROUP"]
    return len(client.describe_consumer_groups([group])[group].result(10).members)


def _send_elsewhere(run: Run) -> None:
    """What has not been produced goes where its key lies now; a tick goes everywhere."""
    records = run.production.records
    first = round(run.progress() * len(records))
    rest = [record for record in records[first:] if record.key is not None]
    tick = records[-1]
    records[first:] = [
        *(record._replace(partition=partition_of(record.key or b"", GROWN)) for record in rest),
        *(tick._replace(partition=partition) for partition in range(GROWN)),
    ]


@fault("two fleets on one namespace", group="configuration", servers="two kafkas")
def two_fleets(run: Run) -> None:
    """Workers of another group, and of another Kafka, are refused and say why; the fleet goes on."""
    assert isinstance(run.servers, TwoKafkas)
    namespace = run.settings["SEGMENTER_NAMESPACE"]
    run.until_produced(run.rng.uniform(0.1, 0.3))
    group = _stray(run, SEGMENTER_GROUP="another")
    ends_with(run, group, 30, repr(namespace), "'another'", "SEGMENTER_NAMESPACE")
    elsewhere = {"SEGMENTER_BROKER": run.servers.other.address}
    create(settings_of({**run.settings, **elsewhere}), PARTITIONS, 1)
    kafka = _stray(run, **elsewhere)
    ends_with(run, kafka, 30, repr(namespace), "SEGMENTER_NAMESPACE")


def _stray(run: Run, **settings: str) -> Worker:
    """A worker that is started by mistake, and not again when it ends."""
    worker = run.start_worker(f"stray-{len(run.workers)}", ready=False, **settings)
    run.dismiss(worker)
    return worker


@fault("broken policy file", group="configuration")
def broken_policy(run: Run) -> None:
    """A worker that starts with it ends with file and line, and so does ``policy apply``; the others go on."""
    broken, good = run.folder / "broken.toml", run.load.policy.read_text()
    lines = good.splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("engine"))
    lines.insert(number + 1, run.rng.choice(('lapse_aftr = "90d"', "lapse_after = 90 days", "regular_order = 3")))
    broken.write_text("\n".join(lines) + "\n")
    where = f"{broken}:{number + 2}:"
    run.until_produced(run.rng.uniform(0.1, 0.4))
    ends_with(run, stray := _stray(run, SEGMENTER_POLICY=str(broken)), 30, where)
    applied = segmenter("policy", "apply", str(broken), settings=run.settings)
    assert applied.returncode == 1, applied
    assert where in applied.stderr.decode()
    assert "Traceback" not in applied.stderr.decode()
    broken.write_text(good)
    run.restart(stray)
