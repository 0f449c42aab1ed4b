"""How Kafka is reached: where, in clear or over TLS, and as whom; and what it says when it does not let us in.

Three libraries speak to Kafka, and each words the same settings in its own way. Whoever connects asks here.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import Any, Final

from streams.errors import ConfigurationError, ServiceUnavailable
from streams.settings import Settings

#: librdkafka's names of errors that trying again does not mend.
_LASTING: Final = ("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED")


def client_options(settings: Settings, on_error: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """For confluent-kafka's Producer, Consumer and AdminClient, ``bootstrap.servers`` included.

    ``on_error`` is told each KafkaError of the connections, whenever the client is polled.
    """
    options: dict[str, Any] = {"bootstrap.servers": settings.broker, "log_level": 0}
    if on_error is not None:
        options["error_cb"] = on_error
    if settings.kafka_security != "plaintext":
        options["security.protocol"] = settings.kafka_security
    if settings.kafka_over_tls:
        files = {
            "ssl.ca.location": settings.kafka_ca,
            "ssl.certificate.location": settings.kafka_certificate,
            # A file may hold both.
            "ssl.key.location": settings.kafka_key or settings.kafka_certificate,
        }
        options["ssl.endpoint.identification.algorithm"] = "https"
        options |= {name: str(path) for name, path in files.items() if path is not None}
    if settings.kafka_with_sasl:
        options["sasl.mechanism"] = settings.kafka_sasl_mechanism
        options["sasl.username"] = settings.kafka_login
        options["sasl.password"] = settings.kafka_password.get_secret_value()
    return options


def faust_credentials(settings: Settings) -> Any:
    """For Faust's ``broker_credentials``, and so for aiokafka; None in clear. Raises ConfigurationError."""
    import faust

    context = tls_context(settings)
    if settings.kafka_with_sasl:
        return faust.SASLCredentials(
            username=settings.kafka_login,
            password=settings.kafka_password.get_secret_value(),
            mechanism=settings.kafka_sasl_mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def admin_options(settings: Settings) -> dict[str, Any]:
    """For kafka-python, ``bootstrap_servers`` included. Raises ConfigurationError."""
    options: dict[str, Any] = {"bootstrap_servers": settings.broker}
    if settings.kafka_security != "plaintext":
        options["security_protocol"] = settings.kafka_security.upper()
    if settings.kafka_over_tls:
        options["ssl_context"] = tls_context(settings)
    if settings.kafka_with_sasl:
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_login
        options["sasl_plain_password"] = settings.kafka_password.get_secret_value()
    return options


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Trust in the CA, and our own certificate; None without TLS. Raises ConfigurationError naming the variable."""
    if not settings.kafka_over_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca)
    except ssl.SSLError:
        raise ConfigurationError(f"SEGMENTER_KAFKA_CA: {settings.kafka_ca} holds no certificate in PEM form") from None
    if settings.kafka_certificate is not None:
        try:
            # Without a password given here OpenSSL would ask for one on the terminal.
            context.load_cert_chain(settings.kafka_certificate, settings.kafka_key, password="")
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"SEGMENTER_KAFKA_CERTIFICATE: {settings.kafka_certificate} and SEGMENTER_KAFKA_KEY are no certificate "
                f"with its key, in PEM form and not encrypted ({error.reason or 'the key does not fit'})"
            ) from None
    return context


class Refusals:
    """Listens to the clients of Kafka, which go on trying for ever, for what no trying mends.

    librdkafka tells ``heard``; aiokafka says it in its log only.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lasting: str | None = None
        self._last = ""

    def heard(self, error: Any) -> None:
        """An error of a connection, as librdkafka tells it: a KafkaError."""
        text = error.str()
        if error.name() in _LASTING:
            self._login_refused(text)
        elif "certificate" in text.lower():
            self._distrusted(text)
        elif error.name() != "_ALL_BROKERS_DOWN":
            self._last = text

    def listen(self) -> None:
        """Hear what aiokafka says in its log, too."""
        logging.getLogger("aiokafka").addHandler(_Ear(self))

    def failed(self, error: BaseException) -> None:
        """An error of a connection, as aiokafka logs it."""
        if isinstance(error, ssl.SSLCertVerificationError):
            self._distrusted(str(error))
        elif type(error).__name__ in ("AuthenticationFailedError", "SaslAuthenticationFailed"):
            self._login_refused(str(error))

    def _login_refused(self, text: str) -> None:
        self._lasting = (
            f"Kafka at {self._settings.broker} refused the login ({text}); check SEGMENTER_KAFKA_LOGIN, "
            "SEGMENTER_KAFKA_PASSWORD and SEGMENTER_KAFKA_SASL_MECHANISM"
        )

    def _distrusted(self, text: str) -> None:
        self._lasting = (
            f"Kafka at {self._settings.broker}: a certificate was refused ({text}); check SEGMENTER_KAFKA_CA, that "
            "Kafka's certificate is valid for this address, and SEGMENTER_KAFKA_CERTIFICATE if Kafka asks for one"
        )

    def check(self) -> None:
        """Raises ServiceUnavailable if something was heard that does not pass by itself."""
        if self._lasting is not None:
            raise ServiceUnavailable(self._lasting)

    def hint(self) -> str:
        """What was heard last of what may pass, in brackets, if it says more than that nobody answers."""
        if "security.protocol" in self._last or "SSL" in self._last:
            return f" ({self._last.partition(' (after ')[0]})"
        return ""


class _Ear(logging.Handler):
    """Takes errors out of log records; their text is for another handler."""

    def __init__(self, refusals: Refusals) -> None:
        super().__init__(logging.WARNING)
        self._refusals = refusals

    def emit(self, record: logging.LogRecord) -> None:
        for each in record.args if isinstance(record.args, tuple) else ():
            if isinstance(each, BaseException):
                self._refusals.failed(each)
