"""The body that describes a caller."""

from __future__ import annotations

from pydantic import BaseModel, Field

from shared.keys.record import Role


class CallerLine(BaseModel):
    """Who a call came from, and what they may do."""

    tenant: str = Field(description="Owner of the jobs and uploads that the caller makes.")
    roles: list[Role] = Field(description="`admin` includes the others.")
    key_id: str | None = Field(description="Id of the API key; null for a caller without one.")
    is_anonymous: bool = Field(description="Whether the API needs no key, and the caller did not say who it is.")
