"""The Kafka Streams peer: its Java program, built once with Maven, and the command that runs it."""

import hashlib
import shutil
from pathlib import Path
from typing import Final, Literal

from tests.support.real_kafka import cached_jars, java_program, run_maven

#: Where the customers' state is kept; the changelog is on Kafka either way.
Store = Literal["rocksdb", "memory"]

_FOLDER: Final = Path(__file__).parent
_MAIN: Final = "segmenter.peers.Lifecycle"


def command(broker: str, redis_url: str, group: str, state_folder: Path, store: Store = "rocksdb") -> list[str]:
    """What runs the peer; raises ``KafkaUnavailable`` if it cannot be built here."""
    classes = str(jars() / "*")
    java = [
        java_program(),
        # A heap of one size is not resized while it is measured.
        "-Xms1g",
        "-Xmx1g",
        "-XX:+ExitOnOutOfMemoryError",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
    ]
    return [*java, "-cp", classes, _MAIN, broker, redis_url, group, str(state_folder), store]


def jars() -> Path:
    """Return the folder that holds the program and all it needs, building it with Maven if need be.

    It lies beside the broker's in the cache, and is named by what it is built from.
    """
    sources = sorted((_FOLDER / "pom.xml", *(_FOLDER / "src").rglob("*.java")))
    key = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:8]
    return cached_jars(f"kafka-streams-peer-{key}", "the Kafka Streams peer", _build)


def _build(folder: Path, cache: Path, deadline: float) -> Path:
    """Have Maven compile the program in ``folder``, and gather its dependencies."""
    shutil.copy(_FOLDER / "pom.xml", folder)
    shutil.copytree(_FOLDER / "src", folder / "src")
    goals = ("package", "-Dmaven.test.skip=true")
    run_maven(folder / "pom.xml", goals, "build the Kafka Streams peer", cache / "kafka-streams.log", deadline)
    return folder / "target" / "jars"
