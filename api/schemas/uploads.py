"""The bodies that describe uploaded adapter files and reference images."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from shared.job import AdapterPart

_DIGEST = "5af74d065dae09b5fff3d3acc48390012d66422bedefccb56f0825cb7dec6062"


class UploadedAdapter(BaseModel):
    """A file that was stored, as its header describes it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "robot",
                "path": f"upload:robot@{_DIGEST}",
                "sha256": _DIGEST,
                "size_bytes": 390412016,
                "uploaded_at": "2026-03-01T12:00:00.000Z",
                "kind": "lora",
                "ranks": [16],
                "layers": 112,
                "must_ignore": [],
            }
        }
    )

    name: str
    path: str = Field(description="Use it as `loras[].path`.")
    sha256: str = Field(description="SHA-256 of the bytes that arrived.")
    size_bytes: int
    uploaded_at: str = Field(description="When the file was stored; RFC 3339, UTC.")
    kind: str = Field(description="E.g. `lora`, `lokr` or `diff`.")
    ranks: list[int] = Field(description="Distinct ranks, ascending.")
    layers: int = Field(description="Layers that the adapter updates.")
    must_ignore: list[AdapterPart] = Field(
        description="Parts that a job must name in `loras[].ignore` to use the file, which is refused otherwise."
    )


class UploadedImage(BaseModel):
    """A reference image that was stored."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "path": f"upload:{_DIGEST}",
                "sha256": _DIGEST,
                "size_bytes": 812345,
                "width": 1400,
                "height": 900,
                "effective_width": 1264,
                "effective_height": 816,
                "warnings": [],
            }
        }
    )

    path: str = Field(description="Use it as `prompts[].ctrl_img`, `ctrl_img_2` or `ctrl_img_3`.")
    sha256: str = Field(description="SHA-256 of the bytes that arrived.")
    size_bytes: int
    width: int = Field(description="Width of the file in pixels.")
    height: int = Field(description="Height of the file in pixels.")
    effective_width: int = Field(
        description="Width that the model gets: above 1,048,576 pixels the image is scaled down, and both sides are "
        "cropped to multiples of 16."
    )
    effective_height: int = Field(description="Height that the model gets.")
    warnings: list[str] = Field(description="What may surprise, such as a rotation that previews do not apply.")


class DeletedUploads(BaseModel):
    """The files that a call deleted."""

    model_config = ConfigDict(json_schema_extra={"example": {"deleted": [f"upload:robot@{_DIGEST}"]}})

    deleted: list[str] = Field(description="Paths that no job can name any more.")
