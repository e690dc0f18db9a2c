"""Random reference images, and the time of preparing and encoding one."""

from __future__ import annotations

import io
from functools import cached_property
from hashlib import sha256

import numpy as np
from PIL import Image

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.report import Report
from shared.job import ReferenceRef
from shared.references import MAX_REFERENCES
from worker.model.components import Components
from worker.rendering.reference_encoder import ReferenceEncoder, References


class RandomReferences:
    """Reference images of random pixels for one model.

    Args:
        side: their width and height, in pixels.
    """

    def __init__(self, components: Components, side: int) -> None:
        self._components = components
        self._side = side
        self._encoded: dict[tuple[int, bool], References] = {}

    def get(self, count: int, *, files_only: bool) -> References:
        """Return the first `count` images, 1 or more, encoded unless the engine encodes the files itself."""
        key = count, files_only
        if key not in self._encoded:
            self._encoded[key] = self._encode(count, files_only=files_only)
        return self._encoded[key]

    def measure(self, report: Report, clock: Clock, *, repeat: int) -> None:
        """Report the median time of preparing and encoding one image."""
        clock.reset_peak()
        seconds = clock.median_s(lambda: self._encode(1, files_only=False), repeat)
        report.add("references: prepare and encode one", size=self._side, seconds=seconds, peak_gb=clock.peak_gb())

    def _encode(self, count: int, *, files_only: bool) -> References:
        encoder = ReferenceEncoder(self._components, load=self._files.__getitem__)
        refs = [ReferenceRef(slot=slot, sha256=hash_) for slot, hash_ in enumerate(self._files, start=1)]
        return encoder.encode(encoder.load(refs[:count], files_only=files_only))

    @cached_property
    def _files(self) -> dict[str, bytes]:
        files = [_random_image(seed, self._side) for seed in range(MAX_REFERENCES)]
        return {sha256(data).hexdigest(): data for data in files}


def _random_image(seed: int, side: int) -> bytes:
    """Return a file of random pixels."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
