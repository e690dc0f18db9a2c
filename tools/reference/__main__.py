"""Write the generated parts of the documentation: `python -m tools.reference`, or with `--check` compare them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from shared.ledger import Ledger
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings
from tools.reference.pages import ROOT, render_files

_TIMEOUT_S = 5.0


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if a file is out of date.")
    ] = False,
) -> None:
    """Write every file whose content follows from the code."""
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        files = render_files(Ledger.connect(server.url, QueueSettings(), timeout_s=_TIMEOUT_S))
    stale = {file: text for file, text in files.items() if not file.is_file() or file.read_text() != text}
    for file, text in stale.items():
        typer.echo(f"{'out of date' if check else 'written'}: {file.relative_to(ROOT)}")
        if not check:
            file.write_text(text)
    if check and stale:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
