"""Where a command saves images, and under which names."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flux2_client.file_names import DEFAULT_TEMPLATE
from shared.outputs import output_folder


@dataclass(frozen=True)
class Destination:
    """A folder of images.

    Attributes:
        name: template of a file's name; see `file_names`.
        parallel: downloads at the same time.
        overwrite: whether a file that holds something else is replaced.
    """

    folder: Path
    name: str
    parallel: int
    overwrite: bool = False

    def options(self) -> str:
        """Return the options of a command that saves the same files in the same place."""
        name = "" if self.name == DEFAULT_TEMPLATE else f" --name {shlex.quote(self.name)}"
        overwrite = " --overwrite" if self.overwrite else ""
        return f" --output {shlex.quote(str(self.folder))}{name}{overwrite}"


@contextmanager
def open_destination(folder: Path, name: str, parallel: int, overwrite: bool) -> Iterator[Destination]:
    """Create the folder that a command's options name, which is removed at the end of the block if it is still empty.

    Raises:
        OutputRefused: the folder cannot be created.
    """
    # Before anything is submitted or waited for, so that a mistyped path costs no GPU time.
    with output_folder(folder):
        yield Destination(folder, name, parallel, overwrite)
