"""Every setting of a worker, with unit, default and reason: the only reader of the environment.

Each field is the environment variable SEGMENTER_<NAME> and the option --<name> of the command line. Secrets are
``SecretStr``: they never print, and each may come from a file instead, SEGMENTER_<NAME>_FILE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
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
    redis_ca: Annotated[
        Path | None, Field(description="for rediss://: the CA (PEM) that signed Redis's certificate")
    ] = None
    redis_certificate: Annotated[Path | None, Field(description="for rediss://: a certificate (PEM) of our own")] = None
    redis_key: Annotated[Path | None, Field(description="its key (PEM), if it is in a file of its own")] = None
    kafka_security: Annotated[
        Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"],
        Field(description="how Kafka is spoken to: in clear or over TLS (ssl), with a login (sasl) or without"),
    ] = "plaintext"
    kafka_ca: Annotated[Path | None, Field(description="the CA (PEM) that signed Kafka's certificates")] = None
    kafka_certificate: Annotated[Path | None, Field(description="for Kafka: a certificate (PEM) of our own")] = None
    kafka_key: Annotated[Path | None, Field(description="its key (PEM), if it is in a file of its own")] = None
    kafka_sasl_mechanism: Annotated[
        Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"], Field(description="how Kafka is shown the login")
    ] = "SCRAM-SHA-512"
    kafka_login: Annotated[str, Field(max_length=255, description="the name to log in to Kafka with")] = ""
    kafka_password: Annotated[SecretStr, Field(description="the password to log in to Kafka with")] = SecretStr("")
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

    http_token: Annotated[
        SecretStr, Field(description="whoever shows it may ask for more than /metrics, /healthz and /readyz")
    ] = SecretStr("")

    # Secrets from files, such as /run/secrets/kafka_password
    redis_file: Annotated[Path | None, Field(description="a file that holds SEGMENTER_REDIS instead")] = None
    kafka_password_file: Annotated[
        Path | None, Field(description="a file that holds SEGMENTER_KAFKA_PASSWORD instead")
    ] = None
    http_token_file: Annotated[Path | None, Field(description="a file that holds SEGMENTER_HTTP_TOKEN instead")] = None

    # Pace
    batch_size: Annotated[
        int,
        Field(ge=1, le=100_000, description="records folded into one commit, or those of one fetch if they are more"),
    ] = 10_000
    buffer_size: Annotated[
        int, Field(ge=1, le=10_000_000, description="fetched records of one partition that may wait")
    ] = 50_000
    tick_every: Annotated[
        float, Field(gt=0, le=60, description="seconds between looks for due lapses; bounds how late one is")
    ] = 0.1
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

    @model_validator(mode="before")
    @classmethod
    def _secrets_from_files(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        # An empty variable is how a container is told that there is none.
        given = {name: value for name, value in given.items() if value != "" or name not in _EMPTY_IS_NONE}
        for name in SECRETS:
            path = given.get(f"{name}_file")
            if path is None:
                continue
            if name in given:
                raise ValueError(f"{_variable(name)} and {_variable(name)}_FILE are both given; give one of them")
            given = {**given, name: _secret_in(Path(path), f"{_variable(name)}_FILE")}
        return given

    @field_validator("redis")
    @classmethod
    def _scheme(cls, redis: SecretStr) -> SecretStr:
        url = redis.get_secret_value()
        if not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        try:
            parts = urlsplit(url)
            usable = parts.port != 0 and not parts.fragment
            if parts.scheme != "unix":
                # Else a password with a slash would be taken for an address, and shown.
                usable = usable and not parts.query and re.fullmatch("(/[0-9]{0,9})?", parts.path) is not None
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

    @model_validator(mode="after")
    def _whole_security(self) -> Settings:
        """What belongs together is given together, and nothing is given that would have no effect."""
        tls = self.redis.get_secret_value().startswith("rediss://")
        if wrong := self._incomplete("redis", tls, "let SEGMENTER_REDIS begin with rediss://"):
            raise ValueError(wrong)
        if wrong := self._incomplete("kafka", self.kafka_over_tls, "set SEGMENTER_KAFKA_SECURITY to ssl or sasl_ssl"):
            raise ValueError(wrong)
        password = self.kafka_password.get_secret_value()
        if self.kafka_with_sasl:
            for name, value in (("kafka_login", self.kafka_login), ("kafka_password", password)):
                if not value:
                    raise ValueError(
                        f"{_variable(name)} is missing, which SEGMENTER_KAFKA_SECURITY={self.kafka_security} needs"
                    )
        elif self.kafka_login or password:
            given = "kafka_login" if self.kafka_login else "kafka_password"
            raise ValueError(f"{_variable(given)} has no effect; set SEGMENTER_KAFKA_SECURITY to sasl_ssl")
        token = self.http_token.get_secret_value()
        if token and not (len(token) >= 16 and token.isascii() and token.isprintable() and " " not in token):
            raise ValueError("SEGMENTER_HTTP_TOKEN: must be 16 or more printable ASCII characters without spaces")
        return self

    def _incomplete(self, service: str, tls: bool, way: str) -> str | None:
        ca, certificate, key = (f"{service}_{part}" for part in ("ca", "certificate", "key"))
        for name in (ca, certificate, key):
            path: Path | None = getattr(self, name)
            if path is not None and not tls:
                return f"{_variable(name)} has no effect without TLS; {way}"
            if path is not None and (reason := _unreadable(path)):
                return f"{_variable(name)}: cannot read {path}: {reason}"
        if getattr(self, key) is not None and getattr(self, certificate) is None:
            return f"{_variable(key)} has no effect without {_variable(certificate)}"
        return None

    @property
    def kafka_over_tls(self) -> bool:
        """Whether Kafka is spoken to over TLS."""
        return self.kafka_security in ("ssl", "sasl_ssl")

    @property
    def kafka_with_sasl(self) -> bool:
        """Whether Kafka is shown a login."""
        return self.kafka_security in ("sasl_plaintext", "sasl_ssl")

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


#: What may be read from a file instead.
SECRETS: Final = tuple(name for name, field in Settings.model_fields.items() if field.annotation is SecretStr)
_EMPTY_IS_NONE: Final = frozenset(
    name for name in Settings.model_fields if name.startswith(("kafka_", "redis_", "http_token"))
)


def _variable(name: str) -> str:
    return f"{ENV_PREFIX}{name.upper()}"


def _unreadable(path: Path) -> str | None:
    try:
        path.read_bytes()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _secret_in(path: Path, variable: str) -> str:
    """The text of a file, without the newline at its end."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{variable}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{variable}: {path} is not UTF-8 text") from None
    if not (secret := text.removesuffix("\n").removesuffix("\r")):
        raise ValueError(f"{variable}: {path} is empty")
    return secret


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
            shown = "" if name in (*SECRETS, "") else f" (it is {each['input']!r})"
            sentences.append(f"{ENV_PREFIX}{name.upper()}: {message}{shown}" if name else message)
        raise ConfigurationError("\n".join(sentences)) from None
