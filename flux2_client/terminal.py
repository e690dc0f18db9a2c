"""Run a client's command: connect, turn every ending into an exit code, and say how to go on."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import NoReturn

import typer

from flux2_client.async_client import AsyncClient
from flux2_client.destination import Destination
from flux2_client.models import Status, SweepStatus
from flux2_client.outages import PATIENCE_S, RetryMessages
from flux2_client.profiles import DEFAULT_URL, find_target
from flux2_client.report import print_message
from shared.errors import ApiUnreachable, CommandError

SUCCEEDED = 0
REFUSED = 1
INCOMPLETE = 3
UNREACHABLE = 4
INTERRUPTED = 130

# For commands that ask once: longer than a restart of the API takes.
_SHORT_S = 60.0


class Session:
    """One command's connection, and the jobs that go on if the command ends early."""

    def __init__(
        self,
        url: str | None,
        profile: str | None,
        api_key: str | None = None,
        *,
        patient: bool = False,
        repeats: bool = True,
    ) -> None:
        self._target = find_target(url, profile, api_key)
        self.url = self._target.url
        self.jobs: list[str] = []
        #: Whether the command submits: a refusal then leaves the jobs that it submitted before.
        self.submits = False
        self.to: Destination | None = None
        #: The sweep that goes on if the command ends early, and the folder of its images.
        self.sweep: tuple[str, Path] | None = None
        #: Whether only the files that show its images are not written yet.
        self.sweep_has_ended = False
        # A screen that is drawn again and again shows the failure itself.
        self._retry_s = (PATIENCE_S if patient else _SHORT_S) if repeats else 0.0

    def connect(self) -> AsyncClient:
        return AsyncClient(
            self.url, api_key=self._target.api_key, retry_s=self._retry_s, on_failure=RetryMessages(print_message)
        )

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
        if code != REFUSED or self.submits:
            self._say_how_to_go_on()
        raise typer.Exit(code)

    def wait_command(self, *request_ids: str) -> str:
        """Return the command that waits for these jobs and saves their images as this one does."""
        saving = self.to.options() if self.to else ""
        return f"flux2 wait {' '.join(request_ids)}{saving}{self._url_option}"

    @property
    def _url_option(self) -> str:
        # A key from a profile goes with its address alone.
        if self._target.keyed_profile:
            return f" --profile {shlex.quote(self._target.keyed_profile)}"
        return "" if self.url == DEFAULT_URL else f" --url {shlex.quote(self.url)}"

    def _say_how_to_go_on(self) -> None:
        if self.sweep:
            self._say_how_the_sweep_goes_on(*self.sweep)
        elif self.jobs:
            self._say_how_the_jobs_go_on()

    def _say_how_the_jobs_go_on(self) -> None:
        print_message(f"jobs that were accepted go on. To wait for them:  {self.wait_command(*self.jobs)}")
        print_message(f"To cancel them:  flux2 cancel {' '.join(self.jobs)}{self._url_option}")

    def _say_how_the_sweep_goes_on(self, sweep_id: str, folder: Path) -> None:
        watch = f"flux2 sweep watch {sweep_id} --output {shlex.quote(str(folder))}{self._url_option}"
        if self.sweep_has_ended:
            print_message(f"the sweep has ended. To write the files that show its images:  {watch}")
            return
        print_message(f"the sweep goes on. To wait for it, and save its images:  {watch}")
        print_message(f"To cancel it:  flux2 sweep cancel {sweep_id}{self._url_option}")


def exit_code(statuses: Iterable[Status | SweepStatus], faults: Iterable[str] = ()) -> int:
    """Return the exit code for jobs or a sweep: 0 if every image succeeded and was saved, 1 if none, else 3."""
    counted = [(status.count("succeeded"), status.images) for status in statuses]
    succeeded, images = (sum(numbers) for numbers in zip((0, 0), *counted, strict=True))
    if succeeded == images and not list(faults):
        return SUCCEEDED
    return INCOMPLETE if succeeded else REFUSED
