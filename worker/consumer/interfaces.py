"""Protocols of the renderer that the consumer calls; `worker.rendering.renderer` has the real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from shared.job import AdapterReport, ItemSpec, PipelineReport, Progress

# Protocols rather than classes keep torch out of the consumer: `make chaos` runs it with a renderer that only sleeps.


class Rendered(Protocol):
    """A finished image with its report; see `worker.rendering.attempt.Rendered`."""

    @property
    def image(self) -> Image.Image: ...
    @property
    def timings(self) -> Mapping[str, float]: ...
    @property
    def adapters(self) -> tuple[AdapterReport, ...]: ...
    @property
    def pipeline(self) -> PipelineReport: ...


class ItemRenderer(Protocol):
    """Turns an item into an image: `worker.rendering.renderer.Renderer`."""

    @property
    def warm_key(self) -> str:
        """Key of the adapters merged now, or being merged for the next item; may be read from any thread."""

    @property
    def corrupted(self) -> int:
        """Count of restored parameters whose bits are not those that were loaded; anything but 0 is a defect."""

    def render(
        self, spec: ItemSpec, adapters: Sequence[Path], *, on_progress: Callable[[Progress], None]
    ) -> Rendered: ...

    def prepare(self, spec: ItemSpec, adapters: Sequence[Path]) -> None:
        """Prepare a coming item while another one renders; called from another thread."""
