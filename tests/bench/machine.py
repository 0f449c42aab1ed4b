"""What the figures were measured on: processor, memory, system, versions. Nothing that names the machine or a path."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Final

from streams.embedded.redis import find_redis_server

_LIBRARIES: Final = (
    "segmenter", "faust-streaming", "aiokafka", "confluent-kafka", "redis", "hiredis", "pydantic", "numpy", "orjson",
)  # fmt: skip


def describe_machine() -> list[tuple[str, str]]:
    """What to say of this machine, by what it is."""
    libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    return [
        ("Processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("Memory", _memory()),
        ("System", f"{_system()}, {platform.machine()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("Redis server", _redis()),
        ("Libraries", libraries),
    ]


def load_average() -> str:
    """How many processes wanted a processor in the last minute, where the system tells."""
    try:
        return f"{os.getloadavg()[0]:.1f}"
    except OSError:
        return "unknown"


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def _memory() -> str:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return f"{int(line.split()[1]) / 2**20:.0f} GiB"
    return "unknown"


def _system() -> str:
    for line in _lines("/etc/os-release"):
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _redis() -> str:
    said = subprocess.run([find_redis_server(), "--version"], capture_output=True, text=True, check=True).stdout
    found = [word.partition("=")[2] for word in said.split() if word.startswith("v=")]
    return found[0] if found else "unknown"
