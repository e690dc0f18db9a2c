"""Small pictures of images that are being rendered, for whoever watches.

They are no part of a job: each one expires, none is written while nobody wants any, and losing them changes nothing.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.errors import LedgerUnavailable
from shared.ledger import keys
from shared.ledger.bulk_reads import read_each
from shared.ledger.session import Session

# A worker that dies leaves its last picture behind for this long.
_KEPT_S: Final = 60
#: Seconds for which one `want` lasts.
WANTED_S: Final = 30
# A worker may ask at each denoising step.
_ASKED_EVERY_S: Final = 2.0


@dataclass(frozen=True)
class Preview:
    """An image as it looks after some of its denoising steps; `image_webp` is a WebP file."""

    step: int
    steps: int
    image_webp: bytes


class Previews:
    """The previews in one Redis, by item id (`{job}:{index}`)."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._is_wanted = False
        self._asked_s = float("-inf")

    def want(self) -> None:
        """Ask all workers for previews, for the next 30 s; raises `LedgerUnavailable`."""
        with self._session.commands():
            self._session.redis.set(keys.PREVIEW_WANTED, "", ex=WANTED_S)

    def wanted(self) -> bool:
        """Return whether somebody wants previews, as of the last two seconds; False if Redis does not answer."""
        # One thread asks at a time; a second one would only read Redis twice.
        if time.monotonic() - self._asked_s >= _ASKED_EVERY_S:
            try:
                with self._session.commands():
                    self._is_wanted = bool(self._session.redis.exists(keys.PREVIEW_WANTED))
            except LedgerUnavailable:
                self._is_wanted = False
            # After the answer, so that a worker does not wait for an absent Redis at each step.
            self._asked_s = time.monotonic()
        return self._is_wanted

    def store(self, item_id: str, *, step: int, steps: int, image_webp: bytes) -> None:
        """Replace the preview of an item; raises `LedgerUnavailable`."""
        key = keys.preview(item_id)
        # As text, because the ledger's client decodes every reply.
        fields = {"step": step, "steps": steps, "image": base64.b64encode(image_webp).decode()}
        # In a transaction, so that no preview stays without an expiry.
        with self._session.commands(), self._session.redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=fields).expire(key, _KEPT_S)
            pipe.execute()

    def steps(self, item_ids: Sequence[str]) -> Mapping[str, int]:
        """Return the step of each item's preview, without the pictures; an item without a preview is absent."""
        with self._session.commands():
            found = read_each(self._session.redis, (("hget", keys.preview(item_id), "step") for item_id in item_ids))
        return {item_id: int(step) for item_id, step in zip(item_ids, found, strict=True) if step is not None}

    def read(self, item_ids: Sequence[str]) -> Mapping[str, Preview]:
        """Return the previews of items; an item without one is absent."""
        names = ["step", "steps", "image"]
        with self._session.commands():
            found = read_each(self._session.redis, (("hmget", keys.preview(item_id), names) for item_id in item_ids))
        return {
            item_id: Preview(int(step), int(steps), base64.b64decode(image))
            for item_id, (step, steps, image) in zip(item_ids, found, strict=True)
            if image is not None
        }
