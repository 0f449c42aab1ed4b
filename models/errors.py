"""The domain's errors.

SegmenterError
├── PolicyError      the policy text cannot be used; names every wrong key and what it may be
├── InstantError     a text is not an RFC 3339 instant with an offset
├── StateError       stored state cannot be read by this version or under this policy
└── Refused          one record cannot be used: becomes a dead letter, never stops a shard
"""

from __future__ import annotations


class SegmenterError(Exception):
    """Base of every error this project raises on purpose; its message is meant for a person."""


class PolicyError(SegmenterError):
    """The policy cannot be used. The message has one line per wrong key."""


class InstantError(SegmenterError):
    """A text is not an RFC 3339 instant with an offset."""


class StateError(SegmenterError):
    """Stored state was written by a newer version, is damaged, or belongs to another base currency."""


class Refused(SegmenterError):
    """A record cannot be used.

    ``code`` is stable and machine-readable; the message is a sentence that says what to change.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
