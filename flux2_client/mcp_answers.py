"""What the tools of `flux2 mcp` answer: short enough for a model to read, whatever the size of the job."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image
from pydantic import BaseModel, ConfigDict

from flux2_client.models import FINAL_STATES, AdapterFile, ImageInfo, ImageT, JobLine, Result, Status

# A thousand images that fail usually fail for one reason.
_FAILURES = 5
_QUALITY = 90


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Submitted(_Answer):
    """A job that was accepted."""

    request_id: str
    images: int
    warnings: tuple[str, ...]


class Failure(_Answer):
    """Why one image is missing."""

    index: int
    code: str
    message: str


class JobState(_Answer):
    """How far a job is.

    Attributes:
        images: number of images by state.
        progress: share of the job that is done, 0 to 1.
        eta_s: estimated seconds until the last image ends.
        failures: of the first images that failed.
    """

    request_id: str
    status: str
    has_ended: bool
    images: dict[str, int]
    progress: float
    queue_position: int | None
    eta_s: float | None
    error: str | None
    failures: tuple[Failure, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, status: Status) -> JobState:
        failed = [item for item in status.items if item.error is not None]
        return cls(
            request_id=status.request_id,
            status=status.status,
            has_ended=status.has_ended,
            images=count_states(status),
            progress=round(status.progress, 3),
            queue_position=status.queue_position,
            eta_s=status.eta_s,
            error=status.error,
            failures=tuple(
                Failure(index=item.index, code=item.error.code, message=item.error.message)
                for item in failed[:_FAILURES]
                if item.error is not None
            ),
            warnings=status.warnings,
        )


class JobList(_Answer):
    """Jobs, newest first."""

    jobs: tuple[JobLine, ...]


class FinishedImage(_Answer):
    """An image and the parameters that made it.

    Attributes:
        adapters: each as `PATH@MULTIPLIER`.
        url: address of the file, which may be signed; it works until `url_expires_at`.
    """

    index: int
    prompt: str | None
    seed: int | None
    width: int
    height: int
    sample_steps: int | None
    guidance_scale: float | None
    adapters: tuple[str, ...]
    format: str
    size_bytes: int
    url: str
    url_expires_at: str
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, image: ImageInfo) -> FinishedImage:
        names = [name for name in cls.model_fields if name != "adapters"]
        adapters = tuple(f"{adapter.path}@{adapter.multiplier:g}" for adapter in image.adapters)
        return cls(adapters=adapters, **{name: getattr(image, name) for name in names})


class ImageList(_Answer):
    """Some of a job's finished images; `finished` counts all of them."""

    request_id: str
    status: str
    finished: int
    images: tuple[FinishedImage, ...]
    failures: tuple[Failure, ...]

    @classmethod
    def of(cls, result: Result[ImageT], chosen: Sequence[ImageT]) -> ImageList:
        return cls(
            request_id=result.request_id,
            status=result.status,
            finished=len(result.images),
            images=tuple(map(FinishedImage.of, chosen)),
            failures=tuple(
                Failure(index=error.index, code=error.code, message=error.message)
                for error in result.errors[:_FAILURES]
            ),
        )


class AdapterList(_Answer):
    """Adapter files, in the order of their paths; `has_more` if the limit left some out."""

    adapters: tuple[AdapterFile, ...]
    has_more: bool


def count_states(status: Status) -> dict[str, int]:
    """Return the number of a job's images in each state that occurs, in the order of first occurrence."""
    return {state: status.count(state) for state in dict.fromkeys(item.status for item in status.items)}


def describe_progress(status: Status) -> str:
    """Return e.g. `1 of 4 images, denoise 12 of 25`."""
    ended = sum(item.status in FINAL_STATES for item in status.items)
    text = f"{ended} of {len(status.items)} images"
    running = next((item.progress for item in status.items if item.progress is not None), None)
    return text if running is None else f"{text}, {running.stage} {running.step} of {running.steps}"


def copy_as_jpeg(data: bytes, *, side_px: int) -> bytes:
    """Return an image as a JPEG whose longer side has at most `side_px` pixels."""
    with Image.open(io.BytesIO(data)) as picture:
        # Of a JPEG, no more pixels are decoded than are needed.
        picture.draft("RGB", (side_px, side_px))
        small = picture.convert("RGB")
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=_QUALITY)
    return file.getvalue()
