"""The shell's errors: what passes by itself, and what a person must mend.

SegmenterError
├── Recoverable            the shard's table is dropped and loaded again
│   ├── StoreUnavailable   Redis did not answer, or refused a write
│   ├── KafkaUnavailable   Kafka did not answer about a partition
│   ├── StaleOwner         another worker owns the shard now
│   ├── LostBatch          the batch does not begin where the stored offset ends
│   └── PolicyChanged      another policy is in force
└── Stop                   the worker ends with this sentence and a non-zero exit code
    ├── ConfigurationError a setting or file cannot be used
    ├── ServiceUnavailable Kafka or Redis cannot be reached at start
    ├── FleetMismatch      the namespace belongs to another fleet or partition count
    ├── OffsetGap          Kafka no longer holds what must be read again
    └── PublishRefused     Kafka will never accept an outgoing message
"""

from __future__ import annotations

from models.errors import SegmenterError


class Recoverable(SegmenterError):
    """Nothing was written; load the shard again and go on."""


class StoreUnavailable(Recoverable):
    """The store did not answer or refused the write."""


class KafkaUnavailable(Recoverable):
    """Kafka did not answer about a partition."""


class StaleOwner(Recoverable):
    """Another worker has taken the shard; nothing of the commit was written."""


class LostBatch(Recoverable):
    """Records between the stored offset and the batch are missing; nothing of the commit was written."""


class PolicyChanged(Recoverable):
    """Another policy has been activated; what was read under the one before is read again."""


class Stop(SegmenterError):
    """The process cannot go on; the message says what to do."""


class ConfigurationError(Stop):
    """A setting or a file cannot be used."""


class ServiceUnavailable(Stop):
    """Kafka or Redis cannot be reached, or refused the credentials."""


class FleetMismatch(Stop):
    """The store's namespace was written by another fleet or for another number of partitions."""


class OffsetGap(Stop):
    """Kafka no longer holds records that must be read again."""


class PublishRefused(Stop):
    """Kafka refused an outgoing message for good; the outbox still holds it."""
