"""How Kafka is reached: settings that belong together, what each client is told, secrets from files, and the audit."""

import importlib.util
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError

from streams.errors import ConfigurationError, ServiceUnavailable
from streams.security import Refusals, admin_options, client_options, faust_credentials, tls_context
from streams.settings import ENV_PREFIX, SECRETS, Settings, load_settings
from streams.store.opened import open_store
from tests.support.commands import ROOT
from tests.support.secured import Authority

SECRET = "geheim-4711-geheim-4711"
SASL = {"kafka_security": "sasl_plaintext", "kafka_login": "worker", "kafka_password": SECRET}


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


def refused(given: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as told:
        load_settings(given)
    assert SECRET not in "".join(traceback.format_exception(told.value))
    return str(told.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kafka_ca": "ca.pem"}, "SEGMENTER_KAFKA_CA has no effect without TLS; set SEGMENTER_KAFKA_SECURITY"),
        ({"kafka_certificate": "c.pem"}, "SEGMENTER_KAFKA_CERTIFICATE has no effect without TLS"),
        ({"redis_ca": "ca.pem"}, "SEGMENTER_REDIS_CA has no effect without TLS; let SEGMENTER_REDIS begin with rediss"),
        ({"kafka_security": "ssl", "kafka_ca": "no.pem"}, "SEGMENTER_KAFKA_CA: cannot read no.pem: No such file"),
        ({"kafka_security": "ssl", "kafka_ca": "/"}, "SEGMENTER_KAFKA_CA: cannot read /: Is a directory"),
        ({"kafka_security": "ssl", "kafka_key": __file__}, "has no effect without SEGMENTER_KAFKA_CERTIFICATE"),
        ({"kafka_security": "tls"}, "SEGMENTER_KAFKA_SECURITY: must be 'plaintext', 'ssl', 'sasl_plaintext' or"),
        ({"kafka_security": "sasl_ssl"}, "SEGMENTER_KAFKA_LOGIN is missing, which SEGMENTER_KAFKA_SECURITY=sasl_ssl"),
        ({"kafka_security": "sasl_ssl", "kafka_login": "w"}, "SEGMENTER_KAFKA_PASSWORD is missing"),
        (
            {"kafka_password": SECRET},
            "SEGMENTER_KAFKA_PASSWORD has no effect; set SEGMENTER_KAFKA_SECURITY to sasl_ssl",
        ),
        ({"kafka_security": "ssl", "kafka_login": "w"}, "SEGMENTER_KAFKA_LOGIN has no effect"),
        ({**SASL, "kafka_sasl_mechanism": "GSSAPI"}, "SEGMENTER_KAFKA_SASL_MECHANISM: must be"),
        ({"http_token": "short"}, "SEGMENTER_HTTP_TOKEN: must be 16 or more printable ASCII characters"),
        ({"http_token": "ä" * 20}, "SEGMENTER_HTTP_TOKEN: must be 16 or more printable ASCII characters"),
    ],
)
def test_what_does_not_belong_together_is_told(given: dict[str, Any], sentence: str) -> None:
    """A setting that is missing or would have no effect is named."""
    assert sentence in refused(given)


def test_in_clear_nothing_is_said_of_tls() -> None:
    """The default is one machine."""
    settings = load_settings({"broker": "k:1"})
    assert client_options(settings) == {"bootstrap.servers": "k:1", "log_level": 0}
    assert admin_options(settings) == {"bootstrap_servers": "k:1"}
    assert faust_credentials(settings) is None
    assert tls_context(settings) is None


def test_every_client_is_told_the_same(authority: Authority) -> None:
    """Each in its own words: where, whom to trust, our certificate, and who we are."""
    given = {"kafka_ca": authority.ca, "kafka_certificate": authority.client_certificate,
             "kafka_key": authority.client_key, "kafka_sasl_mechanism": "SCRAM-SHA-256"}  # fmt: skip
    settings = load_settings({**SASL, **given, "kafka_security": "sasl_ssl"})
    heard: list[Any] = []
    assert client_options(settings, heard.append) == {
        "bootstrap.servers": "127.0.0.1:9092",
        "log_level": 0,
        "error_cb": heard.append,
        "security.protocol": "sasl_ssl",
        "ssl.endpoint.identification.algorithm": "https",
        "ssl.ca.location": str(authority.ca),
        "ssl.certificate.location": str(authority.client_certificate),
        "ssl.key.location": str(authority.client_key),
        "sasl.mechanism": "SCRAM-SHA-256",
        "sasl.username": "worker",
        "sasl.password": SECRET,
    }
    context = tls_context(settings)
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    admin = admin_options(settings)
    assert (admin["security_protocol"], admin["sasl_mechanism"]) == ("SASL_SSL", "SCRAM-SHA-256")
    assert (admin["sasl_plain_username"], admin["sasl_plain_password"]) == ("worker", SECRET)
    credentials = faust_credentials(settings)
    assert (credentials.protocol.value, credentials.mechanism.value) == ("SASL_SSL", "SCRAM-SHA-256")
    assert SECRET not in repr(credentials)
    assert faust_credentials(load_settings(SASL)).protocol.value == "SASL_PLAINTEXT"
    assert faust_credentials(load_settings({"kafka_security": "ssl"})).protocol.value == "SSL"


def test_files_that_are_no_certificates_are_named(authority: Authority) -> None:
    """Also a key of another certificate."""
    wrong = load_settings({"kafka_security": "ssl", "kafka_ca": authority.key})
    with pytest.raises(ConfigurationError, match=r"SEGMENTER_KAFKA_CA: .*server\.key holds no certificate"):
        tls_context(wrong)
    pair = {"kafka_certificate": authority.client_certificate, "kafka_key": authority.key}
    with pytest.raises(ConfigurationError, match=r"SEGMENTER_KAFKA_CERTIFICATE: .*client\.pem"):
        tls_context(load_settings({"kafka_security": "ssl", **pair}))


def test_files_for_redis_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    """A CA that is none, another's key, and one that is encrypted, for which nobody is asked on the terminal."""
    locked = tmp_path / "locked.key"
    made = ("ec", "-aes256", "-passout", "pass:abcd", "-in", str(authority.client_key), "-out", str(locked))
    subprocess.run(("openssl", *made), check=True, capture_output=True, timeout=30)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"rediss://127.0.0.1:{server.getsockname()[1]}/0"
        for wrong in (
            {"redis_ca": authority.key},
            {"redis_certificate": authority.client_certificate, "redis_key": authority.key},
            {"redis_certificate": authority.client_certificate, "redis_key": locked},
        ):
            with pytest.raises(ServiceUnavailable, match="SEGMENTER_REDIS_KEY must be files in PEM form"):
                open_store(load_settings({"redis": url, **wrong}))


def test_a_refusal_that_lasts_is_told() -> None:
    """A login or a certificate that was refused, whichever client says it; a broker that is away passes."""
    settings = load_settings({"broker": "k:1"})
    for error in (KafkaError(KafkaError._TRANSPORT, "refused"), KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1")):
        refusals = Refusals(settings)
        refusals.heard(error)
        refusals.failed(ConnectionRefusedError())
        refusals.check()
        assert refusals.hint() == ""
    refusals.heard(KafkaError(KafkaError._TRANSPORT, "might be caused by incorrect security.protocol (after 3 ms)"))
    assert refusals.hint() == " (might be caused by incorrect security.protocol)"
    refusals.heard(KafkaError(KafkaError._AUTHENTICATION, "no"))
    with pytest.raises(ServiceUnavailable, match="SEGMENTER_KAFKA_PASSWORD"):
        refusals.check()
    refusals = Refusals(settings)
    refusals.listen()
    try:
        logging.getLogger("aiokafka.client").error("Unable: %s", ssl.SSLCertVerificationError("bad"))
    finally:
        logging.getLogger("aiokafka").handlers.pop()
    with pytest.raises(ServiceUnavailable, match="SEGMENTER_KAFKA_CA"):
        refusals.check()


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:12/{SECRET}@h:6379/0", f"redis://:{SECRET}@h:1/db", f"redis://h:1/0?password={SECRET}",
        f"rediss://:{SECRET}@h:1/0?socket_timeout=soon", f"redis://:{SECRET}#1@h:1/0", f"redis://h:{SECRET}/0",
    ],
)  # fmt: skip
def test_an_address_of_redis_that_cannot_be_used_is_not_shown(url: str) -> None:
    """A part of the password would be taken for the host, or redis-py would end with a traceback."""
    assert "percent-encode special characters of the password" in refused({"redis": url})


def test_not_even_debugging_logs_a_login(capsys: pytest.CaptureFixture[str]) -> None:
    """aiokafka logs its requests, of which the one with SASL PLAIN holds the password."""
    from streams.kafka.worker import set_up_logging

    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        set_up_logging("debug")
        logging.getLogger("aiokafka.conn").debug("Request: %s", SECRET)
        logging.getLogger("aiokafka.client").debug("said")
    finally:
        root.handlers[:], root.level = before[0], before[1]
    shown = capsys.readouterr().err
    assert "said" in shown
    assert SECRET not in shown


# Secrets from files


def test_a_secret_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them; the newline at its end is not part of it."""
    for name, value in {"redis": "redis://:a@h:1/0", "kafka_password": " a b\n", "http_token": SECRET}.items():
        (tmp_path / name).write_bytes(f"{value}\r\n".encode())
        monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}_FILE", str(tmp_path / name))
    settings = load_settings({"kafka_security": "sasl_ssl", "kafka_login": "w"})
    assert settings.redis.get_secret_value() == "redis://:a@h:1/0"
    assert settings.kafka_password.get_secret_value() == " a b\n"
    assert settings.http_token.get_secret_value() == SECRET


@pytest.mark.parametrize("name", SECRETS)
def test_a_file_of_a_secret_that_cannot_be_used(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing, empty, no text, or given beside the secret itself is named."""
    variable = f"{ENV_PREFIX}{name.upper()}"
    assert f"{variable}_FILE: cannot read" in refused({f"{name}_file": tmp_path / "absent"})
    assert f"{variable}_FILE: cannot read" in refused({f"{name}_file": tmp_path})
    path = tmp_path / "secret"
    path.write_bytes(b"\n")
    assert f"{variable}_FILE: {path} is empty" in refused({f"{name}_file": path})
    path.write_bytes(b"\xff")
    assert "not UTF-8" in refused({f"{name}_file": path})
    path.write_text(SECRET)
    monkeypatch.setenv(variable, SECRET)
    assert f"{variable} and {variable}_FILE are both given" in refused({f"{name}_file": path})


def test_every_secret_has_a_file() -> None:
    """No secret must be in a variable."""
    assert set(SECRETS) == {"redis", "kafka_password", "http_token"}
    assert all(f"{name}_file" in Settings.model_fields for name in SECRETS)


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers cannot unset one."""
    for name in ("KAFKA_CA", "KAFKA_LOGIN", "KAFKA_PASSWORD", "KAFKA_PASSWORD_FILE", "REDIS_CA", "HTTP_TOKEN_FILE"):
        monkeypatch.setenv(ENV_PREFIX + name, "")
    assert load_settings() == Settings()
    assert load_settings().kafka_ca is None


_CRASH = """
import sys
from streams import wiring
from streams.kafka import topics
def broken(settings):
    secret = settings.redis.get_secret_value() + settings.kafka_password.get_secret_value()
    raise KeyError("a bug")
wiring.input_partitions = broken
wiring.open_store = lambda settings: None
sys.argv = ["segmenter", "worker"]
from streams.cli import main
main()
"""


def test_a_bug_does_not_show_a_secret() -> None:
    """The traceback of a crash shows the code, not what it was working with."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    given = {"redis": f"redis://:{SECRET}@h:1/0", "http_token": SECRET, **SASL}
    secrets = {f"{ENV_PREFIX}{name.upper()}": value for name, value in given.items()}
    done = subprocess.run(
        [sys.executable, "-c", _CRASH],
        env={**kept, **secrets, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "KeyError: 'a bug'" in done.stderr
    assert "geheim" not in done.stdout + done.stderr


def test_help_shows_no_secret() -> None:
    """Neither a default nor what the environment holds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    given = {"SEGMENTER_KAFKA_PASSWORD": SECRET, "SEGMENTER_REDIS": f"redis://:{SECRET}@h:1"}
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", "worker", "--help"],
        env={**kept, **given, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "SEGMENTER_KAFKA_PASSWORD" in done.stdout
    assert "geheim" not in done.stdout + done.stderr


# The audit of dependencies in make lint


@pytest.fixture(scope="module")
def audit() -> Any:
    """The script."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(judged=module.judged)


def _report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_a_known_vulnerability_fails_the_audit(audit: Any) -> None:
    """It is named with the version that mends it."""
    bad = {"name": "pkg", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
    skipped = {"name": "other", "skip_reason": "not found"}
    code, sentence = audit.judged(_report(bad, skipped), "Found 1 known vulnerability")
    assert code == 1
    assert "pkg 1.0: CVE-1, fixed in 1.1" in sentence


def test_an_audit_without_its_database_says_so_and_goes_on(audit: Any) -> None:
    """In one line, whether nobody answers or nothing is known of any package."""
    skipped = {"name": "other", "skip_reason": "not found"}
    good = {"name": "pkg", "version": "1.0", "vulns": []}
    assert audit.judged("", "Traceback\n...\nConnectionError: no way")[0] == 0
    for report, said in (("", "x\nConnectionError: no way"), ("", ""), (_report(skipped), "")):
        code, sentence = audit.judged(report, said)
        assert (code, "NOT AUDITED" in sentence, "\n" in sentence) == (0, True, False)
    for said in (
        "/usr/bin/python: No module named pip_audit",
        "ERROR:pip_audit._cli:requirement click==8.1.7 does not contain a hash",
        "ERROR:pip_audit._cli:invalid requirements input: requirements.lock",
        "usage: pip-audit [-h]\npip-audit: error: unrecognized arguments: --disable-pip",
    ):
        assert audit.judged("", said)[0] == 1
    assert audit.judged(_report(good, skipped), "") == (
        0, "pip-audit: no known vulnerability in 1 packages; 1 could not be audited",
    )  # fmt: skip
