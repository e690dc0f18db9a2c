"""Folders that commands write their images into."""

from __future__ import annotations

from pathlib import Path

from shared.errors import OutputRefused


def make_folder(folder: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        OutputRefused: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputRefused(f"{folder}: {error.strerror}") from error
