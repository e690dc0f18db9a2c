"""Measure a submit whose adapter is in S3 or behind a link, next to one whose adapter is under the adapter root.

A real API process answers over HTTP, with Redis, SeaweedFS and a web server on this host. So the times hold for a near
source: a distant one adds a round trip for each request in the table. Compare times of one run only. Prints tables, or
JSON lines with `--json`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx2
import typer

from benchmarks.adapters import write_lora
from benchmarks.range_servers import CountingProxy, FileServer
from shared.adapters.base_sizes import linear_layers
from shared.catalog import FLUX2_DEV
from shared.console import LineConsole
from shared.local.child import ChildProcess
from shared.local.environment import unconfigured_environment
from shared.local.ports import pick_free_port
from shared.local.servers import EmbeddedServers
from shared.settings import S3Settings
from shared.storage.s3_client import make_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Row = dict[str, Any]

_START_S = 60.0


def main(
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA; 107 makes a file of 1.3 GB.")] = 107,
    submits: Annotated[int, typer.Option(min=2, help="Submits of a file whose header was read before.")] = 300,
    new_files: Annotated[int, typer.Option(min=2, help="Submits of files that no one has submitted before.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of tables.")] = False,
) -> None:
    """Start everything in a temporary folder, submit, and stop it."""
    with tempfile.TemporaryDirectory(prefix="flux2-bench-") as folder, ExitStack() as running:
        bench = _Bench(Path(folder), running, rank=rank)
        reads = list(bench.count_reads())
        times = list(bench.time_submits(submits=submits, new_files=new_files))
    if as_json:
        typer.echo("\n".join(json.dumps(row) for row in [*reads, *times]))
        return
    console = LineConsole()
    read_table = [("first submit of a file", "size in MB", "requests", "kB read")]
    for row in reads:
        sizes = f"{row['size_bytes'] / 1e6:.0f}", str(row["requests"]), f"{row['bytes_read'] / 1000:.0f}"
        read_table.append((row["read"], *sizes))
    console.print_rows(read_table)
    table = [("adapter", "submits", "p50 ms", "p99 ms", "p50 by local")]
    for row in times:
        shown = f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}", f"{row['p50_ms'] / times[0]['p50_ms']:.1f}"
        table.append((row["adapter"], str(row["submits"]), *shown))
    console.print_rows(table)


class _Bench:
    """The servers, with one large LoRA in each place."""

    def __init__(self, folder: Path, running: ExitStack, *, rank: int) -> None:
        self._folder = folder
        self._servers = running.enter_context(EmbeddedServers(folder))
        self._proxy = running.enter_context(CountingProxy(self._servers.s3.port))
        self._lora = self._write("lora", rank=rank)
        self._web = running.enter_context(FileServer(self._lora))
        self._bucket = self._servers.s3.bucket
        _s3_client(self._servers).upload_file(str(self._lora), self._bucket, "lora.safetensors")

    def count_reads(self) -> Iterator[Row]:
        """Submit each remote file twice, and yield what its server was asked for."""
        size_bytes = self._lora.stat().st_size
        # This API reaches S3 through the proxy only.
        with self._api(FLUX2_S3_ENDPOINT_URL=f"http://127.0.0.1:{self._proxy.port}") as submit:
            for kept, path, server in (
                ("S3", f"s3://{self._bucket}/lora.safetensors", self._proxy),
                ("web server", f"{self._web.url}/lora.safetensors", self._web),
            ):
                for read in (kept, f"{kept}, again"):
                    server.reset()
                    submit(path)
                    counts = {"requests": server.requests, "bytes_read": server.bytes_sent}
                    yield {"read": read, "size_bytes": size_bytes, **counts}

    def time_submits(self, *, submits: int, new_files: int) -> Iterator[Row]:
        """Yield the times of submits, which take the places in turn."""
        new = [self._write(f"new-{number}", rank=1) for number in range(new_files)]
        client = _s3_client(self._servers)
        for file in new:
            client.upload_file(str(file), self._bucket, file.name)
        known = {
            "local, known": self._lora.name,
            "S3, known": f"s3://{self._bucket}/lora.safetensors",
            "web server, known": f"{self._web.url}/lora.safetensors",
        }
        first: dict[str, list[str]] = {
            "local, new, of 12 MB": [file.name for file in new],
            "S3, new": [f"s3://{self._bucket}/{file.name}" for file in new],
            "web server, new": [f"{self._web.url}/{file.name}" for file in new],
        }
        with self._api() as submit:
            for path in known.values():
                submit(path)
            times: dict[str, list[float]] = {name: [] for name in known}
            for _ in range(submits):
                for name, path in known.items():
                    times[name].append(submit(path))
            times |= {name: [] for name in first}
            for number in range(new_files):
                for name, paths in first.items():
                    times[name].append(submit(paths[number]))
        for name, seconds in times.items():
            yield _row(name, seconds)

    def _write(self, name: str, *, rank: int) -> Path:
        root = self._folder / "adapters"
        root.mkdir(exist_ok=True)
        layers = {layer: shape for layer, shape in linear_layers(FLUX2_DEV.id).items() if "_blocks." in layer}
        return write_lora(root / f"{name}.safetensors", layers, rank=rank)

    @contextmanager
    def _api(self, **variables: str) -> Iterator[_Submit]:
        """Run an API process, and give the function that submits to it."""
        port = pick_free_port()
        environment = {
            **unconfigured_environment(),
            **self._servers.environment(),
            "FLUX2_API_PORT": str(port),
            "FLUX2_ADAPTERS_ROOT": str(self._folder / "adapters"),
            "FLUX2_SOURCES_PRIVATE_HOSTS": self._web.place,
            **variables,
        }
        folder = self._folder / f"api-{port}"
        folder.mkdir()
        api = ChildProcess("api", [sys.executable, "-m", "shared.cli", "api"], folder=folder, environment=environment)
        url = f"http://127.0.0.1:{port}"
        api.start(lambda: _answers(url), timeout_s=_START_S)
        try:
            with httpx2.Client(base_url=url, timeout=60) as http:
                yield _Submit(http)
        finally:
            api.stop()


class _Submit:
    """Submits a job of one image and returns the seconds until it was accepted."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http

    def __call__(self, path: str) -> float:
        prompt = {"prompt": "a cat", "width": 64, "height": 64, "sample_steps": 1}
        body = {"model": FLUX2_DEV.id, "loras": [{"path": path}], "prompts": [prompt]}
        started = time.perf_counter()
        answer = self._http.post("/v1/inference", json=body)
        seconds = time.perf_counter() - started
        if answer.status_code != 202:
            raise AssertionError(f"{path}: {answer.status_code} {answer.text}")
        return seconds


def _s3_client(servers: EmbeddedServers) -> S3Client:
    variables: Mapping[str, str] = servers.s3.environment()
    settings = S3Settings(region=variables["FLUX2_S3_REGION"], addressing_style="path")
    credentials = {
        "aws_access_key_id": variables["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
    }
    return make_client(settings, endpoint_url=servers.s3.url, credentials=credentials)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _row(name: str, seconds: Sequence[float]) -> Row:
    percentiles = statistics.quantiles(seconds, n=100, method="inclusive")
    return {
        "adapter": name,
        "submits": len(seconds),
        "p50_ms": percentiles[49] * 1000,
        "p99_ms": percentiles[98] * 1000,
    }


if __name__ == "__main__":
    typer.run(main)
