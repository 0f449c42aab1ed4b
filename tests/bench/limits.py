"""What Redis could take: its own benchmark's rate for the writes that a commit makes."""

from __future__ import annotations

import re
import shutil
import subprocess

from tests.support.real_redis import RealRedis

#: Fields that one HSET of a commit writes, at most.
_FIELDS = 100


def redis_rate(row: int, customers: int, writes: int = 2_000_000) -> float | None:
    """Rows per second that redis-benchmark writes into one hash, so many of them in a command; None where it is not.

    ``row`` are the bytes of a packed row. Redis syncs its append-only file each second, as it does for the worker.
    """
    program = shutil.which("redis-benchmark")
    if program is None:
        return None
    fields = [part for _ in range(_FIELDS) for part in ("c__rand_int__", "x" * row)]
    with RealRedis() as server:
        host, _, port = server.address.rpartition(":")
        done = subprocess.run(
            [program, "-h", host, "-p", port, "-n", str(writes // _FIELDS), "-r", str(customers), "-P", "4", "-c", "4",
             "--csv", "HSET", "customers", *fields],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = re.findall(r'^"HSET.*?","([0-9.]+)"', done.stdout, re.M)
    return float(found[-1]) * _FIELDS if found else None
