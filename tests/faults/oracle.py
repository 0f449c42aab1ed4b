"""The oracle: what consumers saw and what is stored, compared with what a batch computation and a replay say."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from streams.customers import customers_of, segment_sizes
from streams.settings import Settings, load_settings
from streams.store.opened import open_store
from tests.faults.load import Expected
from tests.support.stored import Stored
from tests.support.topics import SNAPSHOTS, Topics, distinct, moves, out_of_order, undecided

_SHOWN = 3


@dataclass(frozen=True)
class Verdict:
    """What the oracle found.

    ``repeats`` are changes sent more than once, which consumers drop by their id.
    """

    lost: int
    doubled: int
    repeats: int
    faults: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.faults


def judge(expected: Expected, settings: Mapping[str, str], topics: Topics, state: Stored, partitions: int) -> Verdict:
    """Compare everything. ``settings`` are the fleet's."""
    consumed = topics.changes()
    seen = distinct(consumed)
    found = moves(seen)
    lost, doubled = expected.moves - found, found - expected.moves
    faults = [
        *_shown("lost", lost.elements()),
        *_shown("doubled or wrong", doubled.elements()),
        *_shown("not its customer's next", out_of_order(seen)),
        *_shown("repeated with another content", _unlike(consumed)),
        *_differences("change", expected.changes, undecided(seen)),
        *_stored(expected, settings, topics, partitions),
        *_accounted(expected, topics, state),
    ]
    return Verdict(lost.total(), doubled.total(), len(consumed) - len(seen), tuple(faults))


def _unlike(consumed: list[dict[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Changes that say something else than one with the same id before."""
    first: dict[str, Mapping[str, Any]] = {}
    for change in consumed:
        (told,) = undecided([change]).values()
        if first.setdefault(change["change_id"], told) != told:
            yield change


def _stored(expected: Expected, settings: Mapping[str, str], topics: Topics, partitions: int) -> Iterator[str]:
    """Customers and sizes of segments in Redis, and the last snapshot of each customer."""
    store = open_store(settings_of(settings))
    customers = {each["customer_id"]: each for shard in range(partitions) for each in customers_of(store, shard)}
    yield from _differences("customer", expected.customers, customers)
    sizes, _ = segment_sizes(store, partitions)
    counted = {name: (count.customers, count.revenue) for name, count in sizes.items() if count.customers}
    yield from _differences("segment", expected.sizes, counted)
    labelled = {
        customer: labels for customer, each in expected.customers.items() if any((labels := each["segments"]).values())
    }
    yield from _differences("snapshot", labelled, _snapshots(topics))


def _snapshots(topics: Topics) -> dict[str, Any]:
    """The labels in each customer's last snapshot, which is the one that compaction keeps."""
    last: dict[str, Any] = {}
    for record in topics.read(SNAPSHOTS):
        last[(record.key or b"").decode()] = None if record.value is None else json.loads(record.value)["segments"]
    return {customer: labels for customer, labels in last.items() if labels is not None}


def _accounted(expected: Expected, topics: Topics, state: Stored) -> Iterator[str]:
    """Every record is in the state, or is a dead letter; nothing waits to be published."""
    letters = {(each["topic"], each["partition"], each["offset"]): each["code"] for each in topics.dead_letters()}
    yield from _differences("dead letters of code", expected.dead_letters, Counter(letters.values()))
    if behind := state.behind(topics):
        yield f"{behind} records are not in the state"
    if unpublished := state.unpublished():
        yield f"{unpublished} entries are still in an outbox"


def settings_of(environment: Mapping[str, str]) -> Settings:
    """The settings that a worker with this environment has."""
    return load_settings({name.removeprefix("SEGMENTER_").lower(): value for name, value in environment.items()})


def _shown(what: str, found: Iterable[object]) -> Iterator[str]:
    every = list(found)
    if every:
        yield f"{len(every)} {what}, such as {'; '.join(str(each) for each in every[:_SHOWN])}"


def _differences(what: str, wanted: Mapping[Any, object], found: Mapping[Any, object]) -> Iterator[str]:
    differing = [key for key in {*wanted, *found} if wanted.get(key) != found.get(key)]
    if differing:
        key = differing[0]
        yield f"{len(differing)} times another {what}, such as {key}: {found.get(key)} instead of {wanted.get(key)}"
