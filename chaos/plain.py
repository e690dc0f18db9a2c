"""The control's worker: the same items as plain Celery tasks with late acknowledgement, as most projects run them."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import redis
from celery import Celery

from chaos.history import History

STARTS, ENDS = "plain:starts", "plain:ends"
# The best settings for Celery: redelivery after 5 s, checked every second. They only work because items are shorter.
TRANSPORT = {"visibility_timeout": 5, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}


def make(url: str) -> Celery:
    app = Celery("plain", broker=url)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options=TRANSPORT,
    )
    return app


def main(url: str, name: str, path: str) -> None:
    app, client, history = make(url), redis.Redis.from_url(url), History(Path(path))

    @app.task(name="plain.render")  # type: ignore[untyped-decorator]
    def render(item: str, seconds: float) -> None:
        fence = client.hincrby(STARTS, item, 1)
        history.add("claim", item=item, fence=fence, attempt=fence, slot=name)
        threading.Event().wait(seconds)
        client.hincrby(ENDS, item, 1)
        history.add("commit", item=item, fence=fence, answer="committed")

    app.worker_main(
        ["--quiet", "worker", "--pool=solo", f"--hostname={name}", "--without-gossip", "--without-mingle", "-lERROR"]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
