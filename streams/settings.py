"""Every setting of a worker, with unit, default and reason: the only reader of the environment.

Each field is the environment variable SEGMENTER_<NAME> and the option --<name> of the command line. Secrets are
``SecretStr``: they never print.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.events import Role
from models.policy import Policy, default_policy, parse_policy
from models.policy_lines import problems
from streams.errors import ConfigurationError
from streams.failpoints import POINTS

ENV_PREFIX = "SEGMENTER_"

TopicName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]


class Settings(BaseSettings):
    """Settings of a worker. See the fields' descriptions."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    # Services
    broker: Annotated[str, Field(description="Kafka's bootstrap servers, host:port[,host:port]")] = "127.0.0.1:9092"
    redis: Annotated[SecretStr, Field(description="Redis, redis://[user:password@]host:port/db")] = SecretStr(
        "redis://127.0.0.1:6379/0"
    )
    namespace: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,64}$", description="prefix of every Redis key")] = (
        "segmenter"
    )
    group: Annotated[str, Field(min_length=1, max_length=200, description="Kafka consumer group of the fleet")] = (
        "segmenter"
    )

    # Meaning
    policy: Annotated[Path | None, Field(description="TOML policy file; the default policy if not given")] = None
    clock: Annotated[
        Literal["ingestion", "event"],
        Field(description="where time comes from: the records' Kafka timestamps, or the events' occurred_at"),
    ] = "ingestion"

    # Topics
    purchases_topic: Annotated[TopicName, Field(description="purchases, refunds, ticks")] = "purchases"
    signups_topic: Annotated[TopicName, Field(description="signups")] = "signups"
    erasures_topic: Annotated[TopicName, Field(description="erasures")] = "erasures"
    changes_topic: Annotated[TopicName, Field(description="where segment changes go")] = "segment-changes"
    snapshots_topic: Annotated[TopicName, Field(description="compacted: customer to all labels")] = "customer-segments"
    dead_letters_topic: Annotated[TopicName, Field(description="records that cannot be used")] = "dead-letters"
    samples_topic: Annotated[TopicName, Field(description="customers drawn, from which clusters are learned")] = (
        "cluster-samples"
    )

    # HTTP
    http_host: Annotated[str, Field(description="address of /metrics, /healthz, /readyz; 0.0.0.0 for every one")] = (
        "127.0.0.1"
    )
    http_port: Annotated[int, Field(ge=0, le=65535, description="its port; 0 for any free one")] = 8080

    # Pace
    batch_size: Annotated[int, Field(ge=1, le=100_000, description="records folded into one commit, at most")] = 5000
    buffer_size: Annotated[
        int, Field(ge=1, le=10_000_000, description="fetched records of one partition that may wait")
    ] = 50_000
    tick_every: Annotated[
        float, Field(gt=0, le=60, description="seconds between looks for due lapses; bounds how late one is")
    ] = 0.25
    merge_wait: Annotated[
        float, Field(ge=0, le=3600, description="seconds to wait for a topic that lags behind the others")
    ] = 30.0
    session_timeout: Annotated[
        float, Field(ge=1, le=1800, description="seconds after which Kafka gives a silent worker's work away")
    ] = 20.0

    # Limits
    start_within: Annotated[
        float, Field(gt=0, le=600, description="seconds in which Kafka and Redis must answer at start")
    ] = 8.0
    stop_within: Annotated[float, Field(gt=0, le=600, description="seconds from SIGTERM to the end of the process")] = (
        8.0
    )
    stall_after: Annotated[
        float, Field(ge=1, le=86_400, description="seconds without progress after which the worker ends itself")
    ] = 60.0
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="how much is logged")] = "info"

    fail_point: Annotated[
        str | None,
        Field(
            pattern=rf"^({'|'.join(POINTS)}):[1-9][0-9]{{0,8}}$",
            description="for tests: kill this process when it reaches a point for the n-th time, after-commit:17",
        ),
    ] = None

    @field_validator("redis")
    @classmethod
    def _scheme(cls, redis: SecretStr) -> SecretStr:
        url = redis.get_secret_value()
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        try:
            parts = urlsplit(url)
            usable = parts.port != 0 and not parts.fragment
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                "must be redis://[user:password@]host:port/db; percent-encode special characters of the password"
            )
        return redis

    @field_validator("broker")
    @classmethod
    def _servers(cls, broker: str) -> str:
        for server in broker.split(","):
            _, colon, port = server.strip().rpartition(":")
            if not colon or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError("must be host:port, several separated by commas")
        return broker

    @model_validator(mode="after")
    def _distinct_topics(self) -> Settings:
        names = [*self.topics.values(), *self.output_topics]
        if len(set(names)) != len(names):
            variables = ", ".join(f"{ENV_PREFIX}{name.upper()}" for name in type(self).model_fields if "_topic" in name)
            raise ValueError(f"each topic must have a name of its own: {variables}")
        return self

    @property
    def topics(self) -> dict[Role, str]:
        """The input topics by role."""
        return {
            "signups": self.signups_topic,
            "purchases": self.purchases_topic,
            "erasures": self.erasures_topic,
        }

    @property
    def output_topics(self) -> tuple[str, ...]:
        """The topics that workers write to; they read the samples themselves."""
        return self.changes_topic, self.snapshots_topic, self.dead_letters_topic, self.samples_topic

    def load_policy(self) -> Policy:
        """Read the policy. Raises ConfigurationError that names the file, and line and key of all that is wrong."""
        return default_policy() if self.policy is None else read_policy(self.policy)


def read_text(path: Path) -> str:
    """The text of a policy file. Raises ConfigurationError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot read the policy {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"cannot read the policy {path}: it is not UTF-8 text") from None


def read_policy(path: Path) -> Policy:
    """Read a policy file. Raises ConfigurationError that names the file, and line and key of all that is wrong."""
    text = read_text(path)
    if found := problems(text):
        raise ConfigurationError("\n".join([f"the policy {path} cannot be used:", *(f"{path}:{p}" for p in found)]))
    return parse_policy(text)


def load_settings(given: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the environment, overridden by ``given``. Raises ConfigurationError naming the variable."""
    try:
        return Settings(**(given or {}))
    except ValidationError as error:
        sentences = []
        for each in error.errors():
            name = "".join(str(part) for part in each["loc"][:1])
            message = each["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            shown = "" if name in ("redis", "") else f" (it is {each['input']!r})"
            sentences.append(f"{ENV_PREFIX}{name.upper()}: {message}{shown}" if name else message)
        raise ConfigurationError("\n".join(sentences)) from None
