"""Memory: what threads have freed is the system's again."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from streams import memory

#: Threads that take 40 MB each in blocks of 2 kB at the same time, and free all but every hundredth of them.
_LOADS = """
import threading
from pathlib import Path
from streams import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * {page} / 1e6

memory.bound()
memory.collect_seldom()
kept, meet = [], threading.Barrier(4)

def load():
    blocks = [bytes(2000) for _ in range(20_000)]
    meet.wait()
    kept.extend(blocks[::100])

before = resident()
threads = [threading.Thread(target=load) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
full = resident()
memory.tidy()
print(full - before, resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process's memory")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux's C library keeps memory like this")
def test_what_was_freed_goes_back_to_the_system() -> None:
    script = _LOADS.format(page=os.sysconf("SC_PAGESIZE"))
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    kept, left = (float(figure) for figure in said.stdout.split())
    assert kept > 40, "freed blocks lie between blocks in use, so nothing goes back by itself"
    assert left < kept / 3


def test_what_is_left_in_cycles_is_freed() -> None:
    class Shard:
        error: Exception

    def fail(shard: Shard) -> None:
        try:
            raise ValueError("away")
        except ValueError as error:
            shard.error = error  # which knows this frame, which knows the shard

    fail(shard := Shard())
    left = weakref.ref(shard)
    del shard
    assert left() is not None
    memory.tidy()
    assert left() is None
