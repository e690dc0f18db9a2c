"""The process of one slot, whose output goes to this process' standard error under the slot's label."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import IO, Literal

from shared.local.guarded_process import GuardedProcess

_JOIN_S = 5.0


class SlotProcess:
    """Runs the command of one slot.

    Args:
        label: names the slot in every line of its output, e.g. `cuda:1`.
        command: program and arguments.
        log_format: of the lines that the process writes.
    """

    def __init__(self, label: str, command: Sequence[str], *, log_format: Literal["console", "json"]) -> None:
        self.label = label
        self.restarts = 0
        self._command = command
        self._log_format = log_format
        self._process: GuardedProcess | None = None
        self._copier: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """Exit status of the process; None while it runs and before its start."""
        return self._process.status if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.status is None

    @property
    def started_s(self) -> float:
        """When the process was last started, by the monotonic clock."""
        return self._process.started_s if self._process else 0.0

    def start(self) -> None:
        self._process = GuardedProcess(self._command, environment=os.environ)
        assert self._process.output is not None
        self._copier = threading.Thread(target=self._copy_output, args=(self._process.output,), daemon=True)
        self._copier.start()

    def restart(self) -> None:
        """Start the process again; processes that it left behind are killed first."""
        self.stop(grace_s=0)
        self.restarts += 1
        self.start()

    def terminate(self) -> None:
        """Ask the process to drain."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process at once; its `status` then says so."""
        if self._process is not None:
            self._process.kill()

    def stop(self, *, grace_s: float) -> None:
        """Drain the process, and kill it after `grace_s` seconds; safe to repeat."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(grace_s=grace_s)
            assert self._copier is not None
            # The last lines say why the process ended. A process that left the group may hold the output open.
            self._copier.join(_JOIN_S)

    def _copy_output(self, output: IO[bytes]) -> None:
        with output:
            for line in filter(bytes.strip, output):
                # If nobody reads the log any more, its lines are lost: a process whose output nobody takes would block.
                with contextlib.suppress(OSError):
                    # In one write, so that lines of several slots do not mix.
                    os.write(sys.stderr.fileno(), self._labelled(line.rstrip(b"\n")) + b"\n")

    def _labelled(self, line: bytes) -> bytes:
        if self._log_format == "console":
            return f"[{self.label}] ".encode() + line
        if line.startswith(b"{"):
            return line
        # Words of Python or CUDA between the records: they become one too, for programs that read the log.
        text = line.decode(errors="replace")
        record = {"event": text, "level": "error", "logger": "flux2.worker.output", "slot": self.label}
        return json.dumps(record).encode()
