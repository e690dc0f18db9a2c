"""The body of `GET /v1/usage`."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import BaseModel, Field

#: What rows can be grouped by. These are the names of columns too.
Group = Literal["day", "tenant", "key", "model", "adapter"]


class UsageAmounts(BaseModel):
    """What was used."""

    images: int = Field(description="Images that were finished.")
    megapixel_steps: float = Field(
        description="Width, height and steps of these images multiplied, in sum, and divided by 1,000,000."
    )
    gpu_s: float = Field(
        description="Seconds for which the attempts that gave these images occupied their GPUs, adapter swaps "
        "included. Downloads, uploads and waiting do not count."
    )
    wasted_gpu_s: float = Field(
        description="Seconds of attempts that ended without an image: canceled, failed, or interrupted. They cost "
        "nothing."
    )
    cost: str | None = Field(
        None,
        description="`gpu_s`, `images` and `megapixel_steps` at the prices of today, in `currency`, as a decimal "
        "number; left out if the operator has set no price.",
        pattern=r"^[0-9]+\.[0-9]{6}$",
        exclude_if=lambda cost: cost is None,
    )


class UsageLine(UsageAmounts):
    """What one group used; columns that `group_by` does not name are left out."""

    day: date | None = Field(
        None, description="Day on which attempts ended, UTC.", exclude_if=lambda value: value is None
    )
    tenant: str | None = Field(None, description="Owner of the jobs.", exclude_if=lambda value: value is None)
    key: str | None = Field(
        None,
        description="Id of the API key that submitted the jobs; `none` for jobs that were submitted without one, and "
        "`other` for what has no row of its own.",
        exclude_if=lambda value: value is None,
    )
    model: str | None = Field(None, description="Id of the model.", exclude_if=lambda value: value is None)
    adapter: str | None = Field(
        None,
        description="Adapters of the images, with ` + ` between them, whatever their multipliers are. `base` for none; "
        "`other` for what has no row of its own, because a tenant used more than 1,000 combinations on that day.",
        exclude_if=lambda value: value is None,
    )


class UsageReport(BaseModel):
    """What was used in some days, by groups."""

    first_day: date = Field(description="First day, UTC.")
    last_day: date = Field(description="Last day, which is included.")
    group_by: list[Group] = Field(description="Columns of the rows.")
    currency: str | None = Field(
        None,
        description="Currency of `cost`; left out if the operator has set no price.",
        exclude_if=lambda currency: currency is None,
    )
    data: list[UsageLine] = Field(description="Groups that used something, in the order of their columns.")
    total: UsageAmounts = Field(description="The sum of all rows.")
