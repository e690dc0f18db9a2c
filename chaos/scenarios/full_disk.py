"""F19: the disk of Redis is full, while workers render and clients submit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import httpx2

from chaos.disk import RedisOnSmallDisk, SmallDisk
from chaos.fleet import Fleet, Plan
from chaos.load import prompt
from chaos.scenarios.stalls import demand_single_starts
from chaos.trial import Lab, Outcome, Trial, trial
from shared.errors import ServerFailed

_TTL_S = 2.0
_STEP_S = 0.1
# Steps of an item that runs for 2 s and ends while the disk is full.
_LONG = (20, 20)
# As Docker's supervisor, which restarts a container at once and then after growing delays.
_RESTART_S = 0.5
_CLIENTS = 4
_FINISH_S = 30.0


class RedisKeeper(threading.Thread):
    """Starts Redis again whenever it has ended, as its supervisor does.

    Attributes:
        ends: how often Redis has ended.
    """

    def __init__(self, fleet: Fleet, redis: RedisOnSmallDisk) -> None:
        super().__init__(name="chaos-redis-keeper", daemon=True)
        self.ends = 0
        self._fleet = fleet
        self._redis = redis
        self._stopped = threading.Event()

    def __enter__(self) -> RedisKeeper:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        while not self._stopped.wait(_RESTART_S):
            if self._redis.is_running:
                continue
            self.ends += 1
            self._fleet.history.add("redis down")
            # On a full disk it may end again before it is ready.
            with contextlib.suppress(ServerFailed):
                self._redis.restart()
            self._fleet.history.add("redis up")


def full_disk(lab: Lab) -> Outcome:
    """Fill the disk for longer than a lease, once under each `appendfsync`, and make room again."""
    outcome = Outcome("F19", "the disk of Redis is full for longer than a lease, then has room again, twice")
    with trial(lab, outcome, Plan(workers=2, ttl_s=_TTL_S, step_s=_STEP_S, small_disk=True)) as running:
        disk, redis = running.fleet.disk, running.fleet.redis
        assert disk is not None
        assert isinstance(redis, RedisOnSmallDisk)
        with RedisKeeper(running.fleet, redis) as keeper:
            # Redis ends when it cannot write what it must answer for.
            _fill(running, disk, "always")
            running.add_figure("ends of Redis, always", keeper.ends)
            running.demand("Redis ends on a full disk", keeper.ends > 0)
            # Here it lives on and refuses every write.
            running.ledger.redis.config_set("appendfsync", "everysec")
            before = keeper.ends
            _fill(running, disk, "everysec")
            running.demand("Redis lives with everysec", keeper.ends == before, keeper.ends)
            running.wait_for_jobs(_FINISH_S)
        running.demand("no process ends", not running.events("restart"), running.events("restart"))
        demand_single_starts(running)
    return outcome


def _fill(running: Trial, disk: SmallDisk, policy: str) -> None:
    """Fill the disk under load; demand that the API says so, and that everything goes on afterwards."""
    for job in [running.load.submit([prompt(running.rng, steps=_LONG)]) for _ in running.fleet.workers]:
        running.slot_of(job)
    running.load.statuses.clear()
    disk.fill()
    with _clients(running):
        took = running.time_until(lambda: _ready(running) == httpx2.codes.SERVICE_UNAVAILABLE, 10, what="/ready 503")
        running.add_figure(f"full to /ready 503 s, {policy}", took)
        threading.Event().wait(1.5 * _TTL_S)
        refused = running.load.statuses[httpx2.codes.SERVICE_UNAVAILABLE]
        running.add_figure(f"503s while full, {policy}", refused)
        running.demand(f"the API says 503 while full, {policy}", refused > 0, running.load.statuses)
        running.demand(f"no other error, {policy}", _unexpected(running) == set(), running.load.statuses)
        disk.clear()
        running.demand_within(f"room to /ready 200 s, {policy}", _time_to_ready(running), 5)
    took = running.time_until(lambda: running.load.wait(0.1), _FINISH_S, what="the end of all jobs")
    running.demand_within(f"room to the end of all jobs s, {policy}", took, 15)


@contextlib.contextmanager
def _clients(running: Trial) -> Iterator[None]:
    """Submit a job from each of several clients, which repeat it until it is accepted."""
    bodies = [[prompt(running.rng)] for _ in range(_CLIENTS)]
    threads = [threading.Thread(target=running.load.submit, args=[body]) for body in bodies]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


def _ready(running: Trial) -> int:
    try:
        return httpx2.get(f"{running.fleet.url}/ready", timeout=5).status_code
    except httpx2.TransportError:
        return 0


def _time_to_ready(running: Trial) -> float:
    return running.time_until(lambda: _ready(running) == httpx2.codes.OK, 20, what="/ready 200")


def _unexpected(running: Trial) -> set[int]:
    # 202 too: the last page of the file has room for some writes.
    expected = {httpx2.codes.OK, httpx2.codes.ACCEPTED, httpx2.codes.SERVICE_UNAVAILABLE}
    return set(running.load.statuses) - expected
