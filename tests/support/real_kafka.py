"""A real Apache Kafka for tests, one broker or three, fetched once and then killed and restarted at will.

``python -m tests.support.real_kafka`` runs one in the foreground and prints its address.
"""

import base64
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, ClassVar, NoReturn, Self

from streams.embedded.server import LOOPBACK, LoopbackServer, OwnedProcess, ServerStartError, free_ports

KAFKA_VERSION = "4.4.0"
SCALA_VERSION = "2.13"
LOG4J_VERSION = "2.25.5"  # the one this Kafka brings along; it lacks only the bridge from slf4j
COPY_PLUGIN_VERSION = "3.8.1"
JAVA_AT_LEAST = 17
FETCH_SECONDS = 600.0
FORMAT_SECONDS = 60.0
HEAP = "-Xmx512m"
CLUSTER_HEAP = "-Xmx256m"

_MARKER = "COMPLETE"
_PARTIAL = ".partial-"

# Kafka names kafka-tools-api as a dependency but is published without it; a broker does not need it.
_POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>segmenter.tests</groupId>
  <artifactId>kafka-broker</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_{SCALA_VERSION}</artifactId>
      <version>{KAFKA_VERSION}</version>
      <exclusions>
        <exclusion>
          <groupId>org.apache.kafka</groupId>
          <artifactId>kafka-tools-api</artifactId>
        </exclusion>
      </exclusions>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""

# The console is the server's log file. The two silenced loggers print every setting at each start.
_LOGGING = """\
<Configuration status="WARN">
  <Appenders>
    <Console name="log">
      <PatternLayout pattern="%d %-5p %c{1} - %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="log"/></Root>
    <Logger name="kafka.server.KafkaConfig" level="WARN"/>
    <Logger name="org.apache.kafka.common.config" level="WARN"/>
  </Loggers>
</Configuration>
"""


class KafkaUnavailable(RuntimeError):
    """There is no Kafka broker to start on this machine; the message says what to do about it."""


def fetch_kafka() -> Path:
    """Return the folder that holds the broker's jars, downloading them with Maven if need be."""
    name = f"kafka-{KAFKA_VERSION}-{hashlib.sha256(_POM.encode()).hexdigest()[:8]}"
    return cached_jars(name, "Kafka", _download)


def cached_jars(name: str, what: str, make: Callable[[Path, Path, float], Path]) -> Path:
    """Return the folder of the cache that holds the jars of ``what``, having them made if need be.

    ``make`` is given an empty folder, the cache, for its log, and a deadline, and returns where in the folder the jars
    are. The folder appears under its name complete or not at all: it is filled under another and renamed. A lock makes
    test processes that start together share one download; it is the kernel's, so it goes with its holder, and what an
    interrupted one left behind is cleared by the next. Raises ``KafkaUnavailable``.
    """
    _check_java()
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        cache = _cache_folder()
        if not _is_complete(cache / name):
            cache.mkdir(parents=True, exist_ok=True)
            with _only_fetcher(cache, deadline):
                if not _is_complete(cache / name):
                    _fill(cache, name, deadline, make)
    except OSError as error:
        raise KafkaUnavailable(f"the cache folder for {what} cannot be used: {error}") from error
    return cache / name


def _cache_folder() -> Path:
    chosen = os.environ.get("SEGMENTER_TEST_CACHE")
    if chosen:
        return Path(chosen).absolute()
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache").absolute() / "segmenter-tests"


def _is_complete(folder: Path) -> bool:
    """Compare the folder with its marker, which names each jar and its size.

    Comparing beats just looking for the marker: cleaners of cache folders take files one by one.
    """
    try:
        entries = [line.rsplit(" ", 1) for line in (folder / _MARKER).read_text().splitlines()]
        return bool(entries) and all((folder / jar).stat().st_size == int(size) for jar, size in entries)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _only_fetcher(cache: Path, deadline: float) -> Iterator[None]:
    """Hold the lock under which alone the cache folder is written to."""
    with (cache / "fetch.lock").open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise KafkaUnavailable(
                        f"another process has been filling {cache} for {FETCH_SECONDS:.0f} s: "
                        f"wait for it, or end it, then try again"
                    ) from None
                time.sleep(0.2)
        yield


def _fill(cache: Path, name: str, deadline: float, make: Callable[[Path, Path, float], Path]) -> None:
    for leftover in cache.glob(f"{_PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)  # its Maven may be dying this very moment
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=cache))
    try:
        made = make(partial, cache, deadline)
        jars = sorted(made.glob("*.jar"))
        (made / _MARKER).write_text("".join(f"{jar.name} {jar.stat().st_size}\n" for jar in jars))
        if (cache / name).exists():  # once complete, damaged since
            shutil.rmtree(cache / name)
        made.rename(cache / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(folder: Path, cache: Path, deadline: float) -> Path:
    """Have Maven copy the broker and all it needs into ``folder``."""
    pom = folder / "pom.xml"
    pom.write_text(_POM)
    copy = f"org.apache.maven.plugins:maven-dependency-plugin:{COPY_PLUGIN_VERSION}:copy-dependencies"
    goals = (copy, "-DincludeScope=runtime", f"-DoutputDirectory={folder}")
    run_maven(pom, goals, f"fetch Kafka {KAFKA_VERSION}", cache / "fetch.log", deadline)
    return folder


def run_maven(pom: Path, goals: Sequence[str], task: str, log: Path, deadline: float) -> None:
    """Run Maven, checksums verified. Raises ``KafkaUnavailable``, which says that it did not do its ``task``."""
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable(f"the cache does not have what is needed, and no mvn on PATH can {task}: install Maven")
    log.unlink(missing_ok=True)
    command = (
        str(Path(maven).absolute()),
        "--batch-mode",
        "--quiet",
        "--strict-checksums",
        "--update-snapshots",  # without it Maven remembers a failed download for a day
        f"--file={pom}",
        *goals,
        "-Dstyle.color=never",
    )
    with OwnedProcess(command, log) as process:
        code = process.exit_code(within=max(0.0, deadline - time.monotonic()))
    if code is None:
        raise KafkaUnavailable(f"Maven did not {task} in {FETCH_SECONDS:.0f} s: see {log}, then try again")
    if code != 0:
        errors = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line]
        reason = errors[0].strip() if errors else f"it ended with code {code}"
        raise KafkaUnavailable(
            f"Maven could not {task}; check the network and Maven's settings. "
            f"All it said is in {log}, the first error being: {reason}"
        )


def java_program() -> str:
    """Return the full path of the java program: that of JAVA_HOME, which Maven uses too, or of PATH."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home, "bin"))) if home else None
    java = java or shutil.which("java")
    if java is None:
        raise KafkaUnavailable(
            f"there is no java in JAVA_HOME or on PATH: install Java {JAVA_AT_LEAST} or newer to run Kafka"
        )
    return str(Path(java).absolute())


def _check_java() -> None:
    """Raise ``KafkaUnavailable`` if java is missing, broken, or older than this Kafka can run on."""
    java = java_program()
    try:
        said = subprocess.run(
            (java, "-version"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise KafkaUnavailable(f"{java} does not run, so Kafka cannot either: {error}") from error
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is not None and int(version[1]) < JAVA_AT_LEAST:
        raise KafkaUnavailable(
            f"Kafka {KAFKA_VERSION} needs Java {JAVA_AT_LEAST} or newer, but {java} is Java {version[1]}"
        )


class RealKafka(LoopbackServer):
    """One broker that is its own KRaft controller, on loopback ports, with a random cluster id.

    Topics are not created on use, and all internal ones have one replica and few partitions. Records a
    client saw acknowledged survive ``kill``; a ``restart`` after it takes some 3 s more than another start.
    ``properties`` holds more server properties; they win over the ones set here.

    Clients that connect to ``proxied_address`` are sent to ``advertised``, host:port, for everything: the address of
    a proxy whose target that is. Clients of ``address`` never meet the proxy.

    The first ``start`` raises ``KafkaUnavailable`` if the machine has no broker and cannot fetch one.
    """

    title: ClassVar[str] = "Kafka"
    port_count: ClassVar[int] = 3

    def __init__(
        self, properties: Mapping[str, str] | None = None, *, advertised: str | None = None, heap: str = HEAP
    ) -> None:
        super().__init__()
        self._extra = dict(properties or {})
        self._advertised = advertised
        self._heap = heap
        self._cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()

    @property
    def proxied_address(self) -> str:
        """``127.0.0.1:PORT`` for the proxy behind ``advertised``."""
        if not self._ports:
            raise RuntimeError("Kafka has not been started")
        return f"{LOOPBACK}:{self._ports[2]}"

    def _prepare(self) -> Sequence[str]:
        """Write the configuration; format the storage if it is not, which takes a Java run of its own."""
        jars = fetch_kafka()
        logging = self.home / "log4j2.xml"
        logging.write_text(_LOGGING)
        settings = self.home / "server.properties"
        lines = (f"{name}={_escaped(value)}\n" for name, value in self._properties().items())
        settings.write_text("".join(lines), encoding="ascii")
        java = (
            java_program(),
            self._heap,
            "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",
            f"-Dlog4j2.configurationFile={logging.as_uri()}",
            "-cp",
            str(jars / "*"),
        )
        if not (self.home / "data").exists():
            self._format((*java, "kafka.tools.StorageTool"), settings)
        return (*java, "kafka.Kafka", str(settings))

    def _properties(self) -> dict[str, str]:
        client_port, controller_port, _ = self._ports
        clients = f"CLIENTS://{LOOPBACK}:{client_port}"
        proxied = "" if self._advertised is None else f",PROXIED://{self.proxied_address}"
        advertised = "" if self._advertised is None else f",PROXIED://{self._advertised}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
            "listeners": f"{clients}{proxied},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": f"{clients}{advertised}",
            "listener.security.protocol.map": "CLIENTS:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "CLIENTS",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(self.home / "data"),
            # The controller refuses a killed broker's successor until the session of the former is over.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "3",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "3",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "3",
            "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
            **self._extra,
        }

    def _format(self, tool: Sequence[str], settings: Path) -> None:
        command = (*tool, "format", f"--cluster-id={self._cluster_id}", f"--config={settings}")
        with OwnedProcess(command, self.log_path) as process:
            code = process.exit_code(within=FORMAT_SECONDS)
        if code != 0:
            raise ServerStartError(f"Kafka's storage could not be formatted ({code=}):\n{self.log_tail()}")

    def _answers(self) -> bool:
        """Ask for metadata, and compare the cluster id: another broker may sit on the port."""
        try:
            return _serving_cluster(self.port) == self._cluster_id
        except (OSError, EOFError):
            return False


class _Node(RealKafka):
    """One of a cluster's servers, whose ports are chosen before any of them starts."""

    def __init__(
        self, number: int, ports: Sequence[tuple[int, ...]], cluster_id: str, properties: Mapping[str, str]
    ) -> None:
        super().__init__(properties, heap=CLUSTER_HEAP)
        self._number = number
        self._cluster_id = cluster_id
        self._ports = ports[number]
        self._voters = ",".join(f"{node + 1}@{LOOPBACK}:{each[1]}" for node, each in enumerate(ports))
        self._home = tempfile.TemporaryDirectory(prefix=f"segmenter-kafka-{number + 1}-")

    def _properties(self) -> dict[str, str]:
        replicated = {
            "default.replication.factor": "3",
            "min.insync.replicas": "2",
            "offsets.topic.replication.factor": "3",
            "transaction.state.log.replication.factor": "3",
            "transaction.state.log.min.isr": "2",
            "share.coordinator.state.topic.replication.factor": "3",
            "share.coordinator.state.topic.min.isr": "2",
            # A follower that was killed leaves the set of those in sync soon, and elections are quick.
            "replica.lag.time.max.ms": "3000",
            "controller.quorum.election.timeout.ms": "500",
            "controller.quorum.fetch.timeout.ms": "1000",
        }
        nodes = {"node.id": str(self._number + 1), "controller.quorum.voters": self._voters}
        return {**super()._properties(), **replicated, **nodes, **self._extra}


class RealKafkaCluster:
    """Three brokers, each a controller, too: three replicas of everything, of which two must be there.

    ``address`` names all three. ``nodes`` can be killed and started one by one. ``properties`` as of RealKafka.
    """

    def __init__(self, properties: Mapping[str, str] | None = None) -> None:
        self._properties = dict(properties or {})
        self.nodes: list[RealKafka] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start all three at the same time, for none answers alone."""
        fetch_kafka()
        ports = free_ports(3 * RealKafka.port_count)
        each = [ports[node::3] for node in range(3)]
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        self.nodes = [_Node(node, each, cluster_id, self._properties) for node in range(3)]
        try:
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(RealKafka.start, self.nodes))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all, and remove their data."""
        for node in self.nodes:
            node.kill()
            node.close()
        self.nodes = []

    @property
    def address(self) -> str:
        """``host:port`` of each, separated by commas."""
        return ",".join(node.address for node in self.nodes)


def _escaped(value: str) -> str:
    """Escape a value for a Java properties file, which is to be ASCII."""
    units = value.encode("utf-16-be")
    codes = struct.unpack(f">{len(units) // 2}H", units)
    return "".join(chr(code) if 0x20 < code < 0x7F and code != 0x5C else f"\\u{code:04x}" for code in codes)


def _serving_cluster(port: int) -> str | None:
    """Send a metadata request for no topic; return the cluster id once the cluster lists a live broker.

    Spelt out in bytes rather than asked of a client library: those retry, log and start threads of their
    own while the broker is not there yet. The layout is that of version 4 of the request.
    """
    request = struct.pack(">hhihiB", 3, 4, 0, -1, 0, 0)
    with (
        socket.create_connection((LOOPBACK, port), timeout=2) as connection,
        connection.makefile("rb") as answer,
    ):
        connection.sendall(struct.pack(">i", len(request)) + request)
        size = _number(answer)
        body = BytesIO(_exactly(answer, size) if 0 <= size < 1_000_000 else b"")
    _exactly(body, 8)  # correlation id, throttle time
    brokers = _number(body)
    for _ in range(brokers):
        _number(body)  # node id
        _text(body)  # host
        _number(body)  # port
        _text(body)  # rack
    cluster_id = _text(body)
    return cluster_id if brokers else None


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise EOFError("the answer ended early")
    return data


def _number(source: BinaryIO) -> int:
    return int.from_bytes(_exactly(source, 4), signed=True)


def _text(source: BinaryIO) -> str | None:
    size = int.from_bytes(_exactly(source, 2), signed=True)
    return None if size < 0 else _exactly(source, size).decode(errors="replace")


def _run_in_foreground() -> int:
    def leave(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    try:
        with RealKafka() as kafka:
            print(kafka.address, flush=True)
            while kafka.running:
                time.sleep(0.5)
            print(f"Kafka ended by itself:\n{kafka.log_tail()}", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return 0
    except (KafkaUnavailable, ServerStartError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(_run_in_foreground())
