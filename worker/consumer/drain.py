"""Drain a worker after SIGTERM: claim nothing more, finish or hand over the running items, and exit in time."""

from __future__ import annotations

import queue
import threading
from typing import Literal

from worker.consumer.process_end import EXIT_DRAINED, end_process
from worker.consumer.worker import Worker

# Celery needs up to this long to close its connections once nothing runs.
_CLOSE_S = 5.0
_POLL_S = 0.1


class Drain:
    """A thread that ends the process if it has not ended by itself `drain_s` seconds after `begin`.

    Celery stops taking wake-ups at SIGTERM and ends the process when the running item is done. Items that are not done
    in time are handed over without counting the attempt, and the process exits at once.
    """

    def __init__(self, worker: Worker, *, close_s: float = _CLOSE_S) -> None:
        self._worker = worker
        self._close_s = close_s
        self._thread = threading.Thread(target=self._run, name="flux2-drain", daemon=True)
        # Signal handlers may use a SimpleQueue; the thread that one interrupts could hold the lock of an Event.
        self._messages: queue.SimpleQueue[Literal["begin", "stop"]] = queue.SimpleQueue()
        self._begun = False

    def start(self) -> None:
        """Start the thread, which sleeps until `begin`."""
        self._thread.start()

    def begin(self) -> None:
        """Begin to drain. A signal handler may call this: it never blocks."""
        # Celery emits worker_shutting_down inside its handler of SIGTERM.
        self._worker.state.start_draining()
        self._begun = True
        self._messages.put("begin")

    def stop(self) -> None:
        """Join the thread, unless a drain has begun."""
        self._messages.put("stop")
        # After `begin` the thread guards the process until its end, because closing connections may hang too.
        if not self._begun:
            self._thread.join()

    def _run(self) -> None:
        if self._messages.get() == "stop":
            return
        threading.Event().wait(self._worker.settings.worker.drain_s)
        # A wake-up that Celery handled at the signal may still have claimed an item; an idle process ends by itself.
        polls = round(self._close_s / _POLL_S)
        while not self._worker.state.claims and polls:
            threading.Event().wait(_POLL_S)
            polls -= 1
        # The main thread is inside a kernel that nothing can interrupt, or waits for a server that does not answer.
        end_process(self._worker, EXIT_DRAINED, reason="not finished in time after SIGTERM")
