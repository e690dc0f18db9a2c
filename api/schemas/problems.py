"""The bodies of errors."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FieldProblem(BaseModel):
    """A field that the caller must change."""

    path: str = Field(description="Path in the request body, e.g. `prompts[0].width`.")
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(description="URN of the kind of problem: `urn:flux2:problem:` and the code in lower case.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong, for people.")
    code: str = Field(description="What is wrong, for programs; codes do not change between versions.")
    errors: list[FieldProblem] = Field([], description="The fields at fault.")
    images: list[str] = Field(
        [],
        description="With the code `REFERENCE_IMAGES_NEEDED` only: the config's names for the images to upload.",
        exclude_if=lambda images: not images,
    )
