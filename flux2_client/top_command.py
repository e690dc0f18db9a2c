"""The command that shows what a fleet does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import ApiKey, Profile, Url

if TYPE_CHECKING:
    from rich.console import Console

    from flux2_client.async_client import AsyncClient
    from flux2_client.fleet import Fleet

# Slots that a screen reads: two calls. Whoever has more looks at metrics.
_MOST_SLOTS = 1000


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print all slots once, and end; so does any output that is no terminal.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, and end.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.5, help="Seconds between two looks.")] = 2.0,
    tenant: Annotated[
        str | None,
        typer.Option(help="Count only this tenant's images; another tenant's need a key with the role admin."),
    ] = None,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Show each slot, what it renders and has warm, and the queue by tenant and adapters, until q is pressed."""
    from flux2_client.fleet import read_fleet
    from flux2_client.report import print_json
    from flux2_client.tables import print_fleet
    from flux2_client.terminal import SUCCEEDED, Session
    from shared.console import LineConsole

    console = LineConsole()
    is_live = console.is_terminal and not once and not as_json
    session = Session(url, profile, api_key, repeats=not is_live)

    async def run(client: AsyncClient) -> int:
        if is_live:
            await _show_live(console, client, source=session.url, every_s=every_s, tenant=tenant)
            return SUCCEEDED
        fleet = await read_fleet(client, tenant=tenant)
        if as_json:
            print_json(_as_json(fleet))
        else:
            print_fleet(fleet)
        return SUCCEEDED

    session.run(run)


def _as_json(fleet: Fleet) -> dict[str, object]:
    return {
        "queue": fleet.queue.model_dump(mode="json"),
        "slots": [slot.model_dump(mode="json") for slot in fleet.slots],
    }


async def _show_live(console: Console, client: AsyncClient, *, source: str, every_s: float, tenant: str | None) -> None:
    import sys
    from functools import partial

    from rich.live import Live

    from flux2_client.fleet import read_fleet
    from flux2_client.live_fleet import LiveFleet
    from flux2_client.terminal_events import terminal_events

    with Live(console=console, screen=True, auto_refresh=False) as screen:
        read = partial(read_fleet, client, tenant=tenant, most_slots=_MOST_SLOTS)
        live = LiveFleet(screen, read, source, interval_s=every_s)
        with terminal_events(sys.stdin, live.notify):
            await live.run()
