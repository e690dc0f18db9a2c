"""The jobs of the scenarios."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from benchmarks.scheduling.service_times import ServiceTimes
from benchmarks.scheduling.simulation import Arrival
from benchmarks.scheduling.slot import MODEL
from shared.job import AdapterRef, ItemSpec
from shared.ledger.acceptance import Submission


def make_spec(number: int, *, adapter: int, size: int = 1024, steps: int = 25) -> ItemSpec:
    """Return an item with a prompt of its own and one adapter."""
    sha256 = f"{adapter:064x}"
    return ItemSpec(
        model=MODEL,
        prompt=f"picture {number} of a red fox that jumps over a river",
        neg="",
        width=size,
        height=size,
        requested_width=size,
        requested_height=size,
        seed=number,
        num_inference_steps=steps,
        guidance_scale=4.0,
        adapters=(AdapterRef(path=f"{adapter}.safetensors", sha256=sha256, size_bytes=344_000_000, multiplier=1.0),),
        output_format="png",
    )


def make_job(name: str, specs: Sequence[ItemSpec], *, tenant: str = "default", priority: int = 5) -> Submission:
    return Submission(name, specs, record={"warnings": []}, tenant=tenant, priority=priority)


def interleave(items: int, *, adapters: int) -> list[Arrival]:
    """Return jobs of one item that all arrive at once, with adapters that take turns."""
    return [
        Arrival(0.0, [make_job(f"job-{n}", [make_spec(n, adapter=n % adapters)]) for n in range(items)]),
    ]


def mix(chance: random.Random, *, jobs: int, tenants: int, adapters: int) -> list[Submission]:
    """Return jobs of 1 to 20 items that differ in size, steps, adapter and tenant."""
    made = []
    for number in range(jobs):
        size, steps = chance.choice((512, 768, 1024, 1024, 1536)), chance.choice((8, 20, 25, 25, 40))
        adapter, items = chance.randrange(adapters), chance.choice((1, 1, 2, 4, 8, 20))
        specs = [make_spec(100 * number + n, adapter=adapter, size=size, steps=steps) for n in range(items)]
        made.append(make_job(f"job-{number}", specs, tenant=f"tenant-{chance.randrange(tenants)}"))
    return made


def spread_out(
    chance: random.Random, jobs: Sequence[Submission], *, slots: int, times: ServiceTimes, load: float
) -> list[Arrival]:
    """Let jobs arrive independently, at a rate that keeps this part of the slots busy."""
    work_s = sum(times.stages("", spec, swap="none", is_prepared=True).render_s for job in jobs for spec in job.items)
    every_s = work_s / (len(jobs) * slots * load)
    return [
        Arrival(at_s, [job])
        for at_s, job in zip(arrival_times_s(chance, len(jobs), every_s=every_s), jobs, strict=True)
    ]


def arrival_times_s(chance: random.Random, count: int, *, every_s: float) -> Iterator[float]:
    """Yield the times of independent arrivals that come `every_s` apart on average."""
    at_s = 0.0
    for _ in range(count):
        at_s += chance.expovariate(1 / every_s)
        yield at_s
