"""The API's side of the `flux2` command."""

from __future__ import annotations

from typing import Annotated

import typer

# uvicorn's own exit code, which its `run` uses.
_STARTUP_FAILURE = 3

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: FLUX2_API_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port to listen on; default: FLUX2_API_PORT.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen for other hosts although there is no API key; also: FLUX2_API_INSECURE."
        ),
    ] = False,
) -> None:
    """Serve the HTTP API until interrupted."""
    # Imported here, since every `flux2` command imports this module, also on hosts without FastAPI.
    import contextlib
    import gc

    import uvicorn

    from api.app import create_app
    from api.doors.address import require_safe_address
    from shared import logs
    from shared.local.ports import require_free_port
    from shared.settings import Settings

    settings = Settings()
    logs.configure(settings.log)
    given = {"host": host or None, "port": port, "insecure": insecure or None}
    update = {name: value for name, value in given.items() if value is not None}
    settings = settings.model_copy(update={"api": settings.api.model_copy(update=update)})
    require_free_port(settings.api.port, owner="the API", option="--port or FLUX2_API_PORT", host=settings.api.host)
    require_safe_address(settings)
    app = create_app(settings)
    app.state.services.ledger.refuse_unusable()
    config = uvicorn.Config(
        app,
        host=settings.api.host,
        port=settings.api.port,
        # The application reads them itself, because it also needs the address of the proxy.
        proxy_headers=False,
        server_header=False,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        # Longer than balancers (60 s) and pollers keep an idle connection: closing first would lose their requests.
        timeout_keep_alive=75,
    )
    server = uvicorn.Server(config)
    # Calls that wait for jobs, or watch them, would otherwise delay the end until they are cut off.
    for calls in (app.state.services.job_waits, app.state.services.event_streams):
        calls.is_stopping = lambda: server.should_exit
    # What was made until here lives as long as the process. A search for garbage in it takes 0.1 s, in which no call
    # is answered.
    gc.collect()
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        raise typer.Exit(_STARTUP_FAILURE)
