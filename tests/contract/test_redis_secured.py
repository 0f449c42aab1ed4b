"""RedisStore fulfils the contract over TLS, as a user who has only the rights that docs/SECURITY.md lists."""

import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from models.errors import SegmenterError
from streams.errors import ServiceUnavailable, StoreUnavailable
from streams.ports import StateStore
from streams.store.connect import Tls
from streams.store.redis import RedisStore
from tests.contract.store_contract import StoreContract
from tests.support.real_redis import RedisUnavailable
from tests.support.rights import redis_user
from tests.support.secured import Authority, SecuredRedis

PASSWORD = "geheim-4711"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signed the server's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[SecuredRedis]:
    """A Redis that also speaks TLS."""
    with ExitStack() as running:
        try:
            yield running.enter_context(SecuredRedis(authority, redis_user(PASSWORD)))
        except RedisUnavailable as unavailable:
            pytest.skip(str(unavailable))


def told(url: str, tls: Tls, kind: type[SegmenterError]) -> str:
    """The sentence with which a store refuses to work, without the password."""
    with closing(RedisStore(url, "segmenter", timeout=1.0, tls=tls)) as store, pytest.raises(SegmenterError) as caught:
        store.ping()
    assert type(caught.value) is kind
    assert PASSWORD not in "".join([repr(store), *traceback.format_exception(caught.value)])
    return str(caught.value)


class TestSecuredRedis(StoreContract):
    """The contract."""

    @pytest.fixture
    def store(self, authority: Authority, server: SecuredRedis) -> Iterator[StateStore]:
        """An empty namespace, over TLS."""
        server.ask("FLUSHALL")
        server.ask("SCRIPT", "FLUSH")
        url = f"rediss://worker:{PASSWORD}@{server.secured}/0"
        with closing(RedisStore(url, "segmenter", tls=Tls(authority.ca))) as store:
            yield store
        assert server.ask("ACL", "LOG") == []


def test_what_is_wrong_with_tls_is_told(authority: Authority, server: SecuredRedis, tmp_path: Path) -> None:
    """A CA that has not signed the certificate, none at all, a client in clear, and a server that speaks no TLS."""
    other = Authority(tmp_path / "other", "other")
    url = f"rediss://worker:{PASSWORD}@{server.secured}/0"
    assert "SEGMENTER_REDIS_CA" in told(url, Tls(other.ca), ServiceUnavailable)
    assert "SEGMENTER_REDIS_CA" in told(url, Tls(), ServiceUnavailable)
    assert server.secured in told(url.replace("rediss", "redis"), Tls(), StoreUnavailable)
    assert server.address in told(f"rediss://{server.address}", Tls(authority.ca), StoreUnavailable)


@pytest.mark.usefixtures("server")
def test_a_certificate_must_be_for_the_address(authority: Authority, tmp_path: Path) -> None:
    """One that the right CA has signed for somebody else is refused."""
    mistaken = Authority(tmp_path / "mistaken")
    mistaken.certificate, mistaken.key = mistaken.client_certificate, mistaken.client_key
    with SecuredRedis(mistaken, redis_user(PASSWORD)) as server:
        url = f"rediss://worker:{PASSWORD}@{server.secured}/0"
        assert "valid for this address" in told(url, Tls(mistaken.ca), ServiceUnavailable)


@pytest.mark.usefixtures("server")
def test_a_server_may_ask_for_a_certificate(authority: Authority) -> None:
    """Who shows one that its CA has signed is let in, who shows none is not."""
    with SecuredRedis(authority, redis_user(PASSWORD), {"tls-auth-clients": "yes"}) as server:
        url = f"rediss://worker:{PASSWORD}@{server.secured}/0"
        told(url, Tls(authority.ca), StoreUnavailable)
        ours = Tls(authority.ca, authority.client_certificate, authority.client_key)
        with closing(RedisStore(url, "segmenter", tls=ours)) as store:
            store.ping()


def test_other_keys_are_out_of_reach(authority: Authority, server: SecuredRedis) -> None:
    """The user of one namespace cannot see another's."""
    url = f"rediss://worker:{PASSWORD}@{server.secured}/0"
    with (
        closing(RedisStore(url, "other", tls=Tls(authority.ca))) as store,
        pytest.raises(ServiceUnavailable, match=r"docs/SECURITY\.md"),
    ):
        store.header(0)
