"""A worker and the commands over TLS, each as a login that may do what docs/SECURITY.md lists and nothing else."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import (
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from streams.generator import Population, generate
from streams.replay import replay
from tests.support.commands import Worker, eventually, segmenter
from tests.support.real_kafka import KafkaUnavailable
from tests.support.real_redis import RedisUnavailable
from tests.support.rights import kafka_rights, redis_user
from tests.support.secured import Authority, SecuredKafka, SecuredRedis
from tests.support.stored import stored
from tests.support.topics import Topics, distinct, moves

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

LOGINS = ("worker", "producer", "subscriber", "creator", "scaler", "auditor", "operator")
PASSWORDS = {login: f"geheim-{login}-4711" for login in LOGINS}
#: What a worker may do with its group.
GROUP = AclBindingFilter(
    ResourceType.GROUP, "segmenter", ResourcePatternType.LITERAL, "User:worker", "*", AclOperation.ANY,
    AclPermissionType.ALLOW,
)  # fmt: skip
TOKEN = "geheim-token-4711-4711"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signed the servers' certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def servers(authority: Authority) -> Iterator[tuple[SecuredKafka, SecuredRedis]]:
    """Kafka and Redis, with the logins and rights of the documentation."""
    with ExitStack() as running:
        try:
            redis = running.enter_context(SecuredRedis(authority, redis_user(PASSWORDS["worker"])))
            # Whoever does not log in anew within this time is disconnected.
            kafka = SecuredKafka(authority, {"listener.name.secured.connections.max.reauth.ms": "4000"})
            running.enter_context(kafka)
        except (RedisUnavailable, KafkaUnavailable) as unavailable:
            pytest.skip(str(unavailable))
        for login, password in PASSWORDS.items():
            kafka.set_password(login, password)
            kafka.allow(login, kafka_rights(login))
        redis.ask("ACL", "SETUSER", *redis_user(PASSWORDS["auditor"], login="auditor").split())
        yield kafka, redis


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory, servers: tuple[SecuredKafka, SecuredRedis]) -> Path:
    """A folder with a file for each secret, as Docker and Kubernetes mount them."""
    folder = tmp_path_factory.mktemp("secrets")
    for login, password in PASSWORDS.items():
        (folder / login).write_text(f"{password}\n", encoding="utf-8")
    for login in ("worker", "auditor"):
        url = f"rediss://{login}:{PASSWORDS[login]}@{servers[1].secured}/0\n"
        (folder / f"redis-{login}").write_text(url, encoding="utf-8")
    (folder / "token").write_text(TOKEN, encoding="utf-8")
    return folder


@pytest.fixture
def settings(servers: tuple[SecuredKafka, SecuredRedis], authority: Authority, secrets: Path) -> dict[str, str]:
    """Of the fleet, and how Kafka is reached; who, is for each to add."""
    return {
        "SEGMENTER_BROKER": servers[0].secured,
        "SEGMENTER_KAFKA_SECURITY": "sasl_ssl",
        "SEGMENTER_KAFKA_CA": str(authority.ca),
        "SEGMENTER_START_WITHIN": "20",
    }


def scaler(kafka: SecuredKafka, authority: Authority) -> AdminClient:
    """Kafka, as an autoscaler may see it."""
    return AdminClient(
        {
            "bootstrap.servers": kafka.secured,
            "security.protocol": "sasl_ssl",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": "scaler",
            "sasl.password": PASSWORDS["scaler"],
            "ssl.ca.location": str(authority.ca),
            "log_level": 0,
        }
    )


def lag(admin: AdminClient, topic: str) -> int:
    """Records of a topic that the group has not committed."""
    partitions = [TopicPartition(topic, number) for number in admin.list_topics(topic).topics[topic].partitions]
    (asked,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("segmenter", partitions)]).values()
    committed = {each.partition: max(each.offset, 0) for each in asked.result().topic_partitions}
    ends = {
        tp.partition: found.result().offset
        for tp, found in admin.list_offsets({tp: OffsetSpec.latest() for tp in partitions}).items()
    }
    return sum(end - committed[number] for number, end in ends.items())


def as_login(login: str, secrets: Path) -> dict[str, str]:
    """The settings that say who one is."""
    return {"SEGMENTER_KAFKA_LOGIN": login, "SEGMENTER_KAFKA_PASSWORD_FILE": str(secrets / login)}


def with_redis(
    settings: dict[str, str], authority: Authority, secrets: Path, login: str = "worker", user: str = "worker"
) -> dict[str, str]:
    """Of a worker, or of whoever else needs Redis too, where ``user`` is another's name."""
    return {
        **settings,
        **as_login(login, secrets),
        "SEGMENTER_REDIS_FILE": str(secrets / f"redis-{user}"),
        "SEGMENTER_REDIS_CA": str(authority.ca),
        "SEGMENTER_HTTP_TOKEN_FILE": str(secrets / "token"),
        "SEGMENTER_CLOCK": "event",
    }


def run(*command: str, settings: dict[str, str], code: int = 0, stdin: bytes = b"") -> str:
    """What the command says, which must end with this code, without a traceback and without a secret."""
    done = segmenter(*command, settings=settings, stdin=stdin)
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert "geheim" not in said
    return said


@pytest.fixture(scope="module")
def topics_made(servers: tuple[SecuredKafka, SecuredRedis], authority: Authority, secrets: Path) -> None:
    """The topics, made by the login that is for it."""
    settings = {
        "SEGMENTER_BROKER": servers[0].secured,
        "SEGMENTER_KAFKA_SECURITY": "sasl_ssl",
        "SEGMENTER_KAFKA_CA": str(authority.ca),
        "SEGMENTER_START_WITHIN": "20",
        **as_login("creator", secrets),
    }
    assert run("topics", "create", "--partitions", "2", settings=settings).count("created") == 7


@pytest.mark.usefixtures("topics_made")
def test_everything_over_tls_with_the_least_rights(
    settings: dict[str, str],
    servers: tuple[SecuredKafka, SecuredRedis],
    authority: Authority,
    secrets: Path,
    tmp_path: Path,
) -> None:
    """Events in, changes out, equal to a replay, and so says the audit; then the password is changed, and the worker
    says so and ends. What operators do to its fleet, they may do.
    """
    kafka, redis = servers
    events = list(generate(Population(customers=100, days=200, seed=7)))
    expected = replay(events, until=events[-1]["occurred_at"])
    lines = "".join(f"{json.dumps(event)}\n" for event in events).encode()
    with (
        Worker(tmp_path, with_redis(settings, authority, secrets)) as worker,
        Topics(kafka.address) as topics,
        stored(redis.url) as state,
    ):
        worker.ready()
        run("produce", "-", settings={**settings, **as_login("producer", secrets)}, stdin=lines)
        eventually(lambda: state.settled(topics), 40, "everything is processed")
        reader = {**settings, **as_login("subscriber", secrets)}
        said = run("changes", "--from-beginning", "--json", settings=reader)
        assert moves(distinct(json.loads(line) for line in said.splitlines())) == moves(expected)
        run("verify", settings=with_redis(settings, authority, secrets, "auditor", "auditor"))
        assert worker.get("/shards")[0] == 401
        admin = scaler(kafka, authority)
        eventually(lambda: lag(admin, "purchases") == 0, 20, "an autoscaler sees that everything is committed")

        # Sessions go on for seconds; whoever logs in anew is refused.
        kafka.set_password("worker", "another")
        try:
            assert worker.exit_code(60) == 1, worker.log
        finally:
            kafka.set_password("worker", PASSWORDS["worker"])
        assert "refused the login" in worker.log
        assert "SEGMENTER_KAFKA_PASSWORD" in worker.log.splitlines()[-1]
        assert "Traceback" not in worker.log
        assert "geheim" not in worker.log

    operator = with_redis(settings, authority, secrets, "operator")
    assert "0 records retried" in run("dead-letters", "retry", settings=operator)
    assert "add --yes" in run("rebuild", settings=operator, code=1)

    def repartitioned() -> bool:
        done = segmenter("repartition", "--partitions", "4", settings=operator)
        assert done.returncode == 0 or b"workers of group segmenter run" in done.stderr, done.stderr.decode()
        return done.returncode == 0

    eventually(repartitioned, 40, "Kafka has noticed that the worker is gone")
    assert redis.ask("ACL", "LOG") == []


@pytest.mark.usefixtures("topics_made")
def test_what_is_wrong_is_told_at_start(settings: dict[str, str], authority: Authority, secrets: Path) -> None:
    """Whoever is not let in ends with a sentence that names the setting, and code 1; workers begin as commands do."""
    other = Authority(secrets / "other", "other")
    in_clear = {"SECURITY": "plaintext", "LOGIN": "", "CA": "", "PASSWORD_FILE": ""}
    wrong = {
        "SEGMENTER_KAFKA_PASSWORD": {"SEGMENTER_KAFKA_PASSWORD_FILE": str(secrets / "worker")},
        "SEGMENTER_KAFKA_CA": {"SEGMENTER_KAFKA_CA": str(other.ca)},
        "SEGMENTER_KAFKA_SECURITY": {f"SEGMENTER_KAFKA_{name}": value for name, value in in_clear.items()}
        # Nobody answers, which takes all the time there is.
        | {"SEGMENTER_START_WITHIN": "3"},
        "SEGMENTER_REDIS_CA": {"SEGMENTER_REDIS_CA": str(other.ca)},
    }
    good = with_redis(settings, authority, secrets, "subscriber")

    def say(named: str) -> str:
        command = "segments" if "REDIS" in named else "changes"
        return run(command, settings={**good, **wrong[named]}, code=1)

    with ThreadPoolExecutor(2) as pool:
        for named, said in zip(wrong, pool.map(say, wrong), strict=True):
            assert named in said


@pytest.mark.usefixtures("topics_made")
def test_a_right_that_is_missing_is_told(
    settings: dict[str, str], servers: tuple[SecuredKafka, SecuredRedis], authority: Authority, secrets: Path
) -> None:
    """Who may not see a topic, may not read it, or may not join the group, ends with a sentence, and code 1."""
    admin = servers[0].admin()  # named, for the answer does not outlive it
    (answer,) = admin.delete_acls([GROUP]).values()
    assert answer.result(20)
    try:
        told = {
            "into its group": run("worker", settings=with_redis(settings, authority, secrets), code=1),
            "dead-letters": run("dead-letters", settings={**settings, **as_login("subscriber", secrets)}, code=1),
            "authorization failed": run(
                "changes", "--follow", settings={**settings, **as_login("producer", secrets)}, code=1
            ),
        }
    finally:
        servers[0].allow("worker", [right for right in kafka_rights("worker") if right[0] == "group"])
    for name, said in told.items():
        assert name in said
        assert len([line for line in said.splitlines() if line.startswith("segmenter: ")]) == 1
