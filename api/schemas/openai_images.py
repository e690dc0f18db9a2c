"""The bodies of OpenAI's interface for images."""

from __future__ import annotations

from pydantic import BaseModel, Field

from shared.job import ImageFormat


class OpenAIImage(BaseModel):
    """One image; either `url` or `b64_json` is set."""

    url: str | None = Field(None, description="Presigned URL of the file; anyone who has it can fetch the image.")
    b64_json: str | None = Field(None, description="The file in base64.")
    revised_prompt: str | None = Field(None, description="The prompt with its trigger word filled in.")
    seed: int | None = Field(None, description="The seed of the noise. Not in OpenAI's interface.")


class OpenAIImages(BaseModel):
    """The images of a request."""

    created: int = Field(description="When the job was accepted, in seconds since the epoch.")
    data: list[OpenAIImage]
    output_format: ImageFormat
    size: str = Field(description="`WIDTHxHEIGHT` of the files in pixels.")
    request_id: str = Field(
        description="The job: `GET /v1/requests/{request_id}/result` has every parameter. Not in OpenAI's interface."
    )


class OpenAIFault(BaseModel):
    """What is wrong."""

    message: str
    type: str = Field(description="`invalid_request_error`, or `server_error` if the caller is not at fault.")
    param: str | None = Field(description="The field at fault.")
    code: str = Field(description="The `code` of this service's other endpoints.")


class OpenAIError(BaseModel):
    """An error in OpenAI's form."""

    error: OpenAIFault
