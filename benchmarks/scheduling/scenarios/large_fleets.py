"""Fleets of 8, 1,000 and 10,000 slots on a full queue: what a claim costs, and a day of ten million images."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from unittest.mock import patch

from benchmarks.scheduling.bars import Bar, Outcome
from benchmarks.scheduling.history import percentile
from benchmarks.scheduling.redis_meter import Reading, measured
from benchmarks.scheduling.service_times import H100, ServiceTimes
from benchmarks.scheduling.simulation import Arrival, Simulation
from benchmarks.scheduling.traffic import make_job, make_spec
from shared.ledger import workers
from shared.ledger.connection import Client
from shared.settings import QueueSettings

IMAGES_A_DAY = 10_000_000
_DAY_S = 86_400
_ADAPTERS, _TENANTS, _ITEMS_PER_JOB = 1000, 200, 5
_PIXELS, _STEPS = 1024 * 1024, 25
# Slots start within the time between two heartbeats.
_STARTS_S = 3.0
_SHORTEST_IMAGE_S = 3.0
_REPORT_TTL_MS = 3_600_000
_SCRIPTS = ("claim_next", "peek_next", "commit", "beat", "renew")


def run_large_fleets(
    client: Client,
    seed: int,
    *,
    fleets: Sequence[int] = (8, 1000, 10_000),
    items: int = 100_000,
    images: int = 600,
) -> Outcome:
    """Run each fleet on the same queue until it has rendered some images.

    Args:
        fleets: numbers of slots; the first one is the base of the ratio.
        images: images of each fleet in the measured time.
    """
    chance = random.Random(seed)
    simulation = Simulation(client, QueueSettings(cap=10 * items))
    bytes_before = _used_bytes(client)
    with measured(client) as filling:
        _fill(simulation, chance, items)
    item_bytes = (_used_bytes(client) - bytes_before) / items
    figures: dict[str, float] = {"items": items, "bytes of a queued item": item_bytes}
    readings = []
    for slots in fleets:
        image_s = max(slots * _DAY_S / IMAGES_A_DAY, _SHORTEST_IMAGE_S)
        seconds = images * image_s / slots
        # Redis forgets the report of a slot by its own clock, which passes faster than that of a large fleet.
        with patch.object(workers, "SLOT_TTL_MS", _REPORT_TTL_MS):
            # Not after the last fleet: ten thousand slots take long to end.
            simulation.drain_all()
            _start(simulation, chance, slots, image_s=image_s)
            with measured(client) as reading:
                simulation.run_for(seconds)
        readings.append(reading)
        found = {"images a second": len(reading.script_ms["commit"]) / seconds, **_figures(reading, filling, items)}
        if image_s > _SHORTEST_IMAGE_S:
            found |= _day(found)
        figures |= {f"{slots:,} slots: {name}": value for name, value in found.items()}
    claims_ms = [percentile(reading.script_ms["claim_next"], 99) for reading in readings]
    return Outcome(
        "large-fleets",
        figures,
        [
            Bar("p99 of a claim in ms, the slowest fleet", max(claims_ms), at_most=1.0),
            Bar("p99 of a claim, the largest fleet by the smallest", claims_ms[-1] / claims_ms[0], at_most=1.5),
            Bar("bytes of a queued item", figures["bytes of a queued item"], at_most=2000),
        ],
    )


def _fill(simulation: Simulation, chance: random.Random, items: int) -> None:
    jobs = []
    for number in range(items // _ITEMS_PER_JOB):
        adapter = chance.randrange(_ADAPTERS)
        specs = [make_spec(number * _ITEMS_PER_JOB + n, adapter=adapter) for n in range(_ITEMS_PER_JOB)]
        jobs.append(make_job(f"job-{number}", specs, tenant=f"tenant-{number % _TENANTS}"))
    simulation.plan([Arrival(0.0, jobs)])
    simulation.run_for(0.0)


def _start(simulation: Simulation, chance: random.Random, slots: int, *, image_s: float) -> None:
    """Start a fleet whose slots are at different points of their first items."""
    times = _times(image_s)
    for number in range(slots):
        at_s, share = chance.uniform(0.0, _STARTS_S), chance.random()
        simulation.add_slot(f"fleet-{slots}/{number}", times, at_s=at_s, first_share=share)
    simulation.run_for(_STARTS_S)


def _times(image_s: float) -> ServiceTimes:
    """Return the times of a card that takes `image_s` for an image with an adapter swap."""
    step_s = (image_s - H100.encode_s - H100.begun_swap_s - H100.decode_s) / _STEPS
    return replace(H100, step_s={_PIXELS: step_s})


def _figures(reading: Reading, filling: Reading, items: int) -> dict[str, float]:
    """Return what a fleet cost; that of an image includes its accept."""
    claims_ms = reading.script_ms["claim_next"]
    images = len(reading.script_ms["commit"])
    cpu_s = reading.cpu_s / images + filling.cpu_s / items
    aof_bytes = reading.aof_bytes / images + filling.aof_bytes / items
    return {
        "claim p50 ms": percentile(claims_ms, 50),
        "claim p99 ms": percentile(claims_ms, 99),
        **{f"{script} mean ms": statistics.fmean(reading.script_ms[script]) for script in _SCRIPTS},
        "heartbeats an image": len(reading.script_ms["beat"]) / images,
        "Redis cpu ms an image": 1000 * cpu_s,
        "append-only file, bytes an image": aof_bytes,
    }


def _day(figures: Mapping[str, float]) -> dict[str, float]:
    """Return what ten million images cost in a day, by the figures of a fleet that renders as many."""
    return {
        "Redis cpu, part of a core": figures["Redis cpu ms an image"] / 1000 * IMAGES_A_DAY / _DAY_S,
        "append-only file, GB a day": figures["append-only file, bytes an image"] * IMAGES_A_DAY / 1e9,
    }


def _used_bytes(client: Client) -> int:
    memory = client.info("memory")
    return int(memory["used_memory"] - memory["mem_clients_normal"] - memory["mem_aof_buffer"])
