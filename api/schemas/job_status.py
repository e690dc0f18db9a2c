"""The bodies of a job's state: the answer to a poll, and the lines of the listing."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from shared.job import ItemError, Progress

JobStatus = Literal["in_queue", "in_progress", "succeeded", "failed", "canceled"]

#: What the listing filters by: the answer to a submit says `queued`, so people ask for it.
StatusFilter = Literal[JobStatus, "queued", "running"]


class ItemStatus(BaseModel):
    """The state of one image."""

    index: int = Field(description="Index of its prompt in the request.")
    status: JobStatus
    attempt: int = Field(
        description="Attempts so far, including a running one. An attempt that a stopping worker gave back does not "
        "count."
    )
    progress: Progress | None = Field(description="Null unless the image is being rendered.")
    error: ItemError | None = Field(
        description="Null unless the image failed, or its deadline canceled it: `DEADLINE_EXCEEDED`."
    )


class WebhookStatus(BaseModel):
    """Delivery of the messages to `webhook_url`."""

    state: Literal["waiting", "delivered", "failed", "skipped"] = Field(
        description="Of the message about the job's end. `waiting` until the job ends and between attempts; `failed` "
        "after the last attempt; `skipped` if `webhook_events` leaves it out."
    )
    attempts: int = Field(description="Attempts so far.")
    error: str = Field(description="Why the last attempt failed; empty if none did.")
    items_waiting: int = Field(0, description="Messages about images that have been neither delivered nor given up.")
    items_failed: int = Field(0, description="Messages about images that were given up.")
    items_error: str = Field("", description="Why an attempt to send a message about an image failed last.")


class Status(BaseModel):
    """The state of a job and of each of its images."""

    request_id: str
    status: JobStatus = Field(
        description="`in_progress` once an image has been started, also while its images wait to be started again; a "
        "status never goes back to `in_queue`, but that of an image does."
    )
    model: str
    cancel_requested: bool = Field(
        description="Whether a cancel was requested; a running image stops at its next step."
    )
    queue_position: int | None = Field(
        description="Estimated number of queued images that start before this job's next one, by priority and by the "
        "turns of the tenants; null when none of this job's images is queued."
    )
    eta_s: float | None = Field(
        description="Estimated seconds until the job's last image ends, from the times of recent images and the queue; "
        "null while unknown."
    )
    eta_range_s: tuple[float, float] | None = Field(
        None, description="A low and a high estimate of the same: four of five jobs end between them."
    )
    progress: float = Field(
        description="Share of the job's denoising steps that are done, 0 to 1. Steps of failed and canceled images do "
        "not count, so it ends at 1 only if every image succeeded."
    )
    items: list[ItemStatus] = Field(description="One entry for each prompt.")
    created_at: str = Field(description="When the job was accepted; RFC 3339 in UTC, like all times.")
    started_at: str | None = Field(description="When the first image started.")
    finished_at: str | None = Field(description="When the job ended.")
    deadline_at: str | None = Field(
        None, description="Time from which no image is started; null if the request has no `deadline_s`."
    )
    error: str | None = Field(
        description="Message of the first image with an error; each image has its own in `items`."
    )
    warnings: list[str] = Field(description="The warnings of the answer to the submit.")
    webhook: WebhookStatus | None = Field(None, description="Null if the request has no `webhook_url`.")
    sweep_id: str | None = Field(None, description="The sweep of which this is a job; null without one.")


class JobLine(BaseModel):
    """One job in the listing."""

    request_id: str
    status: JobStatus
    model: str
    items: dict[str, int] = Field(description="Number of images by state.")
    created_at: str
    started_at: str | None
    finished_at: str | None


class JobList(BaseModel):
    """One page of jobs, newest first."""

    data: list[JobLine] = Field(
        description="A page looks at 2,500 jobs. If few match, it is short or empty although `has_more` is true."
    )
    has_more: bool = Field(
        description="Whether older jobs follow. Read on until it is false, also after an empty page."
    )
    next_cursor: str | None = Field(description="Pass it as `cursor` to get the next page; null on the last page.")
