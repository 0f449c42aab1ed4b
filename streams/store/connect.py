"""The way to Redis: one server or, if it says that it is part of one, the whole cluster; in clear or over TLS."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import NoPermissionError, NoScriptError, RedisClusterException
from redis.retry import Retry

from streams.errors import ServiceUnavailable, StoreUnavailable

#: Either has the commands that the store uses.
Client = redis.Redis | RedisCluster
#: Seconds that the event loop may wait for an answer.
_SOON: Final = 1.0
#: What OpenSSL says of a CA, a certificate or a key.
_BAD_FILE: Final = re.compile(r"PEM lib|NO_CERTIFICATE_OR_CRL_FOUND|KEY_VALUES_MISMATCH")


class Tls(NamedTuple):
    """Files (PEM) for rediss://: the CA that signed the server's certificate, and a certificate of our own."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def options(self) -> dict[str, Any]:
        """As redis-py wants them. A server whose certificate or name is not right is refused."""
        return {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": _text(self.ca),
            "ssl_certfile": _text(self.certificate),
            "ssl_keyfile": _text(self.key),
            # Without one OpenSSL would ask for it on the terminal, if the key is encrypted.
            "ssl_password": "",
        }


class Connection:
    """Reaches Redis when it is first needed, and asks then whether this is a cluster."""

    def __init__(self, url: str, timeout: float, tls: Tls) -> None:
        self._url = url
        self._options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        if url.startswith("rediss://"):
            self._options |= tls.options()
        self._single = redis.Redis.from_url(
            url,
            # A retried commit that had got through is refused as lost, which loads the shard again.
            retry=_retry(),
            retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            **self._options,
        )
        soon = {"socket_timeout": min(timeout, _SOON), "socket_connect_timeout": min(timeout, _SOON)}
        # A connection that was cut is replaced; a server that does not answer is not asked again.
        again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        self._hasty = redis.Redis.from_url(url, retry=again, **(self._options | soon))
        self._hurry = threading.local()
        options = self._single.connection_pool.connection_kwargs
        self.address = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self._client: Client | None = None
        self._reaching = threading.Lock()

    @property
    def client(self) -> Client:
        """The client. Raises what redis-py raises if Redis cannot be reached."""
        if self._client is None:
            with self._reaching:
                self._client = self._client or self._reach()
        return self._hasty if getattr(self._hurry, "on", False) else self._client

    @contextmanager
    def hurried(self) -> Iterator[bool]:
        """Within it, this thread waits a second at most for a server that does not answer; not for a cluster's."""
        self._hurry.on = self._client is self._single
        try:
            yield self._hurry.on
        finally:
            self._hurry.on = False

    def _reach(self) -> Client:
        if not self._is_cluster():
            return self._single
        # The cluster client words a refusal of this as if there were no cluster.
        self._asked("CLUSTER SLOTS")
        cluster = RedisCluster.from_url(
            self._url,
            retry=_retry(),
            # Shards on the other masters go on when one is down.
            require_full_coverage=False,
            **self._options,
        )
        self._single.close()
        return cluster

    def _is_cluster(self) -> bool:
        # HELLO, because every user may say it, whatever its permissions.
        try:
            answer = self._asked("HELLO")
        except redis.ResponseError as error:
            if "unknown command" in str(error):
                return False
            raise
        if isinstance(answer, list):
            answer = dict(zip(answer[::2], answer[1::2], strict=True))
        return bool(answer.get(b"mode", answer.get("mode")) in (b"cluster", "cluster"))

    def _asked(self, command: str) -> Any:
        return self._single.execute_command(command)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Give the connections back."""
        self._single.close()
        self._hasty.close()
        if isinstance(self._client, RedisCluster):
            # Closing it leaves the connections to the other servers open.
            nodes = self._client.nodes_manager
            for node in (*nodes.nodes_cache.values(), *nodes.startup_nodes.values()):
                if node.redis_connection is not None:
                    node.redis_connection.connection_pool.disconnect()
            self._client.close()


class Script:
    """A Lua script, sent whole only where it is not known: to a new server, or to one that has been restarted."""

    def __init__(self, connection: Connection, text: str) -> None:
        self._connection = connection
        self._text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], args: Sequence[Any] = ()) -> Any:
        """Run it. In a cluster all keys must lie in one slot."""
        client = self._connection.client
        try:
            return client.evalsha(self._digest, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self._text, len(keys), *keys, *args)


def _retry() -> Retry:
    return Retry(ExponentialBackoff(cap=0.5, base=0.05), 2)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def told(address: str, error: Exception) -> ServiceUnavailable | StoreUnavailable:
    """A sentence, and whether it passes by itself. A cluster's client wraps the reason why no node could be used."""
    reason = error.__cause__ if isinstance(error, RedisClusterException) and error.__cause__ else error
    text = str(reason).strip()
    if isinstance(reason, redis.AuthenticationError):
        return ServiceUnavailable(f"Redis at {address} refused the user or password; check SEGMENTER_REDIS")
    # Redis words a permission that is missing inside a script differently.
    if isinstance(reason, NoPermissionError) or "executing the script can't" in text:
        return ServiceUnavailable(f"Redis at {address} forbids what is needed: {text}; docs/SECURITY.md lists it")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ServiceUnavailable(
            f"Redis at {address} shows a certificate that is not trusted ({text}); check SEGMENTER_REDIS_CA, and that "
            "the certificate is valid for this address"
        )
    if _BAD_FILE.search(text):
        return ServiceUnavailable(
            f"no TLS with Redis at {address} ({text}); SEGMENTER_REDIS_CA, SEGMENTER_REDIS_CERTIFICATE and "
            "SEGMENTER_REDIS_KEY must be files in PEM form, the key that of the certificate and not encrypted"
        )
    if "SELECT is not allowed in cluster mode" in text:
        return ServiceUnavailable(
            f"Redis at {address} is a cluster, which has database 0 only; let SEGMENTER_REDIS end with /0"
        )
    return StoreUnavailable(f"Redis at {address}: {text}")
