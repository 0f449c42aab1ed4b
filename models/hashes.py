"""XXH3-64: what event ids are remembered by and customers drawn by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray


def hashes_of(texts: Sequence[str]) -> NDArray[np.uint64]:
    """The XXH3-64 of each text as UTF-8."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, texts)), dtype=np.uint64, count=len(texts))
