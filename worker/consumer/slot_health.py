"""Files by which probes see that slots work: when each slot last sent a heartbeat, and when Redis last confirmed one.

A probe of a container or a supervisor reads them: `python -m worker.consumer.slot_health ready FOLDER`. It does not ask
Redis, which would have to answer as many connections as there are slots, and whose outage must not restart a worker
that would then load its model again. Only the standard library is imported, because a probe runs every few seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

#: A process that runs and sent no heartbeat for this long hangs, in seconds: 20 heartbeats are missing.
HUNG_AFTER_S = 60.0

# As long as the ledger counts a slot as live after a heartbeat.
_READY_S = 15.0

_WORKING = ("ready", "busy")


@dataclass(frozen=True)
class SlotHealth:
    """What a slot's file states.

    Attributes:
        pid: process of the slot.
        process_start: when the kernel started this process; another one may get its number later.
        state: as in the slot's last report.
        sent_s: time of the last heartbeat that was sent, also of one that Redis did not answer, by the monotonic clock.
        confirmed_s: time of the last one that Redis confirmed; None before the first.
    """

    slot: str
    pid: int
    process_start: str
    state: str
    sent_s: float
    confirmed_s: float | None

    @property
    def is_running(self) -> bool:
        """Whether the process exists."""
        return _process_start(self.pid) == self.process_start != ""

    def hangs(self, *, now_s: float) -> bool:
        """Return whether the process runs without sending heartbeats."""
        return not _is_recent(self.sent_s, HUNG_AFTER_S, now_s=now_s) and self.is_running

    def is_ready(self, *, now_s: float) -> bool:
        """Return whether the slot takes work: the ledger counts it as live, and it is neither faulty nor draining."""
        confirmed = self.confirmed_s is not None and _is_recent(self.confirmed_s, _READY_S, now_s=now_s)
        return confirmed and self.state in _WORKING and self.is_running


class HealthFile:
    """The file of one slot, which its own process writes."""

    def __init__(self, folder: Path, slot: str) -> None:
        self._slot = slot
        self._confirmed_s: float | None = None
        self._process_start = _process_start(os.getpid())
        folder.mkdir(parents=True, exist_ok=True)
        # A slot's name may hold a slash. The next process of the slot replaces the file.
        self._file = folder / f"{hashlib.sha256(slot.encode()).hexdigest()[:16]}.json"

    def write(self, *, state: str, is_confirmed: bool) -> None:
        """Note a heartbeat that was sent now, and whether Redis confirmed it.

        Raises:
            OSError: the file could not be written; none is left.
        """
        now_s = time.monotonic()
        if is_confirmed:
            self._confirmed_s = now_s
        health = SlotHealth(self._slot, os.getpid(), self._process_start, state, now_s, self._confirmed_s)
        part = self._file.with_suffix(".part")
        try:
            part.write_text(json.dumps(asdict(health)))
            part.replace(self._file)
        except OSError:
            # With its last file, a slot that works would soon count as one that hangs: a full disk must not end it.
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the file of a slot that stops."""
        self._file.unlink(missing_ok=True)


def read_health(folder: Path) -> list[SlotHealth]:
    """Return what every file in the folder states, by the slots' names."""
    found = [health for file in folder.glob("*.json") if (health := _read(file)) is not None]
    return sorted(found, key=lambda health: health.slot)


def find_problem(folder: Path, probe: str, *, slots: int, now_s: float) -> str | None:
    """Return why a probe fails; None if it passes.

    Args:
        probe: `live` fails while a process of a slot hangs. `ready` fails until `slots` slots take work.
    """
    found = read_health(folder)
    if probe == "live":
        hung = [health.slot for health in found if health.hangs(now_s=now_s)]
        return f"no heartbeat for {HUNG_AFTER_S:.0f} s: {', '.join(hung)}" if hung else None
    ready = sum(health.is_ready(now_s=now_s) for health in found)
    states = ", ".join(f"{health.slot} was {health.state}" for health in found) or "none has sent a heartbeat"
    return f"{ready} of {slots} slots take work ({states})" if ready < slots else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print why the probe fails; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m worker.consumer.slot_health", description=find_problem.__doc__)
    parser.add_argument("probe", choices=["live", "ready"])
    parser.add_argument("folder", type=Path, help="FLUX2_WORKER_HEALTH_DIR of the worker")
    parser.add_argument("--slots", type=int, default=1, help="number of slots that `ready` waits for")
    given = parser.parse_args(arguments)
    problem = find_problem(given.folder, given.probe, slots=given.slots, now_s=time.monotonic())
    if problem:
        sys.stderr.write(problem + "\n")
    return 1 if problem else 0


def _read(file: Path) -> SlotHealth | None:
    try:
        return SlotHealth(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        # Its slot stopped just now, or another version wrote it.
        return None


def _is_recent(moment_s: float, limit_s: float, *, now_s: float) -> bool:
    # A heartbeat may come after its reader looked at the clock, and before it reads the file. A moment in the far
    # future is of a clock before the host's last start.
    return abs(now_s - moment_s) <= limit_s


def _process_start(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; empty if it has ended, or without Linux's /proc."""
    try:
        # The name, in brackets, may hold spaces.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    # A zombie has ended. Proc(5) counts from 1, and begins with the number and the name: `state` is the third.
    return "" if state in "ZX" else fields[22 - 4]


if __name__ == "__main__":
    sys.exit(main())
