"""Commands that look at jobs, wait for them, download their images and cancel them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import (
    DEFAULT_NAME,
    DEFAULT_PARALLEL,
    ApiKey,
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
    api_key: ApiKey = None,
) -> None:
    """Wait until jobs have ended. Exit code 3 if only some images succeeded, 1 if none."""
    from flux2_client.destination import open_destination
    from flux2_client.following import follow_jobs
    from flux2_client.report import open_report
    from flux2_client.terminal import Session

    session = Session(url, profile, api_key, patient=True)
    session.jobs = list(dict.fromkeys(request_ids))

    async def run(client: AsyncClient) -> int:
        with open_report(as_json=as_json) as report:
            return await follow_jobs(client, session.jobs, report=report, to=session.to)

    with open_destination(output, name, parallel, overwrite) if output else nullcontext() as session.to:
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
    api_key: ApiKey = None,
) -> None:
    """Save the images that jobs have finished so far; files that are there already are checked and kept."""
    from flux2_client.destination import open_destination
    from flux2_client.following import Downloader
    from flux2_client.report import open_report, print_message
    from flux2_client.terminal import Session, exit_code

    session = Session(url, profile, api_key, patient=True)

    async def run(client: AsyncClient) -> int:
        statuses = []
        with open_report(as_json=as_json) as report:
            downloader = Downloader(to, report)
            for request_id in dict.fromkeys(request_ids):
                # The status first: the result then has at least the images that the status counts.
                status = await client.status(request_id)
                report.progressed(status)
                await downloader.save_all(await client.result(request_id))
                statuses.append(status)
                if not status.has_ended:
                    print_message(
                        f"request {request_id} is {status.status}; to wait for its other images:  "
                        f"{session.wait_command(request_id)}"
                    )
        return exit_code(statuses, downloader.faults)

    with open_destination(output, name, parallel, overwrite) as to:
        session.to = to
        session.run(run)


def status(
    request_id: RequestId, as_json: Json = False, url: Url = None, profile: Profile = None, api_key: ApiKey = None
) -> None:
    """Show the state of a job and of each of its images."""
    from flux2_client.tables import print_answer, print_status
    from flux2_client.terminal import SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        print_answer(await client.status(request_id), print_status, as_json=as_json)
        return SUCCEEDED

    Session(url, profile, api_key).run(run)


def result(
    request_id: RequestId, as_json: Json = False, url: Url = None, profile: Profile = None, api_key: ApiKey = None
) -> None:
    """Show the finished images of a job, with fresh URLs, and why others failed."""
    from flux2_client.tables import print_answer, print_result
    from flux2_client.terminal import SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        print_answer(await client.result(request_id), print_result, as_json=as_json)
        return SUCCEEDED

    Session(url, profile, api_key).run(run)


def cancel(
    request_ids: RequestIds, as_json: Json = False, url: Url = None, profile: Profile = None, api_key: ApiKey = None
) -> None:
    """Cancel the unfinished images of jobs; finished images stay. Exit code 1 if a job could not be canceled."""
    from flux2_client.tables import print_canceled, print_each
    from flux2_client.terminal import REFUSED, SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        done = await print_each(request_ids, client.cancel, print_canceled, as_json=as_json)
        return SUCCEEDED if done else REFUSED

    Session(url, profile, api_key).run(run)


def list_jobs(
    state: Annotated[
        str | None, typer.Option("--status", help="Only in_queue, in_progress, succeeded, failed or canceled jobs.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only jobs of this tenant; for keys with the role admin.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of jobs; 0 lists all.")] = 50,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """List jobs, newest first."""
    from flux2_client.tables import print_jobs, print_listing
    from flux2_client.terminal import SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        jobs = client.requests(status=state, model=model, tenant=tenant)
        await print_listing(jobs, print_jobs, limit=limit, as_json=as_json, empty="no such jobs")
        return SUCCEEDED

    Session(url, profile, api_key).run(run)
