"""Measure what a fleet saves: the same images with one slot and with one slot per GPU, adapters interleaved.

Real worker processes under `flux2 worker --gpus`, on a full-size model with random weights; each image has a new
prompt. Times hold for one run on one machine; only the ratio carries over. Prints a table, or JSON lines with `--json`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from celery import Celery

from benchmarks.gpu.models import Checkpoint, write_adapter
from shared.adapters.identity import sha256_of
from shared.celery_app import make_celery, send_wakeups
from shared.console import LineConsole
from shared.errors import ServerFailed
from shared.job import AdapterRef, ItemSpec
from shared.ledger import Ledger
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings

_START_S, _JOB_S, _POLL_S = 600.0, 1800.0, 0.1

Row = dict[str, Any]


def main(
    gpus: Annotated[int, typer.Option(min=1, help="Slots to compare with one.")] = 2,
    model: Annotated[str, typer.Option(help="Model id.")] = "flux2_klein_4b",
    images: Annotated[int, typer.Option(min=1, help="Images of each run.")] = 32,
    adapters: Annotated[int, typer.Option(min=1, help="Adapters that take turns.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of an image.")] = 20,
    size: Annotated[int, typer.Option(min=64, help="Width and height in pixels.")] = 1024,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="A tiny model, with slots on the CPU, to try the script.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Write the model, then render the images with one slot and with all of them."""
    device = torch.device("cpu" if tiny else "cuda:0")
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flux2-bench-")))
        checkpoint = stack.enter_context(Checkpoint(model, tiny=tiny, device=device))
        refs = _write_adapters(checkpoint, root / "adapters", adapters, "fp32" if tiny else "bf16")
        specs = [_spec(model, number, refs[number % adapters], steps=steps, size=size) for number in range(images)]
        rows = []
        for count in dict.fromkeys((1, gpus)):
            redis = stack.enter_context(RedisServer(root / f"redis-{count}"))
            environment = {
                **os.environ,
                **redis.environment(),
                **checkpoint.environment(),
                "FLUX2_MODEL_PRECISION": "fp32" if tiny else "bf16",
                "FLUX2_STORAGE_BACKEND": "directory",
                "FLUX2_STORAGE_DIRECTORY": str(root / "objects"),
                "FLUX2_ADAPTERS_ROOT": str(root / "adapters"),
                "FLUX2_WORKER_LOCK_DIR": str(root),
            }
            rows.append(_measure(redis.url, environment, specs, slots=count, tiny=tiny))
    for row in rows:
        row["ratio"] = row["seconds"] / rows[0]["seconds"]
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [tuple(rows[0])]
    for row in rows:
        table.append(tuple(f"{value:.3f}" if isinstance(value, float) else f"{value}" for value in row.values()))
    LineConsole().print_rows(table)


def _measure(url: str, environment: Mapping[str, str], specs: Sequence[ItemSpec], *, slots: int, tiny: bool) -> Row:
    ledger = Ledger.connect(url, QueueSettings(), timeout_s=5)
    with _workers(environment, slots, tiny=tiny, ledger=ledger):
        # Each slot has rendered once before the clock starts.
        celery = make_celery(url, side="api", timeout_s=5)
        _run_job(ledger, celery, "warm-up", [specs[0]] * slots)
        seconds, swaps = _run_job(ledger, celery, "measured", specs)
    keys = [spec.adapter_key for spec in specs]
    return {
        "slots": slots,
        "images": len(specs),
        "seconds": seconds,
        "swaps": swaps,
        "swaps first in, first out": _swaps_in_order(keys, slots),
    }


@contextmanager
def _workers(environment: Mapping[str, str], slots: int, *, tiny: bool, ledger: Ledger) -> Iterator[None]:
    """Run the slots inside the block, all of them ready."""
    commands = (
        [["--device", "cpu", "--name", f"slot-{number}"] for number in range(slots)]
        if tiny
        else [["--gpus", f"{slots}"]]
    )
    processes = [
        subprocess.Popen([sys.executable, "-m", "shared.cli", "worker", *options], env=environment)
        for options in commands
    ]
    try:
        deadline_s = time.monotonic() + _START_S
        while len(ledger.workers.live_slots()) < slots:
            if time.monotonic() > deadline_s or any(process.poll() is not None for process in processes):
                raise ServerFailed("the slots did not start; the lines above say why")
            time.sleep(_POLL_S)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()


def _run_job(ledger: Ledger, celery: Celery, name: str, specs: Sequence[ItemSpec]) -> tuple[float, int]:
    """Return the seconds from the acceptance of a job to its end, and how many of its images needed a swap."""
    ledger.accept(name, specs, record={})
    send_wakeups(celery, specs[0].model, count=len(specs))
    deadline_s = time.monotonic() + _JOB_S
    while (job := ledger.job(name)) is None or job.finished_ms is None:
        if time.monotonic() > deadline_s:
            raise ServerFailed(f"the job {name} has not ended within {_JOB_S:g} s")
        time.sleep(_POLL_S)
    results = [item.result for item in job.items if item.result is not None]
    if len(results) < len(specs):
        raise ServerFailed(f"the job {name} failed: {[item.error for item in job.items if item.error][:1]}")
    return (job.finished_ms - job.accepted_ms) / 1000, sum(result.pipeline.change != "none" for result in results)


def _swaps_in_order(keys: Sequence[str], slots: int) -> int:
    """Return the swaps of slots that take the items in turn, without regard to their adapters."""
    warm = ["base"] * slots
    swaps = 0
    for number, key in enumerate(keys):
        swaps += warm[number % slots] != key
        warm[number % slots] = key
    return swaps


def _write_adapters(checkpoint: Checkpoint, folder: Path, count: int, precision: str) -> list[AdapterRef]:
    folder.mkdir()
    components = checkpoint.load(precision, compile=False)
    files = [folder / f"adapter-{number}.safetensors" for number in range(count)]
    for file in files:
        write_adapter(file, components)
    del components
    torch.cuda.empty_cache()
    return [
        AdapterRef(path=file.name, sha256=sha256_of(file), size_bytes=file.stat().st_size, multiplier=1.0)
        for file in files
    ]


def _spec(model: str, number: int, adapter: AdapterRef, *, steps: int, size: int) -> ItemSpec:
    return ItemSpec(
        model=model,
        prompt=f"picture {number} of a fox that jumps over river {number}",
        neg="",
        width=size,
        height=size,
        requested_width=size,
        requested_height=size,
        seed=number,
        num_inference_steps=steps,
        guidance_scale=4.0,
        adapters=(adapter,),
        output_format="png",
    )


if __name__ == "__main__":
    typer.run(main)
