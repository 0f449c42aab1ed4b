"""The command ``segmenter`` and its workers as processes of their own, the way an operator runs them.

What this process's environment says about Segmenter is left out: only the settings a test gives count.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.embedded.server import OwnedProcess
from tests.support.zygote import Forked, zygote

ROOT = Path(__file__).resolve().parents[2]
SEGMENTER = (sys.executable, "-m", "streams.cli")
FAUST = (sys.executable, "-m", "faust", "-A", "streams.kafka.app", "worker", "--without-web")
WORKER = (*SEGMENTER, "worker")

#: Any free port for HTTP, so that tests do not meet, and failover as quick as Kafka's default allows.
TEST_SETTINGS = {"SEGMENTER_SESSION_TIMEOUT": "6", "SEGMENTER_HTTP_PORT": "0"}
READY_WITHIN = 60.0


def eventually(condition: Callable[[], object], within: float, what: str) -> None:
    """Wait until ``condition`` holds; fail with ``what`` was expected if it does not in time."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        time.sleep(0.05)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these settings and no others of Segmenter's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEGMENTER_")}
    return {**kept, "PYTHONPATH": str(ROOT), **TEST_SETTINGS, **settings}


def segmenter(
    *arguments: str, settings: Mapping[str, str], stdin: bytes = b"", within: float = 90.0
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, whatever its exit code."""
    return subprocess.run(
        (*SEGMENTER, *arguments),
        env=environment(settings),
        input=stdin,
        capture_output=True,
        timeout=within,
        check=False,
    )


def output_of(*arguments: str, settings: Mapping[str, str], stdin: bytes = b"") -> str:
    """What a command that must succeed writes to its standard output."""
    done = segmenter(*arguments, settings=settings, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


class Running:
    """A command in the background, which goes when this process does; its output is ``log``."""

    #: Whether a worker is forked from a process that has imported what it needs, instead of started anew.
    forked = True

    def __init__(self, folder: Path, settings: Mapping[str, str], command: Sequence[str], name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._log = folder / f"{name}.log"
        self._settings = settings
        self._command = command
        self._process: OwnedProcess | Forked | None = None

    def start(self) -> Self:
        """Start it, after its end again."""
        ours = environment(self._settings)
        if self.forked and self._command == WORKER and not {"LD_PRELOAD", "PYTHONPATH"} & set(self._settings):
            self._process = zygote().fork(("worker",), ours, self._log)
            return self
        env = shutil.which("env")
        assert env is not None
        dropped = [f"--unset={name}" for name in os.environ if name not in ours]
        settings = [f"{name}={value}" for name, value in ours.items() if os.environ.get(name) != value]
        self._process = OwnedProcess((env, *dropped, *settings, *self._command), self._log)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self._process.kill()

    @property
    def process(self) -> OwnedProcess | Forked:
        assert self._process is not None, "start it first"
        return self._process

    @property
    def log(self) -> str:
        """Everything written so far, errors too."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.process.running:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a crash would be; returns once it is gone."""
        self.process.kill()

    def terminate(self, within: float) -> tuple[int | None, float]:
        """SIGTERM; the exit code, None if it still runs after ``within`` seconds, and how long it took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        return self.exit_code(within), time.monotonic() - began

    def exit_code(self, within: float) -> int | None:
        """Its exit code, None if it still runs after ``within`` seconds."""
        return self.process.exit_code(within)


class Worker(Running):
    """``segmenter worker``, or what else ``command`` is."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str], name: str = "worker", command: Sequence[str] = WORKER
    ) -> None:
        super().__init__(folder, settings, command, name)

    def start(self) -> Self:
        self._earlier = self.log.count("metrics at http://")
        super().start()
        return self

    @property
    def address(self) -> str:
        """Where its HTTP listens; empty before it does."""
        found = re.findall(r"metrics at http://(\S+)/metrics", self.log)
        return found[-1] if len(found) > self._earlier else ""

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of one of its HTTP paths; status 0 if nobody answers."""
        if not self.address:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> Self:
        """Wait until it owns its shards."""
        deadline = time.monotonic() + READY_WITHIN
        while self.get("/readyz")[0] != 200:
            assert self.process.running, f"the worker ended at its start:\n{self.log}"
            assert time.monotonic() < deadline, f"the worker is not ready after {READY_WITHIN:g} s:\n{self.log}"
            time.sleep(0.1)
        return self
