"""Memory of a process that lives for months: what shards have given up goes back to the system.

A shard that is taken away in the middle of a failure leaves a cycle behind (the error knows the frames that it passed,
which know the shard), and its whole table with it, until somebody looks for cycles. Loading a shard takes and frees
several times its size, in whichever thread is free; glibc gives every thread a heap of its own, keeps what is freed
there, and learns from large blocks to keep still larger ones.

Between batches, on the other hand, memory must not go back: to get it again, page by page, is a fifteenth of what a
batch costs.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

#: malloc.h: how much may be free at a heap's end before it goes back, and by how much a heap grows; the size from which
#: on a block is taken from the system, and given back, on its own; and how many heaps.
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: Larger than a column of a batch, smaller than one of a large shard.
_LARGE: Final = 4 * 1024 * 1024
#: What a worker's batches take, until the next ``tidy``.
_KEPT: Final = 64 * 1024 * 1024
_GROWTH: Final = 16 * 1024 * 1024
_ARENAS: Final = 2

# macOS and musl have allocators without these, and without these habits.
_LIBC: Final = ctypes.CDLL(None)


def bound() -> None:
    """Few heaps that keep what a batch takes, and large blocks outside them. To be called before there are threads."""
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, _ARENAS)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        _LIBC.mallopt(_M_TOP_PAD, _GROWTH)
        _LIBC.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def collect_seldom() -> None:
    """Leave looking for cycles to ``tidy``, and never look among what is there already.

    A batch makes thousands of short-lived dictionaries and no cycles: at Python's default pace looking costs a tenth
    of the time.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def tidy() -> None:
    """Free what is left in cycles, and give all that is free back to the system; takes milliseconds."""
    gc.collect()
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
