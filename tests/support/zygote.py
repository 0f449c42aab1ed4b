"""Workers without the seconds that Python takes to import them: forked from a process that has done so already.

For tests that start very many. What is forked runs the command line's own ``main`` with arguments and an environment of
its own, in a session of its own, its output in a file; it dies with the process it was forked from, and that one with
this process.
"""

import atexit
import contextlib
import ctypes
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from streams.embedded.server import OwnedProcess

ROOT: Final = Path(__file__).resolve().parents[2]
_START_WITHIN: Final = 60.0
_PR_SET_PDEATHSIG: Final = 1


class Forked:
    """A forked worker, with what tests ask of an OwnedProcess."""

    def __init__(self, zygote: "Zygote", number: int, pid: int) -> None:
        self._zygote = zygote
        self._number = number
        self._code: int | None = None
        self.pid = pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.exit_code(within=0) is None

    def exit_code(self, within: float) -> int | None:
        """Wait up to ``within`` seconds; return the exit code, minus the signal, or None if it still runs."""
        deadline = time.monotonic() + within
        while self._code is None:
            self._code = self._zygote.ask(number=self._number)
            if self._code is None:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.02)
        return self._code

    def kill(self) -> None:
        """SIGKILL the process, and return once it is gone."""
        if self.running:
            # It cannot be another's: its number is not given away before the zygote has waited for it.
            os.kill(self.pid, signal.SIGKILL)
            self.exit_code(within=30)


class Zygote:
    """A context manager; forks workers on request, from any thread."""

    def __enter__(self) -> "Zygote":
        self._folder = tempfile.TemporaryDirectory(prefix="segmenter-zygote-")
        self._path = str(Path(self._folder.name) / "socket")
        env = shutil.which("env")
        assert env is not None
        command = (env, f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.support.zygote", self._path)
        self._process = OwnedProcess(command, Path(self._folder.name) / "log")
        deadline = time.monotonic() + _START_WITHIN
        while not os.path.exists(self._path):
            log = Path(self._folder.name) / "log"
            assert self._process.running, f"the zygote ended at its start:\n{log.read_text()}"
            assert time.monotonic() < deadline, "the zygote did not start"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._folder.cleanup()

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Forked:
        """Run ``segmenter`` with these arguments and just this environment; its output goes to the end of ``log``."""
        number, pid = self.ask(arguments=list(arguments), environment=dict(environment), log=str(log))
        return Forked(self, number, pid)

    def ask(self, **request: Any) -> Any:
        """A new process's number here and its process id, or the exit code of the one with a ``number``."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(self._path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(connection.makefile("rb").readline())


_lock = threading.Lock()
_started: list[Zygote] = []


def zygote() -> Zygote:
    """This process's own, started when it is first asked for."""
    with _lock:
        if not _started:
            _started.append(Zygote().__enter__())
            atexit.register(_started[0].__exit__)
        return _started[0]


def _serve(path: str) -> dict[str, Any]:
    """Answer requests; returns only in a forked process, what that is to do."""
    # Processes' numbers are used again, ours are not.
    numbers, running, ended = itertools.count(), dict[int, int](), dict[int, int]()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path + ".binding")
        server.listen(64)
        os.rename(path + ".binding", path)
        while True:
            connection, _ = server.accept()
            with connection:
                request = json.loads(connection.makefile("rb").readline())
                if "number" in request:
                    _collect(running, ended)
                    answer = ended.get(request["number"])
                elif pid := os.fork():
                    number = next(numbers)
                    running[pid], answer = number, [number, pid]
                else:
                    return dict(request)
                with contextlib.suppress(OSError):
                    connection.sendall(json.dumps(answer).encode() + b"\n")


def _collect(running: dict[int, int], ended: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            ended[running.pop(pid)] = os.waitstatus_to_exitcode(status)


def _become(request: Mapping[str, Any]) -> None:
    """Go on as if the command had been started from a shell."""
    from streams.cli import main

    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.chdir(Path(request["log"]).parent)
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    sys.argv = ["segmenter", *request["arguments"]]
    main()


if __name__ == "__main__":
    for module in ("streams.commands.worker", "streams.wiring", "streams.kafka.worker"):
        importlib.import_module(module)
    _become(_serve(sys.argv[1]))
