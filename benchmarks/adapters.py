"""Measure how long a submit checks an adapter file: a real layout of FLUX.2 [dev], and the largest hostile headers.

Every submit reads the header; a file that is new or has changed is also hashed. Times hold for one run on one machine.
Prints a table, or JSON lines with `--json`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.adapters.base_sizes import linear_layers
from shared.adapters.header import MAX_HEADER_BYTES
from shared.adapters.names import PREFIX
from shared.adapters.validate import validate_adapters
from shared.catalog import FLUX2_DEV
from shared.console import LineConsole
from shared.errors import AdapterRefused
from shared.request import LoraItem
from shared.settings import AdaptersSettings

Row = dict[str, Any]


def main(
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA; 128 makes a file of 1.5 GiB.")] = 128,
    submits: Annotated[int, typer.Option(min=2, help="Checks of an unchanged file.")] = 1000,
    new_files: Annotated[int, typer.Option(min=2, help="Checks of a new file, which is hashed.")] = 5,
    large: Annotated[int, typer.Option(min=2, help="Checks of a header of 64 MiB.")] = 10,
    at_once: Annotated[int, typer.Option(min=2, max=4, help="Checks of a header of 64 MiB at once.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")] = False,
) -> None:
    """Write the files into a temporary folder, and check each as `POST /v1/inference` does."""
    with tempfile.TemporaryDirectory(prefix="flux2-bench-") as folder:
        rows = list(
            _measure(Path(folder), rank=rank, submits=submits, new_files=new_files, large=large, at_once=at_once)
        )
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in rows))
        return
    table = [("file", "size in MB", "header in kB", "checks", "p50 ms", "p99 ms")]
    for row in rows:
        table.append(
            (
                row["file"],
                f"{row['size_bytes'] / 1e6:.0f}",
                f"{row['header_bytes'] / 1000:.0f}",
                str(row["checks"]),
                f"{row['p50_ms']:.1f}",
                f"{row['p99_ms']:.1f}",
            )
        )
    LineConsole().print_rows(table)


def _measure(root: Path, *, rank: int, submits: int, new_files: int, large: int, at_once: int) -> Iterator[Row]:
    # Trainers adapt the layers in the blocks.
    layers = {name: shape for name, shape in linear_layers(FLUX2_DEV.id).items() if "_blocks." in name}
    lora = write_lora(root / "lora.safetensors", layers, rank=rank)
    new = [root / f"new-{number}.safetensors" for number in range(new_files)]
    for file in new:
        os.link(lora, file)  # another path counts as another file

    def check(file: Path) -> None:
        item = LoraItem(path=file.name)
        validate_adapters([item], FLUX2_DEV, layers=layers, settings=AdaptersSettings(root=root))

    def refuse(file: Path) -> None:
        try:
            check(file)
        except AdapterRefused:
            return
        raise AssertionError(f"{file.name} was accepted without a tensor")

    check(lora)
    yield _row("LoRA, unchanged", lora, _times(check, [lora] * submits))
    # Alpha stands in tensors and in the header, so a submit reads the tensors and compares.
    alphas = write_lora(root / "alphas.safetensors", layers, rank=rank, stated_alpha=0)
    check(alphas)
    yield _row("alphas, unchanged", alphas, _times(check, [alphas] * submits))
    yield _row("LoRA, new", lora, _times(check, new))
    tags = _write_long_header(root / "tags.safetensors", '\\"a photo of a fox, sitting\\": 12, ')
    yield _row("tags", tags, _times(refuse, [tags] * large))
    escapes = _write_long_header(root / "escapes.safetensors", "\\n")
    yield _row("escapes", escapes, _times(refuse, [escapes] * large))
    with ThreadPoolExecutor(max_workers=at_once) as threads:
        times = [took for [took] in threads.map(lambda file: _times(refuse, [file]), [escapes] * at_once)]
    yield _row(f"escapes, {at_once} at once", escapes, times)


def write_lora(file: Path, layers: dict[str, tuple[int, int]], *, rank: int, stated_alpha: float | None = None) -> Path:
    """Write a LoRA of these layers as a sparse file: its header is real, and its tensors are zeros."""
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",
            "ss_base_model_version": FLUX2_DEV.id,
            "software": json.dumps({"name": "ai-toolkit", "repo": "https://github.com/ostris/ai-toolkit"}),
            "training_info": json.dumps({"step": 2000, "epoch": 99}),
        }
    }
    if stated_alpha is not None:
        entries["__metadata__"]["lora_alpha"] = str(stated_alpha)
    end = 0
    for layer, (rows, columns) in layers.items():
        for half, shape in (("A", [rank, columns]), ("B", [rows, rank])):
            start, end = end, end + 2 * shape[0] * shape[1]
            name = f"{PREFIX}{layer}.lora_{half}.weight"
            entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        if stated_alpha is not None:
            start, end = end, end + 4
            entries[f"{PREFIX}{layer}.alpha"] = {"dtype": "F32", "shape": [], "data_offsets": [start, end]}
    return _write(file, json.dumps(entries).encode(), data_bytes=end)


def _write_long_header(file: Path, unit: str) -> Path:
    start, end = '{"__metadata__":{"a":"', '"}}'
    return _write(file, (start + unit * ((MAX_HEADER_BYTES - 100) // len(unit)) + end).encode(), data_bytes=0)


def _write(file: Path, header: bytes, *, data_bytes: int) -> Path:
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(file, 8 + len(header) + data_bytes)  # the data is a hole, which takes no room on the disk
    return file


def _times(check: Callable[[Path], None], files: list[Path]) -> list[float]:
    """Return the seconds that each check took."""
    times = []
    for file in files:
        started = time.perf_counter()
        check(file)
        times.append(time.perf_counter() - started)
    return times


def _row(name: str, file: Path, times: list[float]) -> Row:
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "file": name,
        "size_bytes": file.stat().st_size,
        "header_bytes": header_bytes,
        "checks": len(times),
        "p50_ms": percentiles[49] * 1000,
        "p99_ms": percentiles[98] * 1000,
    }


if __name__ == "__main__":
    typer.run(main)
