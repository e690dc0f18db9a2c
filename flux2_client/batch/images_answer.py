"""The answers of `POST /v1/images/generations`, made of a job's result.

A call that waits for its images would get them from the API. A batch has more jobs under way than the API lets calls
wait, and its answers may be fetched a week later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from flux2_client.models import ImageInfo, Result


def images_body(result: Result[Any], files: Sequence[str] | None) -> dict[str, Any]:
    """Return the answer for a job that has succeeded.

    Args:
        files: the images in base64, in the order of their index; None for URLs.
    """
    images: Sequence[ImageInfo] = result.images
    first = images[0]
    return {
        "created": int(datetime.fromisoformat(result.created_at).timestamp()),
        "data": [
            {
                "url": image.url if files is None else None,
                "b64_json": None if files is None else files[place],
                "revised_prompt": image.prompt,
                "seed": image.seed,
            }
            for place, image in enumerate(images)
        ],
        "output_format": first.format,
        "size": f"{first.width}x{first.height}",
        "request_id": result.request_id,
    }


def refusal_body(code: str, message: str, *, kind: str) -> dict[str, Any]:
    """Return an error in OpenAI's form; `kind` is `invalid_request_error` or `server_error`."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
