"""The lifecycle dimension: new, potential, regular, lapsed.

    what is known            for how long                                       label
    a purchase               more than lapse_after since the last one           lapsed
                             not so long, regular_orders or more of them        regular
                             not so long, fewer                                 new
    only a signup            more than lapse_after since it                     lapsed
                             more than potential_after since it                 potential
                             not so long                                        new
    neither                                                                     no label

Refunds count nowhere here: they neither create a segment nor move one.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.engines import LifecyclePolicy
from models.instants import DAY, FOREVER, Instants
from models.table import NO_LABEL, CustomerTable, Rows

NEW, POTENTIAL, REGULAR, LAPSED = range(4)


class Lifecycle:
    """See the table above; durations are the policy's, in microseconds."""

    labels: Final = ("new", "potential", "regular", "lapsed")
    reads: Final = frozenset(("purchases", "signups"))

    def __init__(self, name: str, policy: LifecyclePolicy) -> None:
        self.name: Final = name
        self._policy = policy

    def label(self, table: CustomerTable, rows: Rows, at: Instants) -> NDArray[np.int16]:
        """The label code of each row at its instant ``at``."""
        policy = self._policy
        orders, bought, signed_up = table.orders[rows], table.last_purchase_at[rows], table.signed_up_at[rows]
        buyer, known = orders > 0, signed_up != FOREVER
        since = np.where(buyer, bought, signed_up)
        active = np.where(
            buyer,
            np.where(orders >= policy.regular_orders, REGULAR, NEW),
            np.where(at > since + policy.potential_after, POTENTIAL, NEW),
        )
        labels = np.where(at > since + policy.lapse_after, LAPSED, active)
        return np.where(buyer | known, labels, NO_LABEL).astype(np.int16)

    def deadline(self, table: CustomerTable, rows: Rows, at: Instants) -> Instants:
        """When each row becomes potential or lapsed if nothing happens, not before ``at``; else FOREVER."""
        policy = self._policy
        buyer, signed_up = table.orders[rows] > 0, table.signed_up_at[rows]
        since = np.where(buyer, table.last_purchase_at[rows], signed_up)
        lapses, tires = since + policy.lapse_after, since + policy.potential_after
        next_one = np.where(~buyer & (tires >= at), tires, np.where(lapses >= at, lapses, FOREVER))
        return np.where(buyer | (signed_up != FOREVER), next_one, FOREVER)

    def reason(self, table: CustomerTable, row: int, at: int) -> str:
        """Orders and how long ago the last one was, or the signup."""
        orders, signed_up = int(table.orders[row]), int(table.signed_up_at[row])
        if orders:
            days = max(at - int(table.last_purchase_at[row]), 0) // DAY
            return f"{orders} order{'s' if orders > 1 else ''}, last purchase {days} days before"
        if signed_up == FOREVER:
            return "neither signup nor purchase"
        return f"no purchase, signed up {max(at - signed_up, 0) // DAY} days before"
