"""The command that shows what was used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import ApiKey, Profile, Url

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient


def usage(
    first_day: Annotated[
        str | None,
        typer.Option("--from", metavar="DAY", help="First day, like 2026-01-31, UTC; default: the first of the month."),
    ] = None,
    last_day: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day, which is included; default: today.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="Columns with commas between them: day, tenant, key, model, adapter.")
    ] = "day",
    tenant: Annotated[
        str | None, typer.Option(help="Only this tenant's usage; another tenant's needs a key with the role admin.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header, for a spreadsheet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; messages go to stderr.")] = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Show images, megapixel-steps and GPU seconds of your tenant, and their cost if the operator has set prices."""
    from flux2_client.report import print_json
    from flux2_client.tables import print_usage
    from flux2_client.terminal import SUCCEEDED, Session
    from shared.visible_text import escape_controls

    if as_csv and as_json:
        raise typer.BadParameter("use one of --csv and --json")
    columns = [column.strip() for column in by.split(",")]

    async def run(client: AsyncClient) -> int:
        if as_csv:
            text = await client.usage_csv(first_day=first_day, last_day=last_day, group_by=columns, tenant=tenant)
            # The lines of CSV end with CR and LF.
            lines = (escape_controls(line.removesuffix("\r")) for line in text.split("\n"))
            sys.stdout.write("\n".join(lines))
            sys.stdout.flush()
        else:
            used = await client.usage(first_day=first_day, last_day=last_day, group_by=columns, tenant=tenant)
            if as_json:
                # As the API sends it, without the columns that were not asked for.
                print_json(used.model_dump(mode="json", exclude_unset=True))
            else:
                print_usage(used)
        return SUCCEEDED

    Session(url, profile, api_key).run(run)
