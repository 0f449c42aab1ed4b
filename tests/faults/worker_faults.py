"""What may happen to a worker's process, and to the fleet."""

import random
import signal
import time
from functools import partial

from streams.failpoints import POINTS
from tests.faults.load import PARTITIONS, Load, usual, whole
from tests.faults.run import Again, Run, fault
from tests.support.commands import Worker, eventually

#: Of how many passes of a fail point one is drawn. A shard is loaded once a rebalance, offsets are committed once a
#: second, and the others are passed with every commit.
_PASSES = dict.fromkeys(POINTS, 60) | {"before-load": 2, "before-offsets": 4}
_TITLES = {
    "before-load": "SIGKILL before the load of a shard",
    "after-fold": "SIGKILL after the fold",
    "after-commit": "SIGKILL after the commit",
    "after-publish": "SIGKILL after publishing",
    "before-acknowledge": "SIGKILL before acknowledging",
    "before-offsets": "SIGKILL before Kafka's offsets are committed",
}
REFUSED = "this worker's commit was refused"


def _whole(rng: random.Random) -> Load:
    return whole()


@fault("SIGKILL at any moment", group="worker", selected=True)
def kill_at_random(run: Run) -> None:
    """One of two workers is killed under load, and started again."""
    run.until_produced(run.rng.uniform(0.1, 0.7))
    victim = run.rng.choice(run.workers)
    run.mark()
    run.kill(victim)
    run.restart(victim, ready=False)


def _kill_at(point: str, run: Run) -> None:
    """A second worker kills itself at one of its passes of the point, and is started again without it."""
    passes = run.rng.randint(1, _PASSES[point])
    run.until_produced(0.05)
    run.hold()
    victim = run.start_worker("victim", ready=False, supervised=False, SEGMENTER_FAIL_POINT=f"{point}:{passes}")
    eventually(lambda: not victim.process.running or victim.get("/readyz")[0] == 200, 60, "it is ready or dead")
    run.release()
    eventually(
        lambda: not victim.process.running or (run.production.over and run.settled()), 120, f"{point} is reached"
    )
    run.mark()
    if victim.process.running:
        # Not SIGTERM: on its way out it may still come to the point.
        run.kill(victim)
        raise Again(f"{point} was not reached {passes} times")
    code = victim.exit_code(0)
    assert code == -signal.SIGKILL, f"it ended with code {code} and not at the point:\n{victim.log[-3000:]}"
    run.start_worker("victim", ready=False)


for _point, _title in _TITLES.items():
    fault(_title, group="worker", workers=1, selected=True)(partial(_kill_at, _point))


def _owners(run: Run) -> dict[int, str]:
    return {shard: run.state.owner(shard) for shard in range(PARTITIONS)}


@fault(
    "SIGSTOP beyond the session, SIGCONT",
    group="worker",
    selected=True,
    settings={"SEGMENTER_BATCH_SIZE": "20", "SEGMENTER_SESSION_TIMEOUT": "2"},
    rate=30_000,
)
def zombie(run: Run) -> None:
    """A worker that sleeps with much to do, loses its shards meanwhile, and wakes: what it commits is refused."""
    total, share = len(run.load.records), run.rng.uniform(0.05, 0.5)
    eventually(
        lambda: sum(run.production.sent.values()) - run.state.behind(run.topics) > share * total, 30, "work done"
    )
    victim = run.rng.choice(run.workers)
    run.mark()
    victim.signal(signal.SIGSTOP)
    before = _owners(run)
    try:
        eventually(
            lambda: sum(a != before[n] for n, a in _owners(run).items()) >= PARTITIONS / 2, 30, "others took over"
        )
        time.sleep(run.rng.uniform(0, 0.5))
    finally:
        victim.signal(signal.SIGCONT)
    eventually(lambda: run.production.over and run.settled(), 60, "everything is done")
    victim.ready()
    if REFUSED not in victim.log:
        raise Again("the worker that woke had nothing to commit")


@fault("rebalance storm", group="worker", selected=True, load=_whole, rate=1100, short={"load": usual, "rate": 450})
def storm(run: Run) -> None:
    """Workers join and leave, in good order or killed, every one to three seconds for a minute."""
    while run.progress() < 0.93:
        living = [worker for worker in run.workers if worker.process.running]
        if len(living) < 2 or (len(living) < 4 and run.rng.random() < 0.5):
            ended = [worker for worker in run.workers if not worker.process.running]
            if ended:
                run.restart(run.rng.choice(ended), ready=False)
            else:
                run.start_worker(ready=False)
        else:
            _leave(run, run.rng.choice(living))
        time.sleep(run.rng.uniform(1, 3))
    run.mark()


def _leave(run: Run, worker: Worker) -> None:
    if run.rng.random() < 0.5:
        run.kill(worker)
    else:
        run.terminate(worker)


@fault("rolling restart by SIGTERM", group="worker", selected=True, rate=600)
def rolling_restart(run: Run) -> None:
    """Each worker in turn stops in good order and comes back."""
    run.until_produced(run.rng.uniform(0.05, 0.2))
    run.mark()
    for worker in run.rng.sample(run.workers, len(run.workers)):
        run.terminate(worker)
        run.restart(worker)


@fault("1 → 4 → 2 workers", group="worker", workers=1, selected=True, rate=600)
def scaled(run: Run) -> None:
    """Three workers join one, then two of the four leave."""
    run.until_produced(run.rng.uniform(0.05, 0.2))
    run.mark()
    joining = [run.start_worker(ready=False) for _ in range(3)]
    for worker in joining:
        worker.ready()
    time.sleep(run.rng.uniform(0, 1))
    for worker in run.rng.sample(run.workers, 2):
        _leave(run, worker)
