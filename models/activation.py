"""Activation: which policy and which cut-offs are in force. They are numbered; a shard is at one of them at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import orjson

from models.errors import StateError
from models.population import Cutoffs

#: Format 1, which is still read, names no dimension in ``first`` and has no cluster models.
_FORMAT: Final = 2


@dataclass(frozen=True)
class Activation:
    """One step of the fleet from one policy and its cut-offs to the next.

    ``instant`` names it in change ids: when a policy was applied, or as of when a population's cut-offs were taken.
    A shard takes cut-offs at its time ``active_from``, a policy at once. ``backfill`` says whether the moves it
    causes are history to consumers; so are those in the dimensions ``first``, whose first cut-offs or model label
    everybody, which is no move that anybody made. Instants are int64 microseconds.
    """

    number: int
    cause: Literal["policy", "population"]
    policy_version: int
    instant: int
    active_from: int
    backfill: bool
    cutoffs: Cutoffs
    first: tuple[str, ...] = ()

    @cached_property
    def json(self) -> bytes:
        """The activation as stored, but for its number, which is where it is stored."""
        return orjson.dumps(
            {
                "format": _FORMAT,
                "cause": self.cause,
                "policy_version": self.policy_version,
                "instant": self.instant,
                "active_from": self.active_from,
                "backfill": self.backfill,
                "cutoffs": self.cutoffs.plain(),
                "first": self.first,
            }
        )

    @classmethod
    def parse(cls, number: int, text: bytes) -> Activation:
        """Read a stored activation. Raises StateError if a newer version wrote it or it is damaged."""
        try:
            stored = orjson.loads(text)
            if stored["format"] not in (1, _FORMAT):
                raise StateError(f"activation {number} was stored in format {stored['format']}; run a newer version")
            return cls(
                number,
                stored["cause"],
                int(stored["policy_version"]),
                int(stored["instant"]),
                int(stored["active_from"]),
                bool(stored["backfill"]),
                Cutoffs.from_plain(stored["cutoffs"]),
                tuple(str(name) for name in stored.get("first", ())),
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"activation {number} is damaged ({error!r}); apply the policy again") from None
