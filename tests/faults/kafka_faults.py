"""What may happen to Kafka, and to the way to it."""

import time
from collections.abc import Iterator

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from tests.faults.proxy import Proxy
from tests.faults.run import KAFKA, Again, Lane, Outcome, Run, Servers, fault, servers
from tests.support.commands import Worker, eventually
from tests.support.real_kafka import RealKafka, RealKafkaCluster

#: Quick to see another leader and other partitions.
_QUICK = {"topic.metadata.refresh.interval.ms": "1000", "log_level": 0}


class Proxied(Servers):
    """Servers of which workers reach one through a proxy only; tests reach it directly."""

    proxy: Proxy


@servers("proxied kafka")
def _proxied(lane: Lane) -> Iterator[Servers]:
    """A Kafka of the run's own that workers reach through a proxy only."""
    with Proxy() as proxy, RealKafka(KAFKA, advertised=proxy.address) as kafka:
        proxy.target = kafka.proxied_address
        given = Proxied(kafka, lane.shared.servers.redis, {"SEGMENTER_BROKER": proxy.address})
        given.proxy = proxy
        yield given


@servers("kafka cluster")
def _cluster(lane: Lane) -> Iterator[Servers]:
    """Three brokers; everything has three replicas, two of which must have what is acknowledged."""
    with RealKafkaCluster(KAFKA) as cluster:
        yield Servers(cluster, lane.shared.servers.redis, replication=3)


def proxy_of(run: Run) -> Proxy:
    """The proxy between a run's workers and a server."""
    assert isinstance(run.servers, Proxied)
    return run.servers.proxy


def admin(run: Run) -> AdminClient:
    """An administrator of the run's Kafka."""
    return AdminClient({"bootstrap.servers": run.kafka.address, **_QUICK})


def ends_with(run: Run, worker: Worker, within: float, *words: str) -> str:
    """Wait for the worker to end by itself with code 1; the sentence it ended with, which has these words."""
    code = worker.exit_code(within)
    assert code is not None, f"the worker still runs after {within:g} s:\n{worker.log[-2000:]}"
    sentence = worker.log.rpartition("segmenter: ")[2].strip()
    assert code == 1, f"exit code {code}: {worker.log[-2000:]}"
    assert "Traceback" not in worker.log, worker.log[-4000:]
    assert all(word in sentence for word in words), sentence
    return sentence


# --- brokers ----------------------------------------------------------------------------------------------------


@fault("broker killed and started again", group="kafka", servers="kafka", selected=True)
def broker_killed(run: Run) -> None:
    """SIGKILL for the only broker; it is back after some seconds."""
    run.until_produced(run.rng.uniform(0.1, 0.7))
    run.mark()
    run.kafka.kill()
    time.sleep(run.rng.uniform(0, 2))
    run.kafka.start()


@fault("one of three brokers lost, then another", group="kafka", servers="kafka cluster", rate=500)
def brokers_lost(run: Run) -> None:
    """A broker is killed; once it is back and has everything again, another is."""
    first, second = run.rng.sample(run.kafka.nodes, 2)
    run.until_produced(run.rng.uniform(0.05, 0.3))
    run.mark()
    first.kill()
    time.sleep(run.rng.uniform(1, 4))
    first.start()
    eventually(lambda: _in_sync(run), 60, "the broker that came back has everything again")
    second.kill()
    time.sleep(run.rng.uniform(1, 4))
    second.start()


def _in_sync(run: Run) -> bool:
    """Whether every partition of every topic has three replicas that have everything."""
    topics = admin(run).list_topics(timeout=10).topics.values()
    return all(len(partition.isrs) == 3 for topic in topics for partition in topic.partitions.values())


# --- connections ------------------------------------------------------------------------------------------------


@fault("slow connections to Kafka", group="kafka", servers="proxied kafka")
def slow_connections(run: Run) -> None:
    """For some seconds everything between the workers and Kafka is late, and little gets through."""
    proxy = proxy_of(run)
    run.until_produced(run.rng.uniform(0.05, 0.4))
    run.mark()
    proxy.delay, proxy.bandwidth = run.rng.uniform(0.05, 0.4), run.rng.choice((20_000, 100_000, 0))
    time.sleep(run.rng.uniform(4, 8))
    proxy.heal()


@fault("connections to Kafka cut again and again", group="kafka", servers="proxied kafka", selected=True)
def cut_connections(run: Run) -> None:
    """For some seconds all connections of the workers are reset every now and then, and at times refused."""
    proxy = proxy_of(run)
    run.until_produced(run.rng.uniform(0.05, 0.3))
    run.mark()
    until = time.monotonic() + 4
    while time.monotonic() < until:
        if run.rng.random() < 0.3:
            proxy.refuse()
            time.sleep(run.rng.uniform(0.1, 0.5))
            proxy.heal()
        else:
            proxy.cut()
        time.sleep(run.rng.uniform(0.1, 0.8))


@fault("Kafka silent for longer than a session", group="kafka", servers="proxied kafka")
def silence(run: Run) -> None:
    """Connections stay and nothing comes through: the group gives the workers up, and they come back."""
    proxy = proxy_of(run)
    run.until_produced(run.rng.uniform(0.1, 0.6))
    run.mark()
    proxy.black_hole()
    time.sleep(run.rng.uniform(4, 9))
    proxy.heal()


# --- what Kafka no longer has -----------------------------------------------------------------------------------


@fault("input topic deleted", group="kafka")
def topic_deleted(run: Run) -> Outcome:
    """Every worker ends and says which topic is missing; what was published until then is right."""
    run.supervised = False
    run.until_produced(run.rng.uniform(0.2, 0.6))
    run.hold()
    eventually(run.settled, 60, "everything produced is folded")
    topic = run.settings["SEGMENTER_PURCHASES_TOPIC"]
    client = admin(run)
    client.delete_topics([topic])[topic].result(10)
    said = [ends_with(run, worker, 60, topic, "topics create") for worker in run.workers]
    _nothing_wrong(run)
    return Outcome(f"the workers ended: {said[0]}")


@fault("retention passed the stored offset", group="kafka")
def retention_passed(run: Run) -> Outcome:
    """Records that nobody has read are deleted: the worker that comes to them ends and says what can be done."""
    run.supervised = False
    run.until_produced(run.rng.uniform(0.1, 0.4))
    for worker in run.workers:
        run.kill(worker)
    run.until_produced(run.rng.uniform(0.6, 0.9))
    run.hold()
    topic, partition = run.settings["SEGMENTER_PURCHASES_TOPIC"], run.rng.randrange(4)
    stored, end = run.state.offsets(partition)["purchases"], run.topics.ends("purchases")[partition]
    if stored + 1 >= end:
        raise Again(f"partition {partition} had been read to its end")
    first = run.rng.randrange(stored + 1, end)
    client = admin(run)
    for answer in client.delete_records([TopicPartition(topic, partition, first)]).values():
        answer.result(10)
    victim = run.workers[0]
    victim.start()
    where = f"{topic}, partition {partition}"
    said = ends_with(
        run, victim, 30, where, f"offset {stored}", f"below {first}", "Restore a newer backup", "SEGMENTER_NAMESPACE"
    )
    assert run.state.offsets(partition)["purchases"] == stored, "the stored offset moved"
    _nothing_wrong(run)
    return Outcome(f"the worker ended: {said}")


def _nothing_wrong(run: Run) -> None:
    """What has been published are changes that were to be published."""
    wrong = {change["change_id"] for change in run.topics.changes()} - run.expected.changes.keys()
    assert not wrong, f"{len(wrong)} changes that nobody expected, such as {min(wrong)}"
