"""Couriers with real receivers on loopback: dead ones delay nobody else, and no host gets many messages at a time."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from api.webhooks import Courier
from shared.ledger import Ledger, keys

TIMEOUT_S = 1.0
SENDERS = 8


class Receiver(ThreadingHTTPServer):
    """Confirms each message after `delay_s`, and counts how many it has at a time.

    Attributes:
        notes: what `note` returned when each message came.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, delay_s=0.0, note=lambda: None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay_s, self.note, self.notes = delay_s, note, []
        self.lock = threading.Lock()
        self.jobs, self.at_a_time, self.most_at_a_time = [], 0, 0


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        with server.lock:
            server.at_a_time += 1
            server.most_at_a_time = max(server.most_at_a_time, server.at_a_time)
            server.notes.append(server.note())
        self.rfile.read(int(self.headers["Content-Length"]))
        threading.Event().wait(server.delay_s)
        with server.lock:
            server.at_a_time -= 1
            server.jobs.append(self.headers["webhook-id"].partition(":")[0])
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver(serve_http):
    return lambda **options: serve_http(Receiver(**options))


@pytest.fixture
def silent_port():
    """A port of every loopback address that accepts connections and never answers."""
    with socket.create_server(("0.0.0.0", 0), backlog=256) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = unused.getsockname()
    return address[1]


@pytest.fixture
def courier(redis_client, settings, webhook_secret):
    """Make couriers as those of several API processes; `start=False` leaves one idle."""
    made = settings(webhook={"secret": webhook_secret, "allow_private": True, "timeout_s": TIMEOUT_S})
    couriers = []

    def make(*, start=True):
        one = Courier(Ledger(redis_client, made.queue), made)
        if start:
            one.start()
            couriers.append(one)
        return one

    yield make
    for one in couriers:
        one.stop()


@pytest.fixture
def ledger(redis_client, settings):
    return Ledger(redis_client, settings().queue)


def end(ledger, job, url, *, tenant="a"):
    """Leave the record and the message of an ended job without items."""
    now = ledger.now_ms()
    counts = dict.fromkeys(("items", "queued", "running", "succeeded", "failed", "canceled"), 0)
    fields = {"state": "canceled", "cancel": 1, "model": "flux2", "pool": "flux2", "tenant": tenant, "priority": 1}
    fields |= {"record": '{"warnings": []}', "accepted_ms": now, "finished_ms": now}
    fields |= {"webhook": url, "webhook_state": "waiting"}
    ledger.redis.hset(keys.job(job), mapping=counts | fields)
    ledger.redis.zadd(keys.OUTBOX, {job: now})


def attempts(ledger, prefix, count):
    return sum(int(ledger.redis.hget(keys.job(f"{prefix}{n}"), "webhook_attempts") or 0) for n in range(count))


def state(ledger, job):
    return ledger.redis.hget(keys.job(job), "webhook_state")


def test_hosts_that_never_answer_delay_another_tenant_by_one_turn_of_a_sender(
    courier, ledger, receiver, silent_port, wait_until
):
    live = receiver(note=lambda: attempts(ledger, "dead", 24))
    for n in range(24):
        end(ledger, f"dead{n}", f"http://127.0.1.{n + 1}:{silent_port}/")
    courier()
    wait_until(lambda: attempts(ledger, "dead", 24) >= SENDERS, what="an attempt of every sender")

    end(ledger, "fine", f"http://127.0.0.1:{live.server_port}/", tenant="b")
    begun = attempts(ledger, "dead", 24)
    wait_until(lambda: live.jobs == ["fine"], what="the other tenant's message")

    # It did not wait for the last eight.
    assert live.notes[0] <= begun + SENDERS


@pytest.mark.parametrize("kind", ["silent", "closed"])
def test_a_dead_host_costs_two_attempts_at_most_and_no_sender(
    kind, courier, ledger, receiver, silent_port, closed_port, wait_until
):
    live = receiver()
    port = silent_port if kind == "silent" else closed_port
    for n in range(24):
        end(ledger, f"dead{n}", f"http://127.0.0.1:{port}/{n}")
    end(ledger, "fine", f"http://127.0.0.1:{live.server_port}/")
    courier()

    # Of the same tenant: six senders are free.
    wait_until(lambda: live.jobs == ["fine"], what="the message to the live host")
    wait_until(lambda: attempts(ledger, "dead", 24), what="the first outcome")

    wait_until(lambda: ledger.outbox.count_undelivered() == 24, what="the outcome of the live host")

    # One, if it fails before another sender has begun.
    assert attempts(ledger, "dead", 24) <= 2


def test_two_processes_send_each_message_once_and_two_at_a_time(courier, ledger, receiver, wait_until):
    live = receiver(delay_s=0.01)
    for n in range(40):
        end(ledger, f"job{n}", f"http://127.0.0.1:{live.server_port}/{n}", tenant=f"t{n % 3}")
    for _ in range(2):
        courier()

    wait_until(lambda: ledger.outbox.count_undelivered() == 0, what="the delivery of all")

    assert sorted(live.jobs) == sorted(f"job{n}" for n in range(40))
    assert live.most_at_a_time == 2
    assert {state(ledger, f"job{n}") for n in range(40)} == {"delivered"}


def test_a_courier_that_stops_begins_no_attempt_and_ends_those_under_way(courier, ledger, silent_port, wait_until):
    for n in range(24):
        end(ledger, f"dead{n}", f"http://127.0.1.{n + 1}:{silent_port}/")
    running = courier()
    wait_until(lambda: attempts(ledger, "dead", 24) >= SENDERS, what="an attempt of every sender")

    running.stop()

    errors = [ledger.redis.hget(keys.job(f"dead{n}"), "webhook_error") for n in range(24)]
    assert sum(bool(error) for error in errors) == attempts(ledger, "dead", 24) < 24


def test_a_sender_that_was_held_up_for_longer_than_its_reservation_allows_sends_nothing(courier, ledger, receiver):
    live = receiver()
    end(ledger, "job0", f"http://127.0.0.1:{live.server_port}/")
    idle = courier(start=False)
    [message] = ledger.outbox.reserve_due(reserve_s=30, limit=1)

    idle._deliver(message, time.monotonic() - 11)
    assert (live.jobs, state(ledger, "job0")) == ([], "waiting")

    idle._deliver(message, time.monotonic())
    assert (live.jobs, state(ledger, "job0")) == (["job0"], "delivered")
