"""Upload adapter files of this host: their names there, and what a terminal shows meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIX: Final = ".safetensors"


def upload_name(file: Path) -> str:
    """Return the name under which a file is uploaded: its own without the suffix, in the characters of names.

    Raises:
        ValueError: the file's name has none of these characters.
    """
    # PEFT gives all files the same name.
    own = file.absolute().parent.name if file.name == "adapter_model.safetensors" else file.name
    name = _NOT_IN_NAMES.sub("-", own.removesuffix(_SUFFIX)).lstrip("._-")[:128]
    if not name:
        raise ValueError(f"{file.name!r} gives no name for the upload")
    return name


@contextmanager
def upload_bar(file: Path, *, as_json: bool) -> Iterator[Callable[[int], None] | None]:
    """Show on a terminal how much of a file was sent; the value is called with the number of bytes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from shared.console import LineConsole

    console = LineConsole(stderr=True)
    if as_json or not console.is_terminal or not file.is_file():
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(file.name, total=file.stat().st_size)
        yield lambda done: bar.update(task, completed=done)
