"""A server program as a child process on loopback ports, which cannot outlive this process.

It must go away with this process, however that one ends, SIGKILL included. The kernel's parent-death signal
(``PR_SET_PDEATHSIG``) looks made for it and is not used, for two reasons. It fires when the *thread* that started the
child ends, so a server restarted from a helper thread would die with that thread. And setting it takes a
``preexec_fn``, which may deadlock in a process with threads, as Kafka clients have, and which newer Pythons warn of.

Instead this file runs itself as a small launcher in between. The launcher forks a guard, then becomes the server by
``exec``, so the server is a direct child with the pid we know. The guard reads a pipe whose other end only this
process holds, and kills the server when the pipe closes. No thread matters, and there is no moment at which the
server runs unguarded. One limit: a child which this process forks without ``exec`` while the server runs holds the
pipe too, so the server waits for it.
"""

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NoReturn, Self

LOOPBACK = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
PORT_ATTEMPTS = 3
LOG_TAIL_LINES = 40

_LOWEST_PORT = 10_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL_START = 32_768


class ServerStartError(RuntimeError):
    """A server did not come up; the message ends with the tail of its log."""


def free_ports(count: int) -> tuple[int, ...]:
    """Return ``count`` different loopback ports which nobody listens on or holds at this moment.

    They lie below the range the kernel hands out to outgoing connections. A port from that range can be
    lost while its server is down: a client which keeps retrying to connect may be given the very port as
    its own, even connect to itself, and a restart on the same port then fails.
    """
    ceiling = _ephemeral_start()
    chosen: set[int] = set()
    for _ in range(1000):
        if len(chosen) == count:
            break
        port = random.randrange(_LOWEST_PORT, ceiling)
        if _can_bind(port, shared=False):
            chosen.add(port)
    else:
        raise OSError(f"found no {count} free ports between {_LOWEST_PORT} and {ceiling}")
    return tuple(chosen)


def _ephemeral_start() -> int:
    """Return where the kernel's range for outgoing connections starts, if that leaves room below it."""
    try:
        start = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_EPHEMERAL_START
    return start if start >= _LOWEST_PORT + 1000 else _USUAL_EPHEMERAL_START


def _can_bind(port: int, *, shared: bool = True) -> bool:
    """Try it; servers share a port with who holds it and with old connections that linger on it."""
    try:
        _bound(port, shared=shared).close()
    except OSError:
        return False
    return True


def _bound(port: int, *, shared: bool) -> socket.socket:
    """A socket on a port, on which it does not listen. Raises OSError."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
        bound.bind((LOOPBACK, port))
    except OSError:
        bound.close()
        raise
    return bound


def _hold(ports: Sequence[int]) -> contextlib.ExitStack:
    """Keep ports from being chosen by others while their server is down; until it is closed.

    Only Linux lets a server listen on a port that is held like this.
    """
    held = contextlib.ExitStack()
    for port in ports if sys.platform == "linux" else ():
        # Whoever was faster is seen when the server starts.
        with contextlib.suppress(OSError):
            held.enter_context(_bound(port, shared=True))
    return held


class OwnedProcess:
    """A child process that dies with this one, and that is only ever signalled through its own handle.

    Its output goes to the end of ``log``, its working folder is the log's. It runs in a session of its own,
    so that a Ctrl-C in the terminal reaches the tests alone, which then stop it in their own order.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        launcher = (sys.executable, "-I", "-S", str(Path(__file__).resolve()))
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                (*launcher, *command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.exit_code(within=0) is None

    def exit_code(self, within: float) -> int | None:
        """Wait up to ``within`` seconds; return the exit code, minus the signal, or None if it still runs."""
        try:
            code = self._popen.wait(within)
        except subprocess.TimeoutExpired:
            return None
        self._dismiss_guard()
        return code

    def kill(self) -> None:
        """SIGKILL the process, and return once it is gone."""
        self._popen.kill()
        self._popen.wait()
        self._dismiss_guard()

    def stop(self, grace: float = STOP_SECONDS) -> None:
        """SIGTERM the process, SIGKILL it if it has not ended after ``grace`` seconds."""
        self._popen.terminate()
        if self.exit_code(within=grace) is None:
            self.kill()

    def _dismiss_guard(self) -> None:
        """Close the pipe; the guard, seeing its server gone already, just ends."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()


class LoopbackServer(ABC):
    """A server on loopback ports of its own, with its data in a temporary folder.

    Ports and data stay the same from the first ``start`` to ``close``, so that a server can be killed and
    restarted under clients which know its address. Not for use by two threads at once.
    """

    title: ClassVar[str]
    port_count: ClassVar[int]

    def __init__(self) -> None:
        self._home: tempfile.TemporaryDirectory[str] | None = None
        self._ports: tuple[int, ...] = ()
        self._held = contextlib.ExitStack()
        self._process: OwnedProcess | None = None

    @abstractmethod
    def _prepare(self) -> Sequence[str]:
        """Bring ``home`` into the state a start needs, and return the command, its program by full path."""

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether this very server, and no stranger on the same port, serves clients now."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def home(self) -> Path:
        """The temporary folder with configuration, data and log."""
        if self._home is None:
            raise RuntimeError(f"{self.title} has not been started")
        return Path(self._home.name)

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self.home / "server.log"

    @property
    def port(self) -> int:
        """The port for clients."""
        if not self._ports:
            raise RuntimeError(f"{self.title} has not been started")
        return self._ports[0]

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``, the same across restarts."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int:
        """The process id."""
        if self._process is None:
            raise RuntimeError(f"{self.title} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start the server and return once it answers, or raise ``ServerStartError``.

        The first start picks the ports, and picks others when a stranger was faster to take one.
        """
        if self.running:
            raise RuntimeError(f"{self.title} is running already")
        if self._home is not None:
            self._launch()
            return
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            try:
                self._home = tempfile.TemporaryDirectory(prefix=f"segmenter-{self.title.lower()}-")
                self._ports = free_ports(self.port_count)
                self._held = _hold(self._ports)
                self._launch()
            except ServerStartError:
                port_was_taken = not all(_can_bind(port) for port in self._ports)
                self.close()
                if not (port_was_taken and attempts_left):
                    raise
            except BaseException:
                self.close()
                raise
            else:
                return

    def stop(self) -> None:
        """End the server in good order, SIGKILL after 10 s; its data stays."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """SIGKILL the server, as a crash would; its data stays."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart(self) -> None:
        """Start again on the same data and ports, after a good-order stop if the server still runs."""
        if self._home is None:
            raise RuntimeError(f"{self.title} has not been started")
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data; a later ``start`` begins with nothing, elsewhere."""
        try:
            self.stop()
        finally:
            if self._home is not None:
                self._home.cleanup()
            self._held.close()
            self._home = None
            self._ports = ()

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        try:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _launch(self) -> None:
        command = self._prepare()
        self._process = OwnedProcess(command, self.log_path)
        try:
            self._await_answer(self._process)
        except BaseException:
            self.kill()
            raise

    def _await_answer(self, process: OwnedProcess) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not process.running:
                code = process.exit_code(within=0)
                raise ServerStartError(f"{self.title} ended at its start ({code=}):\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerStartError(f"{self.title} did not answer within {START_SECONDS:.0f} s:\n{self.log_tail()}")
            time.sleep(0.05)


def _launch_guarded(command: list[str]) -> NoReturn:
    """Fork the guard, then become ``command``: what the launcher process does (see the top of the file)."""
    server = os.getpid()
    if os.fork() == 0:
        _guard(server)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.execv(command[0], command)


def _guard(server: int) -> NoReturn:
    """Wait on standard input for the end of the starting process, then kill ``server``.

    The server is the guard's parent. Once it is gone the guard has another parent, so comparing the two
    before the kill keeps the guard from a stranger that got the same pid later.
    """
    while os.getppid() == server:
        closed, _, _ = select.select([0], [], [], 1.0)
        if closed and os.getppid() == server:
            os.kill(server, signal.SIGKILL)
            break
    os._exit(0)


if __name__ == "__main__":
    _launch_guarded(sys.argv[1:])
