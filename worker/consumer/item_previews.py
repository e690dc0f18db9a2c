"""Send small pictures of an image that is being rendered, while somebody watches.

The thread that renders makes them, and the thread that renews the item's lease sends them, so that neither Redis nor an
encoder delays a step.
"""

from __future__ import annotations

import io
import logging
import threading
from dataclasses import dataclass
from typing import Final

from shared.ledger import Claim
from shared.ledger.previews import Previews
from worker.step_previews import StepPreview

logger = logging.getLogger("flux2.worker.consumer")

# An image of few steps has a preview after each third of them: step-distilled models take 4 to 8.
_SHARES: Final = 3


@dataclass(frozen=True)
class _Offer:
    preview: StepPreview
    step: int
    steps: int


class ItemPreviews:
    """The `PreviewSink` of one claim.

    Args:
        every: most denoising steps from one preview to the next; 0 for none.
    """

    def __init__(self, previews: Previews, claim: Claim, *, every: int) -> None:
        self._previews = previews
        self._claim = claim
        self._every = every
        self._is_wanted = False
        # Guards the offer, which one thread makes and another one takes.
        self._lock = threading.Lock()
        self._offer: _Offer | None = None

    def is_due(self, step: int, steps: int) -> bool:
        """See `PreviewSink.is_due`; the last step has none, because the image follows."""
        return self._is_wanted and step < steps and step % min(self._every, max(1, steps // _SHARES)) == 0

    def offer(self, preview: StepPreview, *, step: int, steps: int) -> None:
        with self._lock:
            self._offer = _Offer(preview, step, steps)

    def send(self) -> None:
        """Send the preview that is waiting, if it is ready, and ask whether more are wanted; never raises an error."""
        if not self._every:
            return
        try:
            self._is_wanted = self._previews.wanted()
            offer = self._take()
            if offer is not None and self._is_wanted:
                data = _webp(offer.preview)
                self._previews.store(self._claim.item_id, step=offer.step, steps=offer.steps, image_webp=data)
        except Exception as error:  # noqa: BLE001 - an error would cost the lease, for a preview
            logger.info("preview not sent", extra={"item": self._claim.item_id, "error": str(error)})

    def _take(self) -> _Offer | None:
        with self._lock:
            offer = self._offer
            if offer is None or not offer.preview.is_ready:
                return None
            self._offer = None
            return offer


def _webp(preview: StepPreview) -> bytes:
    file = io.BytesIO()
    preview.image().save(file, "WEBP", quality=70)
    return file.getvalue()
