"""The proxy does to connections what it is told, and nothing else."""

import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.proxy import Proxy


@contextmanager
def _echo(prefix: bytes) -> Iterator[str]:
    """A server that answers each piece with a prefix and the piece; yields host:port."""

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(prefix + data)
            except OSError:
                return

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a server that answers ``a:`` and what it was sent."""
    with _echo(b"a:") as target, Proxy(target) as running:
        yield running


def _connect(proxy: Proxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def _ask(connection: socket.socket, said: bytes = b"hello") -> bytes:
    connection.sendall(said)
    return connection.recv(65_536)


def _is_cut(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_it_passes_on_both_ways(proxy: Proxy) -> None:
    """Without a fault it is not noticed."""
    with _connect(proxy) as one, _connect(proxy) as other:
        assert (_ask(one), _ask(other, b"x"), _ask(one, b"y")) == (b"a:hello", b"a:x", b"a:y")


def test_an_end_that_closes_has_been_heard(proxy: Proxy) -> None:
    """A server that answers and closes is heard to its end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.switch(f"127.0.0.1:{listener.getsockname()[1]}")
        with _connect(proxy) as client:
            client.sendall(b"?")
            server, _ = listener.accept()
            server.sendall(b"z" * 100_000)
            server.close()
            answer = b""
            while piece := client.recv(65_536):
                answer += piece
        assert len(answer) == 100_000


def test_cut_connections_are_gone_and_new_ones_served(proxy: Proxy) -> None:
    """Each is reset; whoever connects again is served."""
    with _connect(proxy) as one:
        assert _ask(one) == b"a:hello"
        assert proxy.cut() == 1
        assert _is_cut(one)
    with _connect(proxy) as again:
        assert _ask(again) == b"a:hello"
        assert proxy.accepted == 2


def test_refused(proxy: Proxy) -> None:
    """Nobody listens until it is healed, then on the same port."""
    with _connect(proxy) as one:
        assert _ask(one) == b"a:hello"
        proxy.refuse()
        assert _is_cut(one)
        with pytest.raises(ConnectionRefusedError):
            _connect(proxy)
    proxy.heal()
    with _connect(proxy) as again:
        assert _ask(again) == b"a:hello"


def test_a_black_hole_answers_nothing_and_loses_nothing(proxy: Proxy) -> None:
    """Old and new connections stay and are silent; what was sent arrives once it is healed."""
    with _connect(proxy) as old:
        assert _ask(old) == b"a:hello"
        proxy.black_hole()
        with _connect(proxy) as new:
            for connection in (old, new):
                connection.settimeout(0.1)
                with pytest.raises(TimeoutError):
                    _ask(connection, b"later")
                connection.settimeout(5)
            proxy.heal()
            assert (old.recv(100), new.recv(100)) == (b"a:later", b"a:later")


def test_switched_to_another_server(proxy: Proxy) -> None:
    """Connections to the one before are cut, new ones reach the other."""
    with _echo(b"b:") as target, _connect(proxy) as old:
        assert _ask(old) == b"a:hello"
        proxy.switch(target)
        assert _is_cut(old)
        with _connect(proxy) as new:
            assert _ask(new) == b"b:hello"


def test_slow(proxy: Proxy) -> None:
    """A delay is paid in each direction, and bandwidth bounds what comes in a second."""
    with _connect(proxy) as one:
        proxy.delay = 0.05
        began = time.monotonic()
        assert _ask(one) == b"a:hello"
        assert time.monotonic() - began >= 0.1
        proxy.delay, proxy.bandwidth = 0.0, 100_000
        began = time.monotonic()
        assert _ask(one, b"x" * 5_000).startswith(b"a:x")
        assert time.monotonic() - began >= 0.05


def test_a_target_that_is_not_there(proxy: Proxy) -> None:
    """The connection is cut, and the proxy goes on."""
    there = proxy.target
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nowhere = f"127.0.0.1:{gone.getsockname()[1]}"
    proxy.switch(nowhere)
    with contextlib.suppress(ConnectionError), _connect(proxy) as one:
        assert _is_cut(one)
    proxy.switch(there)
    with _connect(proxy) as again:
        assert _ask(again) == b"a:hello"


def test_nothing_stays_open_when_it_ends_while_connections_come() -> None:
    """A connection that was taken a moment before the end is closed, too: the test run warns of sockets left open."""
    with _echo(b"a:") as target:
        for _ in range(50):
            with Proxy(target) as proxy:
                connections = [_connect(proxy) for _ in range(3)]
            for connection in connections:
                with connection:
                    assert _is_cut(connection)
    gc.collect()
