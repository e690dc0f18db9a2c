"""The bodies of `GET /v1/slots` and `GET /v1/queue`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from shared.job import Engine, Feature


class SlotItem(BaseModel):
    """The image that a slot renders, or stores if it renders none."""

    request_id: str
    index: int = Field(description="Position of its prompt in the request.")
    tenant: str
    adapters: str = Field(
        description="Adapters of its request, with ` + ` between them, whatever their multipliers are; `base` for none."
    )
    attempt: int
    stage: str | None = Field(
        description="`fetch`, `encode`, `adapter`, `denoise`, `decode` or `upload`; null before the first report."
    )
    step: int = Field(description="Denoising steps done.")
    steps: int | None = Field(description="Denoising steps in all; null before the first report.")
    started_at: str = Field(description="RFC 3339 in UTC.")


class SlotLine(BaseModel):
    """One live slot: a worker process on its GPU."""

    name: str
    model: str
    state: str = Field(
        description="`ready`, `busy`, `draining`, or `faulty` if its device keeps failing. Later versions may add more."
    )
    device: str
    precision: str = Field(description="As in `pipeline.precision` of its images.")
    engines: list[Engine]
    features: list[Feature] = Field(description="What it can do beyond its engines.")
    memory_bytes: int | None = Field(description="Memory of its device; null for a CPU, or if it reports none.")
    gpu_memory_used_bytes: int | None = Field(
        description="Memory of its GPU that is in use, by all processes; null for a CPU, and until the first sample."
    )
    gpu_utilization: float | None = Field(
        description="Part of the last second or so in which its GPU ran a kernel, 0 to 1; null if the driver does not "
        "say."
    )
    corrupted: int = Field(description="Base parameters that differ from the checkpoint; anything but 0 is a defect.")
    adapters: str | None = Field(
        description="Adapters that it has merged, named like those of `item`. Null if they are unknown, or if they are "
        "not those of an image of the caller's tenant there."
    )
    item: SlotItem | None = Field(description="Null if it has none, or one of another tenant.")


class SlotList(BaseModel):
    """One page of the live slots, in the order of their names."""

    data: list[SlotLine]
    has_more: bool = Field(
        description="Whether other slots follow. Read on until it is false, also after a short page."
    )
    next_cursor: str | None = Field(description="Pass it as `cursor` to get the next page; null on the last page.")


class QueueLine(BaseModel):
    """The images of one tenant with the same adapters, model and engine."""

    tenant: str
    model: str
    engine: Engine
    adapters: str | None = Field(
        description="Adapters, with ` + ` between them, whatever their multipliers are; `base` for none. Null in the "
        "line that sums up the other images of the tenant: of the oldest 500 combinations that wait, and of 1,000 "
        "running images, the adapters are known."
    )
    queued: int
    running: int


class QueueReport(BaseModel):
    """How many images wait and run."""

    queued: int = Field(description="Images that wait for a worker; all of them, whatever `data` leaves out.")
    running: int = Field(description="Images that are rendered or stored now.")
    images_per_minute: float = Field(description="Images that were finished in the last minute.")
    slots: int = Field(description="Live slots of the whole service.")
    slot_states: dict[str, int] = Field(description="Number of them by state.")
    data: list[QueueLine] = Field(description="Lines with most queued images first.")
