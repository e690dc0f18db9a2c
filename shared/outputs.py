"""Folders and files that commands write."""

from __future__ import annotations

from pathlib import Path

from shared.errors import OutputRefused


def make_output_folder(folder: Path) -> None:
    """Create a folder and its parents unless they exist.

    Raises:
        OutputRefused: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputRefused(f"cannot create {folder}: {error.strerror}; choose another --output") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file, and create its folder.

    Raises:
        OutputRefused: it cannot be written.
    """
    make_output_folder(path.parent)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise OutputRefused(f"cannot write {path}: {error.strerror}; choose another --output") from error
