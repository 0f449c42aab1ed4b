"""Retrier: refused records, back onto their topics, each in one transaction with the mark that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from models.changes import DeadLetter
from streams.errors import ConfigurationError, ServiceUnavailable
from streams.kafka.topics import partitions_by_topic, require_lasting
from streams.retry import Place, Raw, original, partition_for, retried, waiting
from streams.security import client_options
from streams.settings import Settings

#: Letters retried in one transaction.
_AT_ONCE: Final = 500
#: A record that was too large to copy into a letter may be this large, in bytes; the broker decides.
_LARGEST: Final = 100_000_000


class Retrier:
    """A context manager. Only one at a time: another that begins ends this one at its next transaction."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._servers, self._within = settings.broker, settings.start_within
        topics = [settings.dead_letters_topic, *settings.topics.values()]
        self._partitions = partitions_by_topic(settings, topics)
        missing = [topic for topic, count in self._partitions.items() if not count]
        if missing:
            raise ConfigurationError(f"Kafka at {self._servers} has no topic {', '.join(missing)}")
        self._consumer = Consumer(
            {
                **client_options(settings),
                "group.id": "segmenter-cli",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.message.max.bytes": 10_000_000,
                "receive.message.max.bytes": _LARGEST + 1_000_000,
            }
        )
        self._producer: Producer | None = None

    def __enter__(self) -> Retrier:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def waiting(self) -> dict[Place, DeadLetter]:
        """Every letter of an input topic that has not been retried. Raises ServiceUnavailable."""
        topic = self._settings.dead_letters_topic
        records = ((message.key(), message.value()) for message in self._read(topic))
        return {place: letter for place, letter in waiting(records).items() if place.topic in self._partitions}

    def begin(self) -> None:
        """Become the only one who retries: what another has not finished is undone.

        Raises ServiceUnavailable, and ConfigurationError for a Kafka without transactions.
        """
        require_lasting(self._settings, "to retry each record once, whatever happens,")
        self._producer = Producer(
            {
                **client_options(self._settings),
                "transactional.id": f"{self._settings.group}.dead-letters-retry",
                "message.max.bytes": _LARGEST,
            }
        )
        try:
            self._producer.init_transactions(max(30.0, self._within))
        except KafkaException as error:
            raise ServiceUnavailable(f"Kafka at {self._servers} did not begin: {error.args[0].str()}") from None

    def retry(self, letters: Mapping[Place, DeadLetter]) -> Iterator[int]:
        """Produce the letters' records again; yields how many are done, now and then.

        Raises ServiceUnavailable, and ConfigurationError for a record that Kafka does not hold or does not take.
        """
        places = sorted(letters, key=lambda place: (letters[place]["timestamp"], place))
        for start in range(0, len(places), _AT_ONCE):
            part = places[start : start + _AT_ONCE]
            self._transaction([(place, retried(self._record(place, letters[place]), place)) for place in part])
            yield start + len(part)

    def _transaction(self, records: Sequence[tuple[Place, Raw]]) -> None:
        producer = self._producer
        assert producer is not None, "begin first"  # noqa: S101
        try:
            producer.begin_transaction()
            for place, record in records:
                to = partition_for(record, place, self._partitions)
                self._produce(producer, place.topic, record, to)
                self._produce(producer, self._settings.dead_letters_topic, Raw(str(place).encode(), None, []), 0)
            producer.commit_transaction(max(30.0, self._within))
        except KafkaException as error:
            reason = error.args[0]
            if reason.fatal():
                raise ServiceUnavailable(
                    f"another `segmenter dead-letters retry` has begun, which ends this one ({reason.str()})"
                ) from None
            if reason.retriable():
                raise ServiceUnavailable(
                    f"Kafka at {self._servers} did not say in time whether it took the records again ({reason.str()}); "
                    "run this once more: what was retried is not retried again"
                ) from None
            self._undo(producer)
            raise ConfigurationError(
                f"Kafka at {self._servers} did not take the records again, of which the first is {records[0][0]}: "
                f"{reason.str()}; nothing of them was retried"
            ) from None

    def _produce(self, producer: Producer, topic: str, record: Raw, to: int) -> None:
        headers = list(record.headers)
        try:
            producer.produce(topic, value=record.value, key=record.key, headers=headers, partition=to)
        except BufferError:
            # Very large records: until there is room again.
            producer.flush(max(30.0, self._within))
            try:
                producer.produce(topic, value=record.value, key=record.key, headers=headers, partition=to)
            except BufferError:
                raise ServiceUnavailable(f"Kafka at {self._servers} does not take the records again") from None

    @staticmethod
    def _undo(producer: Producer) -> None:
        try:
            producer.abort_transaction(10.0)
        except KafkaException:
            return  # Kafka does it itself after a while

    def _record(self, place: Place, letter: DeadLetter) -> Raw:
        record = original(letter)
        if record is not None:
            return record
        for message in self._read(place.topic, place.partition, place.offset):
            if message.offset() == place.offset:
                return Raw(message.key(), message.value(), message.headers() or [])
            break
        raise ConfigurationError(
            f"{place} was too large to copy into its letter, and Kafka has deleted it since; leave it out with "
            "--topic, --partition or --since"
        )

    def _read(self, topic: str, partition: int | None = None, offset: int = 0) -> Iterator[Any]:
        """Records of all partitions to their present end, or of one from an offset on. Raises ServiceUnavailable."""
        every = range(self._partitions[topic]) if partition is None else (partition,)
        try:
            open_ones = set(every)
            self._consumer.assign([TopicPartition(topic, each, offset) for each in every])
            while open_ones:
                message = self._consumer.poll(self._within)
                if message is None:
                    raise ServiceUnavailable(f"Kafka at {self._servers} did not answer within {self._within:g} s")
                error = message.error()
                if error is None:
                    yield message
                elif error.name() == "_PARTITION_EOF":
                    open_ones.discard(message.partition())
                elif error.fatal() or not error.retriable():
                    raise ServiceUnavailable(f"Kafka at {self._servers}: {error.str()}")
        except KafkaException as error:
            raise ServiceUnavailable(f"Kafka at {self._servers} did not answer: {error.args[0].str()}") from None
