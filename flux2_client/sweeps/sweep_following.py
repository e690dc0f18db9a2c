"""Follow a sweep until it ends, and keep its images in its folder."""

from __future__ import annotations

from pathlib import Path

from flux2_client.async_client import AsyncClient, AsyncImage
from flux2_client.destination import Destination
from flux2_client.file_names import safe_name
from flux2_client.following import Downloader, follow_one
from flux2_client.models import ImageInfo, SweepResult
from flux2_client.report import Report
from flux2_client.sweeps.folder import IMAGES, holds_sweep, name_files, write_record
from flux2_client.sweeps.grid import SavedCell, SavedSweep
from flux2_client.terminal import exit_code

# An image may be replaced: the folder belongs to the sweep, whose files never change.
_NAME, _OVERWRITE = "{index}", True


async def follow_sweep(
    client: AsyncClient, sweep_id: str, folder: Path, *, parallel: int, report: Report
) -> tuple[SavedSweep, int]:
    """Wait until a sweep has ended and save its images; return the sweep with their files, and the exit code.

    Args:
        folder: of the sweep; one that holds another sweep is refused.
        parallel: downloads at the same time.

    Raises:
        OutputRefused: the folder holds another sweep, or cannot be written.
        ApiError: the API does not know the sweep, or cannot be reached.
    """
    is_known = holds_sweep(folder, sweep_id)
    downloader = Downloader(Destination(folder, _NAME, parallel, _OVERWRITE), report)
    result = await client.sweep_result(sweep_id)
    if not is_known:
        # Before the wait: the folder then says whose it is. One that says so names the files that it has, too.
        write_record(describe_result(result), folder)

    async def save() -> None:
        nonlocal result
        result = await client.sweep_result(sweep_id)
        await downloader.save_named({path: image for path, image in _name_images(result) if image is not None})

    status = await follow_one(lambda notice: client.wait_sweep(sweep_id, on_status=notice), save=save, report=report)
    return describe_result(result, saved=downloader.saved), exit_code([status], downloader.faults)


def describe_result(result: SweepResult[AsyncImage], *, saved: set[Path] | None = None) -> SavedSweep:
    """Return what the folder keeps of a sweep: no addresses, with which others could fetch its images.

    Args:
        saved: the files of the images that were saved.
    """
    cells = (
        SavedCell.model_validate(
            {
                **cell.model_dump(exclude={"image"}),
                "image": None if cell.image is None else _without_addresses(cell.image),
                "file": path.as_posix() if saved and path in saved else None,
            }
        )
        for cell, (path, _) in zip(result.cells, _name_images(result), strict=True)
    )
    return SavedSweep.model_validate({**result.model_dump(exclude={"cells"}), "cells": tuple(cells)})


def _name_images(result: SweepResult[AsyncImage]) -> list[tuple[Path, AsyncImage | None]]:
    """Return each image with its file below the folder, in the order of the cells."""
    return [
        # The format comes from another machine, as the values in the name do: it must not lead out of the folder.
        (Path(IMAGES) / (f"{name}.{safe_name(cell.image.format)}" if cell.image else name), cell.image)
        for name, cell in zip(name_files(result.cells), result.cells, strict=True)
    ]


def _without_addresses(image: AsyncImage) -> ImageInfo:
    references = tuple(reference.model_copy(update={"url": ""}) for reference in image.references)
    fields = image.model_dump() | {"url": "", "thumbnail_url": None, "references": references}
    return ImageInfo.model_validate(fields)
