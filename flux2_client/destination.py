"""Where a command saves images, and under which names."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from flux2_client.file_names import DEFAULT_TEMPLATE
from shared.outputs import make_output_folder


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


def open_destination(folder: Path, name: str, parallel: int, overwrite: bool) -> Destination:
    """Create the folder that a command's options name.

    Raises:
        OutputRefused: the folder cannot be created.
    """
    # Before anything is submitted or waited for, so that a mistyped path costs no GPU time.
    make_output_folder(folder)
    return Destination(folder, name, parallel, overwrite)
