"""Submit a composed sweep: say what it takes, upload what the service lacks, follow it, and write what shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flux2_client.async_client import AsyncClient
from flux2_client.file_names import safe_name
from flux2_client.local_images import LocalImages, find_local_images, name_uploads, upload_local_images
from flux2_client.models import SweepEstimate
from flux2_client.report import count_images, open_report, print_json, print_message
from flux2_client.sweeps.checkpoint_files import CheckpointFiles, find_checkpoint_files, upload_checkpoint_files
from flux2_client.sweeps.folder import write_outputs
from flux2_client.sweeps.sweep_following import follow_sweep
from flux2_client.sweeps.sweep_request import ComposedSweep
from flux2_client.terminal import Session
from shared.console import LineConsole
from shared.plurals import counted

_ID_LETTERS = 8
# Drawing takes 0.1 s for each image.
_MANY = 100


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep whose files of this host are all sound; nothing has been sent.

    Attributes:
        estimate: what the API says that it would take.
    """

    composed: ComposedSweep
    checkpoints: CheckpointFiles
    images: LocalImages
    estimate: SweepEstimate

    def describe(self) -> Iterator[str]:
        """Yield lines for people."""
        estimate = self.estimate
        jobs = counted(estimate.jobs, "job", "jobs")
        lists = counted(estimate.adapter_lists, "list of adapters", "lists of adapters")
        yield f"{count_images(estimate.images)} in {jobs}, {lists}, {estimate.megapixel_steps:,.1f} megapixel-steps"
        if estimate.eta_s is None:
            yield "the time is not known yet: no worker has rendered an image of the model lately"
        else:
            low_s, high_s = estimate.eta_range_s or (estimate.eta_s, estimate.eta_s)
            yield f"finished in about {estimate.eta_s:,.0f} s ({low_s:,.0f} to {high_s:,.0f})"
        if estimate.price is not None:
            yield f"price: {estimate.price} {estimate.currency or ''}".rstrip()
        if missing := len(self.checkpoints.missing):
            files = counted(missing, "checkpoint", "checkpoints")
            yield f"to upload first: {files}, {self.checkpoints.missing_bytes / 1e6:,.0f} MB"


async def prepare_sweep(client: AsyncClient, composed: ComposedSweep) -> PreparedSweep:
    """Check a sweep and its files, here and by the API, without sending a file.

    Raises:
        UploadRefused: a checkpoint or a reference image of this host cannot be used.
        ApiError: the API refuses the sweep, or cannot be reached.
    """
    images = find_local_images(composed.body)
    estimate = await client.estimate_sweep(name_uploads(composed.body, images))
    checkpoints = await find_checkpoint_files(client, composed.files.values(), model=composed.body["model"])
    return PreparedSweep(composed, checkpoints, images, estimate)


def print_estimate(prepared: PreparedSweep, *, as_json: bool) -> None:
    """Print what a sweep would take."""
    if as_json:
        uploads = {"uploads": len(prepared.checkpoints.missing), "upload_bytes": prepared.checkpoints.missing_bytes}
        print_json({"event": "estimate", **prepared.estimate.model_dump(mode="json"), **uploads})
        return
    for line in prepared.describe():
        LineConsole().print_line(line)


async def submit_sweep(
    client: AsyncClient, prepared: PreparedSweep, *, key: str | None, as_json: bool
) -> tuple[str, Sequence[str]]:
    """Upload what the service lacks, and submit the sweep; return its id and its warnings.

    Args:
        key: Idempotency-Key; None for none.

    Raises:
        UploadRefused: a file has changed.
        ApiError: the API refuses a file or the sweep, or cannot be reached.
    """
    paths = await upload_checkpoint_files(client, prepared.checkpoints, as_json=as_json)
    with open_report(as_json=as_json) as report:
        body = await upload_local_images(client, prepared.composed.with_paths(paths), prepared.images, report)
        accepted = await client.submit_sweep(body, idempotency_key=key)
        report.submitted(accepted, images=accepted.images)
    return accepted.sweep_id, accepted.warnings


def default_folder(sweep_id: str) -> Path:
    """Return the folder of a sweep for which none was given, below the current one."""
    return Path(f"sweep-{safe_name(sweep_id[:_ID_LETTERS])}")


async def watch_sweep(
    client: AsyncClient, sweep_id: str, folder: Path, *, session: Session, parallel: int, as_json: bool
) -> int:
    """Follow a sweep to its end, save its images, and write what shows them; return the command's exit code.

    Raises:
        OutputRefused: a file cannot be written.
        ApiError: the API does not know the sweep, or cannot be reached.
    """
    session.sweep = (sweep_id, folder)
    with open_report(as_json=as_json) as report:
        saved, code = await follow_sweep(client, sweep_id, folder, parallel=parallel, report=report)
    session.sweep_has_ended = True
    if len(saved.cells) > _MANY:
        print_message(f"drawing the tables of {count_images(len(saved.cells))}")
    for file in write_outputs(saved, folder):
        if as_json:
            print_json({"event": "written", "file": str(file)})
        else:
            LineConsole().print_line(str(file))
    return code
