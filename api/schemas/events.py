"""The data of the events of `GET /v1/events` and `GET /v1/requests/{id}/events`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from api.schemas.job_status import JobLine


class RunningImage(BaseModel):
    """An image that is being rendered or stored."""

    index: int = Field(description="Index of its prompt in the request.")
    stage: str | None = Field(
        description="`fetch`, `encode`, `adapter`, `denoise`, `decode` or `upload`; null before the first report."
    )
    step: int = Field(description="Denoising steps done.")
    steps: int | None = Field(description="Denoising steps in all; null before the first report.")


class JobProgress(JobLine):
    """One job as the stream of all jobs shows it."""

    tenant: str
    progress: float = Field(
        description="Share of the job's images that are done, 0 to 1; running ones count by their denoising steps."
    )
    eta_s: float | None = Field(description="As in the status; refreshed every 3 s.")
    eta_range_s: tuple[float, float] | None = Field(description="As in the status; refreshed every 3 s.")
    queue_position: int | None = Field(description="As in the status; refreshed every 3 s.")
    priority: int
    adapters: str = Field(
        description="Adapters, with ` + ` between them, whatever their multipliers are; `base` for none."
    )
    prompt: str | None = Field(
        description="The first prompt, cut to 120 characters; null if the job was canceled, or if another version "
        "stored it."
    )
    error: str | None = Field(description="Message of the first failure.")
    images: int = Field(description="Number of images of the request.")
    cancel_requested: bool
    width: int | None = Field(description="Width in the request, of the first prompt; null like `prompt`.")
    height: int | None
    running: list[RunningImage] = Field(
        description="Its images that are being rendered; of all jobs, a thousand at most."
    )


class FleetSummary(BaseModel):
    """The service in a line: images of the caller's tenant, and all slots."""

    slots: int = Field(description="Live slots of the whole service.")
    slot_states: dict[str, int] = Field(description="Number of them by state.")
    queued: int = Field(description="Images that wait for a worker.")
    running: int = Field(description="Images that are rendered or stored now.")
    images_last_minute: float = Field(description="`images_per_minute` of `GET /v1/queue`; refreshed every 3 s.")
    seconds_per_image: float | None = Field(
        description="Seconds in which the slots together finish an image while all of them work, from the times of "
        "recent images; null while unknown."
    )


class JobsSnapshot(BaseModel):
    """Data of `snapshot` in the stream of all jobs."""

    jobs: list[JobProgress] = Field(
        description="Unfinished jobs, 200 at most: those with running images, and the newest. And the 30 that ended "
        "last."
    )
    fleet: FleetSummary


class JobsChange(BaseModel):
    """Data of `change` in the stream of all jobs; a part that did not change is absent."""

    jobs: list[JobProgress] | None = Field(None, description="The jobs that changed or came, each of them whole.")
    removed: list[str] | None = Field(None, description="Ids of the jobs that are not shown any more.")
    fleet: FleetSummary | None = None


class Preview(BaseModel):
    """Data of `preview`: an image after some of its denoising steps."""

    request_id: str
    index: int = Field(description="Index of its prompt in the request.")
    step: int
    steps: int
    image: str = Field(description="A small WebP as a `data:` URL.")
