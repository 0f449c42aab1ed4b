from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

class Purchases(NamedTuple):
    kind: NDArray[np.int8]
    occurred_at: NDArray[np.int64]
    amount: NDArray[np.int64]
    event_id: list[str]
    customer_id: list[str]
    texts: dict[str, tuple[list[str | None], NDArray[np.int64]]]
    attributes: list[tuple[int, bytes]]
    priced: list[tuple[int, str, str]]
    odd: list[int]

def purchases(values: list[bytes | None], base: str) -> Purchases: ...
