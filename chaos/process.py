"""Entry points of a run's processes: `python -m chaos.process worker|api ...`, with settings from the environment."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chaos import clock, mutate
from chaos.history import History
from chaos.mutate import Mutation
from chaos.stub import FreezingStore, RecordingLedger, StubRenderer
from shared import logs
from shared.celery_app import make_celery
from shared.ledger.connection import connect
from shared.settings import Settings
from shared.storage import open_store
from worker.consumer.adapter_files import AdapterFiles
from worker.consumer.background import BackgroundUploader
from worker.consumer.consumer import consume
from worker.consumer.heartbeat import Heartbeat
from worker.consumer.host_locks import slot_lock
from worker.consumer.slot import Slot
from worker.consumer.worker import Worker
from worker.consumer.worker_state import WorkerState

if TYPE_CHECKING:
    from worker.rendering.renderer import Renderer

app = typer.Typer()

_LEDGER_TIMEOUT_S = 2.0


@app.command()
def worker(
    name: str,
    history: Annotated[Path, typer.Option()],
    step_s: Annotated[float, typer.Option()] = 0.02,
    mutation: Annotated[Mutation, typer.Option()] = Mutation.NONE,
    clock_moves: Annotated[bool, typer.Option()] = False,
    devices: Annotated[str, typer.Option()] = "",
) -> None:
    """Claim items and pretend to render them, or render them on several devices with the goldens' model."""
    settings = _start(mutation, clock_moves=clock_moves)
    with slot_lock(name, redis_url=settings.redis.url.text, folder=settings.worker.lock_dir), ExitStack() as opened:
        renderer = _open_renderer(settings, devices, opened) if devices else StubRenderer(step_s)
        consume(_open(settings, name, History(history), renderer))


def _open_renderer(settings: Settings, devices: str, opened: ExitStack) -> Renderer:
    # Imported here: torch takes seconds, and the stub needs none.
    from chaos.group import open_renderer

    return open_renderer(settings.model, devices, opened)


def _start(mutation: Mutation, *, clock_moves: bool) -> Settings:
    """Change the code of this process as its scenario asks; return its settings."""
    settings = Settings()
    logs.configure(settings.log)
    mutate.apply_mutation(mutation)
    if clock_moves:
        clock.follow_offset()
    return settings


def _open(settings: Settings, name: str, history: History, renderer: Renderer | StubRenderer) -> Worker:
    ledger = RecordingLedger(connect(settings.redis.url, timeout_s=_LEDGER_TIMEOUT_S), settings.queue)
    ledger.history = history
    state = WorkerState()
    slot = Slot(
        name=name,
        model=settings.model.id,
        device="none",
        revision="none",
        precision="none",
        engines=("exact",),
    )
    return Worker(
        settings=settings,
        ledger=ledger,
        store=FreezingStore(open_store(settings), state, history),
        celery=make_celery(settings.redis.url, side="worker", timeout_s=settings.redis.timeout_s),
        renderer=renderer,
        slot=slot,
        state=state,
        heartbeat=Heartbeat(ledger, slot, state, renderer),
        adapter_files=AdapterFiles(settings.adapters, cache=None),
        probe=renderer.probe if isinstance(renderer, StubRenderer) else lambda: None,
        uploader=BackgroundUploader(),
    )


@app.command()
def api(
    mutation: Annotated[Mutation, typer.Option()] = Mutation.NONE,
    clock_moves: Annotated[bool, typer.Option()] = False,
) -> None:
    """Serve the product's own API."""
    import uvicorn

    from api.app import create_app

    settings = _start(mutation, clock_moves=clock_moves)
    uvicorn.run(create_app(settings), host=settings.api.host, port=settings.api.port, log_config=None, access_log=False)


if __name__ == "__main__":
    app()
