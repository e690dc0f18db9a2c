"""Serve the API in a thread of the tests' process."""

import asyncio
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import uvicorn

from api.app import create_app
from shared.local.ports import pick_free_port


class _Server(uvicorn.Server):
    """Ends at once: uvicorn sleeps 0.1 s between two looks at `should_exit`, and again while it ends."""

    _ending = None

    async def main_loop(self):
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        ticks = asyncio.create_task(super().main_loop())
        await self._ending.wait()
        ticks.cancel()

    async def shutdown(self, sockets=None):
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(0.005)
        await self.lifespan.shutdown()

    def end(self):
        # Before the loop runs, it is what `startup` looks at.
        self.should_exit = True
        if self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)


@contextmanager
def serve(made, wait_until, *, port=None):
    """Serve the API with these settings; see the fixture `api`.

    Args:
        port: None for a free one.
    """
    app = create_app(made)
    port = port or pick_free_port()
    server = _Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, proxy_headers=False))
    # As `flux2 api` does: streams of events would go on for as long as their callers stay.
    for calls in (app.state.services.job_waits, app.state.services.event_streams):
        calls.is_stopping = lambda: server.should_exit
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, what="the API's start")
        services = app.state.services
        # As `flux2 api` does: open streams would hold up the end.
        services.job_waits.is_stopping = services.event_streams.is_stopping = lambda: server.should_exit
        # Reading the system's certificates would take 35 ms.
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, verify=False) as client:
            yield SimpleNamespace(
                http=client,
                url=f"http://127.0.0.1:{port}",
                ledger=services.ledger,
                store=services.store,
                settings=made,
                services=services,
            )
    finally:
        # Also when the test fails: the threads of an API that goes on hold up the end of the run.
        server.end()
        thread.join()
