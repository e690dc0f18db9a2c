"""The fields by which descriptions of adapter files and results of images state an adapter's scale."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

ScaleRange = Annotated[
    tuple[float, float] | None,
    Field(
        description="Lowest and highest scale of the layers, usually alpha / rank, by which an update is multiplied in "
        "addition to the request's multiplier; null if unknown."
    ),
]
ScaleSources = Annotated[
    tuple[str, ...],
    Field(
        description="Where the scales were found: `tensor` (alpha tensors), an entry of the header, `none` (no "
        "alpha is stored, so 1) or `unused` (1 although an alpha is stored, because the update has no rank)."
    ),
]
