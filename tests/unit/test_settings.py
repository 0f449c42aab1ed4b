"""Settings: from the environment, checked, every error names its variable, and secrets never print."""

import os
import pickle
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from models.policy import default_policy
from streams.errors import ConfigurationError
from streams.settings import ENV_PREFIX, Settings, load_settings, read_policy

SECRET = "hunter2%2Fgeheim"
REDIS = f"redis://user:{SECRET}@redis.example:6380/3"


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def refused(given: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as told:
        load_settings(given)
    printed = "".join(traceback.format_exception(told.value))
    assert SECRET not in printed
    assert "ValidationError" not in printed
    assert "pydantic" not in str(told.value).lower()
    return str(told.value)


def test_defaults_are_a_worker_on_one_machine() -> None:
    """Nothing must be set to run beside a broker and a Redis on loopback, and nothing listens elsewhere."""
    settings = load_settings()
    assert settings.broker == "127.0.0.1:9092"
    assert settings.redis.get_secret_value() == "redis://127.0.0.1:6379/0"
    assert (settings.namespace, settings.group) == ("segmenter", "segmenter")
    assert settings.clock == "ingestion"
    assert settings.http_host == "127.0.0.1"
    assert settings.topics == {"signups": "signups", "purchases": "purchases", "erasures": "erasures"}
    assert settings.load_policy() == default_policy()


def test_every_setting_has_a_description() -> None:
    """One sentence or phrase for --help, for each."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert len(field.description) > 5, name
        assert not field.description.endswith("."), name


def test_every_setting_has_a_default() -> None:
    """A worker starts with none of them set."""
    assert not [name for name, field in Settings.model_fields.items() if field.is_required()]


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """SEGMENTER_<NAME> sets each; what is given explicitly wins."""
    values = {
        "BROKER": "k1:9092, k2:9093", "REDIS": REDIS, "NAMESPACE": "shop", "GROUP": "g", "CLOCK": "event",
        "PURCHASES_TOPIC": "sales", "HTTP_PORT": "0", "TICK_EVERY": "0.5", "BATCH_SIZE": "7", "LOG_LEVEL": "debug",
        "POLICY": "some/policy.toml",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(ENV_PREFIX + name, value)
    settings = load_settings({"namespace": "other"})
    assert settings.broker == "k1:9092, k2:9093"
    assert settings.redis.get_secret_value() == REDIS
    assert settings.namespace == "other"
    assert settings.topics["purchases"] == "sales"
    assert (settings.http_port, settings.tick_every, settings.batch_size) == (0, 0.5, 7)
    assert settings.policy == Path("some/policy.toml")


def test_unknown_variables_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of a newer or older version is no reason not to start."""
    monkeypatch.setenv("SEGMENTER_SOMETHING_NEW", "x")
    assert load_settings() == Settings()


WRONG: list[tuple[str, Any, str]] = [
    ("broker", "localhost", "must be host:port, several separated by commas"),
    ("broker", "localhost:0", "must be host:port"),
    ("broker", "localhost:65536", "must be host:port"),
    ("broker", "localhost:x", "must be host:port"),
    ("broker", "a:1,b", "must be host:port"),
    ("broker", "", "must be host:port"),
    ("redis", f"http://user:{SECRET}@redis", "must begin with redis://, rediss:// or unix://"),
    ("redis", f"redis://:{SECRET}#x@redis", "percent-encode special characters of the password"),
    ("redis", f"redis://:{SECRET}@redis:port", "percent-encode"),
    ("redis", "", "must begin with"),
    ("namespace", "a b", "String should match pattern"),
    ("namespace", "", "String should match pattern"),
    ("namespace", "n" * 65, "String should match pattern"),
    ("group", "", "at least 1 character"),
    ("group", "g" * 201, "at most 200 characters"),
    ("clock", "wall", "must be 'ingestion' or 'event'"),
    ("purchases_topic", "my topic", "String should match pattern"),
    ("signups_topic", "", "String should match pattern"),
    ("erasures_topic", "x" * 250, "String should match pattern"),
    ("changes_topic", "ä", "String should match pattern"),
    ("snapshots_topic", "a/b", "String should match pattern"),
    ("dead_letters_topic", "a:b", "String should match pattern"),
    ("samples_topic", "a:b", "String should match pattern"),
    ("http_port", "65536", "must be less than or equal to 65535"),
    ("http_port", "-1", "must be greater than or equal to 0"),
    ("http_port", "http", "must be a valid integer"),
    ("batch_size", "0", "must be greater than or equal to 1"),
    ("batch_size", "1.5", "must be a valid integer"),
    ("buffer_size", "0", "must be greater than or equal to 1"),
    ("tick_every", "0", "must be greater than 0"),
    ("tick_every", "nan", "must be "),
    ("tick_every", "61", "must be less than or equal to 60"),
    ("merge_wait", "-1", "must be greater than or equal to 0"),
    ("merge_wait", "inf", "must be less than or equal to 3600"),
    ("session_timeout", "0.5", "must be greater than or equal to 1"),
    ("start_within", "0", "must be greater than 0"),
    ("stop_within", "0", "must be greater than 0"),
    ("stop_within", "soon", "must be a valid number"),
    ("stall_after", "0.9", "must be greater than or equal to 1"),
    ("log_level", "trace", "must be 'debug', 'info', 'warning' or 'error'"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_an_error_names_its_variable(name: str, value: Any, sentence: str) -> None:
    """It says which variable is wrong, what it may be, and what it is, unless that is a secret."""
    told = refused({name: value})
    assert told.startswith(f"SEGMENTER_{name.upper()}: ")
    assert sentence in told
    assert (f"(it is {value!r})" in told) == (name != "redis")
    assert "\n" not in told


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_the_environment_is_checked_like_options(
    name: str, value: Any, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong variable gives the same sentence as a wrong option."""
    monkeypatch.setenv(ENV_PREFIX + name.upper(), value)
    assert refused({}) == refused({name: value})


def test_every_error_is_told_at_once() -> None:
    """One line for each wrong setting."""
    told = refused({"http_port": "x", "redis": "nonsense", "clock": "sun"})
    assert sorted(line.partition(":")[0] for line in told.splitlines()) == [
        "SEGMENTER_CLOCK", "SEGMENTER_HTTP_PORT", "SEGMENTER_REDIS",
    ]  # fmt: skip


def test_each_topic_has_its_own_name() -> None:
    """Two roles on one topic could not be told apart."""
    assert "each topic must have a name of its own" in refused({"signups_topic": "purchases"})
    assert "each topic must have a name of its own" in refused({"dead_letters_topic": "erasures"})
    assert "each topic must have a name of its own" in refused({"samples_topic": "purchases"})
    assert "each topic must have a name of its own" in refused({"samples_topic": "segment-changes"})
    assert "each topic must have a name of its own" in refused({"changes_topic": "x", "snapshots_topic": "x"})


def test_topics_that_share_a_name_are_named() -> None:
    """It names the variables of the topics that share one."""
    told = refused({"signups_topic": "x", "purchases_topic": "x"})
    assert "SEGMENTER_SIGNUPS_TOPIC" in told
    assert "SEGMENTER_PURCHASES_TOPIC" in told


@pytest.mark.parametrize(
    "url", [REDIS, f"rediss://:{SECRET}@redis.example", f"unix://user:{SECRET}@/run/redis.sock?db=1"]
)
def test_secrets_never_print(url: str) -> None:
    """Neither the password nor the user appears in any form in which settings are shown."""
    settings = load_settings({"redis": url})
    shown = [
        repr(settings), str(settings), f"{settings}", settings.model_dump_json(), str(settings.model_dump()),
        repr(settings.redis), repr(list(settings)), repr(settings.__dict__),
    ]  # fmt: skip
    for text in shown:
        assert SECRET not in text
        assert "redis.example" not in text
    assert settings.redis.get_secret_value() == url


def test_every_secret_is_a_secret() -> None:
    """What may carry a password is of a type that does not print."""
    for name, field in Settings.model_fields.items():
        if re.search("password|user", field.description or ""):
            assert field.annotation is SecretStr, name


def test_settings_do_not_change() -> None:
    """They are read once."""
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.group = "x"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    "broker", ["k:1", "k1:9092,k2:9092", " k1:9092 , k2:9092", "[::1]:9092", "host.example.org:65535"]
)
def test_brokers(broker: str) -> None:
    """One or several servers, each with its port."""
    assert load_settings({"broker": broker}).broker == broker


# The policy file


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    """The file's text is the policy."""
    path = tmp_path / "policy.toml"
    path.write_text('version = 7\n[dimensions.lifecycle]\nengine = "lifecycle"\n', encoding="utf-8")
    assert load_settings({"policy": path}).load_policy().version == 7


def test_errors_of_a_policy_name_the_file_and_every_wrong_key(tmp_path: Path) -> None:
    """All of them at once, each with its line."""
    path = tmp_path / "policy.toml"
    text = 'version = 0\nspeed = 1\n[dimensions.d]\nengine = "lifecycle"\nlapse_after = "x"\n'
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as told:
        read_policy(path)
    lines = str(told.value).splitlines()
    assert lines[0] == f"the policy {path} cannot be used:"
    named = {line.removeprefix(f"{path}:").split(": ")[0]: line.split(": ")[1] for line in lines[1:]}
    assert named == {"1": "version", "2": "speed", "5": "dimensions.d.lapse_after"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file or directory"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (b"version = ", "the policy is not valid TOML"),
        (b"", "dimensions: is required"),
    ],
)
def test_a_policy_that_cannot_be_read(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """The file is named, and what is wrong with it."""
    path = tmp_path / "policy.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as told:
        load_settings({"policy": path}).load_policy()
    assert str(path) in str(told.value)
    assert sentence in str(told.value)


def test_a_folder_is_no_policy(tmp_path: Path) -> None:
    """Also that is a sentence."""
    with pytest.raises(ConfigurationError, match="Is a directory"):
        read_policy(tmp_path)
