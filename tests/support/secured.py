"""Servers that want to be spoken to over TLS by somebody they know, and the certificates for it.

Both also have a plain listener on loopback, on which a test is an administrator.
"""

import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from streams.embedded.server import LOOPBACK, ServerStartError
from tests.support.real_kafka import RealKafka
from tests.support.real_redis import RealRedis, RedisUnavailable

MECHANISMS = {
    "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
    "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
}


class Authority:
    """A CA of its own, with a certificate of a server on loopback and one of a client. Needs openssl on PATH."""

    def __init__(self, folder: Path, name: str = "test") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca, ca_key = folder / "ca.pem", folder / "ca.key"
        self._made(self.ca, ca_key, f"{name} authority", "-addext", "keyUsage=critical,keyCertSign")
        signed = ("-CA", str(self.ca), "-CAkey", str(ca_key), "-addext", "basicConstraints=critical,CA:FALSE")
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        names = f"subjectAltName=IP:{LOOPBACK},DNS:localhost"
        self._made(self.certificate, self.key, "server", *signed, "-addext", names)
        self.client_certificate, self.client_key = folder / "client.pem", folder / "client.key"
        self._made(self.client_certificate, self.client_key, "client", *signed)
        #: A server's key and certificates in one file, as Kafka wants them.
        self.store = folder / "store.pem"
        self.store.write_text("".join(each.read_text() for each in (self.key, self.certificate, self.ca)))

    def _made(self, certificate: Path, key: Path, name: str, *more: str) -> None:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("there is no openssl on PATH to make certificates with")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        files = ("-keyout", str(key), "-out", str(certificate))
        command = (openssl, "req", "-x509", *curve, *files, "-days", "2", "-subj", f"/CN={name}", *more)
        subprocess.run(command, check=True, capture_output=True, timeout=30)


class SecuredKafka(RealKafka):
    """A broker whose second listener, ``secured``, wants TLS and a login, and which lets a login do what it is told to.

    On ``address`` everybody may do everything.
    """

    def __init__(self, authority: Authority, properties: Mapping[str, str] | None = None) -> None:
        super().__init__(properties)
        self._authority = authority

    @property
    def secured(self) -> str:
        """``127.0.0.1:PORT`` for logins over TLS."""
        return f"{LOOPBACK}:{self._ports[2]}"

    def _properties(self) -> dict[str, str]:
        base = super()._properties()
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return {
            **base,
            "listeners": f"{base['listeners']},SECURED://{self.secured}",
            "advertised.listeners": f"{base['advertised.listeners']},SECURED://{self.secured}",
            "listener.security.protocol.map": f"{base['listener.security.protocol.map']},SECURED:SASL_SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._authority.store),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._authority.ca),
            "listener.name.secured.ssl.client.auth": "requested",
            "listener.name.secured.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
            "listener.name.secured.plain.sasl.jaas.config": f'{plain} user_plain="plain-geheim";',
            "listener.name.secured.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.secured.scram-sha-512.sasl.jaas.config": scram,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:plain",
            **self._extra,
        }

    def admin(self) -> AdminClient:
        """An administrator."""
        return AdminClient({"bootstrap.servers": self.address})

    def set_password(self, login: str, password: str, mechanism: str = "SCRAM-SHA-512") -> None:
        """Make a login, or give it another password."""
        credential = ScramCredentialInfo(MECHANISMS[mechanism], 4096)
        wanted = UserScramCredentialUpsertion(login, credential, password.encode())
        admin = self.admin()
        for answer in admin.alter_user_scram_credentials([wanted]).values():
            answer.result(20)

    def allow(self, login: str, permissions: Iterable[tuple[str, str, Sequence[str]]]) -> None:
        """Let a login do these operations, each on a resource: ``("topic", "purchases", ["READ"])``."""
        bindings = [
            AclBinding(
                ResourceType[kind.upper()],
                name,
                ResourcePatternType.LITERAL,
                f"User:{login}",
                "*",
                AclOperation[operation],
                AclPermissionType.ALLOW,
            )
            for kind, name, operations in permissions
            for operation in operations
        ]
        admin = self.admin()
        for answer in admin.create_acls(bindings).values():
            answer.result(20)


class SecuredRedis(RealRedis):
    """A Redis whose second port speaks TLS, with one more user than the administrator of the plain port."""

    port_count: ClassVar[int] = 2

    def __init__(self, authority: Authority, user: str, config: Mapping[str, str] | None = None) -> None:
        super().__init__(aof=False, config=config)
        self._authority = authority
        self._user = user

    def start(self) -> None:
        """See LoopbackServer. Raises RedisUnavailable if this redis-server was built without TLS."""
        try:
            super().start()
        except ServerStartError as error:
            if "tls-port" in str(error):
                raise RedisUnavailable("the redis-server on PATH was built without TLS: install another") from None
            raise

    def _prepare(self) -> Sequence[str]:
        self._config.update(
            {
                "tls-port": str(self._ports[1]),
                "tls-cert-file": str(self._authority.certificate),
                "tls-key-file": str(self._authority.key),
                "tls-ca-cert-file": str(self._authority.ca),
                "tls-auth-clients": self._config.get("tls-auth-clients", "optional"),
                "user": self._user,
            }
        )
        return super()._prepare()

    @property
    def secured(self) -> str:
        """``127.0.0.1:PORT`` of the port that speaks TLS."""
        return f"{LOOPBACK}:{self._ports[1]}"
