"""Commands that look at jobs, wait for them, download their images and cancel them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import (
    DEFAULT_NAME,
    DEFAULT_PARALLEL,
    Json,
    Name,
    Output,
    Overwrite,
    Parallel,
    Profile,
    RequestIds,
    Url,
)

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient

RequestId = Annotated[str, typer.Argument(metavar="ID", help="Id of a job.")]


def wait(
    request_ids: RequestIds,
    output: Output = None,
    name: Name = DEFAULT_NAME,
    parallel: Parallel = DEFAULT_PARALLEL,
    overwrite: Overwrite = False,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Wait until jobs have ended. Exit code 3 if only some images succeeded, 1 if none."""
    from flux2_client.following import Destination, Downloader, follow_jobs
    from flux2_client.report import open_report
    from flux2_client.terminal import Session, exit_code
    from shared.outputs import make_output_folder

    if output is not None:
        make_output_folder(output)
    session = Session(url, profile, patient=True)
    session.jobs, session.folder = list(dict.fromkeys(request_ids)), output

    async def run(client: AsyncClient) -> int:
        with open_report(as_json=as_json) as report:
            downloader = Downloader(Destination(output, name, parallel, overwrite), report) if output else None
            statuses = await follow_jobs(client, session.jobs, report=report, downloader=downloader)
        return exit_code(statuses, downloader.faults if downloader else ())

    session.run(run)


def download(
    request_ids: RequestIds,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder to save the images in.")] = Path("."),
    name: Name = DEFAULT_NAME,
    parallel: Parallel = DEFAULT_PARALLEL,
    overwrite: Overwrite = False,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """Save the images that jobs have finished so far; files that are there already are checked and kept."""
    from flux2_client.following import Destination, Downloader
    from flux2_client.report import open_report, print_message
    from flux2_client.terminal import Session, exit_code
    from shared.outputs import make_output_folder

    make_output_folder(output)

    async def run(client: AsyncClient) -> int:
        statuses = []
        with open_report(as_json=as_json) as report:
            downloader = Downloader(Destination(output, name, parallel, overwrite), report)
            for request_id in dict.fromkeys(request_ids):
                # The status first: the result then has at least the images that the status counts.
                status = await client.status(request_id)
                report.progressed(status)
                await downloader.save_all(await client.result(request_id))
                statuses.append(status)
                if not status.has_ended:
                    print_message(
                        f"request {request_id} is {status.status}; wait for its other images with: flux2 wait --output"
                    )
        return exit_code(statuses, downloader.faults)

    Session(url, profile, patient=True).run(run)


def status(request_id: RequestId, as_json: Json = False, url: Url = None, profile: Profile = None) -> None:
    """Show the state of a job and of each of its images."""
    from flux2_client.report import print_json
    from flux2_client.tables import print_status
    from flux2_client.terminal import SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        found = await client.status(request_id)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            print_status(found)
        return SUCCEEDED

    Session(url, profile).run(run)


def result(request_id: RequestId, as_json: Json = False, url: Url = None, profile: Profile = None) -> None:
    """Show the finished images of a job, with fresh URLs, and why others failed."""
    from flux2_client.report import print_json
    from flux2_client.tables import print_result
    from flux2_client.terminal import SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        found = await client.result(request_id)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            print_result(found)
        return SUCCEEDED

    Session(url, profile).run(run)


def cancel(request_ids: RequestIds, as_json: Json = False, url: Url = None, profile: Profile = None) -> None:
    """Cancel the unfinished images of jobs; finished images stay."""
    from flux2_client.report import print_json
    from flux2_client.tables import print_lines
    from flux2_client.terminal import SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        for request_id in request_ids:
            found = await client.cancel(request_id)
            if as_json:
                print_json(found.model_dump(mode="json"))
            else:
                print_lines([(found.request_id, found.status, f"{found.count('succeeded')} images stay")])
        return SUCCEEDED

    Session(url, profile).run(run)


def list_jobs(
    state: Annotated[
        str | None, typer.Option("--status", help="Only in_queue, in_progress, succeeded, failed or canceled jobs.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of jobs; 0 lists all.")] = 50,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """List jobs, newest first."""
    from flux2_client.models import JobLine
    from flux2_client.report import print_json
    from flux2_client.tables import print_jobs
    from flux2_client.terminal import SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        found: list[JobLine] = []
        async for job in client.requests(status=state, model=model):
            if as_json:
                print_json(job.model_dump(mode="json"))
            found.append(job)
            if len(found) == limit:
                break
        if not as_json:
            print_jobs(found)
        return SUCCEEDED

    Session(url, profile).run(run)


def adapters(
    path: Annotated[str | None, typer.Argument(help="Adapter to describe; without it, all are listed.")] = None,
    model: Annotated[str, typer.Option(help="Id of the model to check the adapter against.")] = "flux2",
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
) -> None:
    """List the adapter files under the API's adapter root, or describe one. Exit code 1 if jobs cannot use it."""
    from flux2_client.models import AdapterFile
    from flux2_client.report import print_json
    from flux2_client.tables import print_adapter, print_adapter_files
    from flux2_client.terminal import REFUSED, SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        if path is not None:
            found = await client.adapter(path, model=model)
            if as_json:
                print_json(found.model_dump(mode="json"))
            else:
                print_adapter(found)
            return REFUSED if found.refused else SUCCEEDED
        files: list[AdapterFile] = []
        async for file in client.adapters():
            if as_json:
                print_json(file.model_dump(mode="json"))
            else:
                files.append(file)
        if not as_json:
            print_adapter_files(files)
        return SUCCEEDED

    Session(url, profile).run(run)
