"""What the audit of a shard says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that differs. ``what`` is a stable code; ``why`` are sentences, as far as can be told."""

    shard: int
    what: str
    customer: str | None
    sentence: str
    why: Sequence[str] = ()


@dataclass
class ShardReport:
    """What was compared of a shard, and what differs. ``unverified`` says why it could not be done."""

    shard: int
    events: int = 0
    customers: int = 0
    changes: int = 0
    repeated: int = 0
    snapshots: int = 0
    letters: int = 0
    pending: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unverified: str | None = None
