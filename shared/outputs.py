"""Folders and files that commands write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Create a folder and its parents unless they exist; at the end of the block, remove those that are still empty.

    So a mistyped path is refused before any work, and work that is refused leaves no folder.

    Raises:
        OutputRefused: the folder cannot be created.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    make_output_folder(folder)
    try:
        yield
    finally:
        # The first one that is in use keeps its parents.
        with suppress(OSError):
            for path in new:
                path.rmdir()


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
