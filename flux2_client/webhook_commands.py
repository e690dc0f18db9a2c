"""`flux2 webhooks`: send the webhooks of jobs again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from flux2_client.options import ApiKey, Json, Profile, RequestIds, Url

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Send the webhooks of jobs again.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def resend(
    request_ids: RequestIds, as_json: Json = False, url: Url = None, profile: Profile = None, api_key: ApiKey = None
) -> None:
    """Send the webhooks of ended jobs again, delivered or given up. Exit code 1 if one could not be sent again."""
    from flux2_client.report import print_message
    from flux2_client.tables import print_answer, print_webhook
    from flux2_client.terminal import REFUSED, SUCCEEDED, Session
    from shared.errors import ApiError, ApiUnreachable

    async def run(client: AsyncClient) -> int:
        code = SUCCEEDED
        for request_id in dict.fromkeys(request_ids):
            try:
                print_answer(await client.resend_webhook(request_id), print_webhook, as_json=as_json)
            except ApiUnreachable:
                raise
            except ApiError as error:
                # One job without a webhook must not keep the others from being sent.
                print_message(str(error))
                code = REFUSED
        return code

    Session(url, profile, api_key).run(run)
