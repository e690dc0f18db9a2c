"""The renderer's interface, as protocols; `worker.rendering.renderer` implements it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from shared.job import AdapterReport, ItemSpec, PipelineReport, Progress, ReferenceReport, TokenReport
from worker.step_previews import PreviewSink

# Protocols rather than classes keep torch out of the consumer: `make chaos` runs it with a renderer that only sleeps.


class RenderedImage(Protocol):
    """A finished image with its report; see `worker.rendering.attempt.RenderedImage`."""

    @property
    def image(self) -> Image.Image: ...
    @property
    def timings(self) -> Mapping[str, float]: ...
    @property
    def adapters(self) -> tuple[AdapterReport, ...]: ...
    @property
    def pipeline(self) -> PipelineReport: ...
    @property
    def tokens(self) -> TokenReport | None: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def references(self) -> tuple[ReferenceReport, ...]: ...


class ItemRenderer(Protocol):
    """Turns an item into an image: `worker.rendering.renderer.Renderer`."""

    @property
    def warm_key(self) -> str:
        """Key of the adapters that are merged now or being merged for the next item; any thread may read it."""

    @property
    def corrupted(self) -> int:
        """Number of restored parameters whose bits differ from the loaded ones; anything but 0 is a defect."""

    def render(
        self,
        spec: ItemSpec,
        adapters: Sequence[Path],
        *,
        on_progress: Callable[[Progress], None],
        previews: PreviewSink | None = None,
    ) -> RenderedImage: ...

    def prepare(self, spec: ItemSpec, adapters: Sequence[Path], *, between: Callable[[], None]) -> None:
        """Prepare the next item while another one renders; the prefetching thread calls this.

        Args:
            between: called between two parts of the work; an error that it raises ends it.
        """
