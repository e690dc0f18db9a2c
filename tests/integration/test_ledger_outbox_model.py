"""Random senders, receivers and clocks over the scripts of the outbox: one sender at a time, and nothing lost."""

import random

import pytest

from shared.ledger import Ledger, keys
from shared.settings import QueueSettings

RESERVE_MS = 25_000
HOUR_MS = 3_600_000
HOSTS = [f"{n}.example" for n in range(5)]


class World:
    """Senders of several processes. `true_ms` is time without the steps of Redis' clock."""

    def __init__(self, redis_client, dice):
        self.clock_ms, self.true_ms, self.dice = 1_700_000_000_000, 0, dice
        self.ledger = Ledger(redis_client, QueueSettings(), clock_ms=lambda: self.clock_ms)
        self.dead_hosts = {HOSTS[0], HOSTS[1]}
        self.ended, self.delivered = 0, set()
        # Job -> end of its reservation and message; of senders that live, and of those that died.
        self.under_way, self.abandoned = {}, {}

    def end(self):
        job, host = f"job{self.ended}", self.dice.choice(HOSTS)
        fields = {"tenant": self.dice.choice("abc"), "webhook": f"https://{host}/", "finished_ms": self.clock_ms}
        self.ledger.redis.hset(keys.job(job), mapping=fields)
        self.ledger.redis.zadd(keys.OUTBOX, {job: self.clock_ms})
        self.ended += 1

    def reserve(self):
        limit = self.dice.choice([0, 1, 8])
        for message in self.ledger.outbox.reserve_due(reserve_s=RESERVE_MS / 1000, limit=limit):
            job = message.job_id
            assert job not in self.delivered
            assert job not in self.under_way
            until_ms, _ = self.abandoned.pop(job, (0, None))
            assert until_ms <= self.true_ms
            self.under_way[job] = (self.true_ms + RESERVE_MS, message)
        for host in HOSTS:
            assert sum(message.url == f"https://{host}/" for _, message in self.under_way.values()) <= 2

    def finish(self, job=None):
        if not self.under_way:
            return
        _, message = self.under_way.pop(job or self.dice.choice(sorted(self.under_way)))
        if any(host in message.url for host in self.dead_hosts):
            wait_s = self.dice.choice([5, 60])
            self.ledger.outbox.postpone(message, wait_s=wait_s, error="ReadTimeout", reached=False)
        elif self.dice.random() < 0.2:
            self.ledger.outbox.postpone(message, wait_s=5, error="answered 500", reached=True)
        else:
            self.delivered.add(message.job_id)
            self.ledger.outbox.mark_delivered(message)

    def die(self):
        if self.under_way:
            job = self.dice.choice(sorted(self.under_way))
            self.abandoned[job] = self.under_way.pop(job)

    def pass_time(self):
        passed_ms = self.dice.choice([100, 1000, 4000])
        self.true_ms += passed_ms
        self.clock_ms += passed_ms
        # No attempt takes as long as its reservation.
        for job in [job for job, (until_ms, _) in self.under_way.items() if until_ms - 4000 <= self.true_ms]:
            self.finish(job)
        self.ledger.reap()
        self.reserve()

    def step_clock(self):
        self.clock_ms += self.dice.choice([-HOUR_MS, HOUR_MS])
        self.ledger.reap()
        self.reserve()


@pytest.mark.parametrize("seed", range(3))
def test_each_message_is_sent_by_one_sender_at_a_time_and_none_is_lost(redis_client, seed):
    world = World(redis_client, random.Random(seed))
    actions = [world.end, world.reserve, world.finish, world.die, world.pass_time, world.step_clock]

    for _ in range(250):
        world.dice.choices(actions, [6, 6, 6, 1, 4, 0.5])[0]()
    world.dead_hosts.clear()
    for _ in range(3000):
        if len(world.delivered) == world.ended:
            break
        world.finish()
        world.pass_time()

    assert len(world.delivered) == world.ended > 40
    assert world.ledger.outbox.count_undelivered() == 0
    assert list(redis_client.scan_iter(f"{keys.OUTBOX}:sending")) == []
