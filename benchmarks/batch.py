"""Measure `flux2 batch` with a long file: its peak memory and its time, on a real Redis and API and simulated slots.

The slots draw labelled pictures of 64x64 pixels at once, so the time is that of everything but a model. The memory is
that of the command's process alone. A short file of the same kind comes first; what the long one needs more is the
price of its length. Times hold for one run on one machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from shared.console import LineConsole
from tools.simulated_service import simulated_service

# Under way at a time, so that the short file fills all places too.
_SHORT_LINES: Final = 200
_MIB: Final = 1024**2

Row = dict[str, Any]


def main(
    lines: Annotated[int, typer.Option(min=1, help="Lines of the long file.")] = 10_000,
    slots: Annotated[int, typer.Option(min=1, help="Simulated slots.")] = 4,
    download: Annotated[bool, typer.Option("--download", help="Save the images, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Start all services in a temporary folder, measure, and stop them."""
    with (
        tempfile.TemporaryDirectory(prefix="flux2-batch-") as folder,
        # Their logs, which the operating system writes, must not take a terminal's time.
        (Path(folder) / "log").open("wb") as log,
        simulated_service(slots=slots, step_s=0.0, adapters={}, log=log) as url,
    ):
        rows = [
            _measure(url, Path(folder), number, download=download) for number in dict.fromkeys((_SHORT_LINES, lines))
        ]
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [("lines", "requests, MiB", "answers, MiB", "peak memory, MiB", "processor, s", "time, s", "lines/s")]
    for row in rows:
        sizes = [f"{row[name] / _MIB:.1f}" for name in ("requests_bytes", "answers_bytes", "peak_bytes")]
        times = [f"{row['cpu_s']:.1f}", f"{row['time_s']:.0f}", f"{row['lines'] / row['time_s']:.0f}"]
        table.append((f"{row['lines']:,}", *sizes, *times))
    LineConsole().print_rows(table)


def _measure(url: str, folder: Path, lines: int, *, download: bool) -> Row:
    """Run the command on a new file; its lines name both endpoints in turns."""
    requests, answers = folder / f"{lines}.jsonl", folder / f"{lines}-answers.jsonl"
    with requests.open("w") as file:
        file.writelines(f"{json.dumps(_line(lines, number))}\n" for number in range(lines))
    options = ["--download", str(folder / f"{lines}-images")] if download else []
    command = [sys.executable, "-m", "shared.cli", "batch", str(requests), "--output", str(answers), "--url", url]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    # Not `process.wait`: only this says what the process used.
    _, status, usage = os.wait4(process.pid, 0)
    time_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the command ended with exit code {process.returncode}")
    _check(answers, lines)
    return {
        "lines": lines,
        "requests_bytes": requests.stat().st_size,
        "answers_bytes": answers.stat().st_size,
        # Linux counts in KiB.
        "peak_bytes": usage.ru_maxrss * 1024,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "time_s": time_s,
    }


def _line(lines: int, number: int) -> Row:
    prompt = f"sketch {number} of {lines}: " + "a fox in the snow, seen from a window at night, " * 20
    if number % 2:
        return {
            "custom_id": f"job-{number}",
            "method": "POST",
            "url": "/v1/inference",
            "body": {
                "model": "flux2",
                "prompts": [{"prompt": prompt, "width": 64, "height": 64, "sample_steps": 1}],
                "loras": [],
            },
        }
    return {
        "custom_id": f"images-{number}",
        "method": "POST",
        "url": "/v1/images/generations",
        "body": {"model": "flux2", "prompt": prompt, "size": "64x64", "sample_steps": 1},
    }


def _check(answers: Path, lines: int) -> None:
    with answers.open() as file:
        found = [json.loads(line) for line in file]
    ids = {answer["custom_id"] for answer in found if answer["error"] is None}
    if not len(found) == len(ids) == lines:
        raise SystemExit(f"{len(found)} answers, {len(ids)} of them without an error, for {lines} lines")


if __name__ == "__main__":
    typer.run(main)
