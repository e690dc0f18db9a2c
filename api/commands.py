"""The API's side of the `flux2` command."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: FLUX2_API_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port to listen on; default: FLUX2_API_PORT.")
    ] = None,
) -> None:
    """Serve the HTTP API until interrupted."""
    # Imported here, since every `flux2` command imports this module, also on hosts without FastAPI.
    import uvicorn

    from api.app import create_app
    from shared import logs
    from shared.local.ports import require_free_port
    from shared.settings import Settings

    settings = Settings()
    logs.configure(settings.log)
    host, port = host or settings.api.host, settings.api.port if port is None else port
    require_free_port(port, owner="the API", option="--port or FLUX2_API_PORT", host=host)
    app = create_app(settings)
    app.state.services.ledger.refuse_cluster()
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        # Longer than balancers (60 s) and pollers keep an idle connection: closing first would lose their requests.
        timeout_keep_alive=75,
    )
