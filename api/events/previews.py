"""Pass on the pictures of images that are being rendered, while somebody watches them."""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Final

from fastapi.sse import ServerSentEvent

from api.events.feed import event
from api.schemas.events import Preview
from shared.ledger.previews import WANTED_S, Previews

# Workers stop soon after the last request for pictures.
_ASK_EVERY_S: Final = WANTED_S / 3


class PreviewBoard:
    """The last picture of each running image that somebody watches."""

    def __init__(self, previews: Previews) -> None:
        self._previews = previews
        self._asked_s = float("-inf")
        # Step and event of each item's picture.
        self._pictures: dict[str, tuple[int, ServerSentEvent]] = {}

    def read(self, item_ids: Collection[str], *, now_s: float) -> set[str]:
        """Read the pictures of items and return those with a new one; raises `LedgerUnavailable`.

        Args:
            item_ids: all items whose pictures somebody watches; those of others are forgotten.
        """
        if now_s - self._asked_s >= _ASK_EVERY_S:
            self._previews.want()
            self._asked_s = now_s
        steps = self._previews.steps(sorted(item_ids))
        new = [item for item, step in steps.items() if item not in self._pictures or self._pictures[item][0] != step]
        found = self._previews.read(new)
        self._pictures = {item: known for item, known in self._pictures.items() if item in item_ids}
        for item_id, picture in found.items():
            job_id, _, index = item_id.rpartition(":")
            image = "data:image/webp;base64," + base64.b64encode(picture.image_webp).decode()
            body = Preview(
                request_id=job_id, index=int(index), step=picture.step, steps=picture.steps, image=image
            ).model_dump_json()
            self._pictures[item_id] = picture.step, event("preview", body)
        return set(found)

    def of(self, item_ids: Collection[str]) -> dict[str, ServerSentEvent]:
        """Return the last pictures of items; an item without one is absent."""
        return {item: self._pictures[item][1] for item in item_ids if item in self._pictures}
