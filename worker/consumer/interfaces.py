"""What the consumer needs of a renderer; `worker.rendering.renderer` has the real one.

These protocols keep torch out of the consumer: `make chaos` runs it with a renderer that only sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from shared.job import AdapterReport, ItemSpec, PipelineReport, Progress


class Rendered(Protocol):
    """See `worker.rendering.renderer.Rendered`."""

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
        """Key of the adapters that are merged now, or being merged for the next item; see `ItemSpec.adapter_key`.

        Read from several threads.
        """

    @property
    def corrupted(self) -> int:
        """Count of restored parameters whose bits are not those that were loaded; anything but 0 is a defect."""

    def render(
        self, spec: ItemSpec, adapters: Sequence[Path], *, on_progress: Callable[[Progress], None]
    ) -> Rendered: ...

    def prepare(self, spec: ItemSpec, adapters: Sequence[Path]) -> None:
        """Prepare a coming item while another one renders; called from another thread."""
