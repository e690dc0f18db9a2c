"""Supervise the slots that `flux2 worker --gpus` and `flux2 worker --simulate` ask for."""

from __future__ import annotations

import socket
import sys

from shared.provenance.signer import open_signer
from shared.settings import Settings
from worker.fleet.gpus import choose_gpus, count_gpus, group_gpus
from worker.fleet.slot_process import SlotProcess
from worker.fleet.supervisor import Supervisor


def run_gpu_slots(settings: Settings, gpus: str, *, per_slot: int = 1) -> int:
    """Run a slot on each GPU that `gpus` names, or on `per_slot` of them, until SIGTERM; return the exit status.

    Raises:
        CheckpointError: see `choose_gpus` and `group_gpus`.
    """
    name = settings.worker.name
    slots = []
    for group in group_gpus(choose_gpus(gpus, count=count_gpus()), per_slot=per_slot):
        # Without a name, a slot is named after its first GPU's UUID, whatever its index is after the next start.
        named = ["--name", f"{name}-{group[0]}"] if name else []
        devices = ",".join(f"cuda:{index}" for index in group)
        slots.append(_slot(settings, devices, ["--device", devices, *named]))
    return _supervise(settings, slots)


def run_simulated_slots(settings: Settings, count: int, *, step_s: float) -> int:
    """Run simulated slots until SIGTERM; return the exit status."""
    name = settings.worker.name or f"{socket.gethostname()}/simulated"
    options = ["--simulate", "1", "--simulated-step-s", repr(step_s)]
    slots = [
        _slot(settings, f"simulated-{number}", [*options, "--name", f"{name}-{number}"]) for number in range(count)
    ]
    return _supervise(settings, slots)


def _supervise(settings: Settings, slots: list[SlotProcess]) -> int:
    # One message here, instead of one from each slot at each of its restarts.
    open_signer(settings.provenance)
    return Supervisor(slots, drain_s=settings.worker.drain_s, health_dir=settings.worker.health_dir).run()


def _slot(settings: Settings, label: str, options: list[str]) -> SlotProcess:
    command = [sys.executable, "-m", "shared.cli", "worker", *options]
    return SlotProcess(label, command, log_format=settings.log.format)
