"""A worker and the commands over TLS, each as a login that may do what docs/SECURITY.md lists and nothing else."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka.admin import AclBindingFilter, AclOperation, AclPermissionType, ResourcePatternType, ResourceType

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

PASSWORDS = {login: f"geheim-{login}-4711" for login in ("worker", "producer", "subscriber", "creator")}
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
        yield kafka, redis


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory, servers: tuple[SecuredKafka, SecuredRedis]) -> Path:
    """A folder with a file for each secret, as Docker and Kubernetes mount them."""
    folder = tmp_path_factory.mktemp("secrets")
    for login, password in PASSWORDS.items():
        (folder / login).write_text(f"{password}\n", encoding="utf-8")
    (folder / "redis").write_text(f"rediss://worker:{PASSWORDS['worker']}@{servers[1].secured}/0\n", encoding="utf-8")
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


def as_login(login: str, secrets: Path) -> dict[str, str]:
    """The settings that say who one is."""
    return {"SEGMENTER_KAFKA_LOGIN": login, "SEGMENTER_KAFKA_PASSWORD_FILE": str(secrets / login)}


def worker_settings(settings: dict[str, str], authority: Authority, secrets: Path) -> dict[str, str]:
    return {
        **settings,
        **as_login("worker", secrets),
        "SEGMENTER_REDIS_FILE": str(secrets / "redis"),
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
    """Events in, changes out, equal to a replay; then the password is changed, and the worker says so and ends."""
    kafka, redis = servers
    events = list(generate(Population(customers=100, days=200, seed=7)))
    expected = replay(events, until=events[-1]["occurred_at"])
    lines = "".join(f"{json.dumps(event)}\n" for event in events).encode()
    with (
        Worker(tmp_path, worker_settings(settings, authority, secrets)) as worker,
        Topics(kafka.address) as topics,
        stored(redis.url) as state,
    ):
        worker.ready()
        run("produce", "-", settings={**settings, **as_login("producer", secrets)}, stdin=lines)
        eventually(lambda: state.settled(topics), 40, "everything is processed")
        reader = {**settings, **as_login("subscriber", secrets)}
        said = run("changes", "--from-beginning", "--json", settings=reader)
        assert moves(distinct(json.loads(line) for line in said.splitlines())) == moves(expected)
        assert redis.ask("ACL", "LOG") == []
        assert worker.get("/shards")[0] == 401

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


@pytest.mark.usefixtures("topics_made")
def test_what_is_wrong_is_told_at_start(settings: dict[str, str], authority: Authority, secrets: Path) -> None:
    """A worker that is not let in ends with a sentence that names the setting, and code 1."""
    other = Authority(secrets / "other", "other")
    in_clear = {"SECURITY": "plaintext", "LOGIN": "", "CA": "", "PASSWORD_FILE": ""}
    wrong = {
        "SEGMENTER_KAFKA_PASSWORD": {"SEGMENTER_KAFKA_PASSWORD_FILE": str(secrets / "subscriber")},
        "SEGMENTER_KAFKA_CA": {"SEGMENTER_KAFKA_CA": str(other.ca)},
        "SEGMENTER_KAFKA_SECURITY": {f"SEGMENTER_KAFKA_{name}": value for name, value in in_clear.items()},
        "SEGMENTER_REDIS_CA": {"SEGMENTER_REDIS_CA": str(other.ca)},
    }
    good = {**worker_settings(settings, authority, secrets), "SEGMENTER_START_WITHIN": "5"}

    def say(given: dict[str, str]) -> str:
        return run("worker", settings={**good, **given}, code=1)

    with ThreadPoolExecutor(len(wrong)) as pool:
        for named, said in zip(wrong, pool.map(say, wrong.values()), strict=True):
            assert named in said


@pytest.mark.usefixtures("topics_made")
@pytest.mark.parametrize(
    ("kind", "name"),
    [("topic", "erasures"), ("topic", "segment-changes"), ("group", "segmenter")],
)
def test_a_right_that_is_missing_is_told(
    settings: dict[str, str],
    servers: tuple[SecuredKafka, SecuredRedis],
    authority: Authority,
    secrets: Path,
    kind: str,
    name: str,
) -> None:
    """A worker without one of its rights ends with a sentence, and code 1."""
    kafka = servers[0]
    admin = kafka.admin()
    kind_of = ResourceType[kind.upper()]
    lost = AclBindingFilter(
        kind_of, name, ResourcePatternType.LITERAL, "User:worker", "*", AclOperation.ANY, AclPermissionType.ALLOW
    )
    (answer,) = admin.delete_acls([lost]).values()
    assert answer.result(20)
    try:
        said = run("worker", settings=worker_settings(settings, authority, secrets), code=1)
    finally:
        kafka.allow("worker", [right for right in kafka_rights("worker") if right[:2] == (kind, name)])
    assert name in said
    assert len([line for line in said.splitlines() if line.startswith("segmenter: ")]) == 1
