"""Folders that commands write their images into."""

from __future__ import annotations

from pathlib import Path

from shared.errors import Flux2Error


class OutputRefused(Flux2Error):
    """A folder for images cannot be made."""

    code = "output_refused"


def make_folder(folder: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        OutputRefused: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputRefused(f"{folder}: {error.strerror}") from error
