"""Open many image files, scaled down, on several processors."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from shared.errors import OutputRefused


def open_scaled(path: Path, side_px: int) -> Image.Image:
    """Return the picture of a file, RGB, no side longer than `side_px`.

    Raises:
        OutputRefused: the file is gone, or is no image any more.
    """
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (side_px, side_px))
            picture = opened.convert("RGB")
    except OSError as error:
        raise OutputRefused(f"{path} cannot be read: {error}; remove it, and run the command again") from error
    picture.thumbnail((side_px, side_px))
    return picture


def open_all_scaled(paths: Iterable[Path], side_px: int) -> Iterator[Image.Image]:
    """Yield the pictures of files in their order; see `open_scaled`. Only a few of them are in memory."""
    # Pillow decodes and scales without Python's lock.
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        waiting: deque[Future[Image.Image]] = deque()
        for path in paths:
            waiting.append(pool.submit(open_scaled, path, side_px))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
