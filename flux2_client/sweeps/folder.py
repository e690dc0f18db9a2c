"""Keep a sweep in a folder: its images, what is known of them, and the files that show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from flux2_client.file_names import safe_name
from flux2_client.models import SweepCell
from flux2_client.sweeps.grid import SavedSweep, varying_axes
from flux2_client.sweeps.labelled_sheet import draw_sheets
from flux2_client.sweeps.sweep_csv import sweep_csv
from flux2_client.sweeps.viewer_page import write_viewer
from shared.errors import OutputRefused, SweepFolderRefused
from shared.outputs import output_folder, write_file

#: The file that says what the folder holds: the API's answer, with the names of the files.
SWEEP_FILE: Final = "sweep.json"
#: Folder of the images, below that of the sweep.
IMAGES: Final = "images"

_CSV: Final = "sweep.csv"
_SHEET: Final = "contact-sheet"
# Digits of an image's number in the name of its file: no sweep has more images.
_DIGITS: Final = 5
_LABEL_LETTERS: Final = 60
_PARTS: Final = {
    "checkpoint": "{}",
    "multiplier": "x{}",
    "prompt": "prompt{}",
    "size": "{}",
    "steps": "{}steps",
    "guidance_scale": "guidance{}",
    "seed": "seed{}",
}


def name_files(cells: Sequence[SweepCell[Any]]) -> list[str]:
    """Return a name for the file of each image, without its suffix: its number, and the values that differ.

    Names sort in the order of the sweep, and the number alone makes them different.
    """
    varying = set(varying_axes(cells))
    names = [name for name in _PARTS if name in varying]
    return ["-".join([f"{number:0{_DIGITS}d}", *_parts(cell, names)]) for number, cell in enumerate(cells, 1)]


def read_sweep(folder: Path) -> SavedSweep:
    """Return the sweep that a folder holds.

    Raises:
        SweepFolderRefused: it holds none, or one that this version cannot read.
    """
    file = folder / SWEEP_FILE
    try:
        return SavedSweep.model_validate_json(file.read_bytes())
    except OSError as error:
        raise SweepFolderRefused(
            f"{folder} holds no sweep: {file} cannot be read: {error.strerror or error}; give the --output of "
            "`flux2 sweep`"
        ) from error
    except ValidationError as error:
        raise SweepFolderRefused(
            f"{file} is not as `flux2 sweep` writes it: {error.errors()[0]['msg']}; remove it, and write it again with "
            f"`flux2 sweep watch ID --output {folder}`"
        ) from error


@contextmanager
def open_unused(folder: Path) -> Iterator[None]:
    """Create the folder of a new sweep, which is removed at the end of the block if it is still empty.

    Raises:
        OutputRefused: the folder cannot be created, or holds a sweep.
    """
    if (folder / SWEEP_FILE).exists():
        held = read_sweep(folder).sweep_id
        raise OutputRefused(
            f"{folder} holds the sweep {held}; choose another --output, or go on with that one:  "
            f"flux2 sweep watch {held} --output {folder}"
        )
    with output_folder(folder):
        yield


def holds_sweep(folder: Path, sweep_id: str) -> bool:
    """Return whether a folder holds a sweep already.

    Raises:
        OutputRefused: it holds another one, whose files would be mixed up with those of this one.
        SweepFolderRefused: see `read_sweep`.
    """
    if not (folder / SWEEP_FILE).exists():
        return False
    held = read_sweep(folder).sweep_id
    if held != sweep_id:
        raise OutputRefused(f"{folder} holds the sweep {held}; choose another --output")
    return True


def write_record(sweep: SavedSweep, folder: Path) -> None:
    """Write what a folder says of its sweep, all of it or nothing; raises `OutputRefused` if it cannot be written."""
    path = folder / SWEEP_FILE
    # A part of it would name no sweep, and no command could go on in this folder.
    part = path.with_name(f"{SWEEP_FILE}.part")
    write_file(part, sweep.model_dump_json(indent=1).encode() + b"\n")
    try:
        part.replace(path)
    except OSError as error:
        raise OutputRefused(f"cannot write {path}: {error.strerror}; choose another --output") from error


def write_outputs(sweep: SavedSweep, folder: Path) -> list[Path]:
    """Write what shows a sweep whose images are in the folder; return the files: page, contact sheets, CSV, JSON.

    Raises:
        OutputRefused: the file of an image cannot be read, or a file cannot be written.
    """
    return list(_write_all(sweep, folder))


def _write_all(sweep: SavedSweep, folder: Path) -> Iterator[Path]:
    # First: what it says is needed to write the others again.
    write_record(sweep, folder)
    write_file(folder / _CSV, sweep_csv(sweep).encode())
    yield write_viewer(sweep, folder)
    yield from _write_sheets(sweep, folder)
    yield folder / _CSV
    yield folder / SWEEP_FILE


def _write_sheets(sweep: SavedSweep, folder: Path) -> Iterator[Path]:
    written: list[Path] = []
    for number, sheet in enumerate(draw_sheets(sweep, folder), start=1):
        path = folder / f"{_SHEET}-{number}.png"
        try:
            # A page of 18 megapixels takes 1.4 s instead of 3.9, and a sixth more of the disk.
            sheet.save(path, compress_level=1)
        except OSError as error:
            raise OutputRefused(f"cannot write {path}: {error}; choose another --output") from error
        written.append(path)
    if len(written) == 1:
        written = [written[0].replace(folder / f"{_SHEET}.png")]
    yield from written


def _parts(cell: SweepCell[Any], names: list[str]) -> Iterator[str]:
    for name in names:
        value = getattr(cell, name)
        if value is None:
            continue
        if name == "prompt":
            value += 1
        text = f"{value:g}" if isinstance(value, float) else str(value)
        yield safe_name(_PARTS[name].format(text))[:_LABEL_LETTERS]
