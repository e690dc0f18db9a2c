"""Log how far a download from the hub is; the hub's own progress bars are for terminals only."""

from __future__ import annotations

import logging
import time
from typing import Any

from huggingface_hub.utils.tqdm import tqdm

logger = logging.getLogger("flux2.worker.checkpoint")

_EVERY_S = 5.0


class DownloadLog(tqdm):
    """A progress bar of the hub's library that draws nothing and logs a line every 5 s."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._logged_s = time.monotonic()
        super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]
        # A disabled bar keeps neither of them.
        self.desc = str(options.get("desc")).rpartition("/")[2]  # the file's name or URL, cut at its start
        self.total = options.get("total")
        self._counts_bytes = options.get("unit") == "B"

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more, and log the state if the last line is old enough."""
        self.n += n or 0
        now_s = time.monotonic()
        if self._counts_bytes and now_s - self._logged_s >= _EVERY_S:
            self._logged_s = now_s
            logger.info("downloading", extra={"file": self.desc, "done_gb": _gb(self.n), "total_gb": _gb(self.total)})
        return None


def _gb(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / 1e9, 2)
