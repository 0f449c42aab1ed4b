"""Trainer: what a log of draws leads to does not depend on how it is read, by whom, or how often."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from models.clustering import learn
from models.clusters import ClusterModel
from models.errors import StateError
from models.learner import LearnerState
from models.sampling import Draw
from streams.errors import LostBatch, StoreUnavailable
from streams.store.memory import MemoryStore
from streams.trainer import Trainer
from tests.support.commands import ROOT
from tests.support.samples import DAY, recorded, values
from tests.unit.fakes import FaultyStore

LOG = values(recorded(12))


def contents(store: MemoryStore) -> Any:
    """All that is stored of learners."""
    offset, learners = store.learners()
    return offset, dict(learners), {day: store.learned_model("cluster", day * DAY) for day in range(-1, 20)}


def taught(log: Sequence[bytes], *ends: int) -> MemoryStore:
    """A store after a trainer has read a log in parts that end at these offsets."""
    store = MemoryStore()
    trainer = Trainer(store)
    assert trainer.load() is None
    start = 0
    for end in (*ends, len(log)):
        trainer.learn(start, end, log[start:end])
        start = end
    return store


def test_what_is_learned_is_stored_with_the_offset() -> None:
    """Each learner as the pure function leaves it, and the model as of each instant that was complete."""
    store = taught(LOG)
    found = learn({}, [Draw.parse(value) for value in LOG])
    assert store.learners() == (len(LOG), {"cluster": found.states["cluster"].encode()})
    models = {day: store.learned_model("cluster", day * DAY) for day in range(14)}
    assert models[0] == b"null"
    assert models[13] is None
    versions = [ClusterModel.parse(models[day] or b"").version for day in range(1, 13)]
    assert versions == list(range(1, 13))


def test_what_was_published_is_returned() -> None:
    """By dimension and instant; None while nobody was there."""
    trainer = Trainer(MemoryStore())
    trainer.load()
    assert trainer.learn(0, 1, LOG[:1]).models == {}
    lesson = trainer.learn(1, 4, LOG[1:4])
    assert [(each, model and model.version) for each, model in lesson.models.items()] == [
        (("cluster", 0), None),
        (("cluster", DAY), 1),
    ]
    assert (trainer.offset, lesson.refused) == (4, {})


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 25])
def test_it_does_not_matter_how_the_log_is_cut(size: int) -> None:
    """Parts of any size lead to the same, byte for byte."""
    assert contents(taught(LOG, *range(size, len(LOG), size))) == contents(taught(LOG))


@pytest.mark.parametrize("at", range(0, 26, 5))
def test_a_trainer_that_begins_in_the_middle_leads_to_the_same(at: int) -> None:
    """Whoever takes over needs nothing but the store."""
    store = taught(LOG[:at])
    trainer = Trainer(store)
    assert trainer.load() == at
    trainer.learn(at, len(LOG), LOG[at:])
    assert contents(store) == contents(taught(LOG))


def test_repeated_draws_change_nothing() -> None:
    """Shards publish at least once; a log that has each draw twice, at once and much later, leads to the same."""
    twice = [value for value in LOG for _ in range(2)]
    offset, learners, models = contents(taught([*twice, *LOG[:10], *LOG]))
    assert offset == 3 * len(LOG) + 10
    assert (learners, models) == contents(taught(LOG))[1:]


def test_a_second_trainer_is_refused_and_catches_up() -> None:
    """Of two that read the same only one commits; the other loads again, and together they lead to the same."""
    store = MemoryStore()
    one, other = Trainer(store), Trainer(store)
    for trainer in (one, other):
        assert trainer.load() is None
    one.learn(0, 6, LOG[:6])
    before = contents(store)
    with pytest.raises(LostBatch):
        other.learn(0, 8, LOG[:8])
    assert contents(store) == before
    assert other.load() == 6
    other.learn(6, 20, LOG[6:20])
    with pytest.raises(LostBatch):
        one.learn(6, len(LOG), LOG[6:])
    assert one.load() == 20
    one.learn(20, len(LOG), LOG[20:])
    assert contents(store) == contents(taught(LOG))


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_store_that_fails_loses_and_doubles_nothing(fault: str) -> None:
    """Whether the commit got through or not, the trainer loads again and reads on from the stored offset."""
    store = FaultyStore()
    trainer = Trainer(store)
    trainer.load()
    trainer.learn(0, 5, LOG[:5])
    store.fail("commit_learners", fault)
    with pytest.raises(StoreUnavailable):
        trainer.learn(5, 10, LOG[5:10])
    start = trainer.load()
    assert start == (5 if fault == "before" else 10)
    trainer.learn(start, len(LOG), LOG[start:])
    assert contents(store) == contents(taught(LOG))


def test_dimensions_are_learned_apart() -> None:
    """A draw of one dimension does not touch another's learner."""
    other = values(recorded(12, seed=2, dimension="größe"))
    mixed = [value for pair in zip(LOG, other, strict=True) for value in pair]
    store = taught(mixed, 9, 10)
    assert dict(store.learners()[1]) == {**taught(LOG).learners()[1], **taught(other).learners()[1]}


def test_only_learners_that_changed_are_written() -> None:
    """A learner that was moved by hand meanwhile is not overwritten by draws of another dimension."""
    store = taught([*LOG, *values(recorded(1, dimension="other"))])
    trainer = Trainer(store)
    start = trainer.load() or 0
    store.commit_learners(start, start, {"cluster": b"another"}, {})
    trainer.learn(start, start + 1, values(recorded(2, dimension="other"))[-1:])
    assert store.learners()[1]["cluster"] == b"another"


@pytest.mark.parametrize("place", [0, 3, len(LOG)])
def test_what_is_no_draw_is_told_and_passed_over(place: int, caplog: pytest.LogCaptureFixture) -> None:
    """It is not learned, holds nothing up, and is told with its offset."""
    wrong = [b"", None, b"{", b"[]", b'{"format":1}', b'{"format":7}', LOG[3].replace(b'"shards":2', b'"shards":"2"')]
    log: list[bytes | None] = [*LOG[:place], *wrong, *LOG[place:]]
    store = MemoryStore()
    trainer = Trainer(store)
    trainer.load()
    lesson = trainer.learn(0, len(log), log)
    assert list(lesson.refused) == list(range(place, place + len(wrong)))
    assert contents(store)[1:] == contents(taught(LOG))[1:]
    assert store.learners()[0] == len(log)
    told = [record.getMessage() for record in caplog.records]
    assert [f"the record at offset {place + number} of the samples topic" in told[number] for number in range(7)]
    assert "run a newer version" in told[5]


def test_offsets_may_have_gaps() -> None:
    """What is told of a record names its own offset, also where some in between hold none."""
    trainer = Trainer(MemoryStore())
    trainer.load()
    lesson = trainer.learn(10, 50, [LOG[0], b"wrong", LOG[1]], [11, 29, 48])
    assert list(lesson.refused) == [29]
    assert trainer.offset == 50


def test_a_draw_that_contradicts_itself_is_refused() -> None:
    """A shard beyond the number of shards would leave a learner that nobody can load."""
    later = values(recorded(1, shards=1, as_of=99 * DAY))[0]
    store = taught([*LOG, later.replace(b'"shard":0', b'"shard":5')])
    assert contents(store) == (len(LOG) + 1, *contents(taught(LOG))[1:])
    assert Trainer(store).load() == len(LOG) + 1


@pytest.mark.parametrize(
    ("stored", "said"),
    [(b"{", "damaged"), (b"[]", "damaged"), (b"{}", "damaged"), (b"null", "damaged"), (b'{"format":99}', "newer")],
)
def test_a_learner_that_cannot_be_used_is_told(stored: bytes, said: str) -> None:
    """With the field in which it is; nothing is loaded then, not even the others."""
    store = taught(LOG)
    store.commit_learners(len(LOG), len(LOG), {"größe": stored}, {})
    trainer = Trainer(store)
    with pytest.raises(StateError, match=rf"{said}.*field learner:größe"):
        trainer.load()
    assert (trainer.offset, trainer.learners) == (None, {})


def test_learners_are_kept_as_json() -> None:
    """They can be read without this program, and say the same after a round trip."""
    text = taught(LOG).learners()[1]["cluster"]
    state = json.loads(text)
    assert (state["dimension"], state["learned_as_of"], state["shards"]) == ("cluster", 12 * DAY, 2)
    assert LearnerState.parse(text).encode() == text


NO_RIVER = """
import json, sys
import streams.wiring
from streams.replay import replay
from streams.store.memory import MemoryStore
from streams.trainer import Trainer
from tests.support.samples import recorded, values
from tests.unit.build import make_policy, signup, purchase

def learning():
    return [name for name in ("river", "scipy", "models.clustering") if name in sys.modules]

assert replay([purchase("a", "e1", 0), purchase("a", "e2", 10**13)], make_policy())
trainer = Trainer(MemoryStore())
trainer.load()
trainer.learn(0, 1, [b"no draw"])
found = [learning()]
trainer.learn(1, 2, values(recorded(1))[:1])
found.append(learning())
print(json.dumps(found))
"""


def test_river_is_imported_only_to_learn() -> None:
    """Not by a worker that starts, nor by a replay without clusters, nor for what is no draw."""
    done = subprocess.run(
        (sys.executable, "-c", NO_RIVER), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], ["river", "scipy", "models.clustering"]]
