"""Run a client's command: connect, turn every ending into an exit code, and say how to go on."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import NoReturn

import typer

from flux2_client.async_client import AsyncClient
from flux2_client.models import Status
from flux2_client.profiles import DEFAULT_URL, find_url
from flux2_client.report import print_message
from shared.errors import ApiError, ApiUnreachable, CommandError

SUCCEEDED = 0
REFUSED = 1
INCOMPLETE = 3
UNREACHABLE = 4
INTERRUPTED = 130

#: A day: as long as `flux2 replay` waits for an API that is away.
PATIENT_S = 86_400.0
_SHORT_S = 60.0


class Session:
    """One command's connection, and the jobs that go on if the command ends early."""

    def __init__(self, url: str | None, profile: str | None, *, patient: bool = False) -> None:
        self.url = find_url(url, profile)
        self.jobs: list[str] = []
        self.folder: Path | None = None
        self._retry_s = PATIENT_S if patient else _SHORT_S
        self._printed = ""

    def connect(self) -> AsyncClient:
        return AsyncClient(self.url, retry_s=self._retry_s, on_failure=self._report_failure)

    def run(self, main: Callable[[AsyncClient], Awaitable[int]]) -> NoReturn:
        """Run `main` with a client; end the command with its exit code, or with that of its error."""

        async def connected() -> int:
            async with self.connect() as client:
                return await main(client)

        try:
            raise typer.Exit(asyncio.run(connected()))
        except KeyboardInterrupt:
            print_message("interrupted")
            code = INTERRUPTED
        except ApiUnreachable as error:
            print_message(str(error))
            code = UNREACHABLE
        except CommandError as error:
            print_message(str(error))
            code = REFUSED
        if self.jobs:
            self._say_how_to_go_on()
        raise typer.Exit(code)

    def _report_failure(self, error: ApiError) -> None:
        # An outage gives the same error at each attempt.
        if str(error) != self._printed:
            self._printed = str(error)
            print_message(f"trying again: {error}")

    def _say_how_to_go_on(self) -> None:
        ids = " ".join(self.jobs)
        url = "" if self.url == DEFAULT_URL else f" --url {shlex.quote(self.url)}"
        folder = f" --output {shlex.quote(str(self.folder))}" if self.folder else ""
        print_message(f"jobs that were accepted go on. To wait for them:  flux2 wait {ids}{folder}{url}")
        print_message(f"To cancel them:  flux2 cancel {ids}{url}")


def exit_code(statuses: Iterable[Status], faults: Iterable[str] = ()) -> int:
    """Return the exit code for jobs: 0 if every image succeeded and was saved, 1 if none, else 3."""
    images = [item.status == "succeeded" for status in statuses for item in status.items]
    if all(images) and not list(faults):
        return SUCCEEDED
    return INCOMPLETE if any(images) else REFUSED
