"""The Kafka Streams peer: its Java program, built once with Maven, and the command that runs it."""

import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final, Literal

from streams.embedded.server import OwnedProcess
from tests.support.real_kafka import (
    _MARKER,
    _PARTIAL,
    FETCH_SECONDS,
    KafkaUnavailable,
    _cache_folder,
    _check_java,
    _is_complete,
    _java,
    _only_fetcher,
)

#: Where the customers' state is kept; the changelog is on Kafka either way.
Store = Literal["rocksdb", "memory"]

_FOLDER: Final = Path(__file__).parent
_MAIN: Final = "segmenter.peers.Lifecycle"


def command(broker: str, redis_url: str, group: str, state_folder: Path, store: Store = "rocksdb") -> list[str]:
    """What runs the peer; raises ``KafkaUnavailable`` if it cannot be built here."""
    classes = str(jars() / "*")
    java = [
        _java(),
        # A heap of one size is not resized while it is measured.
        "-Xms1g",
        "-Xmx1g",
        "-XX:+ExitOnOutOfMemoryError",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
    ]
    return [*java, "-cp", classes, _MAIN, broker, redis_url, group, str(state_folder), store]


def jars() -> Path:
    """Return the folder that holds the program and all it needs, building it with Maven if need be.

    It lies beside the broker's in the cache, is named by what it is built from, and appears complete or not at all.
    """
    _check_java()
    sources = sorted((_FOLDER / "pom.xml", *(_FOLDER / "src").rglob("*.java")))
    key = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:8]
    name = f"kafka-streams-peer-{key}"
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        cache = _cache_folder()
        if not _is_complete(cache / name):
            cache.mkdir(parents=True, exist_ok=True)
            with _only_fetcher(cache, deadline):
                if not _is_complete(cache / name):
                    _build_into(cache, name, deadline)
    except OSError as error:
        raise KafkaUnavailable(f"the cache folder for the Kafka Streams peer cannot be used: {error}") from error
    return cache / name


def _build_into(cache: Path, name: str, deadline: float) -> None:
    """Build in a folder of its own, which the next fetch clears away if this one is interrupted."""
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=cache))
    try:
        shutil.copy(_FOLDER / "pom.xml", partial)
        shutil.copytree(_FOLDER / "src", partial / "src")
        _build(partial, cache / "kafka-streams.log", deadline)
        built = partial / "target" / "jars"
        every = sorted(built.glob("*.jar"))
        (built / _MARKER).write_text("".join(f"{jar.name} {jar.stat().st_size}\n" for jar in every))
        if (cache / name).exists():  # once complete, damaged since
            shutil.rmtree(cache / name)
        built.rename(cache / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _build(folder: Path, log: Path, deadline: float) -> None:
    """Have Maven compile the program and gather its dependencies, checksums verified."""
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("the Kafka Streams peer is not in the cache, and no mvn on PATH can build it")
    log.unlink(missing_ok=True)
    build = (
        str(Path(maven).absolute()),
        "--batch-mode",
        "--quiet",
        "--strict-checksums",
        "--update-snapshots",  # without it Maven remembers a failed download for a day
        f"--file={folder / 'pom.xml'}",
        "package",
        "-Dmaven.test.skip=true",
        "-Dstyle.color=never",
    )
    with OwnedProcess(build, log) as process:
        code = process.exit_code(within=max(0.0, deadline - time.monotonic()))
    if code != 0:
        errors = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line]
        reason = "it took too long" if code is None else errors[0].strip() if errors else f"it ended with code {code}"
        raise KafkaUnavailable(
            f"Maven could not build the Kafka Streams peer; check the network and Maven's settings. "
            f"All it said is in {log}, the first error being: {reason}"
        )
