"""`flux2 webhooks`: send the webhooks of jobs again, and show the secrets that sign them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import ApiKey, Json, Profile, RequestIds, Url

# As the header `X-Tenant` allows.
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Send the webhooks of jobs again, and show the secrets that sign them.",
)


@app.command()
def resend(
    request_ids: RequestIds, as_json: Json = False, url: Url = None, profile: Profile = None, api_key: ApiKey = None
) -> None:
    """Send the webhooks of ended jobs again, delivered or given up. Exit code 1 if one could not be sent again."""
    from flux2_client.tables import print_each, print_webhook
    from flux2_client.terminal import REFUSED, SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        done = await print_each(dict.fromkeys(request_ids), client.resend_webhook, print_webhook, as_json=as_json)
        return SUCCEEDED if done else REFUSED

    Session(url, profile, api_key).run(run)


@app.command()
def secret(
    tenant: Annotated[str, typer.Argument(help="Tenant whose receivers verify webhooks with the secret.")],
    data: Annotated[Path | None, typer.Option(help="Folder of a `flux2 up` whose settings count.")] = None,
) -> None:
    """Print the secret that signs a tenant's webhooks, on a host with the API's FLUX2_WEBHOOK_SECRET."""
    from flux2_client.report import print_message
    from shared.errors import WebhooksDisabled
    from shared.keys.record import DEFAULT_TENANT
    from shared.local.data_folder import read_settings
    from shared.settings import Settings
    from shared.webhook_secrets import tenant_secret

    if not _TENANT.fullmatch(tenant):
        raise typer.BadParameter(f"{tenant!r} is no name of a tenant; use letters, digits, '.', '_' and '-'")
    settings = (read_settings(data) if data else Settings()).webhook
    if settings.secret is None:
        raise WebhooksDisabled
    if tenant == DEFAULT_TENANT:
        print_message(
            "this is FLUX2_WEBHOOK_SECRET, from which the secrets of all tenants can be computed; give it only to "
            "receivers that you run yourself"
        )
    typer.echo(tenant_secret(settings.secret.get_secret_value(), tenant))
