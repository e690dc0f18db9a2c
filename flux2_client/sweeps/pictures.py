"""Open many image files, scaled down, on several processors."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from PIL import Image

from shared.errors import OutputRefused

T = TypeVar("T")


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


def map_pictures(paths: Iterable[Path], side_px: int, use: Callable[[Image.Image], T]) -> Iterator[T]:
    """Yield what `use` makes of each picture, in the order of the files; see `open_scaled`. Few are in memory."""
    # Pillow decodes, scales and encodes without Python's lock.
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
        waiting: deque[Future[T]] = deque()
        for path in paths:
            waiting.append(pool.submit(lambda path=path: use(open_scaled(path, side_px))))  # type: ignore[misc]
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
