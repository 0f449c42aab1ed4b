"""``segmenter clusters``: what it says, on a store in memory; its pictures; and titles in ``segments``."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from models.activation import Activation
from models.clusters import ClusterModel, Settings, logged
from models.engines import ClusterPolicy
from models.errors import StateError
from models.instants import DAY, NEVER, format_instant, parse
from models.learner import LearnerState
from models.money import Converter
from models.policy import parse_policy
from models.population import Cutoffs
from streams.choosing import Choice, compare
from streams.cli import cli
from streams.clusters import ENOUGH, Cluster, Clustering, said
from streams.commands.clusters import advice
from streams.generator import Population, generate
from streams.marks import marks
from streams.plot import draw
from streams.preview import RecordedState
from streams.recorded import recorded_event
from streams.settings import ENV_PREFIX
from streams.store import opened
from streams.store.memory import MemoryStore
from tests.unit.command_line import invoke, refused

LEARNED = """version = 7
[dimensions.cluster]
engine = "cluster"
clusters = 3
sample = 100
[dimensions.cluster.profiles.c2]
title = "Our second ones"
"""
TWO = LEARNED.replace("7", "8") + '[dimensions.pair]\nengine = "cluster"\nclusters = 2\nfeatures = ["orders"]\n'
UNLEARNED = 'version = 1\n[dimensions.cluster]\nengine = "cluster"\n'
PLAIN = 'version = 1\n[dimensions.lifecycle]\nengine = "lifecycle"\n'


class Addressed(MemoryStore):
    """A store that says where it is."""

    address = "redis.example:6379"


def filled(policy: str, customers: int) -> Addressed:
    """What workers would have stored of some generated customers."""
    run = RecordedState(parse_policy(policy), 2)
    events = generate(Population(customers=customers, days=60, acquisition_days=40, seed=3))
    for _ in run.feed(recorded_event(json.dumps(event).encode(), "test", n) for n, event in enumerate(events, 1)):
        pass
    run.finish(parse("2024-03-01T00:00:00Z"))
    store = Addressed()
    vars(store).update(vars(run.store))
    store.register(2, "segmenter")
    return store


@pytest.fixture(scope="module")
def learned() -> Addressed:
    """A store in which clusters have been learned; only to be read."""
    return filled(LEARNED, 200)


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets commands read a store."""

    def using(store: MemoryStore) -> None:
        monkeypatch.setattr(opened, "open_store", lambda settings: store)

    return using


def plain(*args: object) -> dict[str, Any]:
    """What ``clusters --json`` says of the only dimension."""
    (found,) = [json.loads(line) for line in invoke("clusters", "--json", *args).stdout.splitlines()]
    return dict(found)


def model_of(store: MemoryStore) -> ClusterModel:
    """The model in force."""
    return store.activation(store.latest_activation()).cutoffs.clusters["cluster"]


def changed(store: MemoryStore, learner: bytes) -> Addressed:
    """The store with another learner."""
    other = Addressed()
    vars(other).update(vars(store))
    offset, _ = store.learners()
    other.learners = lambda: (offset, {"cluster": learner})  # type: ignore[method-assign]
    return other


# Tables and JSON


def test_it_shows_who_is_in_each_cluster(learned: Addressed, use: Any) -> None:
    """Version, age, quality; and a line for each cluster with its centre in real units."""
    use(learned)
    model = model_of(learned)
    lines = invoke("clusters").output.splitlines()
    newest = format_instant(max(learned.header(shard).time or 0 for shard in (0, 1)))
    assert lines[0] == (
        f"cluster: version {model.version} as of 2024-02-29T00:00:00Z, 23 hours before the newest shard's time, "
        f"{newest}"
    )
    assert lines[1] == (
        f"{model.samples} samples learned, no drift noticed; quantisation error {model.error:.3f}, "
        f"silhouette {model.silhouette:.3f}"
    )
    sizes = invoke("segments").output
    for code, label in enumerate(("c1", "c2", "c3")):
        (line,) = [line for line in lines if line.split()[:1] == [label]]
        (size,) = [line for line in sizes.splitlines() if line.split()[:2] == ["cluster", label]]
        title = "Our second ones" if label == "c2" else model.titles[code]
        assert f" {title} " in line
        assert f" {title} " in size
        assert " days " in line
        assert " USD " in line
        count = line.split(title)[1].split()[0]
        assert f" {count} " in size


def test_json_has_everything(learned: Addressed, use: Any) -> None:
    """One object a dimension; the sizes are those of the customers who bear the labels."""
    use(learned)
    found = plain()
    model = model_of(learned)
    assert (found["dimension"], found["policy_version"], found["missing"], found["notes"]) == ("cluster", 7, None, [])
    assert found["settings"]["features"] == ["recency_days", "orders", "monetary"]
    assert found["model"]["version"] == found["learner"]["version"] == model.version
    assert found["model"]["silhouette"] == model.silhouette
    assert found["next_drawn_as_of"] == "2024-03-07T00:00:00Z"
    clusters = found["clusters"]
    assert [each["cluster"] for each in clusters] == ["c1", "c2", "c3"]
    sizes = [learned.segments(shard)[f"cluster:{each['cluster']}"].customers for each in clusters for shard in (0, 1)]
    assert sum(each["customers"] for each in clusters) == sum(sizes) > 150
    assert sum(each["share"] for each in clusters) == pytest.approx(1, abs=0.001)
    assert sum(each["revenue_share"] for each in clusters) == pytest.approx(1, abs=0.001)
    assert [list(each["centre"].values()) for each in clusters] == np.round(model.units, 6).tolist()
    assert clusters[0]["description"].startswith("last purchase about ")
    assert (found["comparison"], found["advice"]) == ([], None)


def test_segments_show_learned_titles(learned: Addressed, use: Any) -> None:
    """And descriptions, where the policy's profile says nothing."""
    use(learned)
    found = [json.loads(line) for line in invoke("segments", "--json").stdout.splitlines()]
    titles = model_of(learned).titles
    assert [each["title"] for each in found] == [titles[0], "Our second ones", titles[2]]
    assert all(each["description"].startswith("last purchase about ") for each in found)


def test_customer_says_why(learned: Addressed, use: Any) -> None:
    """The cluster's title, the version, and the customer's measures."""
    use(learned)
    (customer, *_) = [customer for part in learned.rows(0) for customer, _ in part]
    reason = json.loads(invoke("customer", customer).output)["reasons"]["cluster"]
    assert f"(version {model_of(learned).version})" in reason
    assert "recency_days" in reason


def test_each_dimension_is_shown(use: Any) -> None:
    """Or only one of them; a picture is of one."""
    use(filled(TWO, 200))
    lines = [json.loads(line)["dimension"] for line in invoke("clusters", "--json").stdout.splitlines()]
    assert lines == ["cluster", "pair"]
    assert plain("--dimension", "pair")["settings"]["features"] == ["orders"]
    assert refused("clusters", "--plot", "x.png") == (
        "a picture shows one dimension; choose one with --dimension: cluster, pair"
    )
    assert refused("clusters", "--dimension", "age") == (
        "age is no cluster dimension of policy version 8: cluster, pair"
    )


# Nothing to show


def test_a_policy_without_clusters(use: Any) -> None:
    """It says what to add."""
    use(filled(PLAIN, 5))
    assert refused("clusters") == (
        'policy version 1 has no dimension with engine = "cluster"; add one and apply it (docs/CLUSTERS.md)'
    )


def test_too_few_customers(use: Any, tmp_path: Path) -> None:
    """How many there are, how many are needed, and when it tries again; there is nothing to draw or compare."""
    use(filled(UNLEARNED, 30))
    output = invoke("clusters").output
    drawn = int(output.split("yet: ")[1].split()[0])
    assert 10 < drawn < 30
    assert output == (
        f"cluster: nothing has been learned yet: {drawn} customers with recency_days, orders, monetary were drawn "
        "last, and 100 are needed (20 for each of 5 clusters); the next are drawn as of 2024-03-07T00:00:00Z\n"
    )
    found = plain()
    assert (found["model"], found["learner"]["drawn"], found["learner"]["needed"]) == (None, drawn, 100)
    assert found["missing"] in output
    assert found["clusters"][0]["centre"] is None
    assert refused("clusters", "--plot", tmp_path / "x.png").startswith("cluster cannot be drawn: nothing has been")
    assert refused("clusters", "--compare", "2..10") == (
        f"cluster: {drawn} customers were drawn last, too few to compare 10 clusters; wait for 50, or compare fewer"
    )


def test_no_customers(use: Any) -> None:
    """A worker has started, and nothing has come in."""
    store = Addressed()
    store.register(1, "segmenter")
    policy = parse_policy(UNLEARNED)
    store.activate(Activation(1, "policy", 1, NEVER, NEVER, True, Cutoffs()), policy.text)
    use(store)
    assert invoke("clusters").output == "cluster: nothing has been learned yet: there are no customers\n"


def test_no_draw_yet(learned: Addressed, use: Any) -> None:
    """As when the policy is new, or no worker learns."""
    use(before_learning(learned, lambda store: setattr(store, "learners", lambda: (None, {}))))
    assert invoke("clusters").output == (
        "cluster: nothing has been learned yet: no customers have been drawn under policy version 7; the next are "
        "drawn as of 2024-03-07T00:00:00Z, and 60 are needed\n"
    )


def before_learning(store: MemoryStore, change: Any = lambda store: None) -> Addressed:
    """The store as if no model had come into force."""
    other = Addressed()
    vars(other).update(vars(store))
    other.latest_activation = lambda: 1  # type: ignore[method-assign]
    change(other)
    return other


def test_learned_and_not_in_force_yet(learned: Addressed, use: Any) -> None:
    """Cut-offs are in force a while after the instant that they are of."""
    use(before_learning(learned))
    version = model_of(learned).version
    assert invoke("clusters").output == (
        f"cluster: version {version}, as of 2024-02-29T00:00:00Z, has been learned and comes into force with the "
        "population's next cut-offs, 10 minutes after it\n"
    )


@pytest.mark.parametrize(
    ("learner", "told"),
    [(b"{", "is damaged: it is not JSON"), (b'{"format":9}', "was stored in format 9; run a newer version")],
)
def test_a_damaged_learner(learned: Addressed, use: Any, learner: bytes, told: str) -> None:
    """What is in force is shown all the same, with what is wrong; it is no reason for a traceback."""
    use(changed(learned, learner))
    output = invoke("clusters").output
    version = model_of(learned).version
    (note,) = [line for line in output.splitlines() if line.startswith("note: ")]
    assert f"cannot be read, so version {version} stays in force" in note
    assert told in note
    assert "(field learner:cluster)" in note
    assert "c3" in output
    assert told in plain()["damage"]
    assert told in refused("clusters", "--compare", "2..3")
    use(before_learning(changed(learned, learner)))
    assert "no clusters are in force, and what was learned cannot be read" in invoke("clusters").output


def test_notes(learned: Addressed, use: Any) -> None:
    """What is about to change is said."""
    state = LearnerState.parse(learned.learners()[1]["cluster"])
    assert state.model is not None
    model = state.model.model_copy(update={"version": state.version + 1, "as_of": state.model.as_of + 7 * DAY})
    later = state.model_copy(update={"version": model.version, "model": model})
    other = state.model_copy(update={"settings": state.settings.model_copy(update={"seed": 2})})
    for learner, note in (
        (later, f"version {model.version}, as of 2024-03-07T00:00:00Z, has been learned and comes into force 10 min"),
        (other, "the settings have changed: learning begins anew with the next customers drawn"),
    ):
        use(changed(learned, learner.encode()))
        assert f"note: {note}" in invoke("clusters").output
    use(before_learning(learned))
    lost = Addressed()
    vars(lost).update(vars(learned))
    lost.learners = lambda: (None, {})  # type: ignore[method-assign]
    use(lost)
    assert "note: nothing learned is stored, so version" in invoke("clusters").output


def test_a_damaged_activation(learned: Addressed, use: Any) -> None:
    """It is told like everything else that is damaged."""
    store = Addressed()
    vars(store).update(vars(learned))
    store._activations = [*learned._activations, b"{}"]
    use(store)
    with pytest.raises(StateError, match="is damaged"):
        invoke("clusters")


# Other numbers of clusters


def test_compare_shows_each_number(learned: Addressed, use: Any) -> None:
    """With its quality, the one in force, and what to do; the same every time."""
    use(learned)
    output = invoke("clusters", "--compare", "2..5").output
    assert output == invoke("clusters", "--compare", "2..5").output
    rows = [line.split() for line in output.split("last drawn")[1].splitlines()]
    assert [row[0] for row in rows if row[:1] and row[0] in "2345"][:4] == ["2", "3", "4", "5"]
    (own,) = [row for row in rows if row[:1] == ["3"] and "in" in row]
    found = plain("--compare", "2..5")
    assert [each["in_force"] for each in found["comparison"]] == [False, True, False, False]
    assert own[1] == f"{found['comparison'][1]['silhouette']:.3f}"
    assert found["advice"] == output.splitlines()[-1]
    explained = [each["explained"] for each in found["comparison"]]
    assert explained == sorted(explained)


@pytest.mark.parametrize("given", ["10", "2-10", "1..3", "5..4", "2..51", "..", "a..b"])
def test_compare_refuses_what_is_no_range(given: str) -> None:
    """With an example."""
    result = CliRunner().invoke(cli, ["clusters", "--compare", given])
    assert result.exit_code == 2
    assert f"'{given}' is not a range of numbers from 2 to 50; write it like 2..10" in result.output


def blobs(number: int, each: int = 60) -> Any:
    """Customers in as many groups that are far from each other, in their own units."""
    random = np.random.default_rng(5)
    centres = np.array([[i % 3, i // 3] for i in range(number)], dtype=np.float64)
    return np.round(np.exp(np.repeat(centres, each, axis=0) * 3 + random.normal(0, 0.1, (number * each, 2))), 3)


def test_compare_finds_the_groups_there_are() -> None:
    """Four far apart have the best silhouette with four clusters."""
    found = compare(blobs(4), range(2, 8), 1)
    best = max(found, key=lambda choice: choice.silhouette)
    assert best.clusters == 4
    assert best.silhouette > 0.8
    assert best.smallest == pytest.approx(0.25)
    assert best.explained > 0.95


def test_compare_leaves_out_what_cannot_be() -> None:
    """There are not more clusters than different customers."""
    assert compare(np.ones((60, 2)), [2, 3], 1) == []
    two = np.array([[1.0, 2.0], [9.0, 2.0]] * 30)
    assert [choice.clusters for choice in compare(two, [2, 3], 1)] == [2]


def choice(clusters: int, silhouette: float) -> Choice:
    return Choice(clusters, silhouette, 0.1, 0.5)


@pytest.mark.parametrize(
    ("choices", "said_of_it"),
    [
        ([], "All customers drawn are alike; there is nothing to choose."),
        ([choice(3, 0.2), choice(5, 0.4)], "5 clusters, as now, have the best silhouette: nothing is to be changed."),
        (
            [choice(4, 0.41), choice(5, 0.4)],
            "4 clusters have the best silhouette, but hardly better than 5, as now: there is no reason to change the "
            "policy.",
        ),
        (
            [choice(4, 0.5), choice(5, 0.4)],
            "4 clusters have the best silhouette: if that many are of use, set clusters = 4 in [dimensions.cluster] of "
            "the policy, give it a version above 3, and see `segmenter policy diff` before `segmenter policy apply`.",
        ),
        (
            [choice(50, 0.5), choice(51, 0.4)],
            "50 clusters have the best silhouette: if that many are of use, set clusters = 50 and sample = 1000 in "
            "[dimensions.cluster] of the policy, give it a version above 3, and see `segmenter policy diff` before "
            "`segmenter policy apply`.",
        ),
        (
            [choice(2, 0.5), choice(4, 0.4), choice(5, 0.3)],
            "2 clusters have the best silhouette: if that many are of use, set clusters = 2 in [dimensions.cluster] of "
            "the policy, give it a version above 3, and see `segmenter policy diff` before `segmenter policy apply`. "
            "Two often only part the active from the others; of more than two, 4 are best.",
        ),
    ],
)
def test_advice(choices: list[Choice], said_of_it: str) -> None:
    """The best number, what to write into the policy, and when there is no need."""
    assert advice(example(["orders", "monetary"], 5, sample=500), choices) == said_of_it


# Pictures


def example(features: Iterable[str], clusters: int, drawn: int = 300, sample: int = 1000) -> Clustering:
    """A dimension with these features and clusters, and titles that are hard to draw."""
    names = tuple(features)
    random = np.random.default_rng(2)
    rows = np.round(np.exp(random.normal(3, 1.5, (drawn, len(names)))), 2)
    rows[:, [place for place, name in enumerate(names) if name in ("recency_days", "orders")]] //= 1
    rows[0] = 0
    logs = logged(rows)
    mean, scale = logs.mean(axis=0), logs.std(axis=0)
    policy = ClusterPolicy(engine="cluster", clusters=clusters, features=names, sample=max(sample, 20 * clusters))
    model = ClusterModel(
        version=12,
        as_of=parse("2025-06-19T00:00:00Z"),
        features=names,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        centres=tuple(map(tuple, ((logs[:clusters] - mean) / scale).tolist())),
        titles=tuple(f"$x_{i}$ 顧客 {'long ' * 30 * (i == 1)}" for i in range(clusters)),
        shares=(1 / clusters,) * clusters,
        samples=1000,
        drifts=0,
        error=0.5,
        silhouette=0.31,
    )
    state = LearnerState(
        dimension="cluster", settings=Settings.of(policy), policy_version=3, shards=1, drawn=tuple(map(tuple, rows))
    )
    some = tuple(
        Cluster(label, title, "who they are", 10, 1 / clusters, 123_456, None if code else 0.4, tuple(centre))
        for code, (label, title, centre) in enumerate(
            zip(policy.labels, model.titles, model.units.tolist(), strict=True)
        )
    )
    return Clustering(
        dimension="cluster",
        policy=policy,
        policy_version=3,
        money=Converter("EUR", {}),
        model=model,
        learner=state,
        damage=None,
        time=parse("2025-06-23T00:00:00Z"),
        every=7 * DAY,
        settle=600_000_000,
        clusters=some,
    )


def size_of(png: Path) -> tuple[int, int]:
    """Width and height that a PNG says."""
    content = png.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    assert content[-12:] == b"\x00\x00\x00\x00IEND\xaeB`\x82"
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


def test_a_picture_of_what_was_learned(learned: Addressed, use: Any, tmp_path: Path) -> None:
    """The command writes it and says so; with --json its answer stays JSON."""
    use(learned)
    path = tmp_path / "clusters.png"
    assert invoke("clusters", "--plot", path).output.endswith(f"drawn: {path}\n")
    width, height = size_of(path)
    assert width >= 1600
    assert height >= 800
    assert path.stat().st_size > 30_000
    assert plain("--plot", tmp_path / "again.PNG")["dimension"] == "cluster"
    assert (tmp_path / "again.PNG").read_bytes() == path.read_bytes()


def test_a_picture_has_the_texts(learned: Addressed, use: Any, tmp_path: Path) -> None:
    """Dimension, version, measures in their units, every cluster's id and title."""
    use(learned)
    path = tmp_path / "clusters.svg"
    invoke("clusters", "--plot", path)
    svg = path.read_text(encoding="utf-8")
    model = model_of(learned)
    for text in (
        f"cluster: version {model.version} as of 2024-02-29, silhouette {model.silhouette:.2f}",
        *("days since the last purchase", "orders", "revenue (USD)", "share of customers", "share of revenue"),
        *("c1", "c2", "c3", model.titles[0], "Our second ones", model.titles[2]),
    ):
        assert f">{text}<" in svg
    assert "one more than the value" in svg


def test_a_picture_as_pdf(learned: Addressed, use: Any, tmp_path: Path) -> None:
    """For print; the same bytes every time."""
    use(learned)
    for name in ("a.pdf", "b.pdf"):
        invoke("clusters", "--plot", tmp_path / name)
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


@pytest.mark.parametrize(
    ("features", "clusters", "panels"),
    [
        (["orders"], 2, 1),
        (["recency_days", "monetary"], 2, 1),
        (["recency_days", "orders", "monetary"], 12, 3),
        (["recency_days", "orders", "monetary", "income"], 5, 6),
        (["recency_days", "orders", "monetary", "income", "tenure_days", "satisfaction"], 30, 6),
    ],
)
def test_pictures_of_any_dimension(features: list[str], clusters: int, panels: int, tmp_path: Path) -> None:
    """A panel for each pair of measures, six at most; a title is a text, whatever is in it."""
    found = example(features, clusters)
    draw(found, tmp_path / "x.png")
    assert size_of(tmp_path / "x.png")[0] >= 1600
    draw(found, tmp_path / "x.svg")
    svg = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert svg.count(">c1<") == panels + 1
    assert ">$x_0$ 顧客" in svg
    assert re.search(r">\$x_1\$ 顧客 (long )+.{0,4}…<", svg)
    assert ("measures that differ most" in svg) == (len(features) > 4)


def test_a_picture_without_customers(tmp_path: Path) -> None:
    """As when the learner is lost: the centres alone."""
    draw(replace(example(["orders", "monetary"], 3), learner=None), tmp_path / "x.svg")
    assert ">c3<" in (tmp_path / "x.svg").read_text(encoding="utf-8")


def test_centres_do_not_cover_each_other() -> None:
    """Their labels are moved apart, as little as it takes, and stay in the panel."""
    from streams.plot import _apart

    crowded = np.random.default_rng(1).normal(200, 5, (12, 2))
    low, high = np.array([10.0, 10.0]), np.array([600.0, 500.0])
    moved = _apart(crowded, 40, low, high)
    ways = np.hypot(*(moved[:, None] - moved[None, :]).transpose(2, 0, 1))
    assert ways[~np.eye(12, dtype=bool)].min() > 39
    assert ((moved >= low) & (moved <= high)).all()
    apart = np.array([[100.0, 100.0], [300.0, 100.0]])
    assert np.abs(_apart(apart, 40, low, high) - apart).max() < 0.1


@pytest.mark.parametrize("name", ["x.jpg", "x", "png"])
def test_an_ending_that_cannot_be_drawn(name: str) -> None:
    """Said before anything is read."""
    assert refused("clusters", "--plot", name) == f"cannot draw {name}: end its name in .png, .svg or .pdf"


def test_a_file_that_cannot_be_written(learned: Addressed, use: Any, tmp_path: Path) -> None:
    """A sentence with the reason."""
    use(learned)
    path = tmp_path / "nowhere" / "x.png"
    assert refused("clusters", "--plot", path) == f"cannot write {path}: No such file or directory"


def test_without_matplotlib(learned: Addressed, use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to install it."""
    use(learned)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'segmenter[plot]'" in refused("clusters", "--plot", tmp_path / "x.png")


@pytest.mark.parametrize(
    ("feature", "limits", "most", "texts"),
    [
        ("recency_days", (0.0, 400.0), 9, ["0 d", "1 d", "3 d", "7 d", "30 d", "90 d", "180 d", "1 y"]),
        ("tenure_days", (390.0, 540.0), 9, ["400 d", "440 d", "480 d", "520 d"]),
        ("orders", (1.0, 60.0), 9, ["1", "2", "5", "10", "20", "50"]),
        ("monetary", (0.0, 2_000_000.0), 9, ["0", "10", "100", "1 k", "10 k", "100 k", "1 m"]),
        ("monetary", (-60.0, 60.0), 9, ["−50", "−10", "−2", "0", "2", "10", "50"]),
    ],
)
def test_axes_are_marked_at_human_numbers(
    feature: str, limits: tuple[float, float], most: int, texts: list[str]
) -> None:
    """Days, weeks and years; powers of ten and their halves and doubles; as many as there is room for."""
    low, high = logged(np.array(limits)).tolist()
    found = marks(feature, (low - 0.01, high + 0.01), most)
    assert [found[place] for place in sorted(found)] == texts


# Lightness


def test_reading_needs_neither_river_nor_faust() -> None:
    """Nor matplotlib's global state: the command is quick, and draws where there is no display."""
    program = (
        "import sys; import streams.commands.clusters, streams.commands.inspect, streams.choosing, streams.plot; "
        "print(sorted({'river', 'faust', 'aiokafka', 'matplotlib', 'streams.wiring'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_drawing_leaves_no_global_state(tmp_path: Path) -> None:
    """pyplot keeps figures and picks a display; it is not used."""
    program = (
        "import sys; from pathlib import Path; from tests.unit.test_clusters_command import draw, example; "
        f"draw(example(['orders', 'monetary'], 2), Path({str(tmp_path / 'x.png')!r})); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        cwd=root, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


def test_what_is_needed_is_what_learning_needs() -> None:
    """The number is here once more, because its module is slow to import."""
    from models import clustering

    assert clustering.ENOUGH == ENOUGH


@pytest.mark.parametrize(
    ("feature", "value", "text"),
    [
        ("recency_days", 11.7, "12 days"),
        ("recency_days", 1.0, "1 day"),
        ("orders", 3.44, "3.4"),
        ("monetary", 1234.5678, "1234.57 EUR"),
        ("average_order", -3.0, "-3.00 EUR"),
        ("income", 42_000.4, "42000"),
    ],
)
def test_values_have_units(feature: str, value: float, text: str) -> None:
    """Days, money with its currency, plain numbers."""
    assert said(feature, value, Converter("EUR", {})) == text
