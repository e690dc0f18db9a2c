"""The Celery application, whose messages wake workers and carry no id.

The ledger decides which item a woken worker runs, so a lost message costs a few seconds (the audit sends it again) and
a duplicate costs nothing. Result backend, remote control, retries, time limits and eta are off; the ledger replaces
them.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, Self

from celery import Celery
from celery.app.amqp import AMQP
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from shared.errors import LedgerUnavailable
from shared.ledger import keys
from shared.ledger.connection import raise_if_forbidden
from shared.redis_url import RedisUrl

logger = logging.getLogger("flux2.wake")

WAKE_TASK = "flux2.wake"

# At once: with kombu's defaults, a request waits 6 s for its wake-ups while Redis refuses connections.
_ONE_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0}


class _Connection(Connection):
    """A connection that tries to reconnect to Redis at least every 2 s."""

    def ensure_connection(self, *args: Any, **options: Any) -> Self:
        # Celery waits up to 30 s between attempts and has no setting for it.
        options = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 2, **options}
        super().ensure_connection(*args, **options)  # type: ignore[no-untyped-call]
        return self


class _Amqp(AMQP):  # type: ignore[misc]
    Connection = _Connection


class _Application(Celery):  # type: ignore[misc]
    """A Celery application whose broker is the ledger's Redis."""

    # Celery prefers the environment's CELERY_BROKER_URL to its configuration: wake-ups would go elsewhere.
    def connection_for_read(self, url: str | None = None, **options: Any) -> Connection:
        connection: Connection = super().connection_for_read(self.conf["broker_url"], **options)
        return connection

    def connection_for_write(self, url: str | None = None, **options: Any) -> Connection:
        connection: Connection = super().connection_for_write(self.conf["broker_url"], **options)
        return connection


def make_celery(redis_url: RedisUrl | str, *, side: Literal["api", "worker"], timeout_s: float) -> Celery:
    """Make the Celery application of one side.

    Args:
        timeout_s: longest time that the API waits to publish a message.
    """
    app = _Application("flux2", amqp=_Amqp)
    app.conf.update(
        **RedisUrl.parse(redis_url).celery_settings(),
        # The solo pool acknowledges a message after its task even without this setting (celery 5.7).
        task_acks_late=True,
        # A result backend loses what ends while Redis is away (celery#8588); the ledger holds the results.
        task_ignore_result=True,
        result_backend=None,
        # An accept must not wait for a wake-up: the audit sends missing ones.
        task_publish_retry=False,
        task_create_missing_queues=True,
        # A worker must not hold a second message for the minutes in which it renders.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # The solo pool answers no remote control while it renders (celery#3768).
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A Redis that becomes a replica answers waiting workers with an error, which would end them and their models.
        broker_channel_error_retry=True,
        # Rendering continues while Redis is away: the fence decides later whether the result counts.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_transport_options={
            "global_keyprefix": keys.PREFIX,
            # Wake-ups have no priorities: otherwise a waiting worker names each of its queues four times.
            "priority_steps": [0],
            # Longer than any item. A redelivered wake-up is harmless, and recovery never waits for it.
            "visibility_timeout": 3600,
            # Workers wait longer: a short outage must not end them.
            "socket_timeout": timeout_s if side == "api" else 10,
            "socket_connect_timeout": timeout_s,
            "socket_keepalive": True,
            # Seconds. kombu drops a silent connection after 1 s plus twice this value: 51 s with its default of 25.
            "health_check_interval": 5,
            **(_ONE_RETRY if side == "api" else {}),
        },
    )
    return app


def check_broker(app: Celery) -> None:
    """Connect to Redis as Celery does, and write nothing.

    Raises:
        LedgerUnavailable: Redis does not answer, or refuses this client.
    """
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1)
    except OperationalError as error:
        raise_if_forbidden(error)
        raise LedgerUnavailable(f"Redis did not answer Celery: {error}") from error


def send_wakeups(app: Celery, name: str, *, count: int) -> int:
    """Send `count` wake-ups until Redis fails to answer; return how many were sent. The audit sends the rest.

    Args:
        name: the queue's: the pool's, except for large items; see `shared.job.wake_name`.
    """
    sent = 0
    try:
        with app.producer_or_acquire() as producer:
            for _ in range(count):
                app.send_task(WAKE_TASK, queue=keys.wake_queue(name), producer=producer)
                sent += 1
    except OperationalError as error:
        logger.warning("wake-ups not sent", extra={"queue": name, "missing": count - sent, "error": str(error)})
    return sent
