"""`flux2 batch`: thousands of requests from a file, and their answers in another."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import ApiKey, Json, Profile, Url

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient
    from flux2_client.batch.progress import BatchProgress

_MOST_IN_FLIGHT = 1000


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help='One request on each line: {"custom_id": "a", "url": "/v1/inference", "body": {...}}',
            exists=True,
            dir_okay=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", dir_okay=False, help="File that gets an answer for each line; runs go on in it."
        ),
    ],
    errors: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for the answers with an error, instead of --output.")
    ] = None,
    download: Annotated[
        Path | None, typer.Option(file_okay=False, metavar="FOLDER", help="Save the images in this folder, too.")
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, max=_MOST_IN_FLIGHT, help="Jobs under way at a time.")] = 100,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Render the lines again whose answer is an error.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Render a file of requests, and go on where an earlier run stopped. Exit code 3 if some lines failed, 1 if all."""
    import asyncio

    from flux2_client.batch.batch_files import BatchPaths
    from flux2_client.batch.batch_report import FailureMessages, open_batch_report
    from flux2_client.batch.run import run_batch
    from flux2_client.report import print_message
    from flux2_client.terminal import Session

    paths = BatchPaths(file, output, errors, download)

    async def run(client: AsyncClient) -> int:
        try:
            with open_batch_report(as_json=as_json) as report:
                progress = await run_batch(
                    client,
                    paths,
                    in_flight=in_flight,
                    retry_failed=retry_failed,
                    on_progress=report.progressed,
                    on_failure=FailureMessages(str(errors or output)),
                )
                report.ended(progress)
        except asyncio.CancelledError:
            print_message("jobs that were accepted go on; the same command goes on where this one stops")
            raise
        return _exit_code(progress, output)

    Session(url, profile, api_key, patient=True).run(run)


def _exit_code(progress: BatchProgress, output: Path) -> int:
    from flux2_client.report import print_message
    from flux2_client.terminal import INCOMPLETE, REFUSED, SUCCEEDED
    from shared.plurals import counted

    if progress.changed:
        lines = counted(progress.changed, "line has", "lines have")
        print_message(
            f"{lines} other content than the line that {shlex.quote(str(output))} answers; to render them, give them "
            "another custom_id, or another --output"
        )
    if progress.lost:
        print_message(
            f"the API does not know the jobs of {counted(progress.lost, 'line', 'lines')} any more; run the same "
            "command again to submit them again"
        )
    if progress.failed:
        print_message("to render the failed lines again, add --retry-failed")
    if not (progress.failed or progress.lost):
        return SUCCEEDED
    return INCOMPLETE if progress.succeeded else REFUSED
